"""ggml's tensors as ctypes sees them: names, sources, and memory as NumPy arrays."""

import ctypes

import numpy as np
from llama_cpp._ggml import libggml

from llorch_adapter.errors import UpstreamError

_DIMS, _PARAMS, _SOURCES, _NAME = 4, 16, 10, 64
_F32 = 0


class Tensor(ctypes.Structure):
    """`struct ggml_tensor`; `check_layout` holds it to upstream's own accessors."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * _DIMS),
    ("nb", ctypes.c_size_t * _DIMS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * _PARAMS),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * _SOURCES),
    ("view_src", ctypes.POINTER(Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * _NAME),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


def _function(name, result):
    function = getattr(libggml, name)
    function.argtypes, function.restype = [ctypes.c_void_p], result
    return function


_get_name = _function("ggml_get_name", ctypes.c_char_p)
_get_data = _function("ggml_get_data", ctypes.c_void_p)
_nbytes = _function("ggml_nbytes", ctypes.c_size_t)
_op_desc = _function("ggml_op_desc", ctypes.c_char_p)


def at(pointer):
    return Tensor.from_address(pointer)


def check_layout(pointer):
    """Upstream's struct is what is declared here, or everything read from it would be nonsense."""
    tensor = at(pointer)
    seen = (tensor.name, tensor.data, max(n * b for n, b in zip(tensor.ne, tensor.nb)))
    told = (_get_name(pointer), _get_data(pointer), _nbytes(pointer))
    if seen != told:
        raise UpstreamError(f"ggml_tensor has another layout: name, data, bytes read as {seen}, upstream says {told}")


def name_of(tensor):
    return tensor.name.decode(errors="replace")


def operation(pointer):
    return _op_desc(pointer).decode()


def array(tensor):
    """The memory of an f32 tensor, in NumPy's order of axes, those of size 1 in front left out."""
    name, sizes = name_of(tensor), list(tensor.ne)
    strides = [4]
    for size in sizes[:-1]:
        strides.append(strides[-1] * size)
    if tensor.type != _F32 or list(tensor.nb) != strides:
        raise UpstreamError(
            f"node {name} isn't contiguous f32: type {tensor.type}, sizes {sizes}, strides {list(tensor.nb)}"
        )
    count = int(np.prod(sizes))
    flat = np.ctypeslib.as_array((ctypes.c_float * count).from_address(tensor.data))
    shape = sizes[::-1]
    while len(shape) > 2 and shape[0] == 1:
        shape.pop(0)
    return flat.reshape(shape)
