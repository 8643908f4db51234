"""llama.cpp's own GPT-2, its graph and its CPU kernels, through llama-cpp-python's low-level API.

The reference of the `semantics` kind: nothing of the model is rewritten here. `nodes.py` says which
node of upstream's graph is which point, `session.py` looks at them from upstream's eval callback. The
model folder becomes a GGUF file by `llorch-diff export --gguf`.

`--variant fast` is what llama.cpp's users run: flash attention, keys and values in f16, the head for the last
token alone, weights in F32, BF16 or Q8_0 by llama.cpp's own quantizer.
"""

import sys
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from llorch_adapter import stdio

stdio.guard()

from llorch_adapter.adapter import FAST, Adapter, arguments
from llorch_adapter.errors import UnsupportedError
from llorch_adapter.folder import open_weights, read_config
from llorch_adapter.points import OUTSIDE
from llorch_adapter.serve import serve

EXACT_GELU = "exact-gelu"

# What ggml stores the weights in, by the dtype asked for.
STORED = {"f32": None, "bf16": "BF16", "int8": "Q8_0"}

FUSED = "the fast form has flash attention and no callback: it shows its results and nothing on the way"
# What becomes of the table of the GELU and of keys and values in f16 after all blocks: measured on nano and on
# synth:gpt2, where it is 5e-3 at most.
FAST_DEVIATIONS = (
    {
        "point": "logits.last",
        "bound": 2e-2,
        "reason": "ggml's CPU GELU reads a table in f16, and keys and values are kept in f16",
    },
)


class LlamaCppAdapter(Adapter):
    name = "llamacpp"
    worth = "semantics"
    capabilities = ("capture", "tokenize", "generate", "sample", "draw", "inject", "deterministic")
    variants = (EXACT_GELU, FAST)
    recipes = {
        "tokens": "llama_batch.token",
        "embeddings": "node inpL",
        "h.*.ln_1": "node attn_norm-i",
        "h.*.attn.q": "first third of node wqkv_b-i; t (three h d) -> three h t d",
        "h.*.attn.k": "second third of node wqkv_b-i; t (three h d) -> three h t d",
        "h.*.attn.v": "last third of node wqkv_b-i; t (three h d) -> three h t d",
        "h.*.attn.cache.k": "tensor cache_k_li after its SET_ROWS, the first S places; s (h d) -> h s d",
        "h.*.attn.cache.v": "tensor cache_v_li after its SET_ROWS, the first S places; (h d) s -> h s d",
        "h.*.attn.scores": "node kq-i, unscaled and padded with keys: times f32(1/sqrt(D)), as upstream's softmax "
        "multiplies it, the first S keys",
        "h.*.attn.probs": "node kq_soft_max-i, the first S keys",
        "h.*.attn.context": "node kqv_out-i",
        "h.*.attn.out": "the unnamed ADD of blk.i.attn_output.bias, before ffn_inp-i",
        "h.*.resid_mid": "node ffn_inp-i",
        "h.*.ln_2": "node ffn_norm-i",
        "h.*.mlp.fc": "node ffn_up_b-i",
        "h.*.mlp.act": "node ffn_gelu-i",
        "h.*.mlp.out": "node ffn_out-i",
        "h.*": "node l_out-i",
        "ln_f": "node result_norm",
        "logits": "node result_output (asked for at every token)",
        "logits.last": "llama_get_logits_ith of the last token",
        "argmax": "numpy.argmax of logits.last: the lowest id of a tie",
        "next.probs": "llorch_adapter/sampling.py",
    }
    # How far the table may be off is derived in refs/llamacpp/README.md, and tried in the tests.
    deviations = (
        {
            "point": "h.*.mlp.act",
            "bound": 1.1e-3,
            "reason": "ggml's CPU GELU rounds its input to f16 and reads its output from a table in f16 "
            "(between -10 and 10)",
        },
    )

    def __init__(self, variant=None):
        super().__init__(variant)
        self.model = None
        self.exact_gelu = variant == EXACT_GELU
        if self.exact_gelu:
            self.deviations = ()
            self.recipes = self.recipes | {
                "h.*.mlp.act": "node ffn_gelu-i, overwritten from the eval callback with the tanh GELU of node "
                "ffn_up_b-i in f64, rounded to f32"
            }
        self._folder = None
        if self.fast:
            self.capabilities = tuple(c for c in self.capabilities if c != "inject")
            self.show_results_only(FUSED)
            self.narrow = ("bf16", "int8")
            self.recipes = {name: text for name, text in self.recipes.items() if name in OUTSIDE}
            self.deviations = FAST_DEVIATIONS

    def version(self):
        return f"llama-cpp-python {version('llama-cpp-python')}"

    def load(self, folder, dtype, threads):
        self.precision(dtype)
        config = read_config(folder)
        open_weights(folder, config)  # what is missing or misshapen is told before anything is converted
        from engine import Model

        if self.model is not None:
            self.model.close()
            self.model = None
        self.model = Model(folder, threads, STORED[dtype])
        self._folder, self.dims = folder, config.dims

    def session(self, probe, positions):
        from session import FastSession, LlamaCppSession

        if self.fast:
            return FastSession(self.model, self.dims, positions)
        return LlamaCppSession(self.model, self.dims, probe, positions, self.exact_gelu)

    def tokenize(self, text):
        if not self.model.has_vocabulary:
            raise UnsupportedError(f"{self._folder} has no tokenizer files")
        return self.model.tokenize(text)

    def decode(self, ids):
        return self.model.text(ids) if self.model.has_vocabulary else None


def main():
    options = arguments(LlamaCppAdapter).parse_args()
    return serve(LlamaCppAdapter(options.variant))


if __name__ == "__main__":
    sys.exit(main())
