"""A GGUF file through the reader of the `gguf` package, held against the model folder that it was made from.

    python read.py FILE.gguf MODEL_DIR

Prints what it found as JSON; any difference is an error.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader

PARTS = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def stored_tensors(path):
    """Of a .safetensors file, by a reader of a few lines: F32 and F16 only."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    kinds = {"F32": np.float32, "F16": np.float16}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[start:end], kinds[entry["dtype"]]).reshape(entry["shape"])
            yield name.removeprefix("transformer."), values.astype(np.float32)


def stored_name(name):
    """Hugging Face's name of llama.cpp's tensor."""
    plain = {"token_embd.weight": "wte.weight", "position_embd.weight": "wpe.weight"}
    if name in plain:
        return plain[name]
    if name.startswith("output_norm."):
        return name.replace("output_norm", "ln_f")
    _, layer, part, kind = name.split(".")
    return f"h.{layer}.{PARTS[part]}.{kind}"


def main():
    file, folder = map(Path, sys.argv[1:])
    reader = GGUFReader(file)
    stored = dict(stored_tensors(folder / "model.safetensors"))
    wanted = {name for name in stored if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    for tensor in reader.tensors:
        assert tensor.tensor_type == GGMLQuantizationType.F32, tensor.name
        name = stored_name(tensor.name)
        wanted.remove(name)
        expected = stored[name]
        if name.split(".")[-2].startswith("c_") and expected.ndim == 2:
            expected = expected.T
        np.testing.assert_array_equal(np.asarray(tensor.data), expected, err_msg=name)
    assert not wanted, f"left out: {sorted(wanted)}"

    value = lambda key: reader.get_field(key).contents() if reader.get_field(key) else None
    tokens = value("tokenizer.ggml.tokens")
    if tokens is not None:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        assert {text: id for id, text in enumerate(tokens)} == vocabulary
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        assert value("tokenizer.ggml.merges") == lines
    keys = [key for key in reader.fields if not key.startswith("tokenizer.ggml.") or "_id" in key or "pre" in key]
    shown = {key: value(key) for key in keys if not key.startswith("GGUF.")}
    shown |= {
        "tokenizer.ggml.model": value("tokenizer.ggml.model"),
        "tensors": len(reader.tensors),
        "tokens": tokens and len(tokens),
        "control": [id for id, kind in enumerate(value("tokenizer.ggml.token_type") or []) if kind == 3],
    }
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
