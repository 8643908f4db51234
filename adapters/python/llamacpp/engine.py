"""A model that llama.cpp has loaded: weights and vocabulary."""

import ctypes
import tempfile
from pathlib import Path

import llama_cpp

from convert import to_gguf
from llorch_adapter.errors import AdapterError

# GGML_LOG_LEVEL_*
_WARN, _ERROR, _CONTINUED = 3, 4, 5
# Numbers of ggml's types.
_GGML = {"BF16": 30, "Q8_0": 8}


class Log:
    """What llama.cpp says: warnings and errors go to stderr, errors are kept to be quoted."""

    def __init__(self):
        self.errors = []
        self._level = 0
        self._callback = llama_cpp.llama_log_callback(self._take)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _take(self, level, text, _data):
        self._level = self._level if level == _CONTINUED else level
        if self._level in (_WARN, _ERROR):
            line = text.decode(errors="replace")
            print(line, end="", flush=True)  # stdout is stderr here
            if self._level == _ERROR:
                self.errors.append(line.strip())

    def last(self):
        return "; ".join(line for line in self.errors[-2:] if line) or "no reason given"


class Model:
    def __init__(self, folder, threads, stored=None):
        """`stored` names the ggml type that the matrices are quantized to; float32 as they are without."""
        self.threads = threads
        self.log = Log()
        llama_cpp.llama_backend_init()
        # Beside the model is no place to write, and a cache would have to be looked after. The file may
        # go once it is mapped.
        with tempfile.TemporaryDirectory(prefix="llorch-gguf-") as scratch:
            file = Path(scratch) / "model.gguf"
            to_gguf(folder, file)
            if stored is not None:
                file = self._quantize(file, stored)
            params = llama_cpp.llama_model_default_params()
            params.n_gpu_layers = 0
            self.handle = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self.handle:
            raise AdapterError(f"llama.cpp failed to load {folder} as GGUF: {self.log.last()}")
        self._vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.has_vocabulary = llama_cpp.llama_vocab_type(self._vocab) != llama_cpp.LLAMA_VOCAB_TYPE_NONE

    def _quantize(self, file, stored):
        """llama.cpp's own conversion, the token embeddings (the head) included."""
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{stored}")
        params.nthread = self.threads
        params.token_embedding_type = params.output_tensor_type = getattr(llama_cpp, f"GGML_TYPE_{stored}", _GGML[stored])
        target = file.with_name(f"{stored}.gguf")
        code = llama_cpp.llama_model_quantize(str(file).encode(), str(target).encode(), ctypes.byref(params))
        if code:
            raise AdapterError(f"llama_model_quantize to {stored} returned {code}: {self.log.last()}")
        file.unlink()
        return target

    def close(self):
        llama_cpp.llama_model_free(self.handle)

    def tokenize(self, text):
        raw = text.encode()
        room = len(raw) + 1  # a token is a byte at least
        ids = (llama_cpp.llama_token * room)()
        # Nothing is added; <|endoftext|> is the special token.
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, True)
        if count < 0:
            raise AdapterError(f"llama_tokenize wants room for {-count} tokens of {len(raw)} bytes")
        return list(ids[:count])

    def text(self, ids):
        return b"".join(self._piece(token) for token in ids).decode(errors="replace")

    def _piece(self, token):
        room = 32
        while True:
            piece = ctypes.create_string_buffer(room)
            size = llama_cpp.llama_token_to_piece(self._vocab, token, piece, room, 0, True)
            if size >= 0:
                return piece.raw[:size]
            room = -size
