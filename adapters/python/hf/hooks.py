"""Where each point is in transformers' GPT-2, and how a value is replaced there.

Hooks are registered for the points of one run only, so a run without points is
upstream's forward pass and nothing else. Batch is 1 throughout.
"""

from contextlib import ExitStack

import torch
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache

from llorch_adapter.adapter import Session
from llorch_adapter.points import layer_point


class HfSession(Session):
    """One run over upstream's own dynamic cache."""

    def __init__(self, model, probe):
        self._model = model
        self._probe = Torch(probe)
        self._cache = ProbedCache(model.config, self._probe)
        self._stack = ExitStack()

    def __enter__(self):
        self._register()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def forward(self, ids):
        # Without `logits` in sight only the last row goes through the head, as in upstream's
        # own generate().
        every_row = self._probe.active("logits")
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([ids], dtype=torch.int64),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=0 if every_row else 1,
            )
        return array(output.logits[0, -1])

    def _register(self):
        model, body = self._model, self._model.transformer
        self._output(body.drop, "embeddings")
        for i, block in enumerate(body.h):
            name = lambda part, i=i: layer_point(i, part)
            self._output(block.ln_1, name("ln_1"))
            self._qkv(block.attn, [name(part) for part in ("attn.q", "attn.k", "attn.v")])
            self._input(block.attn.c_proj, name("attn.context"))
            self._output(block.attn.c_proj, name("attn.out"))
            self._residual(block.ln_2, name("resid_mid"))
            self._output(block.ln_2, name("ln_2"))
            self._output(block.mlp.c_fc, name("mlp.fc"))
            self._output(block.mlp.act, name("mlp.act"))
            self._output(block.mlp.c_proj, name("mlp.out"))
            self._output(block, name(""))
        self._output(body.ln_f, "ln_f")
        self._output(model.lm_head, "logits")
        self._softmax(body.h)

    def _hold(self, handle):
        self._stack.callback(handle.remove)

    def _output(self, module, point):
        if not self._probe.ever_active(point):
            return
        # At `logits`, steps that look at the last row only must not be shown.
        hook = lambda _module, _inputs, output: self._probe.visit(point, output[0])[None]
        self._hold(module.register_forward_hook(lambda *a: hook(*a) if self._probe.active(point) else None))

    def _input(self, module, point):
        if self._probe.ever_active(point):
            hook = lambda _module, inputs: (self._probe.visit(point, inputs[0][0])[None],)
            self._hold(module.register_forward_pre_hook(hook))

    def _residual(self, norm, point):
        """The norm's input is also what the residual connection reads later: the same
        tensor, so a replacement is written into it in place."""

        def hook(_module, inputs):
            value = self._probe.visit(point, inputs[0][0])
            if value.data_ptr() != inputs[0].data_ptr():
                inputs[0].copy_(value[None])

        if self._probe.ever_active(point):
            self._hold(norm.register_forward_pre_hook(hook))

    def _qkv(self, attention, points):
        """c_attn's output is q, k, v side by side, each [1, T, E] with E = (heads, D)."""
        if not any(self._probe.ever_active(p) for p in points):
            return
        heads, width = attention.num_heads, attention.split_size

        def hook(_module, _inputs, output):
            rows = output.shape[1]
            parts = []
            for point, part in zip(points, output[0].split(width, dim=-1)):
                split = part.view(rows, heads, -1).transpose(0, 1)  # [H, T, D]
                parts.append(self._probe.visit(point, split).transpose(0, 1).reshape(rows, width))
            return torch.cat(parts, dim=-1)[None]

        self._hold(attention.c_attn.register_forward_hook(hook))

    def _softmax(self, blocks):
        """Scores and probabilities are locals of upstream's attention function; what is in
        reach is its call of `torch.nn.functional.softmax`."""
        points = [(layer_point(i, "attn.scores"), layer_point(i, "attn.probs")) for i in range(len(blocks))]
        if not any(self._probe.ever_active(p) for pair in points for p in pair):
            return
        mode = SoftmaxMode(self._probe)
        for pair, block in zip(points, blocks):
            enter = lambda _module, _inputs, pair=pair: setattr(mode, "points", pair)
            self._hold(block.attn.register_forward_pre_hook(enter))
        self._stack.enter_context(mode)


def array(tensor):
    """As NumPy has it: float16 and bfloat16 are widened, exactly."""
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


class Torch:
    """The probe for torch tensors; the memory is shared, not copied."""

    def __init__(self, probe):
        self._probe = probe
        self.active = probe.active
        self.ever_active = probe.ever_active

    def visit(self, point, tensor):
        """Shows a tensor without its batch axis; returns it, or what was injected."""
        if not self._probe.active(point):
            return tensor
        shown = array(tensor)
        value = self._probe.visit(point, shown)
        return tensor if value is shown else torch.from_numpy(value).to(tensor.dtype)


class ProbedCache(DynamicCache):
    """Upstream's cache, shown after each layer's update."""

    def __init__(self, config, probe):
        super().__init__(config=config)
        self._probe = probe

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        shown_keys = self._probe.visit(layer_point(layer_idx, "attn.cache.k"), keys[0])
        shown_values = self._probe.visit(layer_point(layer_idx, "attn.cache.v"), values[0])
        if shown_keys.data_ptr() != keys.data_ptr():
            keys.copy_(shown_keys[None])
        if shown_values.data_ptr() != values.data_ptr():
            values.copy_(shown_values[None])
        return keys, values


class SoftmaxMode(TorchFunctionMode):
    """Sees every torch call; stops at attention's softmax, the only one on four axes."""

    def __init__(self, probe):
        super().__init__()
        self._probe = probe
        self.points = None  # (scores, probs) of the layer at work

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not torch.nn.functional.softmax or args[0].ndim != 4:
            return function(*args, **kwargs)
        scores_point, probs_point = self.points
        scores = self._probe.visit(scores_point, args[0][0])[None]
        return self._probe.visit(probs_point, function(scores, *args[1:], **kwargs)[0])[None]
