"""GPT-2 as ONNX Runtime's users run it fastest: its own fused operators, and keys and values that stay in place.

`com.microsoft` operators: `GroupQueryAttention` takes q, k, v side by side and appends keys and values to a buffer,
`SkipLayerNormalization` adds the residual and the bias before it normalises, `FastGelu` has the bias too, and
`MatMulNBits` multiplies with weights of eight bits. T: tokens of this step, L: places in the buffers, E: width,
H: heads, V: vocabulary.
"""

import numpy as np
from onnx import TensorProto, helper

from llorch_adapter.points import layer_point

OPSET, MICROSOFT = 20, "com.microsoft"
IR_VERSION = 10
LOGITS = "logits"
# Weights that share one scale: what ONNX Runtime's own quantizer takes unless told.
GROUP = 32


def buffer_names(n_layer):
    """Inputs and outputs that are one buffer each, [1, H, L, D]."""
    pairs = [(layer_point(i, f"past.{part}"), layer_point(i, f"present.{part}")) for i in range(n_layer) for part in "kv"]
    return [past for past, _ in pairs], [present for _, present in pairs]


def build(config, weights, int8):
    """The graph, and the values of its weights by name."""
    graph = Graph(config, weights, int8)
    graph.forward()
    dims = config.dims
    past, present = buffer_names(dims.n_layer)
    whole = ["one", dims.n_head, "L", dims.head_dim]
    inputs = [
        _value("ids", [1, "T"], TensorProto.INT64),
        _value("positions", [1, "T"], TensorProto.INT64),
        _value("seqlens_k", [1], TensorProto.INT32),
        _value("total", [], TensorProto.INT32),
        *(_value(name, whole) for name in past),
    ]
    outputs = [_value(LOGITS, [1, 1, dims.vocab_size]), *(_value(name, whole) for name in present)]
    initializers = [*graph.constants, *(_external(name, array) for name, array in graph.values.items())]
    made = helper.make_graph(graph.nodes, "gpt2", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="llorch")
    return model, graph.values


class Graph:
    def __init__(self, config, weights, int8):
        self.config, self.dims, self.weights, self.int8 = config, config.dims, weights, int8
        self.nodes, self.constants, self.values = [], [], {}

    def forward(self):
        tokens = self.node("Gather", [self.weight("wte.weight"), "ids"], "wte")
        places = self.node("Gather", [self.weight("wpe.weight"), "positions"], "wpe")
        x = self.node("Add", [tokens, places], "embeddings")  # [1, T, E]
        normed = self.node(
            "LayerNormalization", [x, *self.pair("h.0.ln_1")], "h.0.normed", axis=-1, epsilon=self.config.layer_norm_epsilon
        )
        for i in range(self.dims.n_layer):
            name = lambda part, i=i: layer_point(i, part)
            attended = self.attention(i, normed)
            x, normed = self.add_and_norm(x, attended, name("attn.c_proj"), name("ln_2"))
            inner = self.product(normed, name("mlp.c_fc"))
            inner = self.node("FastGelu", [inner, self.weight(name("mlp.c_fc.bias"))], name("gelu"), MICROSOFT)
            out = self.product(inner, name("mlp.c_proj"))
            last = i + 1 == self.dims.n_layer
            x, normed = self.add_and_norm(x, out, name("mlp.c_proj"), "ln_f" if last else layer_point(i + 1, "ln_1"))
        self.constants.append(helper.make_tensor("minus_one", TensorProto.INT64, [1], [-1]))
        row = self.node("Gather", [normed, "minus_one"], "last_row", axis=1)  # [1, 1, E]
        self.product(row, "lm_head", LOGITS)

    def attention(self, i, x):
        name = lambda part: layer_point(i, part)
        qkv = self.product(x, name("attn.c_attn"))
        qkv = self.node("Add", [qkv, self.weight(name("attn.c_attn.bias"))], name("qkv"))
        inputs = [qkv, "", "", name("past.k"), name("past.v"), "seqlens_k", "total"]
        outputs = [name("context"), name("present.k"), name("present.v")]
        heads = {"num_heads": self.dims.n_head, "kv_num_heads": self.dims.n_head}
        self.nodes.append(helper.make_node("GroupQueryAttention", inputs, outputs, domain=MICROSOFT, **heads))
        return self.product(outputs[0], name("attn.c_proj"))

    def add_and_norm(self, x, added, linear, norm):
        """x + added + the bias of `linear`, and its layer norm."""
        outputs = [f"{norm}.normed", f"{norm}.sum"]
        inputs = [added, x, *self.pair(norm), self.weight(f"{linear}.bias")]
        self.nodes.append(
            helper.make_node(
                "SkipLayerNormalization",
                inputs,
                [outputs[0], "", "", outputs[1]],
                domain=MICROSOFT,
                epsilon=self.config.layer_norm_epsilon,
            )
        )
        return outputs[1], outputs[0]

    def product(self, x, linear, output=None):
        """x @ W; weights are [in, out], those of the head [out, in]."""
        output = output or f"{linear}.product"
        weight = f"{linear}.weight"
        matrix = self.weights[weight] if linear == "lm_head" else self.weights[weight].T  # [out, in]
        if not self.int8:
            self.values[f"{weight}.in_out"] = np.ascontiguousarray(matrix.T)
            return self.node("MatMul", [x, f"{weight}.in_out"], output)
        packed, scales = quantized(matrix)
        self.values |= {f"{weight}.int8": packed, f"{weight}.scales": scales}
        inputs = [x, f"{weight}.int8", f"{weight}.scales"]
        # Level 4: inputs are quantized to eight bits as well, which is what its int8 kernels multiply.
        settings = {"K": matrix.shape[1], "N": matrix.shape[0], "bits": 8, "block_size": GROUP, "accuracy_level": 4}
        return self.node("MatMulNBits", inputs, output, MICROSOFT, **settings)

    def pair(self, norm):
        return self.weight(f"{norm}.weight"), self.weight(f"{norm}.bias")

    def weight(self, name):
        self.values[name] = self.weights[name]
        return name

    def node(self, operator, inputs, output, domain="", **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [output], output, domain=domain, **attributes))
        return output


def quantized(matrix):
    """[N, K] float32 as bytes around 128 in groups along K, and the groups' scales."""
    rows, width = matrix.shape
    groups = -(-width // GROUP)
    padded = np.zeros((rows, groups * GROUP), np.float32)
    padded[:, :width] = matrix
    grouped = padded.reshape(rows, groups, GROUP)
    scales = np.abs(grouped).max(axis=-1, keepdims=True) / 127
    steps = np.rint(grouped / np.where(scales == 0, 1, scales))
    return (steps + 128).astype(np.uint8), scales.reshape(rows, groups).astype(np.float32)


def _value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def _external(name, array):
    kind = TensorProto.UINT8 if array.dtype == np.uint8 else TensorProto.FLOAT
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="memory")
    return tensor
