"""What every bug is made of: its options, how it is named, how it gets into a model.

A bug is a small function that gets the model and its options. It overrides stages of the forward
pass (`override`), changes weights (`replace`), or meddles with what points show
(`model.meddlers`). Its name, its docstring and its options' defaults are what the command line
shows; the function is all that there is to add for a new one.
"""

import re
from types import SimpleNamespace

import numpy as np

from llorch_adapter.errors import InputError

BUGS = {}


class Options(SimpleNamespace):
    """A bug's options. Without `layer`, it is in all layers; without `step`, in all steps."""

    def hits(self, layer):
        return self.layer is None or self.layer == layer

    def hits_name(self, name):
        """`hits` for a name such as `h.3.attn.c_proj`; what is in no layer belongs to no layer."""
        match = re.match(r"h\.(\d+)", name)
        return self.layer is None or (match is not None and int(match[1]) == self.layer)

    def layers(self, model):
        return [i for i in range(model.dims.n_layer) if self.hits(i)]

    def now(self, model):
        return self.step is None or self.step == model.step


def bug(by_layer=True, **defaults):
    """Registers a bug with its options; by layer, one of them is `layer`. None is "not given"."""

    def register(function):
        BUGS[function.__name__] = (function, ({"layer": None} if by_layer else {}) | defaults)
        return function

    return register


def parse(text):
    """`eps:layer=2:value=1e-3` as a function of the model."""
    name, *pairs = text.split(":")
    if name not in BUGS:
        raise ValueError(f"no bug {name!r}; there are {', '.join(sorted(BUGS))}")
    function, defaults = BUGS[name]
    options = dict(defaults)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in options:
            raise ValueError(f"bug {name} has no option {pair!r}; it has {', '.join(options)}")
        options[key] = _convert(value, defaults[key], f"{name}:{key}")
    return lambda model: _apply(function, model, Options(**options))


def _convert(value, default, where):
    kind = int if default is None else type(default)
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{where} is {value!r}, expected {kind.__name__}") from None


def _apply(function, model, options):
    limits = {"layer": model.dims.n_layer, "head": model.dims.n_head}
    if hasattr(options, "layer"):
        limits["other"] = model.dims.n_layer
    for option, count in limits.items():
        index = getattr(options, option, None)
        if index is not None and not 0 <= index < count:
            raise InputError(f"bug {function.__name__}: the model has no {option} {index}")
    function(model, options)


def choose(o, option, *allowed):
    """The value of an option that is one of a few words."""
    value = getattr(o, option)
    if value not in allowed:
        raise InputError(f"`{option}` is {value!r}, expected one of {', '.join(allowed)}")
    return value


def override(model, method):
    """Puts a function around a method of this model; it gets the original first."""

    def install(function):
        original = getattr(model, method)
        setattr(model, method, lambda *args: function(original, *args))

    return install


def meddle(model, point):
    """Changes a point's value before anything reads it; the function gets the value."""

    def install(function):
        model.meddlers.append(lambda p, step, value: function(value) if p == point else value)

    return install


def replace(model, name, change):
    """Puts `change(copy of the tensor)` in a tensor's place; `change` may also work in place."""
    if name not in model.weights:
        raise InputError(f"the model has no tensor {name}")
    tensor = np.array(model.weights[name])
    changed = change(tensor)
    model.weights[name] = tensor if changed is None else np.ascontiguousarray(changed, tensor.dtype)


def element(array, index, what):
    """An index into a flat array; -1 is the element that is furthest from zero."""
    flat = array.reshape(-1)
    if not -1 <= index < flat.size:
        raise InputError(f"{what} has {flat.size} elements, none at {index}")
    return int(np.argmax(np.abs(flat))) if index == -1 else index
