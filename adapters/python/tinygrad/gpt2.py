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
    """The parameters of one block."""

    def __init__(self, dims, epsilon):
        e, f = dims.n_embd, dims.n_inner
        self.ln_1, self.ln_2 = nn.LayerNorm(e, eps=epsilon), nn.LayerNorm(e, eps=epsilon)
        self.c_attn, self.attn_proj = nn.Linear(e, 3 * e), nn.Linear(e, e)
        self.c_fc, self.mlp_proj = nn.Linear(e, f), nn.Linear(f, e)


class Gpt2:
    def __init__(self, config, weights):
        dims = self.dims = config.dims
        self.wte = nn.Embedding(dims.vocab_size, dims.n_embd)
        self.wpe = nn.Embedding(dims.n_positions, dims.n_embd)
        self.blocks = [Block(dims, config.layer_norm_epsilon) for _ in range(dims.n_layer)]
        self.ln_f = nn.LayerNorm(dims.n_embd, eps=config.layer_norm_epsilon)
        self.wte.weight = weights["wte.weight"]
        self.wpe.weight = weights["wpe.weight"]
        self.head = weights["lm_head.weight"]
        _set(self.ln_f, weights, "ln_f")
        for i, block in enumerate(self.blocks):
            _set(block.ln_1, weights, f"h.{i}.ln_1")
            _set(block.ln_2, weights, f"h.{i}.ln_2")
            _set_conv1d(block.c_attn, weights, f"h.{i}.attn.c_attn")
            _set_conv1d(block.attn_proj, weights, f"h.{i}.attn.c_proj")
            _set_conv1d(block.c_fc, weights, f"h.{i}.mlp.c_fc")
            _set_conv1d(block.mlp_proj, weights, f"h.{i}.mlp.c_proj")

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


def _set(layer, weights, name):
    layer.weight, layer.bias = weights[f"{name}.weight"], weights[f"{name}.bias"]


def _set_conv1d(linear, weights, name):
    """Conv1D weights are [in, out], `nn.Linear` has [out, in]: a view, the bytes stay."""
    linear.weight, linear.bias = weights[f"{name}.weight"].T, weights[f"{name}.bias"]


def load_weights(path, names):
    """By tinygrad's own reader; `names` are ours and those in the file. All float32 in memory."""
    file = safe_load(path)
    weights = {ours: file[stored].to("CPU").cast(dtypes.float).contiguous() for ours, stored in names.items()}
    Tensor.realize(*weights.values())
    weights.setdefault("lm_head.weight", weights["wte.weight"])
    return weights
