"""The key/value cache: rows that are stale, shifted, missing, rounded, someone else's."""

import numpy as np

from llorch_adapter.errors import InputError

from .numbers import round_to
from .registry import bug, choose, override


def spoil(model, o):
    """Installs a change of the cache of the layers, steps and tensors that the options name.

    It gets the cached tensor [H, S, D] with this step's rows in it, how many rows are new, the
    layer, and `k` or `v`; it may change the tensor in place. The change stays in the cache. With
    `hidden` the cache shows what it should hold, and only the attention reads the change.
    """
    if o.which not in ("k", "v", "kv"):
        raise InputError(f"`which` is {o.which!r}, expected k, v or kv")

    def install(change):
        right = {}  # by layer and name, what the cache should hold

        @override(model, "extend")
        def _(original, i, cache, k, v):
            tensors = dict(zip("kv", original(i, cache, k, v)))
            if o.hits(i):
                for name, new in (("k", k), ("v", v)):
                    before = right.get((i, name), new[:, :0]) if model.step else new[:, :0]
                    right[i, name] = np.concatenate([before, new], axis=1)
                    if name in o.which and o.now(model):
                        changed = change(tensors[name], new.shape[1], i, name)
                        tensors[name] = tensors[name] if changed is None else changed
            return tensors["k"], tensors["v"]

        if o.hidden:

            def show(point, value):
                layer, _, name = point.removeprefix("h.").partition(".attn.cache.")
                return right.get((int(layer), name), value) if name else value

            model.distortions.append(show)

    return install


def _row(tensor, o):
    """The row that the options name; -1 is the newest. None if it isn't there yet."""
    row = tensor.shape[1] - 1 if o.row == -1 else o.row
    return row if 0 <= row < tensor.shape[1] else None


def _heads(o):
    return slice(None) if o.head is None else o.head


_WHERE = {"which": "v", "step": None, "row": -1, "head": None, "hidden": 0}


@bug(**_WHERE)
def stale_cache(model, o):
    """at decode steps a row of the cache (-1: the new one) holds the row before it; which is k, v or kv"""

    @spoil(model, o)
    def _(tensor, new, i, name):
        row = _row(tensor, o)
        if tensor.shape[1] > new and row:
            tensor[_heads(o), row] = tensor[_heads(o), row - 1]


@bug(**_WHERE)
def missing_cache_row(model, o):
    """at decode steps a row of the cache (-1: the new one) was never written; which is k, v or kv"""

    @spoil(model, o)
    def _(tensor, new, i, name):
        row = _row(tensor, o)
        if tensor.shape[1] > new and row is not None:
            tensor[_heads(o), row] = 0


@bug(which="v", step=None, by=1, head=None, hidden=0)
def shifted_cache(model, o):
    """at decode steps the rows of the cache are off by some places; which is k, v or kv"""

    @spoil(model, o)
    def _(tensor, new, i, name):
        if tensor.shape[1] > new:
            tensor[_heads(o)] = np.roll(tensor, o.by, axis=1)[_heads(o)]


@bug(which="v", step=None, hidden=0, to="f16")
def stored_cache(model, o):
    """the cache is stored in f16 or bf16; which is k, v or kv"""
    choose(o, "to", "f16", "bf16")

    @spoil(model, o)
    def _(tensor, new, i, name):
        return round_to(tensor, o.to)


@bug(which="v", step=None, hidden=0, other=0)
def cache_of_layer(model, o):
    """at decode steps the cache is that of another, earlier layer"""
    kept = {}

    @override(model, "extend")
    def _(original, i, cache, k, v):
        tensors = original(i, cache, k, v)
        kept.update({(i, name): tensor.copy() for name, tensor in zip("kv", tensors)})
        return tensors

    @spoil(model, o)
    def _(tensor, new, i, name):
        if tensor.shape[1] > new and o.other < i:
            tensor[:] = kept[o.other, name]


@bug(step=None, which="kv", hidden=0)
def swapped_cache(model, o):
    """at decode steps the new row's key and value have changed places"""
    fresh = {}

    @override(model, "extend")
    def _(original, i, cache, k, v):
        fresh[i] = {"k": v, "v": k}
        return original(i, cache, k, v)

    @spoil(model, o)
    def _(tensor, new, i, name):
        if tensor.shape[1] > new:
            tensor[:, -new:] = fresh[i][name]
