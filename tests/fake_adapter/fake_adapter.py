#!/usr/bin/env python3
"""An adapter that computes nothing real and misbehaves on demand. Standard library only.

    fake_adapter.py [--mode MODE[,MODE...]] [--point GLOB] [--only GLOB] [--name NAME]
                    [--worth semantics|kernels]

Without a mode it is well-behaved: every tensor has the right shape and holds values that depend
only on what it stands for (point, token, position), so two of these adapters agree bitwise, the
cache is the concatenation of k and v, the last logits are the last row of the logits, and so on.
It is no GPT-2: it agrees with no engine.

`--mode list` prints all modes with what each does. `--point` says which points a tensor mode
touches (default: the first tensor that is asked for). `--only` makes it an unfinished engine: the
points that fit the glob are all it can capture, and it neither generates nor tokenizes.
"""

import argparse
import array
import fnmatch
import json
import math
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time

MODES = {
    # ways to fail at the start
    "exit-at-start": "exits with code 7 before it reads anything",
    "hang-at-hello": "never answers hello",
    "wrong-version": "answers hello with protocol 2",
    "error-at-hello": "answers hello with an error",
    "hang-at-load": "never answers load",
    "error-at-load": "answers load with an error of class resource",
    # ways to break the conversation during a run
    "hang-at-tokenize": "never answers tokenize",
    "hang-at-run": "never answers run",
    "crash": "dies of SIGSEGV after the first tensor",
    "exit-mid-run": "exits with code 3 after the first tensor",
    "exit-zero-mid-run": "exits with code 0 after the first tensor",
    "garbage": "prints a line that isn't JSON on stdout",
    "garbage-at-start": "prints a banner on stdout before hello",
    "binary": "writes bytes that aren't UTF-8 on stdout",
    "half-line": "writes half a message and hangs",
    "half-line-exit": "writes half a message and exits",
    "huge-line": "writes a line of 40 MB",
    "endless-line": "writes without ever ending the line",
    "wrong-id": "answers run with messages of another id",
    "unknown-type": "answers run with a message of an unknown type",
    "bad-message": "sends a tensor message without a shape",
    "load-twice": "answers run with `loaded`",
    "closes-stdout": "closes stdout in the middle of a run and lives on",
    "deaf": "never reads stdin after hello",
    # ways to leave something behind
    "grandchild": "starts a process that holds stdout and stderr, then exits mid-run",
    "grandchild-at-end": "starts a process that outlives it, then behaves",
    "escapee": "starts a process in a session of its own, then behaves",
    "ignore-term": "hangs at run and ignores SIGTERM",
    "ignore-end": "goes on after the end of stdin",
    # noise that must not hurt
    "flood-stderr": "writes 30 MB on stderr before it answers run, then behaves",
    "stderr-then-crash": "explains itself on stderr, then dies",
    "unknown-fields": "adds fields that nobody knows to every message",
    "blank-lines": "writes empty lines between messages",
    # error answers to run; the adapter lives on
    "error-unsupported": "answers every run with an error of class unsupported",
    "error-input": "answers every run with an error of class input",
    "error-resource": "answers every run with an error of class resource",
    "error-internal": "answers every run with an error of class internal",
    "error-once": "answers the first run with an error of class internal, later ones well",
    # tensors that aren't what they should be (see --point)
    "missing-file": "names a file that doesn't exist",
    "short-npy": "writes a file that ends in the middle of its data",
    "short-header": "writes a file that ends in the middle of its header",
    "huge-npy": "writes a header that claims 2^40 elements",
    "not-npy": "writes text into the file",
    "fifo": "names a pipe that nobody writes to",
    "directory": "names a directory",
    "outside": "names a file outside out_dir",
    "wrong-shape": "says and writes one row too many",
    "shape-mismatch": "says another shape than it writes",
    "wrong-dtype": "says f32 and writes i64",
    "nan": "puts a NaN in the middle",
    "inf": "puts an infinity in the middle",
    "wrong-value": "adds 0.5 to the element in the middle",
    "other-bits": "adds 1e-7 to the element in the middle",
    "unknown-point": "sends a tensor for a point that doesn't exist",
    "unasked-point": "sends a tensor that nobody asked for",
    "wrong-step": "says a step that doesn't exist",
    "twice": "sends the same tensor twice",
    "drop": "leaves the tensor out",
    "no-tensors": "says done without any tensor",
    "wrong-tokens": "generates other tokens than its own argmax says",
    "too-few-tokens": "generates one token less than was asked for",
}


# The channel -----------------------------------------------------------------------------------

class Channel:
    """The real stdout, kept for messages alone."""

    def __init__(self, modes):
        self.modes = modes
        self.out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    def send(self, **message):
        if "unknown-fields" in self.modes:
            message["mood"] = {"of the day": ["fine", None]}
        if "blank-lines" in self.modes:
            self.raw(b"\n  \n")
        self.raw(json.dumps(message).encode() + b"\n")

    def raw(self, data):
        view = memoryview(data)
        while view:
            view = view[self.out.write(view):]


def hang():
    while True:
        time.sleep(60)


def orphan(new_session=False):
    """A process that outlives us, holding our streams."""
    subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        stdin=subprocess.DEVNULL,
        start_new_session=new_session,
    )


# The model that isn't one ----------------------------------------------------------------------

class Dims:
    def __init__(self, config):
        self.layers = config.get("n_layer", 2)
        self.heads = config.get("n_head", 2)
        self.width = config.get("n_embd", 8)
        self.inner = config.get("n_inner") or 4 * self.width
        self.vocab = config.get("vocab_size", 50257)
        self.positions = config.get("n_positions", 64)


def value(seed, index):
    """A number in [-0.5, 0.5) that is exact in f32."""
    mixed = (seed * 2654435761 + index * 40503 + 12345) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 2246822519) & 0xFFFFFFFF
    return ((mixed ^ (mixed >> 13)) >> 9) / (1 << 23) - 0.5


def seed_of(*parts):
    seed = 7
    for part in parts:
        for byte in str(part).encode():
            seed = (seed * 131 + byte) & 0xFFFFFFFF
    return seed


def row(width, *parts):
    seed = seed_of(*parts)
    return [value(seed, i) for i in range(width)]


def softmax(values, temperature=1.0):
    top = max(values)
    exps = [math.exp((v - top) / temperature) for v in values]
    total = math.fsum(exps)
    return [e / total for e in exps]


class Sequence:
    """Everything that can be asked about one run, by point and step."""

    def __init__(self, dims, ids):
        self.dims = dims
        self.ids = list(ids)
        self.first = 0  # position of the first token of this step

    def tensor(self, point):
        """The tensor of this step as (shape, flat values), or None for no such point."""
        d, new = self.dims, range(self.first, len(self.ids))
        t, s = len(new), len(self.ids)
        if point == "tokens":
            return [t], [self.ids[p] for p in new]
        if point in ("embeddings", "ln_f"):
            return [t, d.width], self.rows(point, d.width, new)
        if point == "logits":
            return [t, d.vocab], self.rows(point, d.vocab, new)
        if point == "logits.last":
            return [d.vocab], self.rows("logits", d.vocab, new[-1:])
        if point == "argmax":
            return [], [self.argmax()]
        if point == "next.probs":
            return [d.vocab], softmax(self.rows("logits", d.vocab, new[-1:]))
        parts = point.split(".", 2)
        if len(parts) < 2 or parts[0] != "h" or not parts[1].isdigit() or int(parts[1]) >= d.layers:
            return None
        rest = parts[2] if len(parts) == 3 else ""
        if rest in ("", "ln_1", "ln_2", "resid_mid", "attn.context", "attn.out", "mlp.out"):
            return [t, d.width], self.rows(point, d.width, new)
        if rest in ("mlp.fc", "mlp.act"):
            return [t, d.inner], self.rows(point, d.inner, new)
        if rest in ("attn.q", "attn.k", "attn.v"):
            return self.heads(point, new)
        if rest in ("attn.cache.k", "attn.cache.v"):
            return self.heads(point.replace("cache.", ""), range(s))
        if rest in ("attn.scores", "attn.probs"):
            return self.attention(parts[1], rest == "attn.probs", new)
        return None

    def rows(self, point, width, positions):
        out = []
        for p in positions:
            out += row(width, point, p, self.ids[p])
        return out

    def heads(self, point, positions):
        """[H, positions, D]"""
        depth, out = self.dims.width // self.dims.heads, []
        for head in range(self.dims.heads):
            out += self.rows(f"{point}/{head}", depth, positions)
        return [self.dims.heads, len(positions), depth], out

    def attention(self, layer, normalised, queries):
        """[H, T, S]; the future is -inf in the scores and 0 in the probabilities."""
        s, out = len(self.ids), []
        for head in range(self.dims.heads):
            for q in queries:
                seen = row(q + 1, "scores", layer, head, q)
                out += softmax(seen) if normalised else seen
                out += [0.0 if normalised else -math.inf] * (s - q - 1)
        return [self.dims.heads, len(queries), s], out

    def argmax(self):
        logits = self.rows("logits", self.dims.vocab, [len(self.ids) - 1])
        return logits.index(max(logits))

    def feed(self, token):
        self.first = len(self.ids)
        self.ids.append(token)


MOST_LAYERS = 4  # hello comes before load, which would tell


def all_points(layers):
    block = ["ln_1", "attn.q", "attn.k", "attn.v", "attn.cache.k", "attn.cache.v", "attn.scores",
             "attn.probs", "attn.context", "attn.out", "resid_mid", "ln_2", "mlp.fc", "mlp.act", "mlp.out"]
    points = ["tokens", "embeddings"]
    for i in range(layers):
        points += [f"h.{i}.{name}" for name in block] + [f"h.{i}"]
    return points + ["ln_f", "logits", "logits.last", "argmax", "next.probs"]


# Files -----------------------------------------------------------------------------------------

def npy(shape, values, integers):
    kind = "<i8" if integers else "<f4"
    dims = "(" + "".join(f"{n}, " for n in shape).rstrip(" ") + ")" if len(shape) < 2 else str(tuple(shape))
    data = array.array("q" if integers else "f", values)
    if sys.byteorder == "big":
        data.byteswap()
    return header(kind, dims) + data.tobytes()


def header(kind, dims):
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {dims}, }}"
    text += " " * (63 - (10 + len(text)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1")


# The conversation ------------------------------------------------------------------------------

class Adapter:
    def __init__(self, options):
        self.modes = set(options.mode.split(",")) if options.mode else set()
        unknown = self.modes - MODES.keys()
        if unknown:
            sys.exit(f"unknown mode: {', '.join(sorted(unknown))}")
        self.options = options
        self.channel = Channel(self.modes)
        self.dims = Dims({})
        self.runs = 0
        self.struck = False  # whether the tensor mode has found its tensor

    def has(self, mode):
        return mode in self.modes

    def serve(self):
        if self.has("exit-at-start"):
            sys.exit(7)
        if self.has("ignore-term"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.has("garbage-at-start"):
            self.channel.raw(b"Welcome to FakeML 1.0!\n")
        handlers = {"hello": self.hello, "load": self.load, "tokenize": self.tokenize, "run": self.run}
        for line in sys.stdin.buffer:
            message = json.loads(line)
            handler = handlers.get(message.get("type"))
            if message.get("type") == "cancel":
                continue
            if handler is None:
                self.error(None, "input", f"unknown message type {message.get('type')!r}")
            else:
                handler(message)
        if self.has("ignore-end"):
            hang()

    def error(self, id, kind, text):
        self.channel.send(type="error", id=id, **{"class": kind}, message=text)

    def hello(self, message):
        if self.has("hang-at-hello"):
            hang()
        if self.has("error-at-hello"):
            return self.error(None, "internal", "no library of that name")
        capabilities, unsupported = ["capture", "tokenize", "generate", "deterministic"], []
        if self.options.only:
            capabilities = ["capture"]
            unsupported = [{"point": point, "reason": "not written yet"} for point in all_points(MOST_LAYERS)
                           if not fnmatch.fnmatchcase(point, self.options.only)]
        self.channel.send(
            type="hello", protocol=2 if self.has("wrong-version") else 1, name=self.options.name,
            version=f"fake {self.options.release}", worth=self.options.worth, capabilities=capabilities,
            unsupported=unsupported, recipes={"*": "made up"}, deviations=[])
        if self.has("grandchild-at-end"):
            orphan()
        if self.has("escapee"):
            orphan(new_session=True)
        if self.has("deaf"):
            hang()

    def load(self, message):
        if self.has("hang-at-load"):
            hang()
        if self.has("error-at-load"):
            return self.error(None, "resource", "not enough memory for the weights")
        config = pathlib.Path(message["model_dir"]) / "config.json"
        if config.is_file():
            self.dims = Dims(json.loads(config.read_text()))
        self.channel.send(type="loaded", seconds=0.0)

    def tokenize(self, message):
        if self.has("hang-at-tokenize"):
            hang()
        ids = [15496, 13] if message["text"] == "Hello." else list(message["text"].encode())
        self.channel.send(type="tokens", id=message["id"], ids=ids)

    def run(self, message):
        time.sleep(self.options.pause)
        self.runs += 1
        self.before_run(message)
        for kind in ("unsupported", "input", "resource", "internal"):
            if self.has(f"error-{kind}"):
                return self.error(message["id"], kind, f"an error of class {kind}, as ordered")
        if self.has("error-once") and self.runs == 1:
            return self.error(message["id"], "internal", "only this once")

        sequence, generated = Sequence(self.dims, message["ids"]), []
        wanted, forced = message.get("max_new_tokens", 0), message.get("forced_ids")
        for step in range(max(wanted, 1)):
            for point in all_points(self.dims.layers):
                if self.options.only and not fnmatch.fnmatchcase(point, self.options.only):
                    continue
                if any(fnmatch.fnmatchcase(point, glob) for glob in message["points"]):
                    self.tensor(message, sequence, point, step)
            if step < wanted:
                token = forced[step] if forced else sequence.argmax()
                if self.has("wrong-tokens"):
                    token = (token + 1) % self.dims.vocab
                generated.append(token)
                if step + 1 < wanted:
                    sequence.feed(forced[step] if forced else token)
        if self.has("too-few-tokens"):
            generated = generated[:-1]
        self.channel.send(type="done", id=message["id"], generated=generated, text=None,
                          seconds={"prefill": 0.0, "decode": 0.0})

    def before_run(self, message):
        """Whatever goes wrong before the first tensor."""
        raw = self.channel.raw
        if self.has("hang-at-run") or self.has("ignore-term"):
            hang()
        if self.has("garbage"):
            raw(b"Loading weights: 42%\n")
        if self.has("binary"):
            raw(b"\xff\xfe\x00\x01binary\n")
        if self.has("half-line"):
            raw(b'{"type":"done","id":"')
            hang()
        if self.has("half-line-exit"):
            raw(b'{"type":"done","id":"')
            os._exit(0)
        if self.has("huge-line"):
            raw(b'{"type":"done","pad":"' + b"x" * (40 << 20) + b'"}\n')
        while self.has("endless-line"):
            raw(b"x" * (1 << 20))
        if self.has("unknown-type"):
            self.channel.send(type="progress", id=message["id"], percent=50)
        if self.has("load-twice"):
            self.channel.send(type="loaded", seconds=1.0)
        if self.has("bad-message"):
            self.channel.send(type="tensor", id=message["id"], point="tokens", step=0, file="x", dtype="f32")
        if self.has("wrong-id"):
            message["id"] = "somebody-else"
        if self.has("closes-stdout"):
            self.channel.out.close()
            hang()
        if self.has("flood-stderr"):
            for number in range(30):
                sys.stderr.write(f"line {number} " + "x" * (1 << 20) + "\n")
            sys.stderr.write("the end of the flood\n")
            sys.stderr.flush()
        if self.has("stderr-then-crash"):
            sys.stderr.write("Traceback (most recent call last):\nFakeError: the cat sat on the GPU\n")
            sys.stderr.flush()
            os._exit(1)
        if self.has("grandchild"):
            orphan()
            os._exit(5)
        if self.has("unknown-point"):
            self.write(message, "h.0.attn.soul", 0, [2], [0.0, 1.0])

    def tensor(self, message, sequence, point, step):
        if self.has("no-tensors"):
            return
        found = sequence.tensor(point)
        if found is None:
            return
        shape, values = found
        hit = not self.struck if self.options.point is None else fnmatch.fnmatchcase(point, self.options.point)
        self.write(message, point, step, shape, values, hit)
        self.struck = self.struck or hit
        if self.has("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.has("exit-mid-run"):
            os._exit(3)
        if self.has("exit-zero-mid-run"):
            os._exit(0)

    def write(self, message, point, step, shape, values, hit=False):
        """Writes a tensor and announces it; `hit` says that a tensor mode is meant for it."""
        integers = point in ("tokens", "argmax")
        said = {"dtype": "i64" if integers else "f32", "shape": list(shape), "step": step}
        path = pathlib.Path(message["out_dir"]) / f"{point}.{step}.npy"
        has = lambda mode: hit and mode in self.modes
        values = list(values)
        if has("drop"):
            return
        if not integers and values:
            middle = len(values) // 2
            if has("nan"):
                values[middle] = math.nan
            if has("inf"):
                values[middle] = math.inf
            if has("wrong-value"):
                values[middle] += 0.5
            if has("other-bits"):
                values[middle] += 1e-7
        if has("wrong-shape"):
            shape = [shape[0] + 1, *shape[1:]] if shape else [1]
            said["shape"] = list(shape)
            values = (values * 2)[:math.prod(shape)]
        data = npy(shape, values, integers)
        if has("wrong-dtype"):
            data = npy(shape, [0] * len(values), True)
        if has("shape-mismatch"):
            said["shape"] = [*said["shape"], 1]
        if has("wrong-step"):
            said["step"] = step + 1000
        if has("short-npy"):
            data = data[:-max(1, len(values))]
        if has("short-header"):
            data = data[:20]
        if has("huge-npy"):
            data = header("<f4", "(1099511627776,)") + b"\0" * 72
            said["shape"] = [1 << 40]
        if has("not-npy"):
            data = b"tensor([[0.1, 0.2]])\n"
        if has("outside"):
            path = pathlib.Path(message["out_dir"]).parent / f"outside-{os.getpid()}.npy"
        if has("fifo"):
            os.mkfifo(path)
        elif has("directory"):
            path.mkdir()
        elif not has("missing-file"):
            path.write_bytes(data)
        for _ in range(2 if has("twice") else 1):
            self.channel.send(type="tensor", id=message["id"], point=point, file=str(path), key=None, **said)
        if has("unasked-point"):
            self.channel.send(type="tensor", id=message["id"], point="h.1.mlp.fc", file=str(path), key=None, **said)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="")
    parser.add_argument("--point")
    parser.add_argument("--only")
    parser.add_argument("--name", default="fake")
    parser.add_argument("--worth", default="semantics", choices=["semantics", "kernels"])
    parser.add_argument("--release", default="1.0", help="the version that it says it has")
    parser.add_argument("--pause", type=float, default=0, help="seconds to think before each run")
    parser.add_argument("--variant", help="taken and ignored, as real adapters take it")
    options = parser.parse_args()
    if options.mode == "list":
        for mode, meaning in MODES.items():
            print(f"{mode:20} {meaning}")
        return
    Adapter(options).serve()


if __name__ == "__main__":
    main()
