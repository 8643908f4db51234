"""The harness's side of the protocol, small: start an adapter, ask, check every message."""

import importlib.util
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
from jsonschema import Draft202012Validator

ADAPTERS = Path(__file__).resolve().parents[1]
ROOT = ADAPTERS.parents[1]
NANO = ROOT / "golden" / "models" / "nano"
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "protocol.schema.json").read_text())
TIMEOUT = 180  # seconds for one message; compiling kernels on a busy machine takes long

_NEEDS = {
    "hf": "transformers",
    "tinygrad": "tinygrad",
    "numpy": "threadpoolctl",
    "bug": "threadpoolctl",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ctranslate2": "ctranslate2",
    "flax": "flax",
    "llamacpp": "llama_cpp",
}


def validator(part):
    return Draft202012Validator({"$ref": f"#/$defs/{part}", "$defs": SCHEMA["$defs"]})


def interpreter(name):
    """The Python that can run an adapter, or None."""
    named = os.environ.get(f"LLORCH_{name.upper()}_PYTHON")
    if named:
        return named
    return sys.executable if importlib.util.find_spec(_NEEDS[name]) else None


class Client:
    """An adapter's process. Every message that it sends is validated against the schema."""

    def __init__(self, name, *arguments, folder=None):
        self._stderr = tempfile.TemporaryFile()
        self._out = tempfile.TemporaryDirectory(prefix="llorch-test-")
        self.out_dir = Path(self._out.name)
        command = [interpreter(name), "-u", str((folder or ADAPTERS / name) / "adapter.py"), *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=environment
        )
        self._lines = queue.Queue()
        self._pump_thread = threading.Thread(target=self._pump, daemon=True)
        self._pump_thread.start()
        self._valid = validator("response")
        self._runs = 0

    def _pump(self):
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def stderr(self):
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def send_raw(self, line):
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def send(self, message):
        self.send_raw(json.dumps(message).encode())

    def receive(self):
        line = self._lines.get(timeout=TIMEOUT)
        if line is None:
            raise EOFError(f"exit code {self.process.wait()}; {self.stderr()[-2000:]}")
        message = json.loads(line)
        self._valid.validate(message)
        return message

    def ask(self, message):
        self.send(message)
        return self.receive()

    def hello(self):
        return self.ask({"type": "hello", "protocol": 1})

    def load(self, model=NANO, dtype="f32", threads=2):
        reply = self.ask({"type": "load", "model_dir": str(model), "dtype": dtype, "threads": threads})
        if reply["type"] != "loaded":
            raise AssertionError(f"{reply}; {self.stderr()[-2000:]}")
        return reply

    def run(self, ids, points=(), **fields):
        """Runs to the end: ({(step, point): array}, the last message)."""
        self._runs += 1
        fields = {"id": f"run-{self._runs}", "out_dir": str(self.out_dir / str(self._runs)), **fields}
        self.send({"type": "run", "ids": list(ids), "points": list(points), **fields})
        tensors = {}
        while (message := self.receive())["type"] == "tensor":
            assert message["id"] == fields["id"]
            key = message["step"], message["point"]
            assert key not in tensors, f"{key} twice"
            tensors[key] = load_checked(message)
        assert message["id"] == fields["id"]
        return tensors, message

    def close(self):
        """Ends stdin; the exit code."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already
        code = self.process.wait(timeout=TIMEOUT)
        self._pump_thread.join()
        self.process.stdout.close()
        self._stderr.close()
        self._out.cleanup()
        return code


def load_checked(message):
    """A tensor whose file is what its message says."""
    array = np.load(message["file"], allow_pickle=False)
    assert Path(message["file"]).is_absolute()
    assert list(array.shape) == message["shape"], message
    assert {"f32": "<f4", "f64": "<f8", "i64": "<i8"}[message["dtype"]] == array.dtype.str, message
    assert array.ndim == 0 or array.flags.c_contiguous
    return array


def causal(point, array):
    """Scores with the cells that nobody looks at set to 0."""
    if not point.endswith(".scores"):
        return array
    t, s = array.shape[-2:]
    return np.where(np.arange(s) <= np.arange(s - t, s)[:, None], array, 0)
