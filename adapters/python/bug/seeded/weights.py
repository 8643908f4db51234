"""Weights that are read wrongly: layout, layer, bias, single elements."""

import numpy as np

from llorch_adapter.errors import InputError

from .numbers import round_to
from .registry import bug, choose, element, override, replace

_LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_NORMS = ("ln_1", "ln_2")
_THIRDS = ("q", "k", "v")


def columns(model, which):
    """The tensor stem that `which` names within a layer, and its columns: q, k and v are thirds of c_attn."""
    if which in _THIRDS:
        width = model.dims.n_embd
        third = _THIRDS.index(which)
        return "attn.c_attn", slice(third * width, (third + 1) * width)
    if which not in (*_LINEAR, *_NORMS):
        raise InputError(f"`which` is {which!r}, expected one of {', '.join((*_LINEAR, *_THIRDS, *_NORMS))}")
    return which, slice(None)


def tensors(model, o, part):
    """Names and columns of what `which` means in the layers that `layer` means; ln_f is in none."""
    if o.which == "ln_f":
        return [(f"ln_f.{part}", slice(None))]
    stem, where = columns(model, o.which)
    return [(f"h.{i}.{stem}.{part}", where) for i in o.layers(model)]


@bug(which="attn.c_proj")
def transposed(model, o):
    """a square weight is read [out, in], so no shape complains; which is attn.c_proj, q, k or v"""
    choose(o, "which", "attn.c_proj", *_THIRDS)
    for name, where in tensors(model, o, "weight"):

        def transpose(tensor):
            tensor[:, where] = tensor[:, where].T.copy()

        replace(model, name, transpose)


@bug(other=0, which="attn.c_proj", part="both")
def other_layer(model, o):
    """a tensor is another layer's; part is weight, bias or both"""
    stem, where = columns(model, o.which)
    parts = ("weight", "bias") if choose(o, "part", "weight", "bias", "both") == "both" else (o.part,)
    for part in parts:
        source = model.weights[f"h.{o.other}.{stem}.{part}"]
        for i in o.layers(model):

            def copy(tensor):
                tensor[..., where] = source[..., where]

            replace(model, f"h.{i}.{stem}.{part}", copy)


@bug(which="attn.c_attn")
def dropped_bias(model, o):
    """a bias is left out: of a linear layer, of q, k or v alone, or of ln_1, ln_2, ln_f"""
    for name, where in tensors(model, o, "bias"):

        def drop(tensor):
            tensor[where] = 0

        replace(model, name, drop)


@bug(which="attn.c_attn", index=-1)
def dropped_bias_element(model, o):
    """one element of a bias is left out; index -1 is the largest"""
    for name, where in tensors(model, o, "bias"):

        def drop(tensor):
            part = tensor[where]
            part[element(part, o.index, name)] = 0

        replace(model, name, drop)


@bug(which="ln_1")
def dropped_gain(model, o):
    """a layer norm's gain is left out; which is ln_1, ln_2 or ln_f"""
    choose(o, "which", *_NORMS, "ln_f")
    for name, _ in tensors(model, o, "weight"):
        replace(model, name, np.ones_like)


@bug(which="mlp.c_fc", index=-1)
def zeroed_weight(model, o):
    """one element of a weight is zero; index counts through the tensor, -1 is the largest"""
    for name, where in tensors(model, o, "weight"):

        def zero(tensor):
            part = tensor[..., where]
            at = np.unravel_index(element(part, o.index, name), part.shape)
            part[at] = 0

        replace(model, name, zero)


@bug(which="mlp.c_fc", to="bf16", part="weight")
def stored(model, o):
    """a tensor is stored in f16 or bf16; part is weight or bias"""
    choose(o, "to", "f16", "bf16")
    for name, where in tensors(model, o, choose(o, "part", "weight", "bias")):

        def store(tensor):
            tensor[..., where] = round_to(tensor[..., where], o.to)

        replace(model, name, store)


@bug()
def swapped_norms(model, o):
    """ln_1 and ln_2 have each other's gain and bias"""
    for i in o.layers(model):
        for part in ("weight", "bias"):
            first, second = f"h.{i}.ln_1.{part}", f"h.{i}.ln_2.{part}"
            model.weights[first], model.weights[second] = model.weights[second], model.weights[first]


@bug(which="mlp.c_fc", times=2.0)
def scaled_bias(model, o):
    """a bias is added `times` times"""
    for name, where in tensors(model, o, "bias"):

        def scale(tensor):
            tensor[where] *= tensor.dtype.type(o.times)

        replace(model, name, scale)


@bug(by_layer=False, row=0, other=1)
def head_row(model, o):
    """the row of one token in the lm head is another token's; the embeddings keep theirs"""
    _rows(model, o)

    def copy(tensor):
        tensor[o.row] = tensor[o.other]

    replace(model, "lm_head.weight", copy)


@bug(by_layer=False, row=0, index=-1)
def zeroed_head_weight(model, o):
    """one element of one row of the lm head is zero; index -1 is the largest"""

    def zero(tensor):
        tensor[o.row, element(tensor[o.row], o.index, "lm_head.weight")] = 0

    replace(model, "lm_head.weight", zero)


@bug(by_layer=False, to="bf16")
def stored_head(model, o):
    """the lm head's weights are stored in f16 or bf16, the embeddings aren't"""
    choose(o, "to", "f16", "bf16")
    replace(model, "lm_head.weight", lambda tensor: round_to(tensor, o.to))


@bug(by_layer=False)
def head_bias(model, o):
    """the lm head adds ln_f's bias a second time"""

    @override(model, "head")
    def _(original, x):
        return original(x + model.weights["ln_f.bias"])


def _rows(model, o):
    for option in ("row", "other"):
        if not 0 <= getattr(o, option) < model.dims.vocab_size:
            raise InputError(f"`{option}` is {getattr(o, option)}, outside the vocabulary")
