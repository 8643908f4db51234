"""Arithmetic that is less exact than the model's."""

import numpy as np


def round_to(x, to):
    """The nearest f16 or bf16 numbers, in the dtype of `x`."""
    if to == "f16":
        return x.astype(np.float16).astype(x.dtype)
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32).astype(x.dtype)


def product_in(a, b, to):
    """[..., M, K] times [..., K, N], each partial sum rounded to f16 or bf16."""
    total = np.zeros((*a.shape[:-1], b.shape[-1]), a.dtype)
    for k in range(a.shape[-1]):
        total = round_to(total + a[..., :, k, None] * b[..., k, None, :], to)
    return total


def total_in(x, to):
    """The sum over the last axis, each partial sum rounded to f16 or bf16."""
    total = np.zeros_like(x[..., :1])
    for k in range(x.shape[-1]):
        total = round_to(total + x[..., k, None], to)
    return total
