"""A `load` or `run` request, checked before anything is computed."""

import math
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError, UnsupportedError
from .points import Globs, all_points


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; top_k 0 and top_p 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Load:
    model_dir: Path
    dtype: str
    threads: int


@dataclass(frozen=True)
class Run:
    id: str
    ids: list
    points: Globs
    max_new_tokens: int
    forced_ids: list | None
    sampling: Sampling
    inject: dict  # (point, step) -> (file, key)
    out_dir: Path | None
    text: bool = True

    @property
    def steps(self):
        return max(self.max_new_tokens, 1)


@dataclass(frozen=True)
class Draw:
    id: str
    logits: tuple  # (file, key)
    sampling: Sampling
    draws: int
    out_dir: Path


def is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def request_id(message):
    """The id of a request, which must be a string."""
    value = message.get("id")
    if not isinstance(value, str):
        raise InputError(f"`id` is {value!r}, expected a string")
    return value


def parse_load(message):
    folder = message.get("model_dir")
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise InputError(f"`model_dir` is {folder!r}, expected a folder")
    dtype, threads = message.get("dtype", "f32"), message.get("threads", 1)
    if dtype not in ("f32", "f64", "f16", "bf16", "int8"):
        raise InputError(f"`dtype` is {dtype!r}, expected f32, f64, f16, bf16 or int8")
    if not is_int(threads) or not 1 <= threads <= 4096:
        raise InputError(f"`threads` is {threads!r}, expected an integer from 1 to 4096")
    return Load(Path(folder), dtype, threads)


def parse_run(message, dims):
    """A run that this model can do, or an `InputError`."""
    ids = _ids(message.get("ids"), "ids", dims)
    if not ids:
        raise InputError("`ids` is empty")
    new = message.get("max_new_tokens", 0)
    if not is_int(new) or new < 0:
        raise InputError(f"`max_new_tokens` is {new!r}, expected an integer from 0")
    needed = len(ids) + max(new, 1) - 1
    if needed > dims.n_positions:
        raise InputError(
            f"context overflow: {len(ids)} ids and {new} new tokens need {needed} positions, "
            f"the model has {dims.n_positions}"
        )
    forced = message.get("forced_ids")
    if forced is not None:
        forced = _ids(forced, "forced_ids", dims)
        if len(forced) != new:
            raise InputError(f"`forced_ids` has {len(forced)} entries, max_new_tokens is {new}")
    patterns = message.get("points", [])
    if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
        raise InputError("`points` isn't a list of strings")
    points = Globs(patterns)
    out_dir = message.get("out_dir")
    if out_dir is not None and not isinstance(out_dir, str):
        raise InputError(f"`out_dir` is {out_dir!r}, expected a path")
    if out_dir is None and any(p in points for p in all_points(dims.n_layer)):
        raise InputError("`out_dir` is missing: there is nowhere to put the tensors")
    text = message.get("text", True)
    if not isinstance(text, bool):
        raise InputError(f"`text` is {text!r}, expected true or false")
    if message.get("beside"):
        raise UnsupportedError("failed to run several sequences at once: expected none in `beside`")
    return Run(
        id=request_id(message),
        ids=ids,
        points=points,
        max_new_tokens=new,
        forced_ids=forced,
        sampling=_sampling(message.get("sampling")),
        inject=_inject(message.get("inject"), dims, max(new, 1)),
        out_dir=None if out_dir is None else Path(out_dir),
        text=text,
    )


MOST_DRAWS = 10**8  # more is a mistake, and memory for it isn't there


def parse_draw(message):
    """A draw that can be made, or an `InputError`."""
    logits = message.get("logits")
    if not isinstance(logits, dict) or not isinstance(logits.get("file"), str):
        raise InputError("`logits` isn't an object with a `file`")
    key = logits.get("key")
    if key is not None and not isinstance(key, str):
        raise InputError(f"`logits` has key {key!r}, expected a string")
    draws = message.get("draws")
    if not is_int(draws) or not 0 <= draws <= MOST_DRAWS:
        raise InputError(f"`draws` is {draws!r}, expected an integer from 0 to {MOST_DRAWS}")
    out_dir = message.get("out_dir")
    if not isinstance(out_dir, str):
        raise InputError(f"`out_dir` is {out_dir!r}, expected a path")
    sampling = _sampling(message.get("sampling"))
    if sampling.temperature == 0:
        raise InputError("`sampling.temperature` is 0, expected more than 0 to draw at")
    return Draw(request_id(message), (logits["file"], key), sampling, draws, Path(out_dir))


def _ids(value, field, dims):
    if not isinstance(value, list) or not all(is_int(i) for i in value):
        raise InputError(f"`{field}` isn't a list of integers")
    for position, token in enumerate(value):
        if not 0 <= token < dims.vocab_size:
            raise InputError(f"`{field}`[{position}] is {token}, outside the vocabulary of {dims.vocab_size}")
    return value


def _sampling(value):
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise InputError("`sampling` isn't an object")

    def number(key, default):
        found = value.get(key, default)
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise InputError(f"`sampling.{key}` is {found!r}, expected a number")
        return found

    temperature, top_p = float(number("temperature", 0)), float(number("top_p", 1))
    top_k, seed = value.get("top_k", 0), value.get("seed", 0)
    if temperature < 0:
        raise InputError(f"`sampling.temperature` is {temperature}, expected 0 or more")
    if not 0 < top_p <= 1:
        raise InputError(f"`sampling.top_p` is {top_p}, expected more than 0 and at most 1")
    if not is_int(top_k) or top_k < 0:
        raise InputError(f"`sampling.top_k` is {top_k!r}, expected an integer from 0")
    if not is_int(seed) or not 0 <= seed < 2**64:
        raise InputError(f"`sampling.seed` is {seed!r}, expected an integer from 0 to 2^64 - 1")
    return Sampling(temperature, top_k, top_p, seed)


def _inject(value, dims, steps):
    value = [] if value is None else value
    if not isinstance(value, list):
        raise InputError("`inject` isn't a list")
    known = set(all_points(dims.n_layer))
    found = {}
    for entry in value:
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise InputError("an entry of `inject` isn't an object with a `file`")
        point, step, key = entry.get("point"), entry.get("step", 0), entry.get("key")
        if point not in known:
            raise InputError(f"`inject` names {point!r}, which is no point of this model")
        if not is_int(step) or not 0 <= step < steps:
            raise InputError(f"`inject` of {point} has step {step!r}, the run has steps 0 to {steps - 1}")
        if key is not None and not isinstance(key, str):
            raise InputError(f"`inject` of {point} has key {key!r}, expected a string")
        if (point, step) in found:
            raise InputError(f"`inject` names {point} at step {step} twice")
        found[point, step] = (entry["file"], key)
    return found
