"""A model folder: `config.json` and one `model.safetensors`, in the layout of Hugging Face."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import InputError, UnsupportedError
from .points import Dims
from .tensors import SafetensorsFile


@dataclass(frozen=True)
class Config:
    """What of config.json changes the mathematics; upstream's defaults where a key is absent."""

    dims: Dims
    layer_norm_epsilon: float
    tie_word_embeddings: bool


def read_json(path):
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"failed to read {path}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"failed to read {path}: expected an object, found {type(values).__name__}")
    return values


def read_dims(folder):
    """The sizes in a folder's config.json."""
    path = Path(folder) / "config.json"
    values = read_json(path)

    def size(key, default):
        value = values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"failed to read {path}: `{key}` is {value!r}, expected a positive integer")
        return value

    width, heads = size("n_embd", 768), size("n_head", 12)
    if width % heads:
        raise InputError(f"failed to read {path}: n_embd {width} isn't a multiple of n_head {heads}")
    inner = size("n_inner", 4 * width) if values.get("n_inner") is not None else 4 * width
    return Dims(
        n_layer=size("n_layer", 12),
        n_head=heads,
        n_embd=width,
        n_inner=inner,
        vocab_size=size("vocab_size", 50257),
        n_positions=size("n_positions", 1024),
    )


def read_config(folder):
    """config.json for a graph that is written here, which knows plain GPT-2 only.

    Whatever asks for other mathematics is refused by name rather than ignored.
    """
    path = Path(folder) / "config.json"
    values = read_json(path)
    plain = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    for key, allowed in plain.items():
        value = values.get(key, allowed[0])
        if value not in allowed:
            raise UnsupportedError(f"{path}: `{key}` is {value!r}; this adapter knows {allowed[0]!r}")
    epsilon = values.get("layer_norm_epsilon", 1e-5)
    if not isinstance(epsilon, (int, float)) or not 0 < epsilon < 1:
        raise InputError(f"failed to read {path}: `layer_norm_epsilon` is {epsilon!r}")
    return Config(read_dims(folder), float(epsilon), bool(values.get("tie_word_embeddings", True)))


def open_weights(folder, config):
    """The folder's tensors, and the stored name of each that the model needs.

    Names lose the `transformer.` prefix; `lm_head.weight` is among them if it isn't tied.
    Every shape is checked.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise InputError(f"failed to load {folder}: it has no model.safetensors")
    file = SafetensorsFile(path)
    stored = {key.removeprefix("transformer."): key for key in file.keys()}
    shapes = weight_shapes(config.dims)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = shapes["wte.weight"]
    for name, shape in shapes.items():
        if name not in stored:
            raise InputError(f"failed to load {path}: no tensor `{name}`")
        found = file.shape(stored[name])
        if found != shape:
            raise InputError(f"failed to load {path}: `{name}` is {list(found)}, expected {list(shape)}")
    return file, {name: stored[name] for name in shapes}


def read_weights(folder, config, dtype=np.float32):
    """Every tensor of the model; the head is `lm_head.weight`, [V, E], tied or not."""
    file, stored = open_weights(folder, config)
    weights = {name: file.read(key).astype(dtype) for name, key in stored.items()}
    weights.setdefault("lm_head.weight", weights["wte.weight"])
    return weights


def weight_shapes(dims):
    """Name and shape of each tensor. Conv1D weights are [in, out]."""
    e, f = dims.n_embd, dims.n_inner
    shapes = {"wte.weight": (dims.vocab_size, e), "wpe.weight": (dims.n_positions, e)}
    for i in range(dims.n_layer):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{norm}.weight": (e,), f"h.{i}.{norm}.bias": (e,)}
        for linear, size in (
            ("attn.c_attn", (e, 3 * e)),
            ("attn.c_proj", (e, e)),
            ("mlp.c_fc", (e, f)),
            ("mlp.c_proj", (f, e)),
        ):
            shapes |= {f"h.{i}.{linear}.weight": size, f"h.{i}.{linear}.bias": (size[1],)}
    return shapes | {"ln_f.weight": (e,), "ln_f.bias": (e,)}
