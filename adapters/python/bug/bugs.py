"""Seeded bugs for the NumPy GPT-2: one small function each, registered by `@bug`.

A function gets the model and its options and overrides stages of the forward pass
(`override`), changes weights, or meddles with what points show (`model.meddlers`). Each is a
mistake that somebody has made in a GPT-2, in its smallest form. To add one, add a function:
its name, its docstring and its options' defaults are what the command line shows.
"""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from llorch_adapter.errors import InputError

BUGS = {}


class Options(SimpleNamespace):
    def hits(self, layer):
        """Whether the bug is in this layer; without the option `layer` it is in all of them."""
        return self.layer is None or self.layer == layer

    def hits_name(self, name):
        """The same for a name such as `h.3.attn.c_proj`; what is in no layer belongs to no layer."""
        match = re.match(r"h\.(\d+)", name)
        return self.layer is None or (match is not None and int(match[1]) == self.layer)

    def layers(self, model):
        return [i for i in range(model.dims.n_layer) if self.hits(i)]


def bug(by_layer=True, **defaults):
    """Registers a bug with its options; by layer, one of them is `layer`."""

    def register(function):
        BUGS[function.__name__] = (function, ({"layer": None} if by_layer else {}) | defaults)
        return function

    return register


def parse(text):
    """`eps:layer=2:value=1e-3` as a function of the model."""
    name, *pairs = text.split(":")
    if name not in BUGS:
        raise ValueError(f"no bug {name!r}; there are {', '.join(sorted(BUGS))}")
    function, defaults = BUGS[name]
    options = dict(defaults)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in options:
            raise ValueError(f"bug {name} has no option {pair!r}; it has {', '.join(options)}")
        options[key] = _convert(value, defaults[key], f"{name}:{key}")
    return lambda model: _apply(function, model, Options(**options))


def _convert(value, default, where):
    kind = int if default is None else type(default)
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{where} is {value!r}, expected {kind.__name__}") from None


def _apply(function, model, options):
    for option, count in (("layer", model.dims.n_layer), ("head", model.dims.n_head)):
        index = getattr(options, option, None)
        if index is not None and not 0 <= index < count:
            raise InputError(f"bug {function.__name__}: the model has no {option} {index}")
    function(model, options)


def override(model, method):
    """Puts a function around a method of this model; it gets the original first."""

    def install(function):
        original = getattr(model, method)
        setattr(model, method, lambda *args: function(original, *args))

    return install


# Weights.


@bug()
def transposed_c_proj(model, o):
    """attn.c_proj is read [out, in]: a square matrix, so no shape complains"""
    for i in o.layers(model):
        name = f"h.{i}.attn.c_proj.weight"
        model.weights[name] = model.weights[name].T.copy()


@bug(which="attn.c_attn")
def dropped_bias(model, o):
    """a linear layer's bias is left out; which is attn.c_attn, attn.c_proj, mlp.c_fc or mlp.c_proj"""
    for i in o.layers(model):
        name = f"h.{i}.{o.which}.bias"
        if name not in model.weights:
            raise InputError(f"bug dropped_bias: no tensor {name}")
        model.weights[name] = np.zeros_like(model.weights[name])


@bug()
def swapped_norms(model, o):
    """ln_1 and ln_2 have each other's gain and bias"""
    for i in o.layers(model):
        for part in ("weight", "bias"):
            first, second = f"h.{i}.ln_1.{part}", f"h.{i}.ln_2.{part}"
            model.weights[first], model.weights[second] = model.weights[second], model.weights[first]


# Norms, activation, residuals, linear layers.


@bug(value=1e-3)
def eps(model, o):
    """the layer norms add another epsilon"""

    @override(model, "epsilon")
    def _(original, name):
        return model.dtype.type(o.value) if o.hits_name(name) else original(name)


@bug()
def unbiased_variance(model, o):
    """the layer norms divide by E-1"""

    @override(model, "layer_norm")
    def _(original, name, x):
        if not o.hits_name(name):
            return original(name, x)
        normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + model.epsilon(name))
        return normal * model.weights[f"{name}.weight"] + model.weights[f"{name}.bias"]


@bug()
def erf_gelu(model, o):
    """GELU by the error function instead of the tanh form"""
    erf = np.vectorize(math.erf, otypes=[np.float64])

    @override(model, "gelu")
    def _(original, i, x):
        if not o.hits(i):
            return original(i, x)
        return (0.5 * x * (1 + erf(x / math.sqrt(2)))).astype(x.dtype)


@bug(which="attn")
def missing_residual(model, o):
    """a residual connection is left out; which is attn or mlp"""

    @override(model, "residual")
    def _(original, name, x, update):
        hit = o.hits_name(name) and name.endswith("." + o.which)
        return update if hit else original(name, x, update)


@bug(which="mlp.c_fc")
def bf16_linear(model, o):
    """a linear layer's input is rounded to bf16"""

    @override(model, "linear")
    def _(original, name, x):
        hit = o.hits_name(name) and name.endswith("." + o.which)
        return original(name, _round_to_bf16(x) if hit else x)


def _round_to_bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(x.dtype)


# Attention.


@bug()
def swap_qk(model, o):
    """q and k are taken from each other's third of c_attn"""

    @override(model, "qkv")
    def _(original, i, projected):
        q, k, v = original(i, projected)
        return (k, q, v) if o.hits(i) else (q, k, v)


@bug()
def interleaved_qkv(model, o):
    """c_attn's output is read as (head, three, D) instead of (three, head, D)"""

    @override(model, "qkv")
    def _(original, i, projected):
        if not o.hits(i):
            return original(i, projected)
        split = projected.reshape(len(projected), model.dims.n_head, 3, model.dims.head_dim)
        return split.transpose(2, 1, 0, 3)


@bug()
def missing_scale(model, o):
    """scores aren't divided by the root of D"""

    @override(model, "scale")
    def _(original, i):
        return model.dtype.type(1) if o.hits(i) else original(i)


@bug(by_layer=False, by=1)
def mask_off(model, o):
    """each query sees `by` keys too many (or too few, down to one)"""

    @override(model, "visible")
    def _(original, t, s):
        positions = np.arange(s - t, s)[:, None]
        return np.arange(s) <= np.maximum(positions + o.by, 0)


@bug(by_layer=False)
def unsplit_merge(model, o):
    """heads are merged without moving the head axis behind the tokens"""

    @override(model, "merge")
    def _(original, heads):
        return heads.reshape(heads.shape[1], -1)


@bug(head=0, value=1.001)
def head_scale(model, o):
    """one head's output is scaled"""

    @override(model, "heads")
    def _(original, i, heads):
        heads = original(i, heads)
        if o.hits(i):
            heads = heads.copy()
            heads[o.head] *= model.dtype.type(o.value)
        return heads


@bug(which="v")
def stale_cache(model, o):
    """at decode steps the cache's new row is a copy of the row before; which is k, v or kv"""

    @override(model, "extend")
    def _(original, i, cache, k, v):
        keys, values = original(i, cache, k, v)
        if o.hits(i) and keys.shape[1] > k.shape[1]:
            for tensor in [keys] * ("k" in o.which) + [values] * ("v" in o.which):
                tensor[:, -1] = tensor[:, -2]
        return keys, values


# Positions and sampling.


@bug(by_layer=False, by=1)
def position_shift(model, o):
    """positions are shifted"""

    @override(model, "positions")
    def _(original, start, count):
        return np.clip(original(start, count) + o.by, 0, model.dims.n_positions - 1)


@bug(by_layer=False)
def restarted_positions(model, o):
    """decode steps count their positions from 0 again"""

    @override(model, "positions")
    def _(original, start, count):
        return original(0, count)


@bug(by_layer=False)
def ignored_temperature(model, o):
    """sampling ignores the temperature"""
    model.sampling_changes.append(lambda s: replace(s, temperature=1.0) if s.temperature else s)


@bug(by_layer=False)
def top_k_plus_one(model, o):
    """top-k keeps one token too many"""
    model.sampling_changes.append(lambda s: replace(s, top_k=s.top_k + 1) if s.top_k else s)


# Points: what is computed and goes on, or only what is shown.


@bug(by_layer=False, point="h.0.mlp.out", step=0)
def nan(model, o):
    """a point's first element becomes NaN, and goes on"""

    def meddle(point, step, value):
        if point != o.point or step != o.step:
            return value
        value = np.array(value)
        value.flat[0] = np.nan
        return value

    model.meddlers.append(meddle)


@bug(by_layer=False, point="h.0.mlp.out", value=1.01)
def scaled(model, o):
    """a point is multiplied, at every step, and goes on"""
    model.meddlers.append(lambda p, step, v: v * v.dtype.type(o.value) if p == o.point else v)


@bug(by_layer=False, point="h.0.mlp.out")
def wrong_shape(model, o):
    """a point is shown with its last axis cut short by one; the run goes on unharmed"""
    model.distortions.append(lambda point, value: value[..., :-1] if point == o.point else value)


@bug(by_layer=False, point="argmax", by=1)
def shifted_token(model, o):
    """`tokens` or `argmax` is off, and goes on"""

    def meddle(point, step, value):
        return (value + o.by) % model.dims.vocab_size if point == o.point else value

    model.meddlers.append(meddle)
