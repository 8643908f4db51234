"""tinygrad's own GPT-2, `examples/gpt2.py` of a checkout, on tinygrad's CPU backend. Worth `semantics`.

Neither tinygrad's wheel nor its sdist holds that file, so the user names a checkout:
LLORCH_TINYGRAD_SRC. Without one this is an adapter that can't capture anything, and says why.
Nothing of upstream is changed or copied: `upstream.py` imports it, `taps.py` looks at it from outside.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from llorch_adapter import stdio

stdio.guard()

# The compiler for tinygrad's kernels is chosen in one place.
sys.path.append(str(HERE.parent / "tinygrad"))
import compiler
import checkout
from llorch_adapter.adapter import Adapter, Session, arguments
from llorch_adapter.errors import UnsupportedError
from llorch_adapter.folder import open_weights, read_config
from llorch_adapter.serve import serve

SOURCE = "LLORCH_TINYGRAD_SRC"
NO_CHECKOUT = (
    "tinygrad publishes its GPT-2 (examples/gpt2.py) in its repository only, neither in the wheel nor in the "
    f"sdist: set {SOURCE} to a checkout"
)


class UpstreamAdapter(Adapter):
    name = "tinygrad-upstream"
    worth = "semantics"
    capabilities = ("capture", "generate", "deterministic")
    unsupported = (
        {
            "point": "next.probs",
            "reason": "examples/gpt2.py has probabilities only at a temperature above 0, on their way into the draw",
        },
    )
    recipes = {
        "*": "a captured value ends a kernel",
        "tokens": "given to Transformer.__call__; one token as a bound Variable, as GPT2.generate does",
        "embeddings": "input of h[0]; b t e -> t e",
        "h.*.ln_1": "output of nn.LayerNorm ln_1; b t e -> t e",
        "h.*.attn.q": "first third of c_attn's output; b t (three h d) -> three h t d",
        "h.*.attn.k": "second third of c_attn's output; b t (three h d) -> three h t d",
        "h.*.attn.v": "last third of c_attn's output; b t (three h d) -> three h t d",
        "h.*.attn.cache.k": "attn.cache_kv[0] after the step, its first S places; b s h d -> h s d",
        "h.*.attn.cache.v": "attn.cache_kv[1] after the step, its first S places; b s h d -> h s d",
        "h.*.attn.scores": "input of Tensor.softmax within scaled_dot_product_attention; b h t s -> h t s",
        "h.*.attn.probs": "output of Tensor.softmax within scaled_dot_product_attention; b h t s -> h t s",
        "h.*.attn.context": "input of attn.c_proj; b t e -> t e",
        "h.*.attn.out": "output of attn.c_proj; b t e -> t e",
        "h.*.resid_mid": "input of ln_2; b t e -> t e",
        "h.*.ln_2": "output of nn.LayerNorm ln_2; b t e -> t e",
        "h.*.mlp.fc": "output of mlp.c_fc; b t f -> t f",
        "h.*.mlp.act": "output of Tensor.gelu on mlp.fc; b t f -> t f",
        "h.*.mlp.out": "output of mlp.c_proj; b t e -> t e",
        "h.*": "output of TransformerBlock; b t e -> t e",
        "ln_f": "output of nn.LayerNorm ln_f; b t e -> t e",
        "logits": "output of lm_head, which upstream applies to every row; b t v -> t v",
        "argmax": "numpy.argmax of logits.last, held to what Transformer.__call__ returns",
    }

    def __init__(self, source):
        super().__init__()
        self.source = source
        self.model = None
        if source is None:
            self.capabilities = ()
            self.unsupported = ({"point": "*", "reason": NO_CHECKOUT},)
            self.recipes = {}

    def version(self):
        if self.source is None:
            return "no checkout"
        return f"tinygrad {checkout.describe(self.source)}, kernels compiled by {compiler.choose()[0]}"

    def load(self, folder, dtype, threads):
        self.precision(dtype)
        config = read_config(folder)
        self.model = None
        if self.source is not None:
            _, stored = open_weights(folder, config)  # checked before tinygrad reads them
            compiler.prepare()
            gpt2 = checkout.module(self.source)
            import upstream

            upstream.use_threads(threads)
            self.model = upstream.build(gpt2, config, folder / "model.safetensors", stored)
        self.dims = config.dims

    def session(self, probe, positions):
        if self.source is None:
            raise UnsupportedError(NO_CHECKOUT)
        return UpstreamSession(self.model, probe, self.dims)


class UpstreamSession(Session):
    """One run, driven as upstream's `GPT2.generate` drives its model."""

    def __init__(self, model, probe, dims):
        self._model = model
        self._probe = probe
        self._dims = dims
        self._fed = 0

    def forward(self, ids):
        import upstream

        start, self._fed = self._fed, self._fed + len(ids)
        return upstream.step(self._model, ids, start, self._dims, self._probe)


def main():
    arguments(UpstreamAdapter).parse_args()
    named = os.environ.get(SOURCE, "")
    return serve(UpstreamAdapter(Path(named) if named else None))


if __name__ == "__main__":
    sys.exit(main())
