"""Hugging Face transformers' own GPT-2 (`GPT2LMHeadModel`, eager attention) on torch.

`--variant f64` computes in float64; `--variant sdpa` has torch's fused attention, transformers' default, and is
the form that is timed.

The reference of the `semantics` kind: graph and kernels are upstream's. Nothing of the
model is rewritten here; `hooks.py` looks at values on their way.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from llorch_adapter import stdio

stdio.guard()

# Before transformers is imported: it must not ask the network for anything.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import numpy as np

from llorch_adapter.adapter import Adapter, arguments
from llorch_adapter.errors import AdapterError, InputError, UnsupportedError
from llorch_adapter.folder import read_dims
from llorch_adapter.serve import serve

# What torch's attention keeps to itself.
INSIDE_SDPA = ("h.*.attn.scores", "h.*.attn.probs")
FUSED = "torch's scaled_dot_product_attention is one fused kernel, which keeps neither scores nor probabilities"

# Computed in by torch, shown as float32: NumPy has no bfloat16.
NARROW = {"bf16": "bfloat16", "f16": "float16"}


class HfAdapter(Adapter):
    name = "hf"
    worth = "semantics"
    capabilities = ("capture", "tokenize", "generate", "sample", "draw", "inject", "f64", "deterministic")
    variants = ("f64", "bf16", "f16", "sdpa")
    recipes = {
        "tokens": "input_ids; b t -> t",
        "embeddings": "output of transformer.drop; b t e -> t e",
        "h.*.ln_1": "output of ln_1; b t e -> t e",
        "h.*.attn.q": "first third of attn.c_attn's output; b t (h d) -> h t d",
        "h.*.attn.k": "second third of attn.c_attn's output; b t (h d) -> h t d",
        "h.*.attn.v": "last third of attn.c_attn's output; b t (h d) -> h t d",
        "h.*.attn.cache.k": "past_key_values.layers[i].keys after its update; b h s d -> h s d",
        "h.*.attn.cache.v": "past_key_values.layers[i].values after its update; b h s d -> h s d",
        "h.*.attn.scores": "input of attention's softmax (scaled; the mask adds the dtype's minimum); b h t s -> h t s",
        "h.*.attn.probs": "output of attention's softmax; b h t s -> h t s",
        "h.*.attn.context": "input of attn.c_proj; b t e -> t e",
        "h.*.attn.out": "output of attn.c_proj; b t e -> t e",
        "h.*.resid_mid": "input of ln_2; b t e -> t e",
        "h.*.ln_2": "output of ln_2; b t e -> t e",
        "h.*.mlp.fc": "output of mlp.c_fc; b t f -> t f",
        "h.*.mlp.act": "output of mlp.act; b t f -> t f",
        "h.*.mlp.out": "output of mlp.c_proj; b t e -> t e",
        "h.*": "output of the block; b t e -> t e",
        "ln_f": "output of transformer.ln_f; b t e -> t e",
        "logits": "output of lm_head; b t v -> t v",
        "logits.last": "last row of logits (lm_head of the last row alone where logits isn't asked for)",
        "argmax": "numpy.argmax of logits.last: the lowest id of a tie",
        "next.probs": "TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, torch.softmax summed in float64 "
        "(in float32 its own rounding over the vocabulary reaches 1e-5)",
    }

    def __init__(self, variant=None):
        super().__init__(variant)
        self.model = None
        if variant == "sdpa":
            self.unsupported = tuple({"point": point, "reason": FUSED} for point in INSIDE_SDPA)
            self.recipes = {glob: text for glob, text in self.recipes.items() if glob not in INSIDE_SDPA}
            self.capabilities += ("bench",)
            self.narrow = tuple(NARROW)
        elif variant in NARROW:
            self.narrow = (variant,)
        self._tokenizer = None
        self._folder = None

    def version(self):
        return f"transformers {version('transformers')}, torch {version('torch')}"

    def load(self, folder, dtype, threads):
        dtype = self.variant if self.variant in NARROW else dtype
        precision = self.precision(dtype)
        dims = read_dims(folder)
        if not (folder / "model.safetensors").is_file():
            raise InputError(f"failed to load {folder}: it has no model.safetensors")
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model, info = GPT2LMHeadModel.from_pretrained(
            folder,
            dtype=torch.float32,  # F16 on disk is widened, exactly
            attn_implementation="sdpa" if self.variant == "sdpa" else "eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told by name below, not as a fault of ours
        )
        # What is missing would be initialised at random, and only a warning would tell.
        wrong = [*info["missing_keys"], *info["mismatched_keys"]]
        if wrong:
            raise InputError(f"failed to load {folder}: missing or misshapen tensors {wrong[:4]}")
        found = self.model.config._attn_implementation
        if found != ("sdpa" if self.variant == "sdpa" else "eager"):
            raise AdapterError(f"transformers chose the attention {found!r} by itself, expected that of {self.full_name()}")
        self.model.eval()
        if precision == np.float64:
            self.model.double()
        elif dtype in NARROW:
            self.model.to(getattr(torch, NARROW[dtype]))
        self.numpy_dtype = precision
        self._tokenizer, self._folder = None, folder
        self.dims = dims

    def session(self, probe, positions):
        from hooks import HfSession

        return HfSession(self.model, probe)

    def next_probs(self, logits, settings):
        import torch
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        scores = torch.from_numpy(logits)[None]
        if settings.temperature > 0:
            scores = TemperatureLogitsWarper(settings.temperature)(None, scores)
            if settings.top_k:
                scores = TopKLogitsWarper(settings.top_k)(None, scores)
            if settings.top_p < 1:
                scores = TopPLogitsWarper(settings.top_p)(None, scores)
        # In f32 torch's softmax over a vocabulary of 50,257 loses up to 1e-5 of the total: each
        # of its few partial sums takes thousands of terms too small to change it. That is its
        # kernel's rounding, not GPT-2's probabilities, so the sum is taken in float64.
        return torch.softmax(scores, dim=-1, dtype=torch.float64)[0].to(scores.dtype).numpy()

    def tokenize(self, text):
        tokenizer = self._load_tokenizer()
        if tokenizer is None:
            raise UnsupportedError(f"{self._folder} has no tokenizer files")
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids):
        tokenizer = self._load_tokenizer()
        if tokenizer is None:
            return None
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def _load_tokenizer(self):
        has = lambda name: (self._folder / name).is_file()
        if self._tokenizer is None and (has("tokenizer.json") or (has("vocab.json") and has("merges.txt"))):
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        return self._tokenizer


def main():
    options = arguments(HfAdapter).parse_args()
    return serve(HfAdapter(options.variant))


if __name__ == "__main__":
    sys.exit(main())
