"""The step loop: prefill, then decode with the key/value cache, one token at a time."""

import time

import numpy as np

from .errors import ResourceError, UpstreamError
from .points import Globs
from .probe import Probe


def execute(adapter, request, send, cancelled):
    """Runs a checked request and returns its `done` message.

    `cancelled()` is asked before each step.
    """
    probe = Probe(request, adapter.dims, adapter.numpy_dtype, send, adapter.not_injectable, adapter.unsupported)
    probe = adapter.observe(probe)
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
            _expect_all(adapter, probe)
            if len(generated) < request.max_new_tokens:
                generated.append(token)
            ids = [token]
            seconds[min(step, 1)] += time.perf_counter() - started
    return {
        "type": "done",
        "id": request.id,
        "generated": generated,
        "text": adapter.decode(generated) if request.text else None,
        "seconds": {"prefill": seconds[0], "decode": seconds[1] if request.steps > 1 else None},
    }


def _expect_all(adapter, probe):
    """A capture point that upstream no longer comes by is an error, never a smaller table."""
    if missing := probe.unseen(adapter.points()):
        expected = next((text for glob, text in adapter.recipes.items() if missing[0] in Globs([glob])), "it to come by")
        others = f" (and {len(missing) - 1} more points)" if len(missing) > 1 else ""
        raise UpstreamError(f"failed to capture {missing[0]}{others}: expected {expected}; upstream no longer shows it")


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
