"""Tokens, their embeddings and their positions."""

import math

import numpy as np

from llorch_adapter.errors import InputError

from .registry import bug, override, replace


@bug(by_layer=False, by=1, step=None)
def position_shift(model, o):
    """positions are shifted"""

    @override(model, "positions")
    def _(original, start, count):
        positions = original(start, count)
        return np.clip(positions + o.by, 0, model.dims.n_positions - 1) if o.now(model) else positions


@bug(by_layer=False)
def restarted_positions(model, o):
    """decode steps count their positions from 0 again"""

    @override(model, "positions")
    def _(original, start, count):
        return original(0, count)


@bug(by_layer=False)
def stuck_positions(model, o):
    """decode steps all take the position of the first of them"""
    first = []

    @override(model, "positions")
    def _(original, start, count):
        positions = original(start, count)
        if model.step == 1:
            first[:] = [positions]
        return first[0] if model.step > 1 else positions


@bug(by_layer=False, row=0, other=1)
def wpe_row(model, o):
    """the embedding of one position is another position's"""
    _copy_row(model, "wpe.weight", o)


@bug(by_layer=False, row=0, other=1)
def wte_row(model, o):
    """the embedding of one token is another token's; the lm head keeps its own"""
    _copy_row(model, "wte.weight", o)


def _copy_row(model, name, o):
    rows = len(model.weights[name])
    if not (0 <= o.row < rows and 0 <= o.other < rows):
        raise InputError(f"`row` and `other` are {o.row} and {o.other}; {name} has {rows} rows")

    def copy(tensor):
        tensor[o.row] = tensor[o.other]

    replace(model, name, copy)


@bug(by_layer=False)
def missing_positions(model, o):
    """position embeddings are left out"""

    @override(model, "embed")
    def _(original, ids, start):
        return model.weights["wte.weight"][ids].copy()


@bug(by_layer=False)
def scaled_tokens(model, o):
    """token embeddings are multiplied by the root of E"""
    root = model.dtype.type(math.sqrt(model.dims.n_embd))

    @override(model, "embed")
    def _(original, ids, start):
        return original(ids, start) + model.weights["wte.weight"][ids] * (root - 1)


@bug(by_layer=False, step=1, by=1)
def other_token(model, o):
    """at one step the token that is embedded isn't the one that was fed"""

    @override(model, "embed")
    def _(original, ids, start):
        return original((ids + o.by) % model.dims.vocab_size if o.now(model) else ids, start)


@bug(by_layer=False, step=1)
def token_before(model, o):
    """at one step the token of the step before is fed again"""
    fed = {}

    def meddle(point, step, value):
        if point != "tokens":
            return value
        before, fed["last"] = fed.get("last"), value[-1:]
        return before if o.now(model) and step > 0 else value

    model.meddlers.append(meddle)


@bug(by_layer=False)
def reversed_tokens(model, o):
    """the prompt's last two tokens have changed places"""

    def meddle(point, step, value):
        if point != "tokens" or step or len(value) < 2:
            return value
        return np.concatenate([value[:-2], value[:-3:-1]])

    model.meddlers.append(meddle)
