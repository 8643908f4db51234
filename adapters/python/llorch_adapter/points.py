"""Names, order and shapes of the points.

T: tokens of this step, S: keys visible (cached + new), E: width, H: heads, D = E/H,
F: inner width of the feed-forward, V: vocabulary. Tensors carry no batch axis.
"""

import re
from dataclasses import dataclass

# Data-flow order within a block; "" is the block's own output, `h.i`.
LAYER_POINTS = (
    "ln_1",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.cache.k",
    "attn.cache.v",
    "attn.scores",
    "attn.probs",
    "attn.context",
    "attn.out",
    "resid_mid",
    "ln_2",
    "mlp.fc",
    "mlp.act",
    "mlp.out",
    "",
)
FIRST = ("tokens", "embeddings")
LAST = ("ln_f", "logits", "logits.last", "argmax", "next.probs")
INTEGERS = ("tokens", "argmax")
# What the step loop has by itself, or makes of the last row of logits: no graph gives it out.
OUTSIDE = ("tokens", "logits.last", "argmax", "next.probs")

_SHAPES = {
    "tokens": "T",
    "embeddings": "TE",
    "ln_1": "TE",
    "attn.q": "HTD",
    "attn.k": "HTD",
    "attn.v": "HTD",
    "attn.cache.k": "HSD",
    "attn.cache.v": "HSD",
    "attn.scores": "HTS",
    "attn.probs": "HTS",
    "attn.context": "TE",
    "attn.out": "TE",
    "resid_mid": "TE",
    "ln_2": "TE",
    "mlp.fc": "TF",
    "mlp.act": "TF",
    "mlp.out": "TE",
    "": "TE",
    "ln_f": "TE",
    "logits": "TV",
    "logits.last": "V",
    "argmax": "",
    "next.probs": "V",
}


@dataclass(frozen=True)
class Dims:
    """The sizes of a GPT-2."""

    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int
    vocab_size: int
    n_positions: int

    @property
    def head_dim(self):
        return self.n_embd // self.n_head


def layer_point(layer, part):
    """`layer_point(3, "attn.q")` is `h.3.attn.q`; the part "" is the block itself."""
    return f"h.{layer}.{part}" if part else f"h.{layer}"


def all_points(n_layer):
    """Every point of a model, in data-flow order."""
    blocks = (layer_point(i, part) for i in range(n_layer) for part in LAYER_POINTS)
    return [*FIRST, *blocks, *LAST]


def shape_of(point, dims, t, s):
    """The shape that the contract gives a point."""
    stage = re.sub(r"^h\.\d+\.?", "", point)
    sizes = {
        "T": t,
        "S": s,
        "E": dims.n_embd,
        "H": dims.n_head,
        "D": dims.head_dim,
        "F": dims.n_inner,
        "V": dims.vocab_size,
    }
    return tuple(sizes[letter] for letter in _SHAPES[stage])


class Globs:
    """Patterns in which `*` stands for any run of characters, dots included."""

    def __init__(self, patterns):
        alternatives = (".*".join(map(re.escape, p.split("*"))) for p in patterns)
        # (?!) never matches: no patterns, no points.
        self._regex = re.compile("|".join(f"(?:{a})" for a in alternatives) or "(?!)", re.DOTALL)

    def __contains__(self, point):
        return self._regex.fullmatch(point) is not None
