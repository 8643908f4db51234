"""Upstream's model: built as `GPT2.build` builds it, from a model folder in place of a download, and fed
as `GPT2.generate` feeds it. Imported after the checkout is on the path."""

import inspect

import numpy as np
from tinygrad import Tensor, Variable, dtypes
from tinygrad.helpers import Context
from tinygrad.nn.state import get_state_dict, load_state_dict, safe_load

import taps
from llorch_adapter.errors import UpstreamError

# Conv1D weights are [in, out], nn.Linear's are [out, in]: the suffixes that upstream transposes.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
PARAMETERS = ("dim", "n_heads", "n_layers", "norm_eps", "vocab_size", "max_seq_len")


def use_threads(count):
    """As many threads as were asked for, where this tinygrad has a setting for it."""
    from tinygrad import helpers

    if hasattr(helpers, "NUM_CPU_THREADS"):
        helpers.NUM_CPU_THREADS.value = count


class Model:
    """Upstream's transformer and the module that it lives in."""

    def __init__(self, gpt2, transformer):
        self.gpt2 = gpt2
        self.transformer = transformer


def build(gpt2, config, path, stored):
    """`stored` are our names of the tensors and those in the file."""
    dims = config.dims
    takes = inspect.signature(gpt2.Transformer).parameters
    missing = [name for name in PARAMETERS if name not in takes]
    if missing:
        raise UpstreamError(f"expected examples/gpt2.py's Transformer to take {', '.join(missing)}, it takes {', '.join(takes)}")
    gpt2.MAX_CONTEXT = dims.n_positions
    transformer = gpt2.Transformer(
        dim=dims.n_embd,
        n_heads=dims.n_head,
        n_layers=dims.n_layer,
        norm_eps=config.layer_norm_epsilon,
        vocab_size=dims.vocab_size,
        max_seq_len=dims.n_positions,
    )
    file = safe_load(path)
    weights = {ours: file[name].to("CPU").cast(dtypes.float) for ours, name in stored.items()}
    for name in weights:
        if name.endswith(TRANSPOSED):
            weights[name] = weights[name].T
    weights.setdefault("lm_head.weight", weights["wte.weight"])
    expected = get_state_dict(transformer)
    wrong = [
        f"{name} {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name not in weights or tuple(weights[name].shape) != tuple(tensor.shape)
    ]
    if wrong:
        raise UpstreamError(f"expected examples/gpt2.py's parameters to be GPT-2's; it also has, or has otherwise: {', '.join(wrong[:4])}")
    with Context(DEBUG=0):
        load_state_dict(transformer, weights, verbose=False)
    return Model(gpt2, transformer)


def step(model, ids, start, dims, probe):
    """Feeds `ids` at position `start`; returns the last row of logits."""
    transformer = model.transformer
    if start == 0:
        for block in transformer.h:  # what an earlier run left there
            vars(block.attn).pop("cache_kv", None)
    # A prompt is a tensor, one token is a variable: upstream's own two ways.
    if len(ids) == 1:
        tokens = Variable("tokens", 0, dims.vocab_size - 1).bind(ids[0])
    else:
        tokens = Tensor([ids])
    places = dims.n_positions
    # A prefill has a variable whose least value is 0, decode steps one whose least value is 1.
    position = Variable("start_pos", 1 if start else 0, places - 1).bind(start)
    with taps.Taps(model, dims, len(ids), start + len(ids), probe) as seen:
        chosen = transformer(tokens, position, 0.0).tolist()
        logits = seen.show()
    last = logits[-1]
    if chosen != [int(np.argmax(last))]:
        raise UpstreamError(f"Transformer.__call__ chose {chosen}, the captured logits' largest is {int(np.argmax(last))}")
    return last
