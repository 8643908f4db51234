"""Stands in for a checkout of tinygrad in the tests: the names and calls that the adapter
`tinygrad-upstream` relies on, on the installed tinygrad. Written here, for nothing else."""

import os

from tinygrad import Tensor, Variable
from tinygrad.nn import Embedding, LayerNorm, Linear

MAX_CONTEXT = 128
BROKEN = os.environ.get("LLORCH_TEST_BROKEN", "")  # what a test has upstream do in another way


class Attention:
    def __init__(self, width, heads):
        self.c_attn, self.c_proj = Linear(width, 3 * width), Linear(width, width)
        self.heads, self.size = heads, width // heads

    def __call__(self, x, start, mask):
        rows = x.shape[1]
        merged = self.c_attn(x).reshape(1, rows, 3, self.heads, self.size)
        q, k, v = (merged[:, :, part] for part in range(3))
        if not hasattr(self, "cache_kv"):
            self.cache_kv = Tensor.zeros(2, 1, MAX_CONTEXT, self.heads, self.size).contiguous().realize()
        self.cache_kv[:, :, start : start + rows].assign(Tensor.stack(k, v)).realize()
        keys, values = (self.cache_kv[part][:, : start + rows].transpose(1, 2) for part in range(2))
        found = q.transpose(1, 2).scaled_dot_product_attention(keys, values, mask)
        return self.c_proj(found.transpose(1, 2).reshape(1, rows, -1))


class Mlp:
    def __init__(self, width):
        self.c_fc, self.c_proj = Linear(width, 4 * width), Linear(4 * width, width)

    def __call__(self, x):
        x = self.c_fc(x)
        if BROKEN == "gelu":
            return self.c_proj(0.5 * x * (1 + (0.7978845608 * (x + 0.044715 * x * x * x)).tanh()))
        return self.c_proj(x.gelu())


class TransformerBlock:
    def __init__(self, width, heads, epsilon):
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.ln_1, self.ln_2 = LayerNorm(width, epsilon), LayerNorm(width, epsilon)

    def __call__(self, x, start, mask):
        x = x + self.attn(self.ln_1(x), start, mask)
        return (x + self.mlp(self.ln_2(x))).contiguous()


class Transformer:
    def __init__(self, dim, n_heads, n_layers, norm_eps, vocab_size, max_seq_len=1024):
        self.wte, self.wpe = Embedding(vocab_size, dim), Embedding(max_seq_len, dim)
        self.h = [TransformerBlock(dim, n_heads, norm_eps) for _ in range(n_layers)]
        self.ln_f = LayerNorm(dim, norm_eps)
        self.lm_head = Linear(dim, vocab_size, bias=False)
        if BROKEN == "parameter":
            self.scale = Tensor.ones(dim)

    def __call__(self, tokens, start_pos, temperature=0.0):
        rows = 1 if not isinstance(tokens, Tensor) else tokens.shape[1]
        tokens = tokens if isinstance(tokens, Tensor) else Tensor(tokens).reshape(1, 1)
        positions = Tensor.arange(MAX_CONTEXT).reshape(1, -1)[:, start_pos : start_pos + rows]
        x = self.wte(tokens) + self.wpe(positions)
        mask = Tensor.full((1, 1, rows, start_pos + rows), float("-inf")).triu(start_pos + 1) if rows > 1 else None
        for block in self.h:
            x = block(x, start_pos, mask)
        return self.lm_head(self.ln_f(x))[:, -1].argmax(-1).flatten().realize()


if BROKEN == "block":
    Block = TransformerBlock
    del TransformerBlock
