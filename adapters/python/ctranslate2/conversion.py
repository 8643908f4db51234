"""A model folder in CTranslate2's format, by CTranslate2's own converter of OpenAI's GPT-2.

`ctranslate2.converters.openai_gpt2.set_decoder` places weights that have the names of OpenAI's
checkpoint, whose layout is that of Hugging Face's. It needs neither torch nor transformers.
"""

import tempfile

from ctranslate2 import Generator, get_supported_compute_types
from ctranslate2.converters import openai_gpt2
from ctranslate2.specs import common_spec, transformer_spec

from llorch_adapter.errors import UnsupportedError


def make_generator(config, weights, threads, compute_type="float32"):
    """CTranslate2's generator, in float32 unless told otherwise. The folder that it is read from lives no longer than that."""
    with tempfile.TemporaryDirectory(prefix="llorch-ctranslate2-") as folder:
        make_spec(config, weights).save(folder)
        # One that the CPU hasn't, in the build at hand, is refused when the model is loaded: asked before, by name.
        if compute_type not in get_supported_compute_types("cpu"):
            raise UnsupportedError(f"CTranslate2 doesn't compute in {compute_type} on this CPU")
        return Generator(folder, device="cpu", compute_type=compute_type, inter_threads=1, intra_threads=threads)


def make_spec(config, weights):
    dims = config.dims
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        dims.n_layer, dims.n_head, pre_norm=True, activation=common_spec.Activation.GELUTanh
    )
    openai_gpt2.set_decoder(spec.decoder, {openai_name(name): array for name, array in weights.items()}, "model")
    if config.tie_word_embeddings is False:
        spec.decoder.projection.weight = weights["lm_head.weight"]
    spec.config.layer_norm_epsilon = config.layer_norm_epsilon
    # Tokens are fed by name, and ours are numbers: a token is called what its id is.
    spec.register_vocabulary([str(token) for token in range(dims.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = str(dims.vocab_size - 1)
    spec.validate()
    return spec


def openai_name(name):
    """`h.3.attn.c_attn.weight` is `model/h3/attn/c_attn/w`, `ln_f.weight` `model/ln_f/g`."""
    if name in ("wte.weight", "wpe.weight"):
        return f"model/{name.removesuffix('.weight')}"
    *path, kind = name.split(".")
    if path[0] == "h":
        path = [f"h{path[1]}", *path[2:]]
    norm = path[-1].startswith("ln_")
    return "/".join(["model", *path, {"weight": "g" if norm else "w", "bias": "b"}[kind]])
