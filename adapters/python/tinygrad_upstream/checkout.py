"""A checkout of tinygrad on the user's disk: what version it is, and its `examples/gpt2.py`, imported."""

import importlib
import os
import re
import sys

from llorch_adapter.errors import InputError, UpstreamError

EXAMPLE = "examples/gpt2.py"


def describe(source):
    """`0.13.0 at a9069c177a9d`: the version that pyproject.toml states, and the commit where git tells it."""
    if not (source / EXAMPLE).is_file():
        return f"(no {EXAMPLE} in {source})"
    try:
        stated = re.search(r'^version = "([^"]+)"', (source / "pyproject.toml").read_text(), re.M)
    except OSError:
        stated = None
    version = stated[1] if stated else "of unknown version"
    commit = _commit(source)
    return f"{version} at {commit[:12]}" if commit else version


def _commit(source):
    """Read from .git itself: no program is needed for it."""
    git = source / ".git"
    try:
        if git.is_file():  # a worktree
            git = (source / git.read_text().removeprefix("gitdir: ").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        common = git / "commondir"
        root = (git / common.read_text().strip()).resolve() if common.is_file() else git
        for folder in (git, root):
            if (folder / ref).is_file():
                return (folder / ref).read_text().strip()
        packed = (root / "packed-refs").read_text()
        found = re.search(rf"^([0-9a-f]{{40}}) {re.escape(ref)}$", packed, re.M)
        return found[1] if found else None
    except OSError:
        return None


def module(source):
    """`examples.gpt2` of the checkout, with that checkout's own tinygrad."""
    if not (source / EXAMPLE).is_file():
        raise InputError(f"failed to find tinygrad's GPT-2: {source} holds no {EXAMPLE}; expected a checkout of tinygrad")
    if "examples.gpt2" in sys.modules:
        return sys.modules["examples.gpt2"]
    # Decode steps are looked at one by one; a graph that the JIT replays shows nothing.
    os.environ["JIT"] = "0"
    os.environ["HALF"] = "0"
    # First, so that an installed tinygrad doesn't stand in for the checkout's.
    sys.path.insert(0, str(source))
    try:
        found = importlib.import_module("examples.gpt2")
    except Exception as error:
        raise UpstreamError(f"failed to import {EXAMPLE} of {source}: {type(error).__name__}: {error}") from error
    for name in ("Transformer", "TransformerBlock", "MAX_CONTEXT", "Variable"):
        if not hasattr(found, name):
            raise UpstreamError(f"failed to use {source}/{EXAMPLE}: expected it to have `{name}`, it has none")
    return found
