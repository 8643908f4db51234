"""GPT-2 on OpenVINO's CPU plugin. Worth `kernels`: the graph (`../llorch_graph/gpt2.py`) is ours.

OpenVINO compiles a graph as a whole and melts nodes together where nobody looks between them. With
points in sight all of them are results of the compiled model, so that each is a value which the plugin
has computed; without, it is free to do what it does for its users. INFERENCE_PRECISION_HINT is f32 in both:
by default the plugin takes bf16 where the processor has it.

`--variant fast` is the form that is timed: another graph (`stateful.py`), whose cache is the plugin's.
"""

import sys
from importlib.metadata import version
from pathlib import Path

# Appended, so that the folder `openvino` here never shadows the package.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from llorch_adapter import stdio

stdio.guard()

import numpy as np

from llorch_adapter.adapter import FAST, Adapter, Session, arguments
from llorch_adapter.folder import read_config, read_weights
from llorch_adapter.points import OUTSIDE
from llorch_adapter.sampling import filter_logits
from llorch_adapter.serve import serve

FUSED = "the fast form is compiled with its results alone: it shows nothing on the way"


class OpenVinoAdapter(Adapter):
    name = "openvino"
    worth = "kernels"
    capabilities = ("capture", "generate", "sample", "draw", "deterministic")
    variants = (FAST,)
    recipes = {
        "*": "the result of that name of the ONNX graph of adapters/python/llorch_graph/gpt2.py, compiled with every "
        "point as a result; no change of layout",
        "h.*.attn.q": "Split, Reshape and Transpose of the Gemm of c_attn; t (three h d) -> three h t d",
        "h.*.attn.k": "Split, Reshape and Transpose of the Gemm of c_attn; t (three h d) -> three h t d",
        "h.*.attn.v": "Split, Reshape and Transpose of the Gemm of c_attn; t (three h d) -> three h t d",
        "h.*.attn.cache.k": "Concat of the past, an input, and attn.k",
        "h.*.attn.cache.v": "Concat of the past, an input, and attn.v",
        "h.*.attn.scores": "MatMul, Mul by 1/sqrt(D), Where with -inf",
        "h.*.mlp.act": "Gelu, approximate=tanh",
        "logits.last": "last row of logits (the head applied to the last row alone where no point is asked for)",
        "next.probs": "Softmax of the last row, filtered as in llorch_adapter/sampling.py",
    }

    # The plugin has no softmax in float64. Lanes are 8 with AVX2, 16 with AVX-512: of 50,257 terms 6283 are
    # added in a lane, each off by half an ulp of a sum near 1, which is 3.7e-4 at worst. Measured with a peak
    # of 0.93: 4.6e-6.
    deviations = (
        {
            "point": "next.probs",
            "bound": 4e-4,
            "reason": "the CPU plugin's softmax sums the exponentials of the whole vocabulary in f32: beside a peak "
            "the tail is rounded away",
        },
    )

    def __init__(self, variant=None):
        super().__init__(variant)
        self.engine = None
        if self.fast:
            # `infer` of the same request twice may share work differently between its threads.
            self.capabilities = tuple(c for c in self.capabilities if c != "deterministic")
            self.show_results_only(FUSED)
            self.narrow = ("bf16", "int8")
            self.recipes = {"logits.last": "the result of the graph of adapters/python/openvino/stateful.py"}
            self.deviations = ()

    def version(self):
        return f"openvino {version('openvino')}"

    def load(self, folder, dtype, threads):
        self.precision(dtype)
        config = read_config(folder)
        self.engine = None
        weights = read_weights(folder, config)
        if self.fast:
            from stateful import StatefulEngine

            self.engine = StatefulEngine(config, weights, threads, dtype)
            self.dims = config.dims
            return
        from engine import Engine

        self.engine = Engine(config, weights, threads)
        self.dims = config.dims

    def session(self, probe, positions):
        return FastSession(self.engine) if self.fast else OpenVinoSession(self, probe)

    def next_probs(self, logits, settings):
        if self.fast:
            return super().next_probs(logits, settings)
        return self.engine.softmax(filter_logits(logits, settings))


class FastSession(Session):
    """One run over the plugin's own cache, which begins empty."""

    def __init__(self, engine):
        engine.reset()
        self.forward = engine.step


class OpenVinoSession(Session):
    """One run. The caches go out of one step and into the next."""

    def __init__(self, adapter, probe):
        from llorch_graph.gpt2 import cache_names, past_names

        layers = adapter.dims.n_layer
        self._probe = probe
        self._wanted = [p for p in adapter.points() if probe.captures(p) and p not in OUTSIDE]
        self._infer = adapter.engine.every_point if self._wanted else adapter.engine.last_row
        self._caches, self._pasts = cache_names(layers), past_names(layers)
        empty = np.zeros((adapter.dims.n_head, 0, adapter.dims.head_dim), np.float32)
        self._past = [empty] * len(self._pasts)
        self._fed = 0

    def forward(self, ids):
        positions = np.arange(self._fed, self._fed + len(ids), dtype=np.int64)
        self._fed += len(ids)
        feeds = {"ids": np.asarray(ids, np.int64), "positions": positions}
        found = self._infer(feeds | dict(zip(self._pasts, self._past)))
        self._past = [found[name] for name in self._caches]
        for point in self._wanted:
            self._probe.visit(point, found[point])
        return found["logits"][-1] if self._wanted else found["last"][-1]


def main():
    options = arguments(OpenVinoAdapter).parse_args()
    return serve(OpenVinoAdapter(options.variant))


if __name__ == "__main__":
    sys.exit(main())
