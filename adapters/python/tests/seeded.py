"""Runs the NumPy model in this process, honest or with seeded bugs, and keeps what the points show.

The data is that of the harness's own suite, `tests/bugs/*.toml`.
"""

import importlib.util
import sys
import tomllib
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

from llorch_adapter import stdio
from llorch_adapter.folder import read_config, read_weights
from llorch_adapter.points import Globs, all_points
from llorch_adapter.requests import Run, Sampling
from llorch_adapter.run import execute

from .client import ADAPTERS, NANO, ROOT

BUGS = ROOT / "tests" / "bugs"
# What is said again of a bug's second cause.
PLACE = {"point", "signature", "step", "layers", "head", "token"}
DEFAULTS = {"case": "short", "model": "nano", "step": 0, "head": None, "token": None, "then": None, "below_limit": None}
KEYS = PLACE | {"inject", "case", "model", "then", "below_limit"}


def listed():
    """Every bug of every file, with defaults filled in."""
    found = []
    for path in sorted(BUGS.glob("*.toml")):
        for entry in tomllib.loads(path.read_text()).get("bug", []):
            assert set(entry) <= KEYS, f"{path.name}: {sorted(set(entry) - KEYS)} are no keys"
            assert set(entry.get("then", {})) <= PLACE, f"{path.name}: {entry['then']}"
            found.append(SimpleNamespace(**(DEFAULTS | entry), file=path.name))
    return found


@cache
def cases():
    table = tomllib.loads((BUGS / "cases.toml").read_text())
    return {case["name"]: case for case in table["case"]}


@cache
def adapter_class():
    """../bug/adapter.py. Its own folder has to be on the path for what it imports."""
    sys.path.append(str(ADAPTERS / "bug"))
    spec = importlib.util.spec_from_file_location("bug_adapter", ADAPTERS / "bug" / "adapter.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(stdio, "guard"):  # which would take stdin and stdout from the tests
        spec.loader.exec_module(module)
    return module


@cache
def model(name):
    """Config and weights of nano, or of nano with a second row in the head that equals the best one's."""
    config = read_config(NANO)
    weights = read_weights(NANO, config)
    if name == "ties":
        best = int(capture("nano", "pair", ())[0, "argmax"])
        wte = weights["wte.weight"].copy()
        wte[TWIN] = wte[best]
        weights["wte.weight"] = weights["lm_head.weight"] = wte
    elif name != "nano":
        raise KeyError(name)
    return config, weights


TWIN = 50000  # the token that equals another in the model `ties`; no prompt has it


def forced(name, case):
    return generate(name, case, ())


def capture(name, case, inject):
    """Every point of every step: {(step, point): array}, with the honest model's tokens fed."""
    return _run(name, case, inject, list(forced(name, case)), ["*"])[0]


@cache
def generate(name, case, inject):
    """The tokens of a greedy run that is left to itself."""
    return tuple(_run(name, case, inject, None, [])[1]["generated"])


def _run(name, case, inject, fed, points):
    module = adapter_class()
    case = cases()[case]
    config, weights = model(name)
    tensors = {}

    class Recorder(module.BugAdapter):
        def observe(self, probe):
            def write(point, value):
                tensors[probe.step, point] = np.array(value)

            probe._write = write
            return super().observe(probe)

    adapter = Recorder(None, [module.parse(text) for text in inject])
    adapter.dims = config.dims
    adapter.model = adapter.build(config, dict(weights))
    new = case["max_new_tokens"]
    sampling = Sampling(**case.get("sampling", {})) if fed is not None else Sampling()
    request = Run("a", case["ids"], Globs(points), new, fed if new else None, sampling, {}, None)
    done = execute(adapter, request, None, lambda: False)
    return tensors, done


def in_order(tensors, dims):
    """The keys of a capture, by step and data flow."""
    order = {point: n for n, point in enumerate(all_points(dims.n_layer))}
    return sorted(tensors, key=lambda key: (key[0], order[key[1]]))
