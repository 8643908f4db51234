"""CTranslate2's own GPT-2, graph and kernels. Worth `semantics`, for logits and generation.

The model is made by CTranslate2's own converter of OpenAI's GPT-2 (`conversion.py`); what its Python
interface gives out are logits, so nothing before them is captured.

`--variant fast` is the form that is timed: the prompt goes through CTranslate2's own generation too, which applies the head to
the last token alone, and threads wait as its users have them.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

# Appended, so that the folder `ctranslate2` here never shadows the package.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from llorch_adapter import stdio

stdio.guard()

import numpy as np

from llorch_adapter.adapter import FAST, Adapter, Session, arguments
from llorch_adapter.errors import UpstreamError
from llorch_adapter.folder import read_config, read_weights
from llorch_adapter.serve import serve

# Before its OpenMP is loaded: threads that spin while they wait take the processor from whoever has work.
if FAST not in sys.argv[1:]:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

INSIDE = "CTranslate2 gives out logits and tokens; no interface of it shows a value inside of the decoder"
ALL_ROWS = "the fast form applies the head to the last token alone"
COMPUTE_TYPE = {"f32": "float32", "bf16": "bfloat16", "int8": "int8"}


class CTranslate2Adapter(Adapter):
    name = "ctranslate2"
    variants = (FAST,)
    worth = "semantics"
    capabilities = ("capture", "generate", "sample", "draw", "deterministic")
    unsupported = tuple({"point": point, "reason": INSIDE} for point in ("embeddings", "h.*", "ln_f"))
    recipes = {
        "tokens": "what is fed: the ids of forward_batch, or of generate_batch as tokens of those names",
        "logits": "prefill: Generator.forward_batch; b t v -> t v. Later steps: the logits that "
        "Generator.generate_batch gives for the step, out of its own key/value cache; 1 v -> 1 v",
        "logits.last": "last row of logits. Where the token fed isn't the one that CTranslate2 would choose or was "
        "told to go on with (sampling), it forwards the tokens before it at once, and then this one",
        "argmax": "numpy.argmax of logits.last: the lowest id of a tie",
        "next.probs": "NumPy's softmax of logits.last, filtered as in llorch_adapter/sampling.py: "
        "CTranslate2 shows no filtered probabilities",
    }

    def __init__(self, variant=None):
        super().__init__(variant)
        self.generator = None
        if self.fast:
            self.capabilities += ("bench",)
            self.narrow = ("bf16", "int8")
            self.unsupported += ({"point": "logits", "reason": ALL_ROWS},)

    def version(self):
        return f"ctranslate2 {version('ctranslate2')}"

    def load(self, folder, dtype, threads):
        self.precision(dtype)
        config = read_config(folder)
        self.generator = None
        weights = read_weights(folder, config)
        from conversion import make_generator

        self.generator = make_generator(config, weights, threads, COMPUTE_TYPE[dtype])
        check_interface()
        self.dims = config.dims

    def session(self, probe, positions):
        session = FastSession if self.fast else CTranslate2Session
        return session(self.generator, probe, positions)


class CTranslate2Session(Session):
    """One run: the prompt by `forward_batch`, what follows by CTranslate2's own decoding loop."""

    def __init__(self, generator, probe, positions):
        self._generator = generator
        self._probe = probe
        self._positions = positions
        self._fed = []
        self._decoding = None

    def __exit__(self, *_):
        self._stop()

    def forward(self, ids):
        prefill = not self._fed
        if prefill:
            rows = np.array(self._generator.forward_batch([ids]))[0]
        else:
            rows = self._decode(ids)
        self._fed += ids
        return self._probe.visit("logits", rows)[-1]

    def _decode(self, ids):
        """[1, V]: the logits after one more token."""
        from decoding import Decoding

        if self._decoding is None or self._decoding.next_token != ids[0]:
            self._stop()
            forced = self._probe.forced_ids
            known = forced[self._probe.step :] if forced else []
            count = self._positions - len(self._fed)
            self._decoding = Decoding(self._generator, self._fed, [*ids, *known[: count - 1]], count)
        return self._decoding.step()

    def _stop(self):
        if self._decoding is not None:
            self._decoding.close()
            self._decoding = None


class FastSession(CTranslate2Session):
    """One run in CTranslate2's own decoding loop from the prompt on."""

    def forward(self, ids):
        self._fed += ids[:-1]
        row = self._decode(ids[-1:])[-1]
        self._fed.append(ids[-1])
        return row


def check_interface():
    """What steps are read from; without it there would be nothing to show after the prefill."""
    import ctranslate2

    lost = [name for name in ("logits", "token_id", "step") if not hasattr(ctranslate2.GenerationStepResult, name)]
    if lost:
        raise UpstreamError(f"ctranslate2.GenerationStepResult has no `{lost[0]}`, expected the logits of each step there")


def main():
    options = arguments(CTranslate2Adapter).parse_args()
    return serve(CTranslate2Adapter(options.variant))


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Not by way of the interpreter's end: now and then CTranslate2's threads aren't through when their owner is taken
    # apart, and the process ends in std::terminate after all its work is done.
    os._exit(code)
