"""Tensor files: .npy out, .npy or .safetensors in.

The safetensors reader checks every offset against the file's length before it touches
the data, and widens F16 and BF16 to float32 exactly.
"""

import json
import math
from pathlib import Path

import numpy as np

from .errors import InputError

DTYPE_NAMES = {"float32": "f32", "float64": "f64", "float16": "f16", "int64": "i64"}

# A header larger than this isn't a model's; the format's own reader has the same limit.
_HEADER_LIMIT = 100_000_000
_STORED = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}


def write_npy(path, array):
    """Writes C order, little endian; returns the array as written."""
    # asarray, not ascontiguousarray: that one turns a scalar into a vector of one.
    array = np.asarray(array, order="C")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
    return array


def read_tensor(path, key=None):
    """One tensor from a .npy file, or from a .safetensors file by its key."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"failed to read a tensor: no file {path}")
    if path.suffix == ".safetensors":
        tensors = SafetensorsFile(path)
        if key is None:
            raise InputError(f"failed to read {path}: a .safetensors file needs a `key`")
        return tensors.read(key)
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise InputError(f"failed to read {path} as .npy: {error}") from error


class SafetensorsFile:
    """The tensors of one .safetensors file, mapped into memory."""

    def __init__(self, path):
        self.path = Path(path)
        self._bytes = self._map()
        self._entries = self._read_header()

    def keys(self):
        return self._entries.keys()

    def shape(self, key):
        return self._entries[key][1]

    def read(self, key):
        """The tensor as float32 (from F32, F16, BF16), or in its own dtype."""
        if key not in self._entries:
            raise InputError(f"failed to read {self.path}: no tensor `{key}`")
        dtype, shape, start, end = self._entries[key]
        values = self._bytes[start:end].view(_STORED[dtype]).reshape(shape)
        if dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        if dtype == "F16":
            return values.astype(np.float32)
        return values

    def _map(self):
        try:
            return np.memmap(self.path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise InputError(f"failed to open {self.path}: {error}") from error

    def _fail(self, reason):
        return InputError(f"failed to read {self.path} as safetensors: {reason}")

    def _read_header(self):
        total = len(self._bytes)
        if total < 8:
            raise self._fail(f"{total} bytes are too few for a header")
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        if length > min(_HEADER_LIMIT, total - 8):
            raise self._fail(f"the header claims {length} bytes, the file has {total}")
        try:
            header = json.loads(self._bytes[8 : 8 + length].tobytes())
            named = {k: v for k, v in header.items() if k != "__metadata__"}
            return {k: self._entry(k, v, 8 + length, total) for k, v in named.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._fail(f"bad header: {error}") from error

    def _entry(self, key, entry, base, total):
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        start, end = (base + offset for offset in entry["data_offsets"])
        if dtype not in _STORED:
            raise self._fail(f"`{key}` has dtype {dtype}")
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise self._fail(f"`{key}` has shape {list(shape)}")
        size = math.prod(shape) * _STORED[dtype].itemsize
        if not base <= start <= end <= total or end - start != size:
            raise self._fail(f"`{key}` has shape {list(shape)} but the bytes {start}..{end} of {total}")
        return dtype, shape, start, end
