"""Record what Hugging Face's GPT-2 computes on a model: every point of every layer.

    python golden.py MODEL_DIR SUITE_TOML OUT_DIR

OUT_DIR gets two bundles, hf-f32/ and hf-f64/; golden/nano/README.md tells their form.
The hooks here are written apart from those of adapters/python/hf, on purpose: neither
can hide a mistake of the other.
"""

import argparse
import datetime
import hashlib
import json
import platform
import tomllib
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from transformers import (DynamicCache, GPT2LMHeadModel, TemperatureLogitsWarper, TopKLogitsWarper,
                          TopPLogitsWarper)

# Rows that are kept of tensors with more than MOST_ROWS tokens: the ends, and both sides
# of the sizes that kernels work in.
MOST_ROWS = 16
ROWS = (0, 1, 15, 16, 63, 64, -2, -1)

# case -> steps at which its largest points are kept (all others are kept at every step)
LAST_LOGITS = {"f32": {"hello": (0, 1, 9), "one": (0, 2), "long": (0, 2), "unicode": (0, 2), "sampled": (0, 2)},
               "f64": {"hello": (0, 9)}}
NEXT_PROBS = {"f32": {"hello": (0, 9), "sampled": (0, 1, 2)}, "f64": {"hello": (0,)}}
# case -> rows of `logits` at the prefill, besides the last
LOGITS_ROWS = {"f32": {"hello": (0,), "long": (0, 63), "unicode": (20,)}, "f64": {"hello": (0,)}}
# steps at which the points of the layers are kept; None: all
LAYER_STEPS = {"f32": None, "f64": (0, 1, 9)}


@contextmanager
def captured(model, points):
    """Fills `points` during one forward pass. Every tensor loses its batch axis."""
    handles = []
    keep = lambda name, tensor: points.__setitem__(name, tensor.detach()[0].clone())
    softmax = torch.nn.functional.softmax
    scores = []

    def seen_softmax(x, *args, **kwargs):
        if x.ndim == 4:
            scores.append(x)
        return softmax(x, *args, **kwargs)

    def output(module, name, pick=lambda o: o):
        handles.append(module.register_forward_hook(lambda _m, _i, out: keep(name, pick(out))))

    def given(module, name):
        handles.append(module.register_forward_pre_hook(lambda _m, inputs: keep(name, inputs[0])))

    def qkv(attention, i):
        def hook(_m, _i, out):
            heads = attention.num_heads
            for name, part in zip("qkv", out.chunk(3, dim=-1)):
                b, t, e = part.shape
                keep(f"h.{i}.attn.{name}", part.view(b, t, heads, e // heads).transpose(1, 2))
        handles.append(attention.c_attn.register_forward_hook(hook))

    body = model.transformer
    output(body.drop, "embeddings")
    for i, block in enumerate(body.h):
        output(block.ln_1, f"h.{i}.ln_1")
        qkv(block.attn, i)
        output(block.attn, f"h.{i}.attn.probs", lambda out: out[1])
        given(block.attn.c_proj, f"h.{i}.attn.context")
        output(block.attn.c_proj, f"h.{i}.attn.out")
        given(block.ln_2, f"h.{i}.resid_mid")
        output(block.ln_2, f"h.{i}.ln_2")
        output(block.mlp.c_fc, f"h.{i}.mlp.fc")
        output(block.mlp.act, f"h.{i}.mlp.act")
        output(block.mlp, f"h.{i}.mlp.out")
        output(block, f"h.{i}", lambda out: out[0] if isinstance(out, tuple) else out)
    output(body.ln_f, "ln_f")
    output(model.lm_head, "logits")
    torch.nn.functional.softmax = seen_softmax
    try:
        yield
    finally:
        torch.nn.functional.softmax = softmax
        for handle in handles:
            handle.remove()
    if len(scores) != len(body.h):
        raise RuntimeError(f"expected one softmax a layer, saw {len(scores)}")
    for i, x in enumerate(scores):
        keep(f"h.{i}.attn.scores", x)


def probabilities(logits, sampling):
    """Softmax after temperature, top-k and top-p, as upstream's generate() does it, but summed
    in float64: torch's f32 softmax over 50,257 classes is off by up to 1e-5 of the total."""
    scores = logits[None]
    if sampling["temperature"] > 0:
        scores = TemperatureLogitsWarper(sampling["temperature"])(None, scores)
        if sampling["top_k"]:
            scores = TopKLogitsWarper(sampling["top_k"])(None, scores)
        if sampling["top_p"] < 1:
            scores = TopPLogitsWarper(sampling["top_p"])(None, scores)
    return torch.softmax(scores, dim=-1, dtype=torch.float64)[0].to(scores.dtype)


@torch.no_grad()
def run(model, case, forced):
    """One case: for each step all its points, and the ids that came out (greedy, or `forced`)."""
    cache = DynamicCache(config=model.config)
    ids, steps, generated, margins = case["ids"], [], [], []
    for step in range(case["max_new_tokens"]):
        points = {}
        with captured(model, points):
            model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
        for i, layer in enumerate(cache.layers):
            points[f"h.{i}.attn.cache.k"] = layer.keys[0].clone()
            points[f"h.{i}.attn.cache.v"] = layer.values[0].clone()
        last = points["logits"][-1]
        best = last.topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        points |= {"tokens": torch.tensor(ids), "logits.last": last, "argmax": best.indices[0],
                   "next.probs": probabilities(last, case["sampling"])}
        steps.append({name: value.numpy() for name, value in points.items()})
        token = int(best.indices[0]) if forced is None else forced[step]
        generated.append(token)
        ids = [token]
    return steps, generated, margins


def rows_of(point, value, wanted):
    """A tensor's rows along its token axis, under a name that tells which."""
    axis = 1 if ".attn." in point and value.ndim == 3 else 0
    n = value.shape[axis]
    rows = sorted({r if r >= 0 else n + r for r in wanted if -n <= r < n})
    return f"{point}#rows={','.join(map(str, rows))}", np.take(value, rows, axis=axis)


def selected(precision, case, step, points):
    """What is kept of one step, in the order of the keys."""
    for point, value in points.items():
        if point == "logits":
            if step == 0 and case in LOGITS_ROWS[precision]:
                yield rows_of(point, value, LOGITS_ROWS[precision][case])
        elif point in ("logits.last", "next.probs"):
            kept = (LAST_LOGITS if point == "logits.last" else NEXT_PROBS)[precision]
            if step in kept.get(case, ()):
                yield point, value
        elif point in ("tokens", "argmax"):
            yield point, value
        elif LAYER_STEPS[precision] is None or step in LAYER_STEPS[precision]:
            axis = 1 if ".attn." in point and value.ndim == 3 else 0
            yield (point, value) if value.shape[axis] <= MOST_ROWS else rows_of(point, value, ROWS)


def write_bundle(folder, tensors, manifest):
    """tensors.safetensors first, manifest.json last, by rename."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    arrays = {f"{case}/{step}/{point}": np.ascontiguousarray(value) if value.ndim else value
              for case, step, point, value in tensors}
    save_file(arrays, folder / "tensors.safetensors")
    entries = [{"case": case, "step": step, "point": point, "dtype": {"float32": "f32", "float64": "f64", "int64": "i64"}[str(value.dtype)],
                "shape": list(value.shape), "sha256": hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}
               for case, step, point, value in tensors]
    manifest = {"schema": "llorch.bundle/1", **manifest,
                "sha256": hashlib.sha256((folder / "tensors.safetensors").read_bytes()).hexdigest(), "tensors": entries}
    part = folder / "manifest.part"
    # a line an entry: readable, and a difference shows as one
    listed = ",\n".join("  " + json.dumps(e) for e in manifest.pop("tensors"))
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    part.write_text(text[:-2] + ',\n "tensors": [\n' + listed + "\n ]\n}\n", encoding="utf-8")
    part.rename(folder / "manifest.json")


def read_suite(path):
    cases = []
    for case in tomllib.loads(path.read_text(encoding="utf-8"))["case"]:
        sampling = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0} | case.get("sampling", {})
        cases.append(case | {"sampling": sampling})
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("suite", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = read_suite(args.suite)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    files = {name: hashlib.sha256((args.model / name).read_bytes()).hexdigest()
             for name in ("config.json", "model.safetensors", "tokenizer.json")}
    model = GPT2LMHeadModel.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").eval()

    greedy = {}
    for precision in ("f32", "f64"):
        if precision == "f64":
            model.double()
        tensors, records, margins = [], {}, {}
        for case in cases:
            name = case["name"]
            # every precision is fed the same tokens, those of f32
            steps, generated, step_margins = run(model, case, greedy.get(name))
            if precision == "f64":
                own = [int(s["argmax"]) for s in steps]
                if own != greedy[name]:
                    raise RuntimeError(f"{name}: f64 chooses {own}, f32 {greedy[name]}")
            greedy[name] = generated
            if name not in LAST_LOGITS[precision]:
                continue
            for step, points in enumerate(steps):
                tensors += [(name, step, point, value) for point, value in selected(precision, name, step, points)]
            records[name] = {"ids": case["ids"], "generated": generated, "text": tokenizer.decode(generated)}
            margins[name] = {"prompt": case["prompt"], "sampling": case["sampling"], "smallest_margin": min(step_margins)}
        write_bundle(args.out / f"hf-{precision}", tensors, {
            "implementation": "hf" if precision == "f32" else "hf:f64",
            "hello": None,
            "model": {"name": "nano", "files": files},
            "cases": records,
            "provenance": {
                "by": f"transformers {version('transformers')}, torch {version('torch')}, attn_implementation eager, "
                      f"{precision}, 1 thread, CPython {platform.python_version()}, {platform.machine()}",
                "command": "python refs/nano/golden.py golden/models/nano golden/suites/canonical.toml golden/nano",
                "date": datetime.date.today().isoformat(),
                "cases": margins,
            },
        })
        print(precision, len(tensors), "tensors", (args.out / f"hf-{precision}/tensors.safetensors").stat().st_size, "bytes")
        for name, record in records.items():
            print(" ", name, record["generated"], repr(record["text"]), margins[name]["smallest_margin"])


if __name__ == "__main__":
    main()
