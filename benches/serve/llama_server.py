"""Builds llama.cpp's own server, once, into a cache folder.

The source is the sdist of llama-cpp-python that the reference `llamacpp` is pinned to: it holds llama.cpp's whole
tree. What it is built with is pinned there too. Both with their hashes: nothing else is taken.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PINS = REPOSITORY / "refs" / "llamacpp"

TARGETS = ["llama-server", "llama-quantize", "llama-bench"]

# For this very processor, which is llama.cpp's fastest form. No web page, no TLS, no tests: nothing is fetched while
# it is built, and what is timed does not change.
FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DGGML_CCACHE=OFF",
    "-DGGML_METAL=OFF",
    "-DGGML_ACCELERATE=OFF",
    "-DGGML_BLAS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
]

# Limits in seconds. 77 MB and two tools are downloaded; the build takes 8 minutes on two idle cores.
DOWNLOAD_LIMIT = 900
CONFIGURE_LIMIT = 300
BUILD_LIMIT = 5400
# How often a long step says how far it is.
PROGRESS_SECONDS = 15


class BuildError(Exception):
    """What is missing in the environment, in one sentence."""


def say(message):
    print(message, file=sys.stderr, flush=True)


def pinned(lock, package):
    """The lines of one package of a lock file: version and hashes."""
    try:
        text = (PINS / lock).read_text()
    except OSError as e:
        raise BuildError(f"no pins: {e}") from None
    found = re.search(rf"^{re.escape(package)}==(?:.*\\\n)*.*\n", text, re.MULTILINE)
    if not found:
        raise BuildError(f"{PINS / lock} does not pin {package}")
    return found.group(0)


def processor():
    """The processor's model and features: what is built for one may crash on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def cache_folder():
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "llorch"


def folder():
    """One folder for each combination of pins, flags and processor."""
    parts = [pinned("requirements.lock", "llama-cpp-python"), *FLAGS, *TARGETS, processor()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache_folder() / f"llama-server-{key}"


def version():
    return re.search(r"==(\S+)", pinned("requirements.lock", "llama-cpp-python")).group(1)


def programs():
    """Paths of the programs by name, built if they are not there."""
    home = folder()
    built = {name: home / "bin" / name for name in TARGETS}
    if (home / "done").exists() and all(path.exists() for path in built.values()):
        return built
    say(f"llama-server is compiled once, into {home}: 80 MB to download, about 8 minutes on two idle cores")
    work = home / "work"
    shutil.rmtree(home, ignore_errors=True)
    try:
        work.mkdir(parents=True)
    except OSError as e:
        raise BuildError(f"{work} can't be made: {e.strerror}") from None
    build(work, home / "bin")
    (home / "done").write_text("")
    # Source and objects are 1.5 GB, of which nothing is needed any more.
    shutil.rmtree(work, ignore_errors=True)
    return built


def build(work, target):
    python = work / "venv" / "bin" / "python"
    run("making a virtual environment", [sys.executable, "-m", "venv", work / "venv"], DOWNLOAD_LIMIT, work)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    run("installing cmake and ninja", [*pip, "install", "--quiet", "--require-hashes", "--only-binary", ":all:",
                                       "-r", PINS / "build.lock"], DOWNLOAD_LIMIT, work)
    wanted = work / "source.txt"
    wanted.write_text(pinned("requirements.lock", "llama-cpp-python"))
    # pip asks the sdist for its metadata; what that takes is in the environment already.
    run("downloading the source", [*pip, "download", "--quiet", "--require-hashes", "--no-deps", "--no-build-isolation",
                                   "--no-binary", "llama-cpp-python", "-d", work, "-r", wanted], DOWNLOAD_LIMIT, work)
    archives = sorted(work.glob("llama_cpp_python-*.tar.gz"))
    if len(archives) != 1:
        raise BuildError(f"expected one source archive in {work}, found {len(archives)}")
    say("unpacking")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(work, filter="data")
    source = archives[0].with_name(archives[0].name.removesuffix(".tar.gz")) / "vendor" / "llama.cpp"
    if not (source / "CMakeLists.txt").exists():
        raise BuildError(f"no llama.cpp at {source}")
    tools = {**os.environ, "PATH": f"{work / 'venv' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    # Libraries are linked statically, so that the programs can be moved out of the folder they were built in.
    run("configuring", [work / "venv/bin/cmake", "-S", source, "-B", work / "build", "-G", "Ninja",
                        "-DBUILD_SHARED_LIBS=OFF", *FLAGS], CONFIGURE_LIMIT, work, tools)
    run("compiling", [work / "venv/bin/cmake", "--build", work / "build", "--target", *TARGETS],
        BUILD_LIMIT, work, tools)
    target.mkdir(exist_ok=True)
    for name in TARGETS:
        shutil.copy2(work / "build" / "bin" / name, target / name)


def run(what, command, limit, work, environment=None):
    """Runs a command to its end or for `limit` seconds; its output goes to a file, its progress to stderr."""
    say(what)
    log = work / "log.txt"
    started = time.monotonic()
    try:
        child = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True, errors="replace", env=environment, cwd=work)
    except OSError as e:
        raise BuildError(f"{what}: {command[0]}: {e.strerror}") from None
    killer = threading.Timer(limit, child.kill)
    killer.start()
    last, tail = started, []
    try:
        with log.open("a") as file:
            for line in child.stdout:
                file.write(line)
                tail = [*tail[-14:], line.rstrip()]
                step = re.match(r"\[\d+/\d+\]", line)
                if step and time.monotonic() - last > PROGRESS_SECONDS:
                    last = time.monotonic()
                    say(f"  {step.group(0)} after {last - started:.0f} s")
        code = child.wait()
    finally:
        killer.cancel()
        if child.poll() is None:
            child.kill()
            child.wait()
    if code != 0:
        if time.monotonic() - started >= limit:
            raise BuildError(f"{what}: not done after {limit} s; its output is in {log}")
        raise BuildError("\n".join([f"{what}: exit code {code}; the whole output is in {log}", *tail]))


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(
        description="Build llama.cpp's server into the cache and print where its programs are.",
        epilog="Exit codes: 0 built or already there, 2 usage, 3 environment (no compiler, no network, no disk).")
    parser.parse_args()
    try:
        for path in programs().values():
            print(path)
    except BuildError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)
