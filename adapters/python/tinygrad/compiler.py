"""Which compiler tinygrad uses, and where it keeps what has been compiled."""

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import zigcc
from llorch_adapter.errors import ResourceError


def choose():
    """`(name, path)`: $CC, else the system's clang, else ("zig …", None) for the wheel's."""
    named = os.environ.get("CC", "")
    found = shutil.which(named) if named and Path(named).name != "zigcc" else None
    found = found or shutil.which("clang")
    if found:
        return Path(found).name, found
    try:
        return f"zig {version('ziglang')}", None
    except PackageNotFoundError:
        return "no compiler", None


def prepare():
    """Sets the environment that tinygrad and the compiler read. Before tinygrad is imported."""
    name, path = choose()
    if name == "no compiler":
        raise ResourceError("tinygrad needs a C compiler: install clang, or the ziglang wheel in this environment")
    folder = cache_folder()
    if path is None:
        path = zigcc.launcher(folder, zigcc.zig())
        os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(folder / "zig"))
        os.environ.setdefault("ZIG_LOCAL_CACHE_DIR", os.environ["ZIG_GLOBAL_CACHE_DIR"])
    os.environ["CC"] = str(path)
    os.environ["DEV"] = "CPU"
    os.environ.setdefault("CACHEDB", str(folder / f"kernels-{_fingerprint(name)}.db"))


def cache_folder():
    """A folder that can be written to: inside the virtual environment, or the user's cache."""
    if sys.prefix != sys.base_prefix:
        places = [Path(sys.prefix) / "cache"]
    else:
        places = []
    places.append(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llorch" / "tinygrad")
    places.append(Path(tempfile.gettempdir()) / f"llorch-tinygrad-{os.getuid()}")
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except OSError:
            continue
    raise ResourceError(f"no folder for compiled kernels can be written to; tried {', '.join(map(str, places))}")


def _fingerprint(compiler):
    """Kernels are compiled for this very processor, by this compiler."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        processor = platform.processor() + platform.machine()
    return hashlib.sha256(f"{compiler}\n{processor}".encode()).hexdigest()[:16]
