"""CTranslate2's own decoding loop, one step at a time.

`generate_batch` runs a whole generation and tells a callback what each step gave. It runs in a thread
here, which waits at each step until that is asked for; so a run can be cancelled between its steps, and
no more than two rows of logits are in memory.
"""

import queue
import threading

import numpy as np

from llorch_adapter.errors import AdapterError, UpstreamError


class Decoding:
    """So many steps after `before`, beginning with `start`: its first token is fed, the loop is
    constrained to the others, and after those goes on as CTranslate2 chooses."""

    def __init__(self, generator, before, start, count):
        self._steps = queue.Queue(maxsize=1)
        self._stopped = False
        self.next_token = start[0]  # the token whose logits the next step gives
        names = lambda ids: [str(token) for token in ids]
        options = {
            "static_prompt": names(before),
            "cache_static_prompt": False,
            "include_prompt_in_result": True,
            "return_logits_vocab": True,
            "max_length": count,
            "end_token": [],  # none: how many steps there are is the run's business
            "callback": self._take,
        }
        self._thread = threading.Thread(target=self._run, args=(generator, names(start), options), daemon=True)
        self._thread.start()

    def step(self):
        """The step's logits, [1, V]."""
        found = self._steps.get()
        if isinstance(found, Exception):
            raise found
        logits, self.next_token = found
        if logits is None:
            raise UpstreamError("CTranslate2 gave no logits for a decoding step, expected GenerationStepResult.logits")
        return logits

    def close(self):
        self._stopped = True
        while self._thread.is_alive():
            try:
                self._steps.get(timeout=0.01)
            except queue.Empty:
                pass

    def _run(self, generator, start, options):
        try:
            generator.generate_batch([start], **options)
            self._steps.put(AdapterError("CTranslate2's decoding ended before the run did"))
        except Exception as error:
            self._steps.put(error)

    def _take(self, result):
        """Called in the decoding loop; True ends it."""
        if not self._stopped:
            logits = None if result.logits is None else np.array(result.logits)
            self._steps.put((logits, result.token_id))
        return self._stopped
