"""The GPT-2 of `gpt2.py`, in NumPy: a second pair of eyes on the graph that is easy to read.

Worth `kernels`: the matrix products are BLAS's, the graph is ours. It injects at every
point, and `--variant f64` computes in float64. `--variant sequential` adds the terms of every sum
one after the other: as correct as BLAS, and as far from it as an honest implementation gets.
"""

import sys
from importlib.metadata import version
from pathlib import Path

# Appended, so that the folder `numpy` here never shadows the package.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from llorch_adapter import stdio

stdio.guard()

from gpt2 import Cache, Gpt2
from llorch_adapter.adapter import Adapter, Session, arguments
from llorch_adapter.folder import read_config, read_weights
from llorch_adapter.serve import serve
from sequential import SequentialGpt2


class NumpyAdapter(Adapter):
    name = "numpy"
    worth = "kernels"
    capabilities = ("capture", "generate", "sample", "draw", "inject", "f64", "deterministic")
    variants = ("f64", "sequential")
    recipes = {
        "*": "as named in adapters/python/numpy/gpt2.py, no change of layout",
        "h.*.attn.scores": "scaled and masked with -inf",
        "logits.last": "last row of logits (the head applied to the last row alone where logits isn't asked for)",
    }

    def __init__(self, variant=None):
        super().__init__(variant)
        self.model = None

    def version(self):
        return f"numpy {version('numpy')}"

    def load(self, folder, dtype, threads):
        precision = self.precision(dtype)
        limit_threads(threads)
        config = read_config(folder)
        self.model = self.build(config, read_weights(folder, config, precision))
        self.numpy_dtype = precision
        self.dims = config.dims

    def build(self, config, weights):
        return (SequentialGpt2 if self.variant == "sequential" else Gpt2)(config, weights)

    def session(self, probe, positions):
        return NumpySession(self.model, probe)


class NumpySession(Session):
    def __init__(self, model, probe):
        self._model = model
        self._probe = probe
        self._cache = Cache(model.dims, model.dtype)

    def forward(self, ids):
        return self._model.forward(ids, self._cache, self._probe)


def limit_threads(threads):
    """BLAS takes its number of threads from whoever asks it at run time."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads, user_api="blas")


def main():
    options = arguments(NumpyAdapter).parse_args()
    return serve(NumpyAdapter(options.variant))


if __name__ == "__main__":
    sys.exit(main())
