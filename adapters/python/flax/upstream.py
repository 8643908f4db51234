"""transformers' Flax GPT-2 with a folder's weights, and its cache.

`from_pretrained` reads such folders too, but draws a whole model of random weights first. The names and
layouts are converted by the same function of upstream's that it calls.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from transformers import FlaxGPT2LMHeadModel, GPT2Config
from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

from llorch_adapter.errors import UpstreamError


class Model:
    """Upstream's model, whose class doesn't hold weights that it hasn't drawn itself."""

    def __init__(self, model, params):
        self._model = model
        self._params = params
        self.config = model.config

    def __call__(self, ids, positions, cache, places):
        """Upstream's forward pass: its output, with the cache for the next step in `past_key_values`."""
        return self._model(
            jnp.asarray([ids], dtype=jnp.int32),
            # Over all places of the cache, as upstream's generation has it; what is still empty is masked within.
            attention_mask=jnp.ones((1, places), dtype=jnp.int32),
            position_ids=jnp.asarray([positions], dtype=jnp.int32),
            past_key_values=cache,
            params=self._params,
            train=False,
        )

    def empty_cache(self, places):
        """What upstream's `init_cache` gives, which is zeros, without the forward pass that it runs for that."""
        shapes = jax.eval_shape(lambda: self._model.init_cache(1, places))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def make_model(folder, config, weights):
    model = FlaxGPT2LMHeadModel(GPT2Config.from_pretrained(folder, local_files_only=True), _do_init=False)
    stored = {(name if name == "lm_head.weight" else f"transformer.{name}"): w for name, w in weights.items()}
    if config.tie_word_embeddings:
        del stored["lm_head.weight"]
    expected = SimpleNamespace(params=model.params_shape_tree, base_model_prefix=model.base_model_prefix)
    params = convert_pytorch_state_dict_to_flax(stored, expected)
    check(params, model.params_shape_tree)
    return Model(model, params)


def check(params, expected):
    """Upstream's model must read exactly what was converted: nothing else would be drawn at random, but
    an unread weight would be missed."""
    shapes = lambda tree: {"/".join(key): value.shape for key, value in flatten_dict(tree).items()}
    found, wanted = shapes(params), shapes(expected)
    wrong = sorted(set(found.items()) ^ set(wanted.items()))
    if wrong:
        raise UpstreamError(f"upstream's FlaxGPT2 and the converted weights differ in {wrong[:4]}")
