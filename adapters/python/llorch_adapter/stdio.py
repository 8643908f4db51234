"""The protocol's own file descriptors.

Libraries print to stdout when they please, and a compiler that one of them starts may
read stdin. `guard()` moves both out of reach: the protocol gets duplicates that no child
process inherits, descriptor 1 becomes stderr and descriptor 0 reads nothing. Descriptors
rather than `sys.stdout`, because native code doesn't ask Python where to print.
"""

import os
import sys

_streams = None


def guard():
    """Takes stdin and stdout for the protocol; idempotent. Call it before heavy imports."""
    global _streams
    if _streams is not None:
        return _streams
    # os.dup returns descriptors that aren't inherited by child processes.
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    _streams = (requests, replies)
    return _streams
