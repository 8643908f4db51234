"""Any adapter with something of upstream's gone: what would happen if a new release renamed it.

    adapter.py NAME FAULT

The adapter is the real one; only what it looks for in upstream isn't there.
"""

import importlib.util
import sys
from pathlib import Path

ADAPTERS = Path(__file__).resolve().parents[2]


def hf_softmax():
    """Attention calls another softmax than the one that is looked at."""
    import torch
    from transformers.models.gpt2 import modeling_gpt2

    def eager(module, query, key, value, attention_mask, **_):
        scores = query @ key.transpose(-1, -2) * module.scaling + (0 if attention_mask is None else attention_mask)
        probs = torch.softmax(scores, -1)
        return (probs @ value).transpose(1, 2), probs

    modeling_gpt2.eager_attention_forward = eager


def hf_module():
    """A norm of the block has another name."""
    from transformers import GPT2LMHeadModel

    load = GPT2LMHeadModel.from_pretrained

    def renamed(*args, **kwargs):
        model, info = load(*args, **kwargs)
        for block in model.transformer.h:
            block.norm_2 = block._modules.pop("ln_2")
        return model, info

    GPT2LMHeadModel.from_pretrained = renamed


def tinygrad_gelu():
    from tinygrad import Tensor

    for owner in Tensor.__mro__:
        if "gelu" in vars(owner):
            owner.gelu_tanh = owner.gelu
            del owner.gelu


def onnxruntime_output():
    """The session's outputs have lost one, as when a node is melted into another."""
    import onnxruntime

    given = onnxruntime.InferenceSession.get_outputs
    onnxruntime.InferenceSession.get_outputs = lambda self: [o for o in given(self) if o.name != "h.1.attn.scores"]


def openvino_output():
    """The reader gives an output another name."""
    import engine

    read = engine.read

    def renamed(*args):
        model = read(*args)
        for output in model.outputs:
            if "h.1.mlp.act" in output.get_names():
                output.get_tensor().set_names({"Gelu_17"})
        return model

    engine.read = renamed


def ctranslate2_field():
    """The result of a step has no logits any more."""
    import ctranslate2

    ctranslate2.GenerationStepResult = type("GenerationStepResult", (), {"step": 0, "token_id": 0})


def ctranslate2_logits():
    """It has the field, with nothing in it."""
    from types import SimpleNamespace

    import decoding

    take = decoding.Decoding._take
    empty = lambda result: SimpleNamespace(logits=None, token_id=result.token_id)
    decoding.Decoding._take = lambda self, result: take(self, empty(result))


def flax_softmax():
    """Attention calls another softmax than the one that is looked at."""
    import jax
    import jax.numpy as jnp
    from transformers.models.gpt2 import modeling_flax_gpt2

    def weights(query, key, bias, **_):
        scores = jnp.einsum("...qhd,...khd->...hqk", query / jnp.sqrt(query.shape[-1]), key) + bias
        return jnp.exp(jax.nn.log_softmax(scores))

    modeling_flax_gpt2.dot_product_attention_weights = weights


def flax_method():
    """The method that extends the cache has another name."""
    from transformers.models.gpt2.modeling_flax_gpt2 import FlaxGPT2Attention

    FlaxGPT2Attention._concatenate_to_cache.__wrapped__.__name__ = "_extend_cache"


def main():
    name, fault = sys.argv[1:3]
    sys.argv[1:] = []
    folder = ADAPTERS / name
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("faulty", folder / "adapter.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    globals()[f"{name}_{fault}"]()
    return module.main()


if __name__ == "__main__":
    sys.exit(main())
