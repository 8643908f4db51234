"""Next-token probabilities in NumPy, with the semantics of Hugging Face's warpers.

In this order: logits / temperature; top-k keeps every logit that is at least the k-th
largest (ties at the cut are all kept); top-p keeps the smallest set of the likeliest
tokens whose probability reaches p, at least one. What is filtered gets -inf.
"""

import numpy as np


def softmax(logits):
    """Over the last axis, in the dtype of the logits."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def filter_logits(logits, sampling):
    """Logits [V] after temperature, top-k and top-p; untouched at temperature 0."""
    if sampling.temperature == 0:
        return logits
    logits = logits / logits.dtype.type(sampling.temperature)
    if sampling.top_k:
        k = min(sampling.top_k, len(logits))
        cut = np.partition(logits, -k)[-k]
        logits = np.where(logits < cut, -np.inf, logits).astype(logits.dtype)
    if sampling.top_p < 1:
        # Ascending, so that the tail to drop is what sums to at most 1 - p.
        order = np.argsort(logits, kind="stable")
        cumulative = np.cumsum(softmax(logits[order]))
        dropped = cumulative <= 1 - sampling.top_p
        dropped[-1] = False
        logits = logits.copy()
        logits[order[dropped]] = -np.inf
    return logits


def next_probs(logits, sampling):
    """[V]: the distribution that a token is drawn from."""
    return softmax(filter_logits(logits, sampling))


def draw(probabilities, generator):
    """One token, by inverting the cumulative distribution at one uniform number."""
    return int(draw_many(probabilities, generator, 1)[0])


def draw_many(probabilities, generator, count):
    """`count` tokens [count], i64: what so many calls of `draw` with this generator would give."""
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    ids = np.searchsorted(cumulative, generator.random(count) * cumulative[-1], side="right")
    return np.minimum(ids, len(probabilities) - 1).astype(np.int64)
