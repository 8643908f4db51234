"""GPT-2 in plain NumPy, written for reading.

Names follow Hugging Face's GPT-2. T: tokens of this step, S: visible keys (cached + new),
E: width, H: heads, D = E/H, F: inner width, V: vocabulary. Linear weights are [in, out].

Every value with a name passes through `probe.visit(point, value)`, which may record it
and may replace it; what comes back is what the next line reads.
"""

import math

import numpy as np

GELU_SCALE = math.sqrt(2 / math.pi)


class Cache:
    """Keys and values of every layer, each [H, S, D]; S grows with each step."""

    def __init__(self, dims, dtype):
        empty = np.zeros((dims.n_head, 0, dims.head_dim), dtype)
        self.keys = [empty] * dims.n_layer
        self.values = [empty] * dims.n_layer

    @property
    def length(self):
        """Positions fed so far. Asked between steps, when all layers agree."""
        return self.keys[-1].shape[1]


class Gpt2:
    """The forward pass. Each stage is a method, so that a seeded bug can be an override."""

    def __init__(self, config, weights):
        self.config = config
        self.dims = config.dims
        self.weights = weights
        self.dtype = weights["wte.weight"].dtype

    def forward(self, ids, cache, probe):
        """Feeds `ids` [T] after what is cached; returns the last row of logits, [V]."""
        x = probe.visit("embeddings", self.embed(np.asarray(ids), cache.length))  # [T, E]
        for i in range(self.dims.n_layer):
            x = self.block(i, x, cache, probe)
        x = probe.visit("ln_f", self.layer_norm("ln_f", x))
        if not probe.active("logits"):
            x = x[-1:]  # nobody asks for the other rows
        return probe.visit("logits", self.head(x))[-1]

    def embed(self, ids, start):
        """[T] -> [T, E]: token + position."""
        return self.weights["wte.weight"][ids] + self.weights["wpe.weight"][self.positions(start, len(ids))]

    def positions(self, start, count):
        return np.arange(start, start + count)

    def block(self, i, x, cache, probe):
        """[T, E] -> [T, E]: attention, then the feed-forward, each after a norm, each added."""
        h = f"h.{i}"
        normed = probe.visit(f"{h}.ln_1", self.layer_norm(f"{h}.ln_1", x))
        x = probe.visit(f"{h}.resid_mid", self.residual(f"{h}.attn", x, self.attention(i, normed, cache, probe)))
        normed = probe.visit(f"{h}.ln_2", self.layer_norm(f"{h}.ln_2", x))
        return probe.visit(h, self.residual(f"{h}.mlp", x, self.mlp(i, normed, probe)))

    def residual(self, name, x, update):
        return x + update

    def attention(self, i, x, cache, probe):
        """[T, E] -> [T, E]."""
        h = f"h.{i}.attn"
        q, k, v = self.qkv(i, self.linear(f"{h}.c_attn", x))  # [H, T, D] each
        q, k, v = probe.visit(f"{h}.q", q), probe.visit(f"{h}.k", k), probe.visit(f"{h}.v", v)
        keys, values = self.extend(i, cache, k, v)
        cache.keys[i] = keys = probe.visit(f"{h}.cache.k", keys)  # [H, S, D]
        cache.values[i] = values = probe.visit(f"{h}.cache.v", values)

        scores = np.where(self.visible(i, q.shape[1], keys.shape[1]), self.scores(i, q, keys), -np.inf)
        scores = probe.visit(f"{h}.scores", scores)  # [H, T, S]
        probs = probe.visit(f"{h}.probs", self.softmax(i, scores))
        heads = self.heads(i, probs, values)  # [H, T, D]
        context = probe.visit(f"{h}.context", self.merge(i, heads))  # [T, E]
        return probe.visit(f"{h}.out", self.linear(f"{h}.c_proj", context))

    def qkv(self, i, projected):
        """[T, 3E] -> three of [H, T, D]."""
        t = len(projected)
        split = projected.reshape(t, 3, self.dims.n_head, self.dims.head_dim)
        return split.transpose(1, 2, 0, 3)

    def extend(self, i, cache, k, v):
        """The cache of layer i with this step's keys and values behind it."""
        return np.concatenate([cache.keys[i], k], axis=1), np.concatenate([cache.values[i], v], axis=1)

    def scores(self, i, q, keys):
        """[H, T, D], [H, S, D] -> [H, T, S]."""
        return self.product(q, keys.transpose(0, 2, 1)) * self.scale(i)

    def scale(self, i):
        return self.dtype.type(1 / math.sqrt(self.dims.head_dim))

    def visible(self, i, t, s):
        """[T, S]: query t stands at position S-T+t and sees keys up to itself."""
        return np.arange(s) <= np.arange(s - t, s)[:, None]

    def heads(self, i, probs, values):
        """[H, T, S], [H, S, D] -> [H, T, D]."""
        return self.product(probs, values)

    def merge(self, i, heads):
        """[H, T, D] -> [T, E]."""
        return heads.transpose(1, 0, 2).reshape(heads.shape[1], -1)

    def mlp(self, i, x, probe):
        """[T, E] -> [T, F] -> [T, E]."""
        h = f"h.{i}.mlp"
        x = probe.visit(f"{h}.fc", self.linear(f"{h}.c_fc", x))
        x = probe.visit(f"{h}.act", self.gelu(i, x))
        return probe.visit(f"{h}.out", self.linear(f"{h}.c_proj", x))

    def linear(self, name, x):
        """x @ W + b, W [in, out]."""
        return self.product(x, self.weights[f"{name}.weight"]) + self.weights[f"{name}.bias"]

    def layer_norm(self, name, x):
        """Mean 0 and (biased) variance 1 over the width, then gain and bias."""
        centred = x - self.total(x) / x.shape[-1]
        variance = self.total(centred * centred) / x.shape[-1]
        normal = centred / np.sqrt(variance + self.epsilon(name))
        return normal * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def epsilon(self, name):
        return self.dtype.type(self.config.layer_norm_epsilon)

    def gelu(self, i, x):
        """gelu_new: the tanh form."""
        return 0.5 * x * (1 + np.tanh(GELU_SCALE * (x + 0.044715 * x * x * x)))

    def softmax(self, i, x):
        """Over the last axis."""
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / self.total(e)

    def head(self, x):
        """[T, E] -> [T, V]."""
        return self.product(x, self.weights["lm_head.weight"].T)

    # In what order numbers are added. NumPy and BLAS choose it here; `sequential.py` doesn't let them.

    def product(self, a, b):
        """[..., M, K], [..., K, N] -> [..., M, N]."""
        return a @ b

    def total(self, x):
        """The sum over the last axis, which stays with length 1."""
        return x.sum(axis=-1, keepdims=True)
