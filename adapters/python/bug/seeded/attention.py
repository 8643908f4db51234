"""q, k and v, heads, scores, masks."""

import math

import numpy as np

from llorch_adapter.errors import InputError

from .registry import bug, choose, override


@bug(order="kqv")
def swapped_qkv(model, o):
    """q, k and v are taken from each other's thirds of c_attn, in this order"""
    if sorted(o.order) != ["k", "q", "v"]:
        raise InputError(f"`order` is {o.order!r}, expected the letters q, k and v")

    @override(model, "qkv")
    def _(original, i, projected):
        parts = dict(zip("qkv", original(i, projected)))
        return [parts[name] for name in (o.order if o.hits(i) else "qkv")]


@bug()
def interleaved_qkv(model, o):
    """c_attn's output is read as (head, three, D) instead of (three, head, D)"""

    @override(model, "qkv")
    def _(original, i, projected):
        if not o.hits(i):
            return original(i, projected)
        split = projected.reshape(len(projected), model.dims.n_head, 3, model.dims.head_dim)
        return split.transpose(2, 1, 0, 3)


@bug(which="q", first=0, second=1)
def swapped_heads(model, o):
    """two heads of q, k, v or of the merged context have changed places"""
    order = np.arange(model.dims.n_head)
    order[[o.first, o.second]] = order[[o.second, o.first]]
    _rearrange(model, o, lambda heads: heads[order])


@bug(which="q", by=1)
def rolled_heads(model, o):
    """the heads of q, k, v or of the merged context are all off by some places"""
    _rearrange(model, o, lambda heads: np.roll(heads, o.by, axis=0))


@bug(which="q")
def interleaved_heads(model, o):
    """q, k, v (or all: qkv) or the merged context are read as (D, head) instead of (head, D)"""

    def interleave(heads):
        h, t, d = heads.shape
        return heads.transpose(1, 0, 2).reshape(t, d, h).transpose(2, 0, 1)

    def merged(heads):
        h, t, d = heads.shape
        return heads.transpose(1, 2, 0).reshape(t, h, d).transpose(1, 0, 2)

    _rearrange(model, o, merged if o.which == "context" else interleave)


def _rearrange(model, o, change):
    """Rearranges the [H, T, D] of q, k, v, of all three, or of the heads' outputs."""
    if choose(o, "which", "q", "k", "v", "qkv", "context") == "context":

        @override(model, "heads")
        def _(original, i, probs, values):
            heads = original(i, probs, values)
            return change(heads) if o.hits(i) else heads

        return

    @override(model, "qkv")
    def _(original, i, projected):
        parts = zip("qkv", original(i, projected))
        return [change(part) if o.hits(i) and name in o.which else part for name, part in parts]


@bug()
def unsplit_merge(model, o):
    """heads are merged without moving the head axis behind the tokens"""

    @override(model, "merge")
    def _(original, i, heads):
        return heads.reshape(heads.shape[1], -1) if o.hits(i) else original(i, heads)


@bug(head=0, value=1.001)
def head_scale(model, o):
    """one head's output is scaled"""

    @override(model, "heads")
    def _(original, i, probs, values):
        heads = original(i, probs, values)
        if o.hits(i):
            heads = heads.copy()
            heads[o.head] *= model.dtype.type(o.value)
        return heads


# The scale of the scores.


@bug()
def missing_scale(model, o):
    """scores aren't divided by the root of D"""
    _scale(model, o, lambda _: 1)


@bug()
def doubled_scale(model, o):
    """scores are divided by the root of D twice"""
    _scale(model, o, lambda scale: scale * scale)


@bug()
def scale_by_width(model, o):
    """scores are divided by the root of E instead of D"""
    _scale(model, o, lambda _: 1 / math.sqrt(model.dims.n_embd))


@bug(times=1.01)
def scaled_scores(model, o):
    """the scale of the scores is off by a factor"""
    _scale(model, o, lambda scale: scale * o.times)


@bug()
def layer_scale(model, o):
    """scores are also divided by the layer's number, counted from 1"""

    @override(model, "scale")
    def _(original, i):
        return original(i) / model.dtype.type(i + 1) if o.hits(i) else original(i)


def _scale(model, o, function):
    @override(model, "scale")
    def _(original, i):
        return model.dtype.type(function(float(original(i)))) if o.hits(i) else original(i)


# Who sees whom.


@bug(by=1)
def mask_off(model, o):
    """each query sees `by` keys too many (or too few, down to one)"""
    _visible(model, o, lambda positions: np.maximum(positions + o.by, 0))


@bug()
def missing_mask(model, o):
    """every query sees every key"""
    _visible(model, o, lambda positions: np.full_like(positions, positions.max()))


@bug()
def restarted_mask(model, o):
    """the mask forgets what is cached: the first new query sees one key"""
    _visible(model, o, lambda positions: positions - positions.min())


def _visible(model, o, last_key):
    """`last_key` gets the queries' positions, [T, 1]."""

    @override(model, "visible")
    def _(original, i, t, s):
        if not o.hits(i):
            return original(i, t, s)
        return np.arange(s) <= last_key(np.arange(s - t, s)[:, None])


@bug(head=0, by=1)
def head_mask(model, o):
    """one head of the attention probabilities is off by some keys, within those that are visible"""

    @override(model, "softmax")
    def _(original, i, x):
        probs = original(i, x)
        if o.hits(i):
            probs = probs.copy()
            t, s = probs.shape[1:]
            for query in range(t):
                seen = s - t + query + 1
                probs[o.head, query, :seen] = np.roll(probs[o.head, query, :seen], o.by)
        return probs


# The softmax over keys.


@bug()
def softmax_over_queries(model, o):
    """probabilities sum to 1 over the queries instead of the keys"""

    @override(model, "softmax")
    def _(original, i, x):
        if not o.hits(i):
            return original(i, x)
        e = np.exp(x - x.max(axis=-1, keepdims=True).max(axis=-2, keepdims=True))
        return e / e.sum(axis=-2, keepdims=True)


@bug(value=1.0)
def softmax_one(model, o):
    """a constant is added to the sum below the fraction"""

    @override(model, "softmax")
    def _(original, i, x):
        if not o.hits(i):
            return original(i, x)
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / (model.total(e) + model.dtype.type(o.value))


@bug()
def values_are_keys(model, o):
    """the probabilities weight the keys instead of the values"""
    kept = {}

    @override(model, "scores")
    def _(original, i, q, keys):
        kept[i] = keys
        return original(i, q, keys)

    @override(model, "heads")
    def _(original, i, probs, values):
        return original(i, probs, kept[i] if o.hits(i) else values)
