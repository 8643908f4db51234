"""The NumPy GPT-2 with seeded bugs: a subject that is wrong in known ways.

    adapter.py --bug eps:value=1e-3 --bug transposed:layer=2
    adapter.py --list

It speaks the adapter protocol under the name `bug`, and without `--bug` it is honest.
The bugs are in `seeded/`, a file a theme.
"""

import sys
from pathlib import Path

_ADAPTERS = Path(__file__).resolve().parents[1]
sys.path.append(str(_ADAPTERS))
from llorch_adapter import stdio

stdio.guard()

import importlib.util

from llorch_adapter import sampling
from llorch_adapter.adapter import arguments
from llorch_adapter.serve import serve
from seeded import BUGS, parse


def numpy_adapter():
    """../numpy/adapter.py, under a name that isn't that of the package."""
    sys.path.append(str(_ADAPTERS / "numpy"))
    spec = importlib.util.spec_from_file_location("numpy_adapter", _ADAPTERS / "numpy" / "adapter.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NumpyAdapter


NumpyAdapter = numpy_adapter()


class BugAdapter(NumpyAdapter):
    name = "bug"
    variants = ("f64",)

    def __init__(self, variant, bugs):
        super().__init__(variant)
        self._bugs = bugs

    def version(self):
        n = len(self._bugs)
        return f"{super().version()}, with {n} seeded bug{'' if n == 1 else 's'}"

    def build(self, config, weights):
        model = super().build(config, weights)
        # What bugs may add to, beside overriding the model's methods.
        model.meddlers, model.distortions, model.sampling_changes = [], [], []
        model.generator_changes = []
        model.next_probs = sampling.next_probs
        model.needs_all_rows = False
        model.step, model.forced = 0, False  # of the run that is going on
        for apply in self._bugs:
            apply(model)
        return model

    def observe(self, probe):
        self.model.forced = probe.forced
        return BuggyProbe(probe, self.model)

    def next_probs(self, logits, settings):
        for change in self.model.sampling_changes:
            settings = change(settings)
        return self.model.next_probs(logits, settings)

    def draw(self, probabilities, generator, count):
        for change in self.model.generator_changes:
            generator = change(generator)
        return super().draw(probabilities, generator, count)


class BuggyProbe:
    """Changes values before the real probe sees them (meddlers), or only for it (distortions)."""

    def __init__(self, probe, model):
        self._probe = probe
        self._model = model

    def __getattr__(self, name):
        return getattr(self._probe, name)

    def begin(self, step, t, s):
        self._model.step = step
        self._probe.begin(step, t, s)

    def active(self, point):
        return self._probe.active(point) or (point == "logits" and self._model.needs_all_rows)

    def visit(self, point, value):
        for meddle in self._model.meddlers:
            value = meddle(point, self._probe.step, value)
        shown = value
        for distort in self._model.distortions:
            shown = distort(point, shown)
        seen = self._probe.visit(point, shown)
        return value if seen is shown else seen


def main():
    parser = arguments(BugAdapter)
    parser.add_argument("--bug", action="append", default=[], metavar="NAME[:OPTION=VALUE]...")
    parser.add_argument("--list", action="store_true", help="list the bugs and their options")
    options = parser.parse_args()
    if options.list:
        for name, (function, defaults) in sorted(BUGS.items()):
            settings = " ".join(f"{k}={'all' if v is None else v}" for k, v in defaults.items())
            print(f"{name:22} {function.__doc__}\n{'':22} {settings}", file=sys.stderr)
        return 0
    try:
        bugs = [parse(text) for text in options.bug]
    except ValueError as error:
        parser.error(str(error))
    return serve(BugAdapter(options.variant, bugs))


if __name__ == "__main__":
    sys.exit(main())
