"""GPT-2 on tinygrad's own layers: `nn.Embedding`, `nn.LayerNorm`, `nn.Linear`, `Tensor.gelu`,
`Tensor.softmax`. The graph is written here; every number comes out of tinygrad's kernels.

T: tokens of this step, P: places in the cache, E: width, H: heads, D = E/H, V: vocabulary.

Kernels are compiled for shapes, so there are few of them: ids are padded to a size that
other prompts share, the cache has P places from the start, and attention runs over all of
them. Places after a query's position are masked, so their probabilities are exactly 0;
padded rows write into such places, and what they compute is never shown.
"""

import math

from tinygrad import Tensor, dtypes, nn
from tinygrad.nn.state import safe_load

from llorch_adapter.points import layer_point


class Block:
    """The layers of one block."""

    def __init__(self, weights, h, width, epsilon):
        self.ln_1 = layer_norm(weights, f"{h}.ln_1", width, epsilon)
        self.c_attn = linear(weights, f"{h}.attn.c_attn")
        self.attn_proj = linear(weights, f"{h}.attn.c_proj")
        self.ln_2 = layer_norm(weights, f"{h}.ln_2", width, epsilon)
        self.c_fc = linear(weights, f"{h}.mlp.c_fc")
        self.mlp_proj = linear(weights, f"{h}.mlp.c_proj")


class Gpt2:
    def __init__(self, config, weights):
        dims = self.dims = config.dims
        width, epsilon = dims.n_embd, config.layer_norm_epsilon
        self.wte = embedding(weights["wte.weight"])
        self.wpe = embedding(weights["wpe.weight"])
        self.blocks = [Block(weights, f"h.{i}", width, epsilon) for i in range(dims.n_layer)]
        self.ln_f = layer_norm(weights, "ln_f", width, epsilon)
        self.head = weights["lm_head.weight"]

    def empty_cache(self, places):
        """Keys and values of each layer, [H, P, D], in memory and zero."""
        shape = (self.dims.n_head, places, self.dims.head_dim)
        tensors = [Tensor.zeros(*shape).contiguous() for _ in range(2 * self.dims.n_layer)]
        Tensor.realize(*tensors)
        return list(zip(tensors[::2], tensors[1::2]))

    def forward(self, ids, start, last, cache, wanted):
        """ids [T], padded, fed at position `start`; row `last` is the last that isn't padding.
        Both may be bound variables.

        Returns that row of logits, [V], and a dict of the wanted points, both lazy.
        `attn.cache.*`, `attn.scores` and `attn.probs` have P places where the contract has S.
        """
        found = {}

        def show(point, value):
            if point in wanted:
                # A kernel boundary: what is captured is what the next kernel reads.
                found[point] = value = value.contiguous()
            return value

        positions = Tensor.arange(ids.shape[0], dtype=dtypes.int) + start
        x = show("embeddings", self.wte(ids) + self.wpe(positions))
        for i, block in enumerate(self.blocks):
            name = lambda part, i=i: layer_point(i, part)
            normed = show(name("ln_1"), block.ln_1(x))
            x = show(name("resid_mid"), x + self.attention(block, normed, positions, start, cache[i], name, show))
            normed = show(name("ln_2"), block.ln_2(x))
            inner = show(name("mlp.act"), show(name("mlp.fc"), block.c_fc(normed)).gelu())
            x = show(name(""), x + show(name("mlp.out"), block.mlp_proj(inner)))
        x = show("ln_f", self.ln_f(x))
        if "logits" not in wanted:
            x, last = x[last : last + 1], 0
        return show("logits", x @ self.head.T)[last : last + 1].reshape(-1), found

    def attention(self, block, x, positions, start, cache, name, show):
        """[T, E] -> [T, E]."""
        t, heads, size = x.shape[0], self.dims.n_head, self.dims.head_dim
        split = block.c_attn(x).reshape(t, 3, heads, size)
        q, k, v = (split[:, part].transpose(0, 1) for part in range(3))  # [H, T, D]
        q, k, v = show(name("attn.q"), q), show(name("attn.k"), k), show(name("attn.v"), v)
        keys = show(name("attn.cache.k"), _store(cache[0], start, k))  # [H, P, D]
        values = show(name("attn.cache.v"), _store(cache[1], start, v))
        scores = (q @ keys.transpose(1, 2)) * (1 / math.sqrt(size))  # [H, T, P]
        visible = Tensor.arange(keys.shape[1], dtype=dtypes.int) <= positions.reshape(t, 1)
        scores = show(name("attn.scores"), visible.where(scores, -math.inf))
        probs = show(name("attn.probs"), scores.softmax(-1))
        context = (probs @ values).transpose(0, 1).reshape(t, -1)
        return show(name("attn.out"), block.attn_proj(show(name("attn.context"), context)))


def _store(cache, start, rows):
    """The cache [H, P, D] after rows [H, T, D] have entered it at `start`."""
    place = cache[:, start : start + rows.shape[1]]
    return Tensor(cache.uop.after(place.uop.store(rows.uop)))


# tinygrad's constructors would draw random weights first; for large models that takes long.


def embedding(weight):
    layer = nn.Embedding.__new__(nn.Embedding)
    layer.weight = weight
    return layer


def linear(weights, name):
    """Conv1D weights are [in, out], `nn.Linear` has [out, in]: a view, the bytes stay."""
    layer = nn.Linear.__new__(nn.Linear)
    layer.weight, layer.bias = weights[f"{name}.weight"].T, weights[f"{name}.bias"]
    return layer


def layer_norm(weights, name, width, epsilon):
    layer = nn.LayerNorm(width, eps=epsilon)
    layer.weight, layer.bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return layer


def load_weights(path, names):
    """By tinygrad's own reader; `names` are ours and those in the file. All float32 in memory."""
    file = safe_load(path)
    weights = {ours: file[stored].to("CPU").cast(dtypes.float).contiguous() for ours, stored in names.items()}
    Tensor.realize(*weights.values())
    weights.setdefault("lm_head.weight", weights["wte.weight"])
    return weights
