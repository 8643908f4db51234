"""Write golden/ops/ops.safetensors: inputs of each operation and what torch and Hugging
Face's own modules make of them, in f32 and f64.

    python ops_golden.py OUT_FILE

Keys are OP/CASE/NAME; results are named f32 and f64 (or NAME.f32, NAME.f64 where there
are several). Inputs are f32; the f64 results are computed from the same values, widened.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import (DynamicCache, GPT2Config, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.pytorch_utils import Conv1D

EPSILON = 1e-5
tensors = {}


def put(key, value):
    if key in tensors:
        raise KeyError(f"{key} was given twice")
    tensors[key] = np.array(value.detach().numpy() if torch.is_tensor(value) else value)


def both(prefix, function, **inputs):
    """Inputs as they are; the result from f32 and from the same values widened to f64."""
    for name, value in inputs.items():
        put(f"{prefix}/{name}", value)
    put(f"{prefix}/f32", function(**inputs))
    put(f"{prefix}/f64", function(**{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}))


def layer_norm(rng):
    def run(x, weight, bias):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, EPSILON)

    def normal(*shape):
        return torch.randn(*shape, generator=rng)

    outlier = normal(3, 128)
    outlier[:, 17] += 3000
    cases = {
        "plain": normal(4, 128), "wide": normal(2, 768), "odd": normal(5, 37), "width_1": normal(3, 1), "width_2": normal(3, 2),
        "one_row": normal(1, 64), "zeros": torch.zeros(2, 16), "constant": torch.full((2, 33), 7.25),
        "tiny_variance": 1 + 1e-4 * normal(3, 64), "below_epsilon": 1e-6 * normal(3, 64),
        "large_offset": 1e4 + normal(3, 96), "large_scale": 1e6 * normal(2, 48), "outlier": outlier,
    }
    for name, x in cases.items():
        both(f"layer_norm/{name}", run, x=x, weight=1 + 0.2 * normal(x.shape[-1]), bias=0.1 * normal(x.shape[-1]))


def gelu_new():
    grid = np.linspace(-12, 12, 4801)
    extremes = [0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 1e-20, -1e-20, 1e-8, -1e-8, 50, -50, 1e4, -1e4, 1e12, -1e12, 1e13, -1e13, 3e38, -3e38]
    both("gelu_new/grid", lambda x: NewGELUActivation()(x), x=torch.tensor(grid, dtype=torch.float32))
    both("gelu_new/extremes", lambda x: NewGELUActivation()(x), x=torch.tensor(extremes, dtype=torch.float32))


def softmax(rng):
    def run(x):
        return torch.nn.functional.softmax(x, dim=-1)

    plain = 3 * torch.randn(4, 17, generator=rng)
    causal = 2 * torch.randn(6, 6, generator=rng)
    future = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    cases = {
        "plain": plain, "one": torch.tensor([[3.5], [-1e30]]), "equal": torch.full((2, 9), -4.0),
        "masked_infinite": causal.masked_fill(future, float("-inf")),
        "masked_finite": causal.masked_fill(future, torch.finfo(torch.float32).min),
        "large": plain + 1e4, "very_large": torch.tensor([[3e38, 3e38, -3e38, 0], [-3e38, -3e38, -3e38, -2.9e38]]),
        "one_wins": torch.tensor([[0.0, 120.0, -5.0], [88.0, -104.0, 0.0]]), "long": 4 * torch.randn(1, 1031, generator=rng),
    }
    for name, x in cases.items():
        both(f"softmax/{name}", run, x=x)


def linear(rng):
    """Conv1D: weight is [in, out]."""
    def run(x, weight, bias):
        layer = Conv1D(weight.shape[1], weight.shape[0]).to(x.dtype)
        layer.weight.data, layer.bias.data = weight, bias
        return layer(x)

    for name, rows, width, out in [("one_row", 1, 128, 96), ("rows", 5, 128, 96), ("odd", 3, 7, 13), ("tall", 3, 96, 24), ("one_by_one", 1, 1, 1),
                                   ("many_rows", 40, 24, 33)]:
        both(f"linear/{name}", run, x=torch.randn(rows, width, generator=rng),
             weight=torch.randn(width, out, generator=rng) * width ** -0.5, bias=0.1 * torch.randn(out, generator=rng))


def lm_head(rng):
    """Tied head: logits = x · wteᵀ; weight is [V, E]."""
    both("lm_head/tied", lambda x, weight: torch.nn.functional.linear(x, weight),
         x=torch.randn(2, 64, generator=rng), weight=0.2 * torch.randn(301, 64, generator=rng))


def embedding(rng):
    """wte[ids] + wpe[positions]; `after` starts at position 5, as after a cache."""
    wte, wpe = torch.randn(23, 16, generator=rng), torch.randn(12, 16, generator=rng)
    put("embedding/wte", wte)
    put("embedding/wpe", wpe)
    for name, ids, first in [("start", [3, 0, 22, 3], 0), ("after", [7], 5), ("end", [1, 2], 10)]:
        ids = torch.tensor(ids)
        positions = torch.arange(first, first + len(ids))
        put(f"embedding/{name}/ids", ids)
        put(f"embedding/{name}/positions", positions)
        put(f"embedding/{name}/f32", wte[ids] + wpe[positions])
        put(f"embedding/{name}/f64", wte[ids].double() + wpe[positions].double())


def attention(rng):
    """GPT2Attention, eager, over three calls on one cache: 5 tokens, 1 token, 3 tokens."""
    config = GPT2Config(n_embd=32, n_head=4, n_layer=1, n_positions=16, attn_pdrop=0.0, resid_pdrop=0.0)
    config._attn_implementation = "eager"
    module = GPT2Attention(config, layer_idx=0).eval()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng) * (0.5 if parameter.ndim == 2 else 0.1)
    for name, parameter in module.named_parameters():
        put(f"attention/{name}", parameter)
    inputs = [torch.randn(n, 32, generator=rng) for n in (5, 1, 3)]
    for precision, dtype in (("f32", torch.float32), ("f64", torch.float64)):
        module = module.to(dtype)
        cache, seen, kept = DynamicCache(config=config), 0, {}
        hooks = [module.c_attn.register_forward_hook(lambda _m, _i, out: kept.update(qkv=out[0])),
                 module.c_proj.register_forward_pre_hook(lambda _m, inputs: kept.update(context=inputs[0][0]))]
        for step, x in enumerate(inputs):
            t, s = len(x), seen + len(x)
            hidden = torch.arange(s)[None, :] > seen + torch.arange(t)[:, None]
            mask = torch.zeros(1, 1, t, s, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
            with torch.no_grad():
                out, probs = module(x[None].to(dtype), past_key_values=cache, attention_mask=mask)[:2]
            seen = s
            if precision == "f32":
                put(f"attention/{step}/x", x)
            split = [p.view(t, 4, 8).transpose(0, 1).contiguous() for p in kept["qkv"].chunk(3, dim=-1)]
            values = dict(zip("qkv", split)) | {"cache.k": cache.layers[0].keys[0].clone(), "cache.v": cache.layers[0].values[0].clone(),
                                               "probs": probs[0], "context": kept["context"], "out": out[0]}
            for name, value in values.items():
                put(f"attention/{step}/{name}.{precision}", value)
        for hook in hooks:
            hook.remove()


def next_probs(rng):
    """Temperature, then top-k, then top-p, then softmax. `settings` is [temperature, top_k, top_p]."""
    logits = 3 * torch.randn(1, 997, generator=rng)
    put("next_probs/logits", logits[0])
    settings = {"plain": (1.0, 0, 1.0), "cold": (0.3, 0, 1.0), "hot": (1.7, 0, 1.0), "top_k": (1.0, 40, 1.0), "top_1": (0.7, 1, 1.0),
                "top_p": (1.0, 0, 0.9), "top_p_small": (1.0, 0, 0.01), "all": (0.8, 40, 0.95)}
    for name, (temperature, k, p) in settings.items():
        put(f"next_probs/{name}/settings", np.array([temperature, k, p]))
        for precision, dtype in (("f32", torch.float32), ("f64", torch.float64)):
            scores = TemperatureLogitsWarper(temperature)(None, logits.to(dtype))
            scores = TopKLogitsWarper(k)(None, scores) if k else scores
            scores = TopPLogitsWarper(p)(None, scores) if p < 1 else scores
            put(f"next_probs/{name}/{precision}", torch.softmax(scores, dim=-1)[0])


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: python ops_golden.py OUT_FILE")
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(20_190_214)
    layer_norm(rng)
    gelu_new()
    softmax(rng)
    linear(rng)
    lm_head(rng)
    embedding(rng)
    attention(rng)
    next_probs(rng)
    wrong = [k for k, v in tensors.items() if not np.isfinite(v).all() and k not in ("softmax/masked_infinite/x",)]
    if wrong:
        sys.exit(f"not finite: {wrong}")
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out)
    print(f"{len(tensors)} tensors, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
