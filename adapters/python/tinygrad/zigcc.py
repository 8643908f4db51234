"""A stand-in for clang, made of the `ziglang` wheel: enough of its command line for tinygrad.

tinygrad 0.14 compiles each kernel by

    $CC -c -x c -O2 -fPIC -ffreestanding -fno-math-errno -nostdlib -fno-ident
        --target=x86_64-none-unknown-elf -march=native - -o -

`zig cc` is clang, but knows neither that target nor standard output. So the source goes
into a file, target and processor are translated, and the object comes back on stdout.
Run as a program it does that; `launcher()` makes the executable that CC can name.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

# Without these, objects hold relocations that tinygrad's loader doesn't know.
PLAIN_OBJECT = ["-g0", "-fno-sanitize=all", "-fno-stack-protector"]


def translate(arguments, source, target):
    """The arguments for `zig cc` that compile `source` to `target` as clang's would."""
    result, skip = [], False
    for position, argument in enumerate(arguments):
        if skip:
            skip = False
        elif argument.startswith("--target="):
            machine = argument.removeprefix("--target=").split("-")[0]
            result += ["-target", f"{'aarch64' if machine == 'arm64' else machine}-linux-musl"]
        elif argument.startswith("-march="):
            result.append("-mcpu=" + argument.removeprefix("-march=").replace("-", "_"))
        elif argument == "-o" and arguments[position + 1 : position + 2] == ["-"]:
            skip = True
        elif argument != "-":
            result.append(argument)
    return [*result, *PLAIN_OBJECT, str(source), "-o", str(target)]


def zig():
    """The compiler inside the wheel."""
    import ziglang

    return Path(ziglang.__file__).parent / "zig"


def launcher(folder, zig_path):
    """Writes an executable for CC into `folder`. A path alone: tinygrad takes no arguments
    there, and the interpreter that has the wheel may not be the one a shebang would find."""
    path = Path(folder) / "zigcc"
    command = shlex.join([sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(zig_path)])
    text = f'#!/bin/sh\nexec {command} "$@"\n'
    if not path.is_file() or path.read_text() != text:
        # Moved into place whole: another adapter may be starting at this moment.
        handle, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
    return path


def main(arguments):
    zig_path, *arguments = arguments
    with tempfile.TemporaryDirectory(prefix="zigcc-") as folder:
        source, target = Path(folder) / "kernel.c", Path(folder) / "kernel.o"
        source.write_bytes(sys.stdin.buffer.read())
        command = [zig_path, "cc", *translate(arguments, source, target)]
        finished = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        if finished.returncode:
            return finished.returncode
        sys.stdout.buffer.write(target.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
