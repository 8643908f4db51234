"""The errors that reach the harness, each with its class (PROTOCOL.md, "Errors")."""

import errno

MESSAGE_LIMIT = 400

# What the operating system says when it has run out of something.
_EXHAUSTED = {errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN}


class AdapterError(Exception):
    """An error with a class of the protocol."""

    kind = "internal"


class InputError(AdapterError):
    """The request, or a file that it names, is wrong."""

    kind = "input"


class UnsupportedError(AdapterError):
    """The request is right, but this implementation can't do that by its nature."""

    kind = "unsupported"


class ResourceError(AdapterError):
    """Memory, disk, or time ran out, or the run was cancelled."""

    kind = "resource"


class UpstreamError(AdapterError):
    """Upstream isn't what the adapter was written for: a capture point has moved or gone."""


def classify(error):
    """`(class, short message)` of any exception."""
    text = " ".join(str(error).split())
    if isinstance(error, AdapterError):
        kind, message = error.kind, text
    else:
        message = f"{type(error).__name__}: {text}" if text else type(error).__name__
        kind = "resource" if _is_exhaustion(error, text) else "internal"
    if len(message) > MESSAGE_LIMIT:
        message = message[: MESSAGE_LIMIT - 1] + "…"
    return kind, message


def _is_exhaustion(error, text):
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return True
    # torch reports a failed allocation as a RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in text
