"""A model folder as GGUF, by llorch-diff's own converter: there is one, and it is in Rust."""

import os
import shutil
import subprocess

from llorch_adapter.errors import AdapterError, InputError, ResourceError


def to_gguf(folder, file):
    """Writes `file`. The harness names its program in LLORCH_DIFF; by hand the one on PATH will do."""
    program = os.environ.get("LLORCH_DIFF") or shutil.which("llorch-diff")
    if not program:
        raise AdapterError("llorch-diff converts the model to GGUF and isn't on PATH; name it in LLORCH_DIFF")
    command = [program, "--quiet", "export", "--offline", "--model", str(folder), "--gguf", str(file)]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise AdapterError(f"failed to start {program} (LLORCH_DIFF), which converts the model: {error}") from error
    if ended.returncode:
        # Which errors these are is in its documentation.
        kind = {2: InputError, 3: ResourceError}.get(ended.returncode, AdapterError)
        lines = ended.stderr.strip().splitlines() or [f"{program} ended with exit code {ended.returncode}"]
        raise kind(lines[-1].removeprefix("error: "))
