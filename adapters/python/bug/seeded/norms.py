"""Layer norms, the activation and the residual stream."""

import math

import numpy as np

from llorch_adapter.errors import InputError

from .registry import bug, choose, override


def _means(o, name):
    """Whether `layer` and `which` (a norm, or "" for all) mean the norm of this name."""
    if o.which not in ("", "ln_1", "ln_2", "ln_f"):
        raise InputError(f"`which` is {o.which!r}, expected ln_1, ln_2 or ln_f")
    of_which = not o.which or name.split(".")[-1] == o.which
    return of_which and (name == o.which == "ln_f" or o.hits_name(name))


def instead_of_norm(model, o):
    """Installs another norm where the options say so: it gets the name and x."""

    def install(function):
        @override(model, "layer_norm")
        def _(original, name, x):
            return function(name, x) if _means(o, name) else original(name, x)

    return install


def _gain_and_bias(model, name, normal):
    return normal * model.weights[f"{name}.weight"] + model.weights[f"{name}.bias"]


@bug(which="", value=1e-3)
def eps(model, o):
    """the layer norms add another epsilon"""

    @override(model, "epsilon")
    def _(original, name):
        return model.dtype.type(o.value) if _means(o, name) else original(name)


@bug(which="")
def outside_eps(model, o):
    """epsilon is added to the standard deviation instead of the variance"""

    @instead_of_norm(model, o)
    def _(name, x):
        centred = x - x.mean(-1, keepdims=True)
        return _gain_and_bias(model, name, centred / (x.std(-1, keepdims=True) + model.epsilon(name)))


@bug(which="")
def unbiased_variance(model, o):
    """the layer norms divide by E-1"""

    @instead_of_norm(model, o)
    def _(name, x):
        variance = x.var(-1, ddof=1, keepdims=True)
        normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + model.epsilon(name))
        return _gain_and_bias(model, name, normal)


@bug(which="")
def uncentred_norm(model, o):
    """the mean is not taken away (an RMS norm)"""

    @instead_of_norm(model, o)
    def _(name, x):
        square = np.mean(x * x, axis=-1, keepdims=True)
        return _gain_and_bias(model, name, x / np.sqrt(square + model.epsilon(name)))


@bug(which="ln_1")
def skipped_norm(model, o):
    """a layer norm is left out"""

    @instead_of_norm(model, o)
    def _(name, x):
        return x


@bug(which="attn", kind="residual")
def post_norm(model, o):
    """residual: what is added to is the normed value; after: the sum is normed, its input is not; attn or mlp"""
    which, kind = choose(o, "which", "attn", "mlp"), choose(o, "kind", "residual", "after")

    @override(model, "block")
    def _(original, i, x, cache, probe):
        if not o.hits(i):
            return original(i, x, cache, probe)
        h = f"h.{i}"
        halves = [
            ("attn", f"{h}.ln_1", f"{h}.resid_mid", lambda x: model.attention(i, x, cache, probe)),
            ("mlp", f"{h}.ln_2", h, lambda x: model.mlp(i, x, probe)),
        ]
        for name, norm, result, sublayer in halves:
            after = name == which and kind == "after"
            read = probe.visit(norm, x if after else model.layer_norm(norm, x))
            kept = read if name == which and kind == "residual" else x
            x = model.residual(f"{h}.{name}", kept, sublayer(read))
            x = probe.visit(result, model.layer_norm(norm, x) if after else x)
        return x


@bug()
def erf_gelu(model, o):
    """GELU by the error function instead of the tanh form"""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    _activation(model, o, lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))))


@bug()
def sigmoid_gelu(model, o):
    """GELU as x * sigmoid(1.702 x)"""
    _activation(model, o, lambda x: x / (1 + np.exp(-1.702 * x)))


@bug()
def relu(model, o):
    """ReLU instead of GELU"""
    _activation(model, o, lambda x: np.maximum(x, 0))


@bug(value=0.044175)
def gelu_constant(model, o):
    """GELU's cubic constant is mistyped"""
    root = math.sqrt(2 / math.pi)
    _activation(model, o, lambda x: 0.5 * x * (1 + np.tanh(root * (x + o.value * x**3))))


def _activation(model, o, function):
    @override(model, "gelu")
    def _(original, i, x):
        return function(x.astype(np.float64)).astype(x.dtype) if o.hits(i) else original(i, x)


@bug(which="attn")
def missing_residual(model, o):
    """a residual connection is left out; which is attn or mlp"""
    _residual(model, o, lambda x, update: update)


@bug(which="attn")
def missing_update(model, o):
    """a sublayer's output isn't added; which is attn or mlp"""
    _residual(model, o, lambda x, update: x.copy())


@bug(which="attn", times=2.0)
def scaled_residual(model, o):
    """the residual is added `times` times; which is attn or mlp"""
    _residual(model, o, lambda x, update: x * x.dtype.type(o.times) + update)


@bug()
def stale_residual(model, o):
    """the feed-forward is added to what came into the block instead of to resid_mid"""
    came_in = {}

    @override(model, "block")
    def _(original, i, x, cache, probe):
        came_in[i] = x
        return original(i, x, cache, probe)

    @override(model, "residual")
    def _(original, name, x, update):
        if o.hits_name(name) and name.endswith(".mlp"):
            x = came_in[int(name.split(".")[1])]
        return original(name, x, update)


def _residual(model, o, function):
    choose(o, "which", "attn", "mlp")

    @override(model, "residual")
    def _(original, name, x, update):
        hit = o.hits_name(name) and name.endswith("." + o.which)
        return function(x, update) if hit else original(name, x, update)
