"""Capture and injection for one run, step by step."""

import numpy as np

from .errors import InputError, UnsupportedError
from .points import INTEGERS, Globs, shape_of
from .tensors import DTYPE_NAMES, read_tensor, write_npy


class Probe:
    """What the model's graph shows each value to, in data-flow order.

    A value that is injected replaces the computed one before anything reads it, and is
    also what gets captured there.
    """

    def __init__(self, request, dims, dtype, send, not_injectable=(), unsupported=()):
        self._request = request
        self._dims = dims
        self._dtype = dtype
        self._send = send
        self.step, self._t, self._s = 0, 0, 0
        self._seen = set()
        self.forced = request.forced_ids is not None  # whether the run is told what to feed
        self.forced_ids = request.forced_ids
        self._wanted = {}
        # What the implementation hasn't by its nature isn't made up by the step loop either.
        self._beyond = Globs([entry["point"] for entry in unsupported])
        for entry in not_injectable:
            for point, _ in request.inject:
                if point in Globs([entry["point"]]):
                    raise UnsupportedError(f"can't inject at {point}: {entry['reason']}")
        if request.out_dir is not None:
            request.out_dir.mkdir(parents=True, exist_ok=True)

    def begin(self, step, t, s):
        """A step of `t` tokens that sees `s` keys."""
        self.step, self._t, self._s = step, t, s
        self._seen = set()

    def unseen(self, points):
        """Those of `points` that were asked for and haven't come by in this step."""
        return [point for point in points if self.captures(point) and point not in self._seen]

    def captures(self, point):
        if point not in self._wanted:
            self._wanted[point] = point in self._request.points and point not in self._beyond
        return self._wanted[point]

    def injects(self, point):
        return (point, self.step) in self._request.inject

    def active(self, point):
        """Whether anything happens at this point in this step."""
        return self.captures(point) or self.injects(point)

    def ever_active(self, point):
        """Whether anything happens at this point in any step of the run."""
        return self.captures(point) or any(p == point for p, _ in self._request.inject)

    def visit(self, point, value):
        """Shows an array; returns the one to go on with."""
        if self.injects(point):
            value = self._replacement(point)
        if self.captures(point):
            self._seen.add(point)
            self._write(point, value)
        return value

    def _replacement(self, point):
        file, key = self._request.inject[point, self.step]
        value = read_tensor(file, key)
        expected = shape_of(point, self._dims, self._t, self._s)
        if value.shape != expected:
            raise InputError(
                f"failed to inject {point} at step {self.step}: {file} is {list(value.shape)}, "
                f"expected {list(expected)}"
            )
        if point in INTEGERS:
            if value.dtype.kind not in "iu" or (
                value.size and not 0 <= value.min() <= value.max() < self._dims.vocab_size
            ):
                raise InputError(f"failed to inject {point}: {file} doesn't hold token ids")
            return value.astype(np.int64)
        if value.dtype.kind != "f":
            raise InputError(f"failed to inject {point}: {file} holds {value.dtype}, expected floats")
        # A copy that can be written to: whoever gets it may keep it as its own tensor.
        return value.astype(self._dtype)

    def _write(self, point, value):
        path = self._request.out_dir / f"{self.step:04d}_{point}.npy"
        written = write_npy(path, value)
        self._send(
            {
                "type": "tensor",
                "id": self._request.id,
                "point": point,
                "step": self.step,
                "file": str(path.absolute()),
                "key": None,
                "dtype": DTYPE_NAMES[written.dtype.name],
                "shape": list(written.shape),
            }
        )
