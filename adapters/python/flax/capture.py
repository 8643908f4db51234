"""Where each point is in transformers' Flax GPT-2.

flax lets others see every call of a module's method (`flax.linen.intercept_methods`); scores and
probabilities are what goes into the softmax of its attention and what comes out. Batch is 1 throughout.
"""

from contextlib import ExitStack
from unittest import mock

import flax.linen as nn
import jax
import numpy as np

from llorch_adapter.adapter import Session
from llorch_adapter.points import OUTSIDE, all_points, layer_point

SMALLEST_CACHE = 64
OUTPUTS = {
    "ln_1": "ln_1",
    "attn/c_proj": "attn.out",
    "ln_2": "ln_2",
    "mlp/c_fc": "mlp.fc",
    "mlp/c_proj": "mlp.out",
}
INPUTS = {"attn/c_proj": "attn.context", "ln_2": "resid_mid", "mlp/c_proj": "mlp.act"}


class FlaxSession(Session):
    """One run over upstream's own cache, whose size is one that other runs share: shapes are compiled for."""

    def __init__(self, model, probe, positions, dims):
        self._model = model
        self._probe = probe
        self._heads = dims.n_head
        self._layer = None
        self._fed = 0
        self._places = SMALLEST_CACHE
        while self._places < positions:
            self._places *= 2
        self._places = min(self._places, dims.n_positions)
        self._cache = model.empty_cache(self._places)
        inside = (p for p in all_points(dims.n_layer) if p not in ("logits", *OUTSIDE))
        self._looks = any(probe.captures(point) for point in inside)

    def forward(self, ids):
        positions = list(range(self._fed, self._fed + len(ids)))
        self._fed += len(ids)
        with ExitStack() as stack:
            if self._looks:
                stack.enter_context(nn.intercept_methods(self._intercept))
                stack.enter_context(mock.patch.object(jax.nn, "softmax", self._softmax(jax.nn.softmax)))
            output = self._model(ids, positions, self._cache, self._places)
        self._cache = output.past_key_values
        logits = np.asarray(output.logits[0])
        self._probe.visit("logits", logits)
        return logits[-1]

    def _intercept(self, method, args, kwargs, context):
        """Called in place of each method of each module; what it returns is what the caller gets."""
        path, layer = split(context.module.path)
        call = context.method_name == "__call__"
        if layer is not None:
            self._layer = layer
            if call and path in INPUTS:
                self._show(layer_point(layer, INPUTS[path]), args[0])
        output = method(*args, **kwargs)
        if layer is None:
            if call and path in ("transformer/dropout", "transformer/ln_f"):
                self._show({"transformer/dropout": "embeddings", "transformer/ln_f": "ln_f"}[path], output)
        elif call and path in OUTPUTS:
            self._show(layer_point(layer, OUTPUTS[path]), output)
        elif call and path == "attn/c_attn":
            for part, third in zip("qkv", np.split(np.asarray(output), 3, axis=-1)):
                rows = third[0].reshape(third.shape[1], self._heads, -1)
                self._visit(layer_point(layer, f"attn.{part}"), rows.transpose(1, 0, 2))
        elif path == "attn" and context.method_name == "_concatenate_to_cache":
            for part, places in zip("kv", output):
                self._visit(layer_point(layer, f"attn.cache.{part}"), lambda: visible(places, self._fed))
        elif call and path == "":
            self._show(layer_point(layer, ""), output[0])
        return output

    def _softmax(self, softmax):
        """The one in flax's attention, the only one on four axes."""

        def shown(scores, *args, **kwargs):
            probs = softmax(scores, *args, **kwargs)
            if scores.ndim == 4:
                for part, value in (("scores", scores), ("probs", probs)):
                    self._visit(layer_point(self._layer, f"attn.{part}"), lambda: np.asarray(value)[0, :, :, : self._fed])
            return probs

        return shown

    def _show(self, point, value):
        self._visit(point, lambda: np.asarray(value)[0])

    def _visit(self, point, value):
        if self._probe.active(point):
            self._probe.visit(point, value() if callable(value) else value)


def split(path):
    """`transformer/h/3/attn/c_attn` is ("attn/c_attn", 3); what isn't in a block has no layer."""
    path = [str(part) for part in path]
    if path[:2] == ["transformer", "h"] and len(path) > 2:
        return "/".join(path[3:]), int(path[2])
    return "/".join(path), None


def visible(places, seen):
    """[1, P, H, D] -> [H, S, D]."""
    return np.asarray(places)[0, :seen].transpose(1, 0, 2)
