import pathlib
import types

import numpy as np

sys.path.append(str(pathlib.Path("@REPOSITORY@") / "adapters" / "python" / "numpy"))
from gpt2 import Cache, Gpt2


class Engine:
    """The GPT-2 of adapters/python/numpy/gpt2.py, one file of NumPy, as it is."""

    def __init__(self, sizes, weights, threads):
        dims = types.SimpleNamespace(n_layer=sizes.layers, n_head=sizes.heads, n_embd=sizes.width,
                                     head_dim=sizes.depth)
        config = types.SimpleNamespace(dims=dims, layer_norm_epsilon=sizes.epsilon)
        tensors = {}
        for name in sizes.weights():
            dtype, data = weights.read(name)
            stored = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype])
            tensors[name] = stored.reshape(weights.shape(name)).astype(np.float32)
        tensors.setdefault("lm_head.weight", tensors["wte.weight"])
        self.model = Gpt2(config, tensors)
        self.reset()

    def reset(self):
        self.cache = Cache(self.model.dims, np.float32)

    def forward(self, ids, show):
        def visit(point, value):
            show(point, np.ascontiguousarray(value))
            return value

        probe = types.SimpleNamespace(visit=visit, active=show.wants)
        return np.ascontiguousarray(self.model.forward(ids, self.cache, probe))
