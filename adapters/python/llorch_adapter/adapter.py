"""What an adapter supplies."""

import argparse

import numpy as np

from . import sampling
from .errors import InputError, UnsupportedError
from .points import Globs, all_points
from .tensors import DTYPE_NAMES

PROTOCOL_VERSION = 1
FAST = "fast"  # the variant that is timed, where it is another than the one that shows its points


class Session:
    """One run's forward passes over one key/value cache. A context manager."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def forward(self, ids):
        """Feeds `ids` after what was fed before; returns the last row of logits, an array [V].

        Every point from `embeddings` to `logits` is shown to the probe on the way.
        """
        raise NotImplementedError


class Adapter:
    """Name, claims and behaviour of one implementation. Subclasses fill in what differs."""

    name = ""
    worth = "kernels"
    capabilities = ("capture", "generate")
    variants = ()
    unsupported = ()  # [{"point": glob, "reason": why}]
    not_injectable = ()  # the same, for adapters with the capability `inject`
    recipes = {}
    deviations = ()
    narrow = ()  # dtypes that are computed in while values are shown in float32

    def __init__(self, variant=None):
        self.variant = variant
        self.fast = variant == FAST
        self._narrow = None  # the one of them that was asked for
        self.dims = None  # set by load
        self.numpy_dtype = np.float32

    def version(self):
        """Versions of what is being run. Asked before anything heavy is imported."""
        raise NotImplementedError

    def load(self, folder, dtype, threads):
        """Loads a model folder and sets `dims` and `numpy_dtype`."""
        raise NotImplementedError

    def computes(self):
        """The dtype of the loaded model's arithmetic, as the protocol names it."""
        return self._narrow or DTYPE_NAMES[np.dtype(self.numpy_dtype).name]

    def session(self, probe, positions):
        """A `Session` for one run, which will feed so many tokens in all."""
        raise NotImplementedError

    def observe(self, probe):
        """The probe that a run shows its values to; an adapter may put its own around it."""
        return probe

    def next_probs(self, logits, settings):
        """Probabilities [V] from the last row of logits, with the implementation's own kernels."""
        return sampling.next_probs(logits, settings)

    def draw(self, probabilities, generator, count):
        """So many tokens, i64 [count], one after another from one generator."""
        return sampling.draw_many(probabilities, generator, count)

    def tokenize(self, text):
        raise UnsupportedError(f"{self.name} has no tokenizer of its own")

    def decode(self, ids):
        """Text of generated ids, or None without a tokenizer."""
        return None

    # What follows is the same for all.

    def full_name(self):
        return f"{self.name}:{self.variant}" if self.variant else self.name

    def hello(self):
        return {
            "type": "hello",
            "protocol": PROTOCOL_VERSION,
            "name": self.full_name(),
            "version": self.version(),
            "worth": self.worth,
            "capabilities": list(self.capabilities),
            "unsupported": list(self.unsupported),
            "not_injectable": list(self.not_injectable),
            "recipes": dict(self.recipes),
            "deviations": list(self.deviations),
        }

    def precision(self, dtype):
        """float32 or float64, from the request's dtype and the variant: what values are shown in."""
        self._narrow = dtype if dtype in self.narrow else None
        if self._narrow:
            return np.float32
        if dtype == "f64" or (self.variant == "f64" and dtype == "f32"):
            if "f64" not in self.capabilities:
                raise UnsupportedError(f"{self.name} computes in f32 only")
            return np.float64
        if dtype != "f32":
            raise UnsupportedError(f"{self.name} doesn't compute in {dtype}")
        return np.float32

    def show_results_only(self, reason):
        """For a fast form, of which nobody sees the inside."""
        self.capabilities = (*self.capabilities, "bench")
        self.unsupported = tuple({"point": point, "reason": reason} for point in ("embeddings", "h.*", "ln_f", "logits"))

    def check(self, request):
        """Refuses what this implementation has declared that it can't do."""
        if request.inject and "inject" not in self.capabilities:
            raise UnsupportedError(f"{self.name} can't inject")
        if request.sampling.temperature > 0 and "sample" not in self.capabilities:
            raise UnsupportedError(f"{self.name} can't sample")
        for entry in self.unsupported:
            if any(point in Globs([entry["point"]]) for point, _ in request.inject):
                raise InputError(f"`inject` names {entry['point']}, which {self.name} doesn't support")

    def points(self):
        """The points that this model has and this implementation can capture."""
        beyond = Globs([entry["point"] for entry in self.unsupported])
        return [p for p in all_points(self.dims.n_layer) if p not in beyond]


def arguments(adapter_class):
    """The command line that every adapter shares."""
    parser = argparse.ArgumentParser(
        description=f"llorch adapter `{adapter_class.name}`: speaks JSON Lines on stdin and stdout"
    )
    if adapter_class.variants:
        parser.add_argument("--variant", choices=adapter_class.variants)
    return parser
