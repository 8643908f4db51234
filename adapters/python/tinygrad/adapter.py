"""GPT-2 on tinygrad's CPU backend. Worth `kernels`: the graph (`gpt2.py`) is ours.

tinygrad compiles its kernels with a C compiler of clang's family: $CC, else the system's
clang, else the one inside the `ziglang` wheel (`compiler.py`, `zigcc.py`).
"""

import sys
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from llorch_adapter import stdio

stdio.guard()

import compiler
from llorch_adapter.adapter import Adapter, Session, arguments
from llorch_adapter.folder import open_weights, read_config
from llorch_adapter.points import OUTSIDE
from llorch_adapter.sampling import filter_logits
from llorch_adapter.serve import serve

# Few sizes, so that kernels are seldom compiled anew.
SMALLEST_PROMPT, SMALLEST_CACHE = 8, 256


class TinygradAdapter(Adapter):
    name = "tinygrad"
    worth = "kernels"
    capabilities = ("capture", "generate", "sample", "draw", "deterministic")
    recipes = {
        "*": "as named in adapters/python/tinygrad/gpt2.py; a captured value ends a kernel",
        "h.*.attn.q": "first third of c_attn's output; t (three h d) -> three h t d",
        "h.*.attn.k": "second third of c_attn's output; t (three h d) -> three h t d",
        "h.*.attn.v": "last third of c_attn's output; t (three h d) -> three h t d",
        "h.*.attn.cache.k": "the first S places of a cache of fixed size",
        "h.*.attn.cache.v": "the first S places of a cache of fixed size",
        "h.*.attn.scores": "scaled, masked with -inf; the first S places",
        "h.*.attn.probs": "the first S places",
        "h.*.mlp.act": "Tensor.gelu, tanh form",
        "logits.last": "last row of logits (the head applied to the last row alone where logits isn't asked for)",
        "next.probs": "Tensor.softmax of the last row, filtered as in llorch_adapter/sampling.py",
    }
    # Measured on a distribution with a peak of 0.93: 6.0e-6. Sums in other orders (other kernels,
    # other shapes) may be off by more.
    deviations = (
        {
            "point": "next.probs",
            "bound": 1e-4,
            "reason": "Tensor.softmax sums the exponentials of the whole vocabulary in f32: beside a peak "
            "the tail is rounded away",
        },
    )

    def __init__(self, variant=None):
        super().__init__(variant)
        self.model = None
        self._caches = {}
        self._compiled = {}

    def version(self):
        return f"tinygrad {version('tinygrad')}, kernels compiled by {compiler.choose()[0]}"

    def load(self, folder, dtype, threads):
        self.precision(dtype)
        config = read_config(folder)
        _, stored = open_weights(folder, config)  # checked before tinygrad reads them
        compiler.prepare()
        from tinygrad.helpers import NUM_CPU_THREADS

        from gpt2 import Gpt2, load_weights

        NUM_CPU_THREADS.value = threads
        self.model, self._caches, self._compiled = None, {}, {}
        self.model = Gpt2(config, load_weights(folder / "model.safetensors", stored))
        self.dims = config.dims

    def session(self, probe, positions):
        return TinygradSession(self, probe, positions)

    def next_probs(self, logits, settings):
        from tinygrad import Tensor

        return Tensor(filter_logits(logits, settings)).softmax().numpy()

    def cache(self, places):
        """The cache of this size. Runs use it in turn: what an earlier one left there is after
        every position of the next, or overwritten."""
        if places not in self._caches:
            self._caches[places] = self.model.empty_cache(places)
        return self._caches[places]

    def compiled(self, rows, places, wanted):
        """The forward pass as tinygrad's JIT keeps it, for this many rows, this size of
        cache and these points: `f(ids, start, last)` gives [logits of the last row, *wanted]."""
        key = (rows, places, wanted)
        if key not in self._compiled:
            from tinygrad import Tensor, TinyJit

            cache = self.cache(places)

            def forward(ids, start, last):
                logits, found = self.model.forward(ids, start, last, cache, wanted)
                tensors = [logits.contiguous(), *(found[point] for point in wanted)]
                Tensor.realize(*tensors)
                return tensors

            self._compiled[key] = TinyJit(forward)
        return self._compiled[key]


class TinygradSession(Session):
    """One run: prompt and tokens through compiled passes of a few sizes."""

    def __init__(self, adapter, probe, positions):
        limit = adapter.dims.n_positions
        self._adapter = adapter
        self._probe = probe
        self._fed = 0
        self._limit = limit
        self._places = round_up(positions, SMALLEST_CACHE, 4, limit)
        self._wanted = tuple(p for p in adapter.points() if probe.captures(p) and p not in OUTSIDE)

    def forward(self, ids):
        from tinygrad import Tensor, Variable, dtypes

        count = len(ids)
        rows = 1 if count == 1 and self._fed else round_up(count, SMALLEST_PROMPT, 2, self._places)
        padded = Tensor([*ids, *[0] * (rows - count)], dtype=dtypes.int).realize()
        start = Variable("start", 0, self._places - rows).bind(self._fed)
        last = Variable("last", 0, rows - 1).bind(count - 1) if rows > 1 else 0
        self._fed += count
        logits, *found = self._adapter.compiled(rows, self._places, self._wanted)(padded, start, last)
        for point, tensor in zip(self._wanted, found):
            self._probe.visit(point, trim(point, tensor.numpy(), count, self._fed))
        return logits.numpy()


def round_up(count, smallest, factor, limit):
    """The first of smallest, smallest·factor, … that holds `count`, at most `limit`."""
    size = smallest
    while size < count:
        size *= factor
    return min(size, limit)


def trim(point, value, t, s):
    """Cuts padded rows and places: [.., T, P] to [.., t, s]."""
    if ".cache." in point:
        return value[:, :s]
    if point.endswith((".scores", ".probs")):
        return value[:, :t, :s]
    return value[:, :t] if value.ndim == 3 else value[:t]


def main():
    options = arguments(TinygradAdapter).parse_args()
    return serve(TinygradAdapter(getattr(options, "variant", None)))


if __name__ == "__main__":
    sys.exit(main())
