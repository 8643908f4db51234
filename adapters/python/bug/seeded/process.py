"""Bugs that no single run shows: what is left over, what differs from process to process, generators."""

import os

import numpy as np

from .registry import bug, override


@bug(by_layer=False, value=1.01)
def left_over(model, o):
    """each run in a process finds the embeddings a little larger than the one before"""
    runs = {"count": 0}

    @override(model, "embed")
    def _(original, ids, start):
        runs["count"] += start == 0
        return original(ids, start) * model.dtype.type(o.value ** (runs["count"] - 1))


@bug(by_layer=False)
def of_process(model, o):
    """embeddings depend on the process: memory that was never set, say"""
    factor = model.dtype.type(1 + os.getpid() % 1009 / 1e4)

    @override(model, "embed")
    def _(original, ids, start):
        return original(ids, start) * factor


@bug(by_layer=False)
def lost_part(model, o):
    """with more than one thread the linear layers lose the last part of each sum"""
    from threadpoolctl import threadpool_info

    threads = max((pool["num_threads"] for pool in threadpool_info()), default=1)

    @override(model, "linear")
    def _(original, name, x):
        if threads == 1:
            return original(name, x)
        x = x.copy()
        x[..., -1] = 0
        return original(name, x)


class _Uniform:
    """Uniform numbers in [0, 1), bent."""

    def __init__(self, generator, bend):
        self._generator = generator
        self._bend = bend

    def random(self, count):
        return self._bend(self._generator.random(count))


@bug(by_layer=False, power=1.02)
def biased_generator(model, o):
    """the generator's numbers are a little too small: u to a power"""
    model.generator_changes.append(lambda generator: _Uniform(generator, lambda u: u**o.power))


@bug(by_layer=False)
def few_bits(model, o):
    """the generator's numbers have 8 bits"""
    model.generator_changes.append(lambda generator: _Uniform(generator, lambda u: np.floor(u * 256) / 256))


@bug(by_layer=False)
def ignored_seed(model, o):
    """every seed is 0"""
    fixed = {}

    def change(generator):
        # One run or draw request has one generator.
        if fixed.get("for") is not generator:
            fixed.update({"for": generator, "use": np.random.default_rng(0)})
        return fixed["use"]

    model.generator_changes.append(change)


@bug(by_layer=False)
def unseeded(model, o):
    """draws are seeded by the clock"""
    model.generator_changes.append(lambda generator: np.random.default_rng())


@bug(by_layer=False)
def other_sampler(model, o):
    """runs draw by a sampler of their own: the second uniform number instead of the first"""

    def change(generator):
        return _Uniform(generator, lambda u: generator.random(1) if len(u) == 1 else u)

    model.generator_changes.append(change)
