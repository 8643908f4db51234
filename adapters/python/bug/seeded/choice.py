"""From logits to a token: which row, which token, which distribution, and what is fed next."""

from dataclasses import replace as with_fields

import numpy as np

from llorch_adapter.sampling import filter_logits, softmax

from .registry import bug, choose, override

# What is selected.


@bug(by_layer=False, step=1)
def stale_logits(model, o):
    """at one step the selected logits are those of the step before"""
    kept = {}

    def meddle(point, step, value):
        if point != "logits.last":
            return value
        before, kept["last"] = kept.get("last"), value
        return before if o.now(model) and step > 0 else value

    model.meddlers.append(meddle)


@bug(by_layer=False, row=-2)
def wrong_row(model, o):
    """the prefill's selected logits are another row's; row counts from the end when negative"""
    model.needs_all_rows = True
    rows = {}

    def meddle(point, step, value):
        if point == "logits":
            rows["all"] = value
        inside = step == 0 and -len(rows.get("all", ())) <= o.row < len(rows.get("all", ()))
        return rows["all"][o.row] if point == "logits.last" and inside else value

    model.meddlers.append(meddle)


@bug(by_layer=False, index=0, by=0.01)
def logit_off(model, o):
    """one token's selected logit is off; its logits aren't"""

    def meddle(point, step, value):
        if point != "logits.last":
            return value
        value = np.array(value)
        value[o.index] += value.dtype.type(o.by)
        return value

    model.meddlers.append(meddle)


@bug(by_layer=False, to="f16")
def rounded_choice(model, o):
    """the selected logits are rounded to f16 or bf16 before the token is chosen"""
    from .numbers import round_to

    choose(o, "to", "f16", "bf16")
    model.meddlers.append(lambda p, step, v: round_to(v, o.to) if p == "logits.last" else v)


def _instead_of_argmax(model, pick):
    """`pick` gets the selected logits and the step, and returns a token or None."""
    last = {}

    def meddle(point, step, value):
        if point == "logits.last":
            last["logits"] = value
        token = pick(last["logits"], step) if point == "argmax" else None
        return value if token is None else np.asarray(token, np.int64)

    model.meddlers.append(meddle)


@bug(by_layer=False, step=None)
def second_best(model, o):
    """the token of the second largest logit is chosen"""
    _instead_of_argmax(model, lambda logits, step: np.argsort(logits)[-2] if o.now(model) else None)


@bug(by_layer=False)
def last_of_ties(model, o):
    """of equal largest logits the highest id is chosen instead of the lowest"""
    _instead_of_argmax(model, lambda logits, step: len(logits) - 1 - np.argmax(logits[::-1]))


@bug(by_layer=False)
def argmin(model, o):
    """the smallest logit is chosen"""
    _instead_of_argmax(model, lambda logits, step: np.argmin(logits))


@bug(by_layer=False, size=50000)
def short_vocabulary(model, o):
    """argmax only looks at the first `size` logits"""
    _instead_of_argmax(model, lambda logits, step: np.argmax(logits[: o.size]))


# The distribution that is drawn from.


@bug(by_layer=False)
def ignored_temperature(model, o):
    """sampling ignores the temperature"""
    model.sampling_changes.append(lambda s: with_fields(s, temperature=1.0) if s.temperature else s)


@bug(by_layer=False)
def multiplied_temperature(model, o):
    """logits are multiplied by the temperature instead of divided"""
    model.sampling_changes.append(
        lambda s: with_fields(s, temperature=1 / s.temperature) if s.temperature else s
    )


@bug(by_layer=False)
def top_k_plus_one(model, o):
    """top-k keeps one token too many"""
    model.sampling_changes.append(lambda s: with_fields(s, top_k=s.top_k + 1) if s.top_k else s)


@bug(by_layer=False)
def top_k_minus_one(model, o):
    """top-k keeps one token too few"""
    model.sampling_changes.append(lambda s: with_fields(s, top_k=s.top_k - 1) if s.top_k > 1 else s)


@bug(by_layer=False)
def ignored_top_p(model, o):
    """sampling ignores top-p"""
    model.sampling_changes.append(lambda s: with_fields(s, top_p=1.0))


def _instead_of_probs(model, function):
    """Another distribution wherever the temperature is above 0."""

    @override(model, "next_probs")
    def _(original, logits, sampling):
        return function(logits, sampling) if sampling.temperature else original(logits, sampling)


def _top_p(logits, keep):
    """Drops what `keep` doesn't keep; it gets the probabilities, descending, and their running sum."""
    order = np.argsort(-logits, kind="stable")
    probs = softmax(logits[order])
    kept = keep(probs, np.cumsum(probs))
    kept[0] = True
    logits = logits.copy()
    logits[order[~kept]] = -np.inf
    return logits


@bug(by_layer=False)
def top_p_drops_last(model, o):
    """top-p drops the token with which the sum reaches p"""
    _nucleus(model, lambda p: lambda probs, total: total < p)


@bug(by_layer=False)
def top_p_keeps_next(model, o):
    """top-p keeps one token beyond the one with which the sum reaches p"""
    _nucleus(model, lambda p: lambda probs, total: np.append([True, True], (total < p)[:-2]))


@bug(by_layer=False)
def top_p_at_equality(model, o):
    """top-p goes on while the sum is at most p, instead of below it"""
    _nucleus(model, lambda p: lambda probs, total: np.append([True], (total <= p)[:-1]))


def _nucleus(model, keep):
    def probs(logits, sampling):
        cut = filter_logits(logits, with_fields(sampling, top_p=1.0))
        return softmax(_top_p(cut, keep(sampling.top_p)))

    _instead_of_probs(model, probs)


@bug(by_layer=False)
def top_p_first(model, o):
    """top-p is applied before top-k instead of behind it"""

    def probs(logits, sampling):
        cut = filter_logits(logits, with_fields(sampling, top_k=0))
        return softmax(filter_logits(cut, with_fields(sampling, temperature=1.0, top_p=1.0)))

    _instead_of_probs(model, probs)


@bug(by_layer=False)
def late_temperature(model, o):
    """the temperature is applied behind the filters instead of before them"""

    def probs(logits, sampling):
        cut = filter_logits(logits, with_fields(sampling, temperature=1.0))
        return softmax(cut / cut.dtype.type(sampling.temperature))

    _instead_of_probs(model, probs)


@bug(by_layer=False)
def unnormalised_probs(model, o):
    """probabilities are cut off without being normalised again"""

    def probs(logits, sampling):
        whole = softmax(logits / logits.dtype.type(sampling.temperature))
        return np.where(np.isfinite(filter_logits(logits, sampling)), whole, 0).astype(whole.dtype)

    _instead_of_probs(model, probs)


@bug(by_layer=False, to="f16")
def rounded_probs(model, o):
    """the probabilities are rounded to f16 or bf16"""
    from .numbers import round_to

    choose(o, "to", "f16", "bf16")
    model.meddlers.append(lambda p, step, v: round_to(v, o.to) if p == "next.probs" else v)


@bug(by_layer=False)
def greedy_probs(model, o):
    """next.probs ignores the temperature at 0: a one instead of the distribution"""

    @override(model, "next_probs")
    def _(original, logits, sampling):
        probs = original(logits, sampling)
        if not sampling.temperature:
            probs = np.zeros_like(probs)
            probs[np.argmax(logits)] = 1
        return probs


# Only where generation is left to itself, on a fast path that no forced token takes.


@bug(by_layer=False, step=2)
def free_feeds_before(model, o):
    """left to itself, generation feeds the token before once more at one step"""
    fed = {}

    def meddle(point, step, value):
        if point != "tokens":
            return value
        before, fed["last"] = fed.get("last"), value[-1:]
        return before if o.now(model) and step > 0 and not model.forced else value

    model.meddlers.append(meddle)


@bug(by_layer=False, step=2)
def free_second_best(model, o):
    """left to itself, generation takes the second best token at one step"""

    def pick(logits, step):
        return np.argsort(logits)[-2] if o.now(model) and not model.forced else None

    _instead_of_argmax(model, pick)


@bug(by_layer=False, step=1)
def free_position(model, o):
    """left to itself, generation counts positions from 0 again from one step on"""

    @override(model, "positions")
    def _(original, start, count):
        return original(0 if model.step >= o.step and not model.forced else start, count)


@bug(by_layer=False, step=1)
def free_stale_cache(model, o):
    """left to itself, generation forgets what is cached in all layers at one step"""

    @override(model, "extend")
    def _(original, i, cache, k, v):
        keys, values = original(i, cache, k, v)
        if o.now(model) and not model.forced:
            values[:, : -v.shape[1]] = 0
        return keys, values
