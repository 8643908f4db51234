"""Looks at upstream's values on their way, for one step, without touching a line of upstream.

Calls of `nn.LayerNorm`, `nn.Linear`, `TransformerBlock`, `Tensor.scaled_dot_product_attention`,
`Tensor.softmax` and `Tensor.gelu` are wrapped while the step runs. A value that is asked for becomes a
kernel boundary (`contiguous`), so that what is shown is what the next kernel reads.
"""

import contextlib

from tinygrad import Tensor, nn

from llorch_adapter.errors import UpstreamError
from llorch_adapter.points import layer_point

# What is wrapped, and which points it gives: where upstream no longer comes by, this is what was expected.
EXPECTED = {
    "ln_1": "nn.LayerNorm.__call__ of h[i].ln_1",
    "attn.q": "nn.Linear.__call__ of h[i].attn.c_attn",
    "attn.k": "nn.Linear.__call__ of h[i].attn.c_attn",
    "attn.v": "nn.Linear.__call__ of h[i].attn.c_attn",
    "attn.cache.k": "h[i].attn.cache_kv of 2, 1, places, heads, width of a head",
    "attn.cache.v": "h[i].attn.cache_kv of 2, 1, places, heads, width of a head",
    "attn.scores": "Tensor.softmax within Tensor.scaled_dot_product_attention",
    "attn.probs": "Tensor.softmax within Tensor.scaled_dot_product_attention",
    "attn.context": "nn.Linear.__call__ of h[i].attn.c_proj",
    "attn.out": "nn.Linear.__call__ of h[i].attn.c_proj",
    "resid_mid": "nn.LayerNorm.__call__ of h[i].ln_2",
    "ln_2": "nn.LayerNorm.__call__ of h[i].ln_2",
    "mlp.fc": "nn.Linear.__call__ of h[i].mlp.c_fc",
    "mlp.act": "Tensor.gelu between h[i].mlp.c_fc and h[i].mlp.c_proj",
    "mlp.out": "nn.Linear.__call__ of h[i].mlp.c_proj",
    "": "TransformerBlock.__call__ of h[i]",
    "embeddings": "TransformerBlock.__call__ of h[0]",
    "ln_f": "nn.LayerNorm.__call__ of ln_f",
    "logits": "nn.Linear.__call__ of lm_head",
}


class Taps:
    """T tokens of this step, S visible keys. A context manager around upstream's call."""

    def __init__(self, model, dims, t, s, probe):
        self._transformer = model.transformer
        self._block_class = model.gpt2.TransformerBlock
        self._dims, self._t, self._s, self._probe = dims, t, s, probe
        self._found = {}  # point -> tensor with its batch axis
        self._layer = None  # the block at work
        self._attends = False
        self._stack = contextlib.ExitStack()
        self._inputs, self._outputs = {}, {}  # a module's id -> the point that its input or output is
        for i, block in enumerate(self._transformer.h):
            name = lambda part, i=i: layer_point(i, part)
            self._inputs[id(block.ln_2)] = name("resid_mid")
            self._inputs[id(block.attn.c_proj)] = name("attn.context")
            self._outputs[id(block.ln_1)] = name("ln_1")
            self._outputs[id(block.ln_2)] = name("ln_2")
            self._outputs[id(block.attn.c_attn)] = name("qkv")
            self._outputs[id(block.attn.c_proj)] = name("attn.out")
            self._outputs[id(block.mlp.c_fc)] = name("mlp.fc")
            self._outputs[id(block.mlp.c_proj)] = name("mlp.out")
        self._outputs[id(self._transformer.ln_f)] = "ln_f"
        self._outputs[id(self._transformer.lm_head)] = "logits"

    def __enter__(self):
        self._wrap(nn.LayerNorm, "__call__", self._module)
        self._wrap(nn.Linear, "__call__", self._module)
        self._wrap(self._block_class, "__call__", self._block)
        self._wrap(Tensor, "scaled_dot_product_attention", self._attention)
        self._wrap(Tensor, "softmax", self._softmax)
        self._wrap(Tensor, "gelu", self._gelu)
        return self

    def __exit__(self, *error):
        self._stack.close()

    def _wrap(self, owner, name, around):
        """`around(call, self, *args)` takes the place of a method until the step is over."""
        if not hasattr(owner, name):
            raise UpstreamError(f"expected tinygrad to have {owner.__name__}.{name}, it has none")
        call = getattr(owner, name)
        own = name in vars(owner)  # else it comes from a base class, and is removed again
        setattr(owner, name, lambda this, *args, **kwargs: around(call, this, *args, **kwargs))
        self._stack.callback(lambda: setattr(owner, name, call) if own else delattr(owner, name))

    def _wanted(self, point):
        if point.endswith(".qkv"):
            return any(self._probe.captures(point.replace("qkv", f"attn.{part}")) for part in "qkv")
        return point == "logits" or self._probe.captures(point)

    def _keep(self, point, tensor):
        """The same tensor, as a kernel boundary: in place, so that others who hold it read it too."""
        if point is not None and self._wanted(point):
            self._found[point] = tensor.replace(tensor.contiguous())
        return tensor

    def _module(self, call, module, x):
        self._keep(self._inputs.get(id(module)), x)
        return self._keep(self._outputs.get(id(module)), call(module, x))

    def _block(self, call, block, x, *args, **kwargs):
        self._layer = next(i for i, other in enumerate(self._transformer.h) if other is block)
        if self._layer == 0:
            self._keep("embeddings", x)
        return self._keep(layer_point(self._layer, ""), call(block, x, *args, **kwargs))

    def _attention(self, call, *args, **kwargs):
        self._attends = True
        try:
            return call(*args, **kwargs)
        finally:
            self._attends = False

    def _softmax(self, call, x, *args, **kwargs):
        if not self._attends:
            return call(x, *args, **kwargs)
        self._keep(layer_point(self._layer, "attn.scores"), x)
        return self._keep(layer_point(self._layer, "attn.probs"), call(x, *args, **kwargs))

    def _gelu(self, call, x, *args, **kwargs):
        return self._keep(layer_point(self._layer, "mlp.act"), call(x, *args, **kwargs))

    def show(self):
        """Shows everything that was asked for, in data-flow order; returns the logits [T, V]."""
        probe = self._probe
        if probe.captures("embeddings"):
            probe.visit("embeddings", self._array("embeddings")[0])
        for i in range(self._dims.n_layer):
            parts = [part for part in EXPECTED if part not in ("embeddings", "ln_f", "logits")]
            for part in parts:
                point = layer_point(i, part)
                if probe.captures(point):
                    probe.visit(point, self._value(i, part))
        if probe.captures("ln_f"):
            probe.visit("ln_f", self._array("ln_f")[0])
        logits = self._array("logits")[0]
        return probe.visit("logits", logits)

    def _value(self, i, part):
        point = layer_point(i, part)
        heads, size = self._dims.n_head, self._dims.head_dim
        if part in ("attn.q", "attn.k", "attn.v"):
            merged = self._array(layer_point(i, "qkv"), part)  # [1, T, 3E]
            split = merged.reshape(self._t, 3, heads, size)
            return split[:, "qkv".index(part[-1])].transpose(1, 0, 2)  # [H, T, D]
        if part.startswith("attn.cache."):
            return self._cache(i)["kv".index(part[-1]), 0, : self._s].transpose(1, 0, 2)  # [H, S, D]
        if part in ("attn.scores", "attn.probs"):
            return self._array(point, part)[0][..., : self._s]  # [H, T, S]
        return self._array(point, part)[0]

    def _array(self, point, part=None):
        if point not in self._found:
            raise UpstreamError(f"failed to capture {point}: expected examples/gpt2.py to come by {EXPECTED[part or point]}")
        tensor = self._found[point]
        symbolic = [None if isinstance(n, int) else (0, self._dims.n_positions - n) for n in tensor.shape]
        # The number of keys is a variable to tinygrad; NumPy needs a number.
        return (tensor.pad(tuple(symbolic)) if any(symbolic) else tensor).numpy()

    def _cache(self, i):
        cache = getattr(self._transformer.h[i].attn, "cache_kv", None)
        expected = (2, 1, self._dims.n_positions, self._dims.n_head, self._dims.head_dim)
        if cache is None or tuple(cache.shape) != expected:
            found = "none" if cache is None else list(cache.shape)
            raise UpstreamError(f"failed to capture the cache: expected h[{i}].attn.cache_kv of {list(expected)}, found {found}")
        return cache.numpy()
