"""Model files for tests."""

import json

import numpy as np

_NAMES = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64"}


def write_safetensors(path, tensors):
    """The format in ten lines: header length, header, bytes."""
    header, blobs, offset = {}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
