"""GPT-2 on ONNX Runtime's CPU kernels. Worth `kernels`: the graph (`../llorch_graph/gpt2.py`) is ours.

The graph is run as it is written, without ONNX Runtime's graph optimisations: every point is the output
of a node of its own, and those optimisations exist to melt such nodes into one. So each number comes out
of one kernel that has a name, and is the same whichever points are asked for.

`--variant fast` is the form that is timed: another graph (`tuned.py`), of ONNX Runtime's fused operators.
"""

import sys
from importlib.metadata import version
from pathlib import Path

# Appended, so that the folder `onnxruntime` here never shadows the package.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from llorch_adapter import stdio

stdio.guard()

import numpy as np

from llorch_adapter.adapter import FAST, Adapter, Session, arguments
from llorch_adapter.errors import UpstreamError
from llorch_adapter.folder import read_config, read_weights
from llorch_adapter.points import OUTSIDE
from llorch_adapter.sampling import filter_logits
from llorch_adapter.serve import serve

FUSED = "the fast form has fused operators: it shows its results and nothing on the way"


class OnnxRuntimeAdapter(Adapter):
    name = "onnxruntime"
    worth = "kernels"
    capabilities = ("capture", "generate", "sample", "draw", "deterministic")
    variants = (FAST,)
    recipes = {
        "*": "the output of that name in the ONNX graph of adapters/python/llorch_graph/gpt2.py, no change of layout",
        "h.*.attn.q": "Split, Reshape and Transpose of the Gemm of c_attn; t (three h d) -> three h t d",
        "h.*.attn.k": "Split, Reshape and Transpose of the Gemm of c_attn; t (three h d) -> three h t d",
        "h.*.attn.v": "Split, Reshape and Transpose of the Gemm of c_attn; t (three h d) -> three h t d",
        "h.*.attn.cache.k": "Concat of the past, an input, and attn.k",
        "h.*.attn.cache.v": "Concat of the past, an input, and attn.v",
        "h.*.attn.scores": "MatMul, Mul by 1/sqrt(D), Where with -inf",
        "h.*.mlp.act": "Gelu, approximate=tanh",
        "logits.last": "last row of logits (the head applied to the last row alone where logits isn't asked for)",
        "next.probs": "Softmax of the last row in float64, filtered as in llorch_adapter/sampling.py (in float32 its own "
        "rounding over the vocabulary reaches 1.6e-5)",
    }

    # Over all of float32 its Tanh is off by 5.5 halves of an ulp of 1, most of it just before it is cut off, which
    # is at x = -5.2 of Gelu: 6 · 2^-24 · 5.2 / 2 is 9.3e-7. Measured from -3000 to 3000: 7.7e-7.
    deviations = (
        {
            "point": "h.*.mlp.act",
            "bound": 1e-6,
            "reason": "Gelu's tanh is a quotient of polynomials in f32, cut off at 9: beside -1 it is coarser than "
            "rounding, and 1 + tanh keeps that",
        },
    )

    def __init__(self, variant=None):
        super().__init__(variant)
        self.session_of_graph = self._softmax = self._weights = None
        if self.fast:
            self.show_results_only(FUSED)
            self.narrow = ("int8",)
            self.recipes = {"logits.last": "output `logits` of the graph of adapters/python/onnxruntime/tuned.py"}
            self.deviations = ()

    def version(self):
        return f"onnxruntime {version('onnxruntime')}"

    def load(self, folder, dtype, threads):
        self.precision(dtype)
        config = read_config(folder)
        self.session_of_graph = self._softmax = self._weights = None
        weights = read_weights(folder, config)
        from onnx import TensorProto

        from llorch_graph.gpt2 import LAST, build_model, build_softmax, cache_names, past_names, point_names

        self._softmax = inference_session(build_softmax(TensorProto.DOUBLE), threads)
        if self.fast:
            from tuned import build

            model, self._weights = build(config, weights, dtype == "int8")
            self.session_of_graph = inference_session(model, threads, self._weights, fast=True)
            self.dims = config.dims
            return
        shapes = {name: array.shape for name, array in weights.items()}
        model = build_model(config, shapes, external_weights=True)
        weights = {w.name: np.ascontiguousarray(weights[w.name]) for w in model.graph.initializer if w.name in weights}
        self.session_of_graph = inference_session(model, threads, weights)
        self._weights = weights  # ONNX Runtime reads them where they are
        layers = config.dims.n_layer
        self.caches, self.pasts = cache_names(layers), past_names(layers)
        check_names(self.session_of_graph, [*point_names(layers), LAST])
        self.dims = config.dims

    def session(self, probe, positions):
        return FastSession(self, positions) if self.fast else OnnxRuntimeSession(self, probe)

    def next_probs(self, logits, settings):
        # In float32 it adds a vocabulary of 50,257 in 16 lanes or 8, and beside a peak the tail is rounded
        # away: 1.6e-5 on nano. That is its kernel's rounding, not GPT-2's probabilities.
        logits = filter_logits(logits, settings).astype(np.float64)
        return self._softmax.run(["probs"], {"logits": logits})[0].astype(self.numpy_dtype)


class OnnxRuntimeSession(Session):
    """One run. The caches stay in ONNX Runtime's memory from step to step."""

    def __init__(self, adapter, probe):
        import onnxruntime

        self._session = adapter.session_of_graph
        self._probe = probe
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._options = onnxruntime.RunOptions()
        # What isn't asked for, the head over every row for one, isn't computed.
        self._options.only_execute_path_to_fetches = True
        self._wanted = [p for p in adapter.points() if probe.captures(p) and p not in OUTSIDE]
        self._caches, self._pasts = adapter.caches, adapter.pasts
        dims = adapter.dims
        empty = self._value(np.zeros((dims.n_head, 0, dims.head_dim), np.float32))
        self._past = [empty] * len(self._pasts)
        self._fed = 0

    def forward(self, ids):
        from llorch_graph.gpt2 import LAST

        positions = np.arange(self._fed, self._fed + len(ids), dtype=np.int64)
        self._fed += len(ids)
        feeds = {"ids": self._value(np.asarray(ids, np.int64)), "positions": self._value(positions)}
        feeds |= zip(self._pasts, self._past)
        head = "logits" if self._probe.active("logits") else LAST
        names = list(dict.fromkeys([*self._caches, head, *self._wanted]))
        found = dict(zip(names, self._session.run_with_ort_values(names, feeds, self._options)))
        self._past = [found[name] for name in self._caches]
        for point in self._wanted:
            self._probe.visit(point, found[point].numpy())
        return found[head].numpy()[-1]


class FastSession(Session):
    """One run. Keys and values have one buffer a layer for all steps, which ONNX Runtime appends to."""

    def __init__(self, adapter, positions):
        import onnxruntime
        from tuned import buffer_names

        self._session = adapter.session_of_graph
        self._binding = self._session.io_binding()
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        dims, self._fed = adapter.dims, 0
        shape = (1, dims.n_head, positions, dims.head_dim)
        self._buffers = [self._value(np.zeros(shape, np.float32)) for _ in range(2 * dims.n_layer)]
        for past, present, buffer in zip(*buffer_names(dims.n_layer), self._buffers):
            self._binding.bind_ortvalue_input(past, buffer)
            self._binding.bind_ortvalue_output(present, buffer)
        self._logits = self._value(np.zeros((1, 1, dims.vocab_size), np.float32))
        self._binding.bind_ortvalue_output("logits", self._logits)

    def forward(self, ids):
        first, self._fed = self._fed, self._fed + len(ids)
        feeds = {
            "ids": np.asarray([ids], np.int64),
            "positions": np.arange(first, self._fed, dtype=np.int64)[None],
            "seqlens_k": np.asarray([self._fed - 1], np.int32),
            "total": np.asarray(self._fed, np.int32),
        }
        for name, array in feeds.items():
            self._binding.bind_ortvalue_input(name, self._value(array))
        self._session.run_with_iobinding(self._binding)
        return self._logits.numpy()[0, 0]


def inference_session(model, threads, weights=None, fast=False):
    """A session in this many threads: nodes one by one as they are, or `fast`, as ONNX Runtime likes it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if fast else level.ORT_DISABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not fast:
        # Other implementations want the processor while this one has nothing to do.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def check_names(session, expected):
    """A point whose output the engine has lost is an error by name, not a smaller table."""
    given = {output.name for output in session.get_outputs()}
    lost = [name for name in expected if name not in given]
    if lost:
        raise UpstreamError(f"ONNX Runtime's session has no output `{lost[0]}` ({len(lost)} are missing), expected every point")


def main():
    options = arguments(OnnxRuntimeAdapter).parse_args()
    return serve(OnnxRuntimeAdapter(options.variant))


if __name__ == "__main__":
    sys.exit(main())
