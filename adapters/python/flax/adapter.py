"""Hugging Face's own Flax GPT-2 (`FlaxGPT2LMHeadModel`) on JAX. Worth `semantics`.

Graph and kernels are upstream's: transformers' Flax modules, flax's attention, XLA's CPU kernels, and no
torch. `capture.py` looks at values on their way. Operations run one by one as upstream's model does
unless its user wraps it in `jax.jit`: that would compile anew for each length of prompt and each set of
points, and would melt away what is to be seen.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

# Appended, so that the folder `flax` here never shadows the package.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from llorch_adapter import stdio

stdio.guard()

# Before transformers and jax are imported: the one must not ask the network for anything, the other
# has no business with accelerators.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "JAX_PLATFORMS": "cpu",
    "TRANSFORMERS_VERBOSITY": "error",
}

import numpy as np

from llorch_adapter.adapter import Adapter, arguments
from llorch_adapter.folder import read_config, read_weights
from llorch_adapter.sampling import filter_logits
from llorch_adapter.serve import serve


class FlaxAdapter(Adapter):
    name = "flax"
    worth = "semantics"
    capabilities = ("capture", "generate", "sample", "draw", "deterministic")
    recipes = {
        "tokens": "input_ids; b t -> t",
        "embeddings": "output of transformer.dropout; b t e -> t e",
        "h.*.ln_1": "output of ln_1; b t e -> t e",
        "h.*.attn.q": "first third of attn.c_attn's output; b t (h d) -> h t d",
        "h.*.attn.k": "second third of attn.c_attn's output; b t (h d) -> h t d",
        "h.*.attn.v": "last third of attn.c_attn's output; b t (h d) -> h t d",
        "h.*.attn.cache.k": "keys from attn._concatenate_to_cache, the first S places; b s h d -> h s d",
        "h.*.attn.cache.v": "values from attn._concatenate_to_cache, the first S places; b s h d -> h s d",
        "h.*.attn.scores": "input of the jax.nn.softmax in flax.linen.dot_product_attention_weights (q is scaled before "
        "the product; the mask adds the dtype's minimum), the first S places; b h t s -> h t s",
        "h.*.attn.probs": "output of that softmax, the first S places; b h t s -> h t s",
        "h.*.attn.context": "input of attn.c_proj; b t e -> t e",
        "h.*.attn.out": "output of attn.c_proj; b t e -> t e",
        "h.*.resid_mid": "input of ln_2; b t e -> t e",
        "h.*.ln_2": "output of ln_2; b t e -> t e",
        "h.*.mlp.fc": "output of mlp.c_fc; b t f -> t f",
        "h.*.mlp.act": "input of mlp.c_proj; b t f -> t f",
        "h.*.mlp.out": "output of mlp.c_proj; b t e -> t e",
        "h.*": "output of the block; b t e -> t e",
        "ln_f": "output of transformer.ln_f; b t e -> t e",
        "logits": "logits of FlaxGPT2LMHeadModel's output; b t v -> t v",
        "logits.last": "last row of logits",
        "argmax": "numpy.argmax of logits.last: the lowest id of a tie",
        "next.probs": "jax.nn.softmax of the last row, filtered as in llorch_adapter/sampling.py",
    }

    # Over all of float32 its tanh is off by 4.4 halves of an ulp of 1, most of it where it is cut off, which is
    # at x = -4.9 of Gelu: 5 · 2^-24 · 4.9 / 2 is 7.4e-7. Measured from -3000 to 3000: 6.0e-7.
    deviations = (
        {
            "point": "h.*.mlp.act",
            "bound": 8e-7,
            "reason": "XLA's tanh on the CPU is a quotient of polynomials in f32, cut off where it is near 1: beside -1 "
            "it is coarser than rounding, and 1 + tanh keeps that",
        },
    )

    def __init__(self, variant=None):
        super().__init__(variant)
        self.model = None

    def version(self):
        return f"transformers {version('transformers')}, flax {version('flax')}, jax {version('jax')}"

    def load(self, folder, dtype, threads):
        self.precision(dtype)
        config = read_config(folder)
        self.model = None
        weights = read_weights(folder, config)
        # XLA makes its threads when it is first used.
        os.environ["NPROC"] = str(threads)
        from upstream import make_model

        self.model = make_model(folder, config, weights)
        self.dims = config.dims

    def session(self, probe, positions):
        from capture import FlaxSession

        return FlaxSession(self.model, probe, positions, self.dims)

    def next_probs(self, logits, settings):
        import jax

        return np.asarray(jax.nn.softmax(filter_logits(logits, settings)))


def main():
    arguments(FlaxAdapter).parse_args()
    return serve(FlaxAdapter())


if __name__ == "__main__":
    sys.exit(main())
