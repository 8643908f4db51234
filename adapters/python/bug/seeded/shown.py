"""Bugs that are put at a point by its name: in what is computed and goes on, or only in what is shown."""

import numpy as np

from llorch_adapter.errors import InputError

from .registry import bug, choose


def at_point(model, o):
    """Installs a change of a point's value at the step that is named; it gets a copy, [..., rows, n]."""

    def later(value):
        """A decode step has one token; a bug of the prompt's fourth isn't in it."""
        token = getattr(o, "token", None)
        return model.step > 0 and token is not None and value.ndim > 1 and token >= value.shape[-2]

    def install(change):
        def meddle(point, step, value):
            if point != o.point or not o.now(model) or later(value):
                return value
            value = np.array(value)
            change(value)
            return value

        model.meddlers.append(meddle)

    return install


def _part(value, o):
    """The part of a tensor [T, n] or [H, T, n] that `head` and `token` name."""
    if o.head is not None:
        if value.ndim != 3 or not 0 <= o.head < len(value):
            raise InputError(f"{o.point} has no head {o.head}")
        value = value[o.head]
    if o.token is not None:
        if value.ndim < 2 or not 0 <= o.token < value.shape[-2]:
            raise InputError(f"{o.point} has no token {o.token} at this step")
        value = value[..., o.token, :]
    return value


_PLACE = {"point": "h.0.mlp.out", "step": None, "head": None, "token": None}


@bug(by_layer=False, **_PLACE, value=1.01)
def scaled(model, o):
    """a point is multiplied, and goes on: at one step, in one head, for one token, or everywhere"""

    @at_point(model, o)
    def _(value):
        part = _part(value, o)
        part *= value.dtype.type(o.value)


@bug(by_layer=False, **_PLACE)
def row_before(model, o):
    """one token's row at a point is a copy of the row before it"""
    if not o.token:
        raise InputError("row_before needs a `token` from 1 on")

    @at_point(model, o)
    def _(value):
        _part(value, o)  # checks
        part = value if o.head is None else value[o.head]
        part[..., o.token, :] = part[..., o.token - 1, :]


@bug(by_layer=False, **_PLACE)
def zeroed(model, o):
    """a point is zero: at one step, in one head, for one token, or everywhere"""

    @at_point(model, o)
    def _(value):
        _part(value, o)[...] = 0


@bug(by_layer=False, **_PLACE, index=-1, by=0.01)
def element_off(model, o):
    """one element of a point is off; index counts within the part that head and token name, -1 is its largest"""

    @at_point(model, o)
    def _(value):
        part = _part(value, o)
        flat = np.abs(part).argmax() if o.index == -1 else o.index
        if not 0 <= flat < part.size:
            raise InputError(f"{o.point} has no element {o.index} there")
        part[np.unravel_index(flat, part.shape)] += value.dtype.type(o.by)


@bug(by_layer=False, point="h.0.mlp.out", step=0)
def nan(model, o):
    """a point's first element becomes NaN, and goes on"""

    @at_point(model, o)
    def _(value):
        value.flat[0] = np.nan


@bug(by_layer=False, point="h.0.mlp.out")
def wrong_shape(model, o):
    """a point is shown with its last axis cut short by one; the run goes on unharmed"""
    model.distortions.append(lambda point, value: value[..., :-1] if point == o.point else value)


@bug(by_layer=False, point="argmax", by=1)
def shifted_token(model, o):
    """`tokens` or `argmax` is off, and goes on"""
    choose(o, "point", "tokens", "argmax")

    def meddle(point, step, value):
        return (value + o.by) % model.dims.vocab_size if point == o.point else value

    model.meddlers.append(meddle)
