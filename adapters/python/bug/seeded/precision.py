"""Too few bits: rounding on the way, and sums whose partial sums are rounded."""

import numpy as np

from .numbers import product_in, round_to, total_in
from .registry import bug, choose, meddle, override

_LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@bug(which="mlp.c_fc", to="bf16")
def rounded_input(model, o):
    """a linear layer's input is rounded to f16 or bf16; which may be lm_head"""
    choose(o, "to", "f16", "bf16")
    if choose(o, "which", *_LINEAR, "lm_head") == "lm_head":

        @override(model, "head")
        def _(original, x):
            return original(round_to(x, o.to))

    @override(model, "linear")
    def _(original, name, x):
        hit = o.hits_name(name) and name.endswith("." + o.which)
        return original(name, round_to(x, o.to) if hit else x)


@bug(by_layer=False, point="h.0.mlp.out", to="f16")
def rounded(model, o):
    """a point's value is rounded to f16 or bf16, and goes on"""
    choose(o, "to", "f16", "bf16")

    @meddle(model, o.point)
    def _(value):
        return round_to(value, o.to)


@bug(which="mlp.c_fc", to="bf16")
def reduced_sum(model, o):
    """a matrix product adds up in f16 or bf16; which may also be scores, heads or lm_head"""
    choose(o, "to", "f16", "bf16")
    which = choose(o, "which", *_LINEAR, "scores", "heads", "lm_head")
    method = {"lm_head": "head"}.get(which, which if which in ("scores", "heads") else "linear")

    @override(model, method)
    def _(original, *args):
        if method == "head":
            hit = True
        elif method == "linear":
            hit = o.hits_name(args[0]) and args[0].endswith("." + which)
        else:
            hit = o.hits(args[0])
        product = model.product
        if hit:
            model.product = lambda a, b: product_in(a, b, o.to)
        try:
            return original(*args)
        finally:
            model.product = product


@bug(which="", to="bf16")
def reduced_norm(model, o):
    """a layer norm's mean and variance are summed in f16 or bf16"""
    choose(o, "to", "f16", "bf16")

    @override(model, "layer_norm")
    def _(original, name, x):
        of_which = not o.which or name.split(".")[-1] == o.which
        hit = of_which and (name == o.which or o.hits_name(name))
        return _with_total(model, o, hit, lambda: original(name, x))


@bug(to="bf16")
def reduced_softmax(model, o):
    """the attention softmax sums in f16 or bf16"""
    choose(o, "to", "f16", "bf16")

    @override(model, "softmax")
    def _(original, i, x):
        return _with_total(model, o, o.hits(i), lambda: original(i, x))


def _with_total(model, o, hit, compute):
    total = model.total
    if hit:
        model.total = lambda x: total_in(x, o.to)
    try:
        return compute()
    finally:
        model.total = total


@bug(to="f16")
def rounded_exponentials(model, o):
    """the attention softmax's exponentials are rounded to f16 or bf16 before they are divided"""
    choose(o, "to", "f16", "bf16")

    @override(model, "softmax")
    def _(original, i, x):
        if not o.hits(i):
            return original(i, x)
        e = round_to(np.exp(x - x.max(axis=-1, keepdims=True)), o.to)
        return e / model.total(e)
