"""The bugs, by theme. Importing this package registers all of them."""

from . import attention, cache, choice, embedding, norms, precision, process, shown, weights  # noqa: F401
from .registry import BUGS, parse

__all__ = ["BUGS", "parse"]
