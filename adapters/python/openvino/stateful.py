"""GPT-2 as OpenVINO's users run it fastest: keys and values are the plugin's own state, attention is one operator.

The form is that of models exported for OpenVINO GenAI: `ReadValue`, `Gather` by `beam_idx`, `Concat`,
`ScaledDotProductAttention`, `Assign`, which the CPU plugin melts into one node with a cache in place. T: tokens of
this step, S: keys, E: width, H: heads, D = E/H, V: vocabulary.
"""

import numpy as np
import openvino as ov
from openvino import opset13 as op

from llorch_adapter.points import layer_point

PRECISION = {"f32": "f32", "int8": "f32", "bf16": "bf16"}
# Inputs that share a scale where weights are int8.
GROUP = 64


class StatefulEngine:
    """One compiled model and one request, whose state is the cache."""

    def __init__(self, config, weights, threads, dtype):
        model = Graph(config, weights, dtype == "int8").model()
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISION[dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "KV_CACHE_PRECISION": "bf16" if dtype == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP if dtype == "int8" else 0),
        }
        self._request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        self._beam = np.zeros(1, np.int32)
        self._fed = 0

    def reset(self):
        self._request.reset_state()
        self._fed = 0

    def step(self, ids):
        first, self._fed = self._fed, self._fed + len(ids)
        # In the order of the model's parameters.
        feeds = [np.asarray([ids], np.int64), np.arange(first, self._fed, dtype=np.int64)[None], self._beam]
        return self._request.infer(feeds, share_inputs=True)[0][0, 0].copy()


class Graph:
    def __init__(self, config, weights, int8):
        self.config, self.dims, self.weights, self.int8 = config, config.dims, weights, int8
        self.sinks = []

    def model(self):
        ids = op.parameter([1, -1], np.int64, "ids")
        positions = op.parameter([1, -1], np.int64, "positions")
        self.beam = op.parameter([-1], np.int32, "beam_idx")
        zero = op.constant(0, np.int64)
        tokens = op.gather(self.constant("wte.weight"), ids, zero)
        x = op.add(tokens, op.gather(self.constant("wpe.weight"), positions, zero))  # [1, T, E]
        mask = visible(positions)
        for i in range(self.dims.n_layer):
            name = lambda part, i=i: layer_point(i, part)
            x = op.add(x, self.attention(i, self.norm(x, name("ln_1")), mask))
            inner = self.linear(self.norm(x, name("ln_2")), name("mlp.c_fc"))
            x = op.add(x, self.linear(op.gelu(inner, "tanh"), name("mlp.c_proj")))
        x = self.norm(x, "ln_f")
        row = op.gather(x, op.constant([-1], np.int64), op.constant(1, np.int64))  # [1, 1, E]
        result = op.result(self.product(row, self.weights["lm_head.weight"]))
        return ov.Model([result], self.sinks, [ids, positions, self.beam], "gpt2")

    def attention(self, i, x, mask):
        """[1, T, E] -> [1, T, E]."""
        name = lambda part: layer_point(i, part)
        heads, size = self.dims.n_head, self.dims.head_dim
        qkv = op.split(self.linear(x, name("attn.c_attn")), op.constant(2, np.int64), 3)
        split = op.constant([0, 0, heads, size], np.int64)
        order = op.constant([0, 2, 1, 3], np.int64)
        q, k, v = (op.transpose(op.reshape(qkv.output(n), split, True), order) for n in range(3))  # [1, H, T, D]
        keys, values = self.state(name("k"), k), self.state(name("v"), v)
        context = op.scaled_dot_product_attention(q, keys, values, mask)
        merged = op.reshape(op.transpose(context, order), op.constant([0, 0, heads * size], np.int64), True)
        return self.linear(merged, name("attn.c_proj"))

    def state(self, name, new):
        """What was there and `new` behind it, [1, H, S, D], which stays."""
        heads, size = self.dims.n_head, self.dims.head_dim
        empty = op.broadcast(op.constant(0, np.float32), op.constant([1, heads, 0, size], np.int64))
        info = ov.op.util.VariableInfo()
        info.data_shape, info.data_type = ov.PartialShape([-1, heads, -1, size]), ov.Type.f32
        info.variable_id = name
        variable = ov.op.util.Variable(info)
        past = op.gather(op.read_value(empty, variable), self.beam, op.constant(0, np.int64))
        whole = op.concat([past, new], 2)
        self.sinks.append(op.assign(whole, variable))
        return whole

    def norm(self, x, name):
        """Written out, as exporters do; the plugin makes one node of it."""
        axes = op.constant([-1], np.int64)
        normed = op.mvn(x, axes, True, self.config.layer_norm_epsilon, "inside_sqrt")
        return op.add(op.multiply(normed, self.constant(f"{name}.weight")), self.constant(f"{name}.bias"))

    def linear(self, x, name):
        matrix = np.ascontiguousarray(self.weights[f"{name}.weight"].T)  # [out, in]
        return op.add(self.product(x, matrix), self.constant(f"{name}.bias"))

    def product(self, x, matrix):
        """x @ Wᵀ, W [out, in]."""
        if not self.int8:
            return op.matmul(x, op.constant(matrix, shared_memory=False), False, True)
        scale = np.abs(matrix).max(axis=1, keepdims=True) / 127
        scale[scale == 0] = 1
        steps = op.convert(op.constant(np.rint(matrix / scale).astype(np.int8)), np.float32)
        return op.matmul(x, op.multiply(steps, op.constant(scale.astype(np.float32))), False, True)

    def constant(self, name):
        return op.constant(self.weights[name])


def visible(positions):
    """[1, 1, T, S]: 0 where a query sees a key, -inf elsewhere."""
    zero, one = op.constant(0, np.int64), op.constant(1, np.int64)
    end = op.add(op.reduce_max(positions, op.constant([0, 1], np.int64)), one)
    keys = op.range(zero, end, one, "i64")
    seen = op.less_equal(keys, op.unsqueeze(positions, op.constant([1, 3], np.int64)))
    return op.select(seen, op.constant(np.float32(0)), op.constant(np.float32(-np.inf)))
