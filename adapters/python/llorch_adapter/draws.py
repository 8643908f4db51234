"""A `draw` request: tokens from logits that were given, without a run."""

import numpy as np

from .errors import InputError, UnsupportedError
from .tensors import DTYPE_NAMES, read_tensor, write_npy


def execute_draw(adapter, request, send):
    """Sends the tensor `draws` and returns the `done` message.

    Probabilities and generator are those of a run with the same sampling, so that the first token
    drawn is the one which a run would choose first from these logits.
    """
    if "draw" not in adapter.capabilities:
        raise UnsupportedError(f"{adapter.name} can't draw")
    file, key = request.logits
    logits = read_tensor(file, key)
    if logits.ndim != 1 or logits.dtype.kind != "f" or not logits.size:
        raise InputError(f"failed to draw: {file} holds {logits.dtype} {list(logits.shape)}, expected one row of floats")
    probabilities = adapter.next_probs(logits.astype(adapter.numpy_dtype), request.sampling)
    generator = np.random.default_rng(request.sampling.seed)
    request.out_dir.mkdir(parents=True, exist_ok=True)
    path = request.out_dir / "draws.npy"
    written = write_npy(path, adapter.draw(probabilities, generator, request.draws))
    send(
        {
            "type": "tensor",
            "id": request.id,
            "point": "draws",
            "step": 0,
            "file": str(path.absolute()),
            "key": None,
            "dtype": DTYPE_NAMES[written.dtype.name],
            "shape": list(written.shape),
        }
    )
    return {"type": "done", "id": request.id, "generated": [], "text": None, "seconds": {}}
