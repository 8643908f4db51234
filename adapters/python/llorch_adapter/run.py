"""The step loop: prefill, then decode with the key/value cache, one token at a time."""

import time

import numpy as np

from .errors import ResourceError
from .probe import Probe


def execute(adapter, request, send, cancelled):
    """Runs a checked request and returns its `done` message.

    `cancelled()` is asked before each step.
    """
    probe = adapter.observe(Probe(request, adapter.dims, adapter.numpy_dtype, send, adapter.not_injectable))
    generator = np.random.default_rng(request.sampling.seed)
    ids, seen, generated = request.ids, 0, []
    seconds = [0.0, 0.0]
    positions = len(ids) + request.steps - 1
    with adapter.session(probe, positions) as session:
        for step in range(request.steps):
            if cancelled():
                raise ResourceError("cancelled")
            started = time.perf_counter()
            seen += len(ids)
            probe.begin(step, len(ids), seen)
            ids = probe.visit("tokens", np.asarray(ids, dtype=np.int64)).tolist()
            last = probe.visit("logits.last", session.forward(ids))
            token = _choose(adapter, request, probe, last, step, generator)
            if len(generated) < request.max_new_tokens:
                generated.append(token)
            ids = [token]
            seconds[min(step, 1)] += time.perf_counter() - started
    return {
        "type": "done",
        "id": request.id,
        "generated": generated,
        "text": adapter.decode(generated),
        "seconds": {"prefill": seconds[0], "decode": seconds[1] if request.steps > 1 else None},
    }


def _choose(adapter, request, probe, last, step, generator):
    """The next token: forced, greedy (ties go to the lowest id), or drawn."""
    argmax = int(probe.visit("argmax", np.asarray(np.argmax(last), dtype=np.int64)))
    sampled = request.sampling.temperature > 0
    forced = request.forced_ids[step] if request.forced_ids else None
    if probe.active("next.probs") or (sampled and forced is None):
        probabilities = probe.visit("next.probs", adapter.next_probs(last, request.sampling))
        if sampled and forced is None:
            return int(adapter.draw(probabilities, generator, 1)[0])
    return argmax if forced is None else forced
