"""The same GPT-2 with every sum added strictly from the first term to the last.

No blocks, no pairs, no fused multiply-add: what a plain loop in C gives. The loop runs over the
terms and NumPy over all outputs at once, so that each output's terms are added in that order. The
softmax over the vocabulary is not in the graph, and stays pairwise.
"""

import numpy as np
from gpt2 import Gpt2


class SequentialGpt2(Gpt2):
    def __init__(self, config, weights):
        super().__init__(config, weights)
        # [E, V], so that each of its rows is one piece of memory.
        self._head = np.ascontiguousarray(weights["lm_head.weight"].T)

    def head(self, x):
        return self.product(x, self._head)

    def product(self, a, b):
        total = np.zeros((*a.shape[:-1], b.shape[-1]), self.dtype)
        term = np.empty_like(total)
        for k in range(a.shape[-1]):
            np.multiply(a[..., :, k, None], b[..., k, None, :], out=term)
            total += term
        return total

    def total(self, x):
        # A running sum can't be reordered; `sum` would add in pairs.
        return np.add.accumulate(x, axis=-1)[..., -1:]
