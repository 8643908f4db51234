"""GPT-2 as an ONNX graph, written for reading beside `../numpy/gpt2.py`.

Each point of the protocol is the output of one node and carries the point's name, so that an engine
gives it out as it stands. T: tokens of this step, P: positions cached before it, S = P + T: visible
keys, E: width, H: heads, D = E/H, F: inner width, V: vocabulary.

Inputs: `ids` [T], `positions` [T], and for each layer `h.i.attn.past.k` and `.v` [H, P, D]. The caches
that come out are the next step's past. `last` [1, V] is the head over the last row alone.

Weights have a name and a shape but no values here: a model may be larger than a protobuf file can be,
so each engine is given them from memory, in its own way.
"""

import math

import onnx
from onnx import TensorProto, helper

from llorch_adapter.points import LAYER_POINTS, layer_point, shape_of

OPSET = 20  # the first with Gelu
IR_VERSION = 10
LAST = "last"


def past_names(n_layer):
    """Inputs that take a step's cache, in the order of `cache_names`."""
    return [layer_point(i, f"attn.past.{part}") for i in range(n_layer) for part in "kv"]


def cache_names(n_layer):
    return [layer_point(i, f"attn.cache.{part}") for i in range(n_layer) for part in "kv"]


def point_names(n_layer):
    """The points that the graph gives out, in data-flow order."""
    blocks = (layer_point(i, part) for i in range(n_layer) for part in LAYER_POINTS)
    return ["embeddings", *blocks, "ln_f", "logits"]


def build_model(config, weight_shapes, external_weights):
    """The model, checked by onnx. Weights are inputs, or with `external_weights` initializers whose
    values lie elsewhere (nowhere: whoever loads the model has to supply them)."""
    graph = Graph(config)
    graph.forward()
    dims = config.dims
    inputs = [_value("ids", ["T"], TensorProto.INT64), _value("positions", ["T"], TensorProto.INT64)]
    inputs += [_value(name, [dims.n_head, "P", dims.head_dim]) for name in past_names(dims.n_layer)]
    outputs = [_value(name, shape_of(name, dims, "T", "S")) for name in point_names(dims.n_layer)]
    outputs.append(_value(LAST, [1, dims.vocab_size]))
    weights = {name: shape for name, shape in weight_shapes.items() if name in graph.read}
    initializers = graph.constants
    if external_weights:
        initializers = [*initializers, *(_external(name, shape) for name, shape in weights.items())]
    else:
        inputs += [_value(name, list(shape)) for name, shape in weights.items()]
    made = helper.make_graph(graph.nodes, "gpt2", inputs, outputs, initializers)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="llorch"
    )
    if not external_weights:
        onnx.checker.check_model(model)  # it looks for the files of external ones
    return model


def build_softmax(kind=TensorProto.FLOAT):
    """`logits` [V] -> `probs` [V], by the engine's own softmax, in float32 or float64."""
    made = helper.make_graph(
        [helper.make_node("Softmax", ["logits"], ["probs"], axis=-1)],
        "softmax",
        [_value("logits", ["V"], kind)],
        [_value("probs", ["V"], kind)],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


class Graph:
    """Nodes in the order in which they are computed. A node is named after what it computes."""

    def __init__(self, config):
        self.config = config
        self.dims = config.dims
        self.nodes = []
        self.constants = []
        self.read = set()  # names of weights that a node reads

    def forward(self):
        n_head, size, width = self.dims.n_head, self.dims.head_dim, self.dims.n_embd
        self.integers("one", [1])
        self.integers("minus_one", [-1])
        self.integers("split_heads", [0, n_head, size])  # 0 keeps T
        self.integers("merge_heads", [0, width])
        self.floats("scale", 1 / math.sqrt(size))
        self.floats("minus_infinity", -math.inf)
        tokens = self.node("Gather", ["wte.weight", "ids"], "wte")
        places = self.node("Gather", ["wpe.weight", "positions"], "wpe")
        x = self.node("Add", [tokens, places], "embeddings")  # [T, E]
        visible = self.visible()
        for i in range(self.dims.n_layer):
            x = self.block(i, x, visible)
        x = self.layer_norm("ln_f", x)
        self.node("Gemm", [x, "lm_head.weight"], "logits", transB=1)
        row = self.node("Gather", [x, "minus_one"], "last_row", axis=0)
        self.node("Gemm", [row, "lm_head.weight"], LAST, transB=1)

    def visible(self):
        """[T, S]: a query sees the keys up to its own position."""
        self.integers("zero", 0)
        self.integers("step", 1)
        final = self.node("Gather", ["positions", "minus_one"], "position.last")
        keys = self.node("Squeeze", [self.node("Add", [final, "one"], "keys.count")], "keys.end")
        places = self.node("Range", ["zero", keys, "step"], "keys")  # [S]
        queries = self.node("Unsqueeze", ["positions", "one"], "queries")  # [T, 1]
        return self.node("LessOrEqual", [places, queries], "visible")

    def block(self, i, x, visible):
        """[T, E] -> [T, E]."""
        name = lambda part: layer_point(i, part)
        attended = self.attention(i, self.layer_norm(name("ln_1"), x), visible)
        x = self.node("Add", [x, attended], name("resid_mid"))
        inner = self.linear(name("mlp.c_fc"), self.layer_norm(name("ln_2"), x), name("mlp.fc"))  # [T, F]
        inner = self.node("Gelu", [inner], name("mlp.act"), approximate="tanh")
        return self.node("Add", [x, self.linear(name("mlp.c_proj"), inner, name("mlp.out"))], name(""))

    def attention(self, i, x, visible):
        """[T, E] -> [T, E]."""
        name = lambda part: layer_point(i, f"attn.{part}")
        projected = self.linear(name("c_attn"), x, name("qkv"))  # [T, 3E]
        thirds = [name(f"{part}.flat") for part in "qkv"]
        self.nodes.append(helper.make_node("Split", [projected], thirds, name("split"), axis=1, num_outputs=3))
        q, k, v = (self.heads(flat, name(part)) for flat, part in zip(thirds, "qkv"))  # [H, T, D]
        keys = self.node("Concat", [name("past.k"), k], name("cache.k"), axis=1)  # [H, S, D]
        values = self.node("Concat", [name("past.v"), v], name("cache.v"), axis=1)
        across = self.node("Transpose", [keys], name("keys"), perm=[0, 2, 1])
        scaled = self.node("Mul", [self.node("MatMul", [q, across], name("product")), "scale"], name("scaled"))
        scores = self.node("Where", [visible, scaled, "minus_infinity"], name("scores"))  # [H, T, S]
        probs = self.node("Softmax", [scores], name("probs"), axis=-1)
        mixed = self.node("MatMul", [probs, values], name("mixed"))  # [H, T, D]
        rows = self.node("Transpose", [mixed], name("rows"), perm=[1, 0, 2])
        context = self.node("Reshape", [rows, "merge_heads"], name("context"))  # [T, E]
        return self.linear(name("c_proj"), context, name("out"))

    def heads(self, flat, point):
        """[T, E] -> [H, T, D]."""
        split = self.node("Reshape", [flat, "split_heads"], f"{point}.split")
        return self.node("Transpose", [split], point, perm=[1, 0, 2])

    def linear(self, weights, x, output):
        """x @ W + b, W [in, out]."""
        return self.node("Gemm", [x, f"{weights}.weight", f"{weights}.bias"], output)

    def layer_norm(self, name, x):
        return self.node(
            "LayerNormalization",
            [x, f"{name}.weight", f"{name}.bias"],
            name,
            axis=-1,
            epsilon=self.config.layer_norm_epsilon,
        )

    def node(self, operator, inputs, output, **attributes):
        self.read.update(name for name in inputs if name.endswith((".weight", ".bias")))
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def integers(self, name, values):
        shape = [len(values)] if isinstance(values, list) else []
        values = values if isinstance(values, list) else [values]
        self.constants.append(helper.make_tensor(name, TensorProto.INT64, shape, values))

    def floats(self, name, value):
        self.constants.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))


def _value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def _external(name, shape):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="memory")
    return tensor
