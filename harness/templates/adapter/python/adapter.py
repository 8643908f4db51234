#!/usr/bin/env python3
"""@NAME@: an adapter for llorch-diff. Python 3.9 or later, standard library only.

It speaks the adapter protocol, version 1 (adapters/PROTOCOL.md), on stdin and stdout. Three parts:

1. what it says of itself,
2. the engine: a STUB, which computes nothing real, until you put yours there,
3. the protocol, which can stay as it is.

    llorch-diff adapter check 'python3 adapter.py'        # the protocol is kept
    llorch-diff run --subject 'python3 adapter.py'        # the numbers are compared
    llorch-diff bisect --subject 'python3 adapter.py'     # the first wrong stage
"""

import os
import sys

# Messages get the real stdout; whatever else prints, now or in an import below, goes to stderr.
MESSAGES = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)

import array
import json
import math
import queue
import re
import struct
import threading
import time
import traceback

# --- 1. What the adapter says of itself -----------------------------------------------------------

NAME = "@NAME@"
VERSION = "0.1.0 (stub)"  # of what does the computing
# `kernels`: this graph was written for llorch. `semantics`: the engine's own graph runs.
WORTH = "kernels"
# `deterministic` promises the same bytes for the same request, run after run: drop it if that isn't so.
CAPABILITIES = ["capture", "generate", "deterministic"]

# Every point there is, `i` for the layer. Delete what your engine can't show; it is then declared
# as unsupported, and the rest is compared. A first day's engine may show `logits.last` alone.
SHOWN = """
tokens embeddings
h.i.ln_1 h.i.attn.q h.i.attn.k h.i.attn.v h.i.attn.cache.k h.i.attn.cache.v h.i.attn.scores h.i.attn.probs
h.i.attn.context h.i.attn.out h.i.resid_mid h.i.ln_2 h.i.mlp.fc h.i.mlp.act h.i.mlp.out h.i
ln_f logits logits.last argmax next.probs
""".split()
WHY_NOT = "not shown by this adapter"

# Where the native tensor is and how it becomes ours, by point: told in reports.
RECIPES = {"*": "made up by a stub"}


# --- 2. The engine --------------------------------------------------------------------------------
# >>> what is yours


class Engine:
    """STUB: PUT YOUR ENGINE HERE. It has the shapes of a GPT-2 and nothing else of one.

    Every value depends only on the point, the token and its position, so that caches and steps agree
    with one another; no weight is read.
    """

    def __init__(self, sizes, weights, threads):
        """`weights` has shape() and read(), by names as in Hugging Face's GPT-2 without `transformer.`;
        it has checked that all are there. Keep what your forward pass needs."""
        self.sizes = sizes
        self.tables = {}
        self.reset()

    def reset(self):
        """A new sequence: nothing of the last one may be left, its key/value cache least of all."""
        self.fed = []

    def forward(self, ids, show):
        """Feeds `ids` after what was fed before, and returns the last row of logits.

        show(point, value) takes whatever has a buffer (a NumPy array; of torch, tensor.numpy()); with
        a third argument, its shape, also a flat one. T is len(ids), S all that was fed so far.
        show.wants(point) says whether anybody looks.
        """
        z, start = self.sizes, len(self.fed)
        self.fed += ids
        new, seen = range(start, len(self.fed)), range(len(self.fed))

        show("embeddings", self.rows("embeddings", z.width, new), [len(new), z.width])
        for i in range(z.layers):
            h = f"h.{i}"
            for part in ["ln_1", "attn.context", "attn.out", "resid_mid", "ln_2", "mlp.out"]:
                if show.wants(f"{h}.{part}"):
                    show(f"{h}.{part}", self.rows(f"{h}.{part}", z.width, new), [len(new), z.width])
            for part in ["q", "k", "v"]:
                if show.wants(f"{h}.attn.{part}"):
                    show(f"{h}.attn.{part}", self.heads(f"{h}.attn.{part}", new), [z.heads, len(new), z.depth])
            for part in ["k", "v"]:
                if show.wants(f"{h}.attn.cache.{part}"):
                    cache = self.heads(f"{h}.attn.{part}", seen)
                    show(f"{h}.attn.cache.{part}", cache, [z.heads, len(seen), z.depth])
            for part in ["scores", "probs"]:
                if show.wants(f"{h}.attn.{part}"):
                    values = self.attention(part == "probs", i, new)
                    show(f"{h}.attn.{part}", values, [z.heads, len(new), len(seen)])
            for part in ["fc", "act"]:
                if show.wants(f"{h}.mlp.{part}"):
                    show(f"{h}.mlp.{part}", self.rows(f"{h}.mlp.{part}", z.inner, new), [len(new), z.inner])
            if show.wants(h):
                show(h, self.rows(h, z.width, new), [len(new), z.width])
        if show.wants("ln_f"):
            show("ln_f", self.rows("ln_f", z.width, new), [len(new), z.width])
        if show.wants("logits"):
            show("logits", self.rows("logits", z.vocab, new), [len(new), z.vocab])
        return self.rows("logits", z.vocab, new[-1:])

    # The rest is the stub's alone.

    def rows(self, name, width, positions):
        """[positions, width]: a fixed row of noise, turned by token and position."""
        if (name, width) not in self.tables:
            state = sum(byte * 131**i for i, byte in enumerate(name.encode())) % 2**32
            values = array.array("f")
            for _ in range(width):
                state = (state * 1664525 + 1013904223) % 2**32
                values.append(state / 2**32 - 0.5)
            self.tables[name, width] = values
        table, out = self.tables[name, width], array.array("f")
        for p in positions:
            turn = (self.fed[p] * 7 + p * 13) % width
            out += table[turn:] + table[:turn]
        return out

    def heads(self, name, positions):
        """[heads, positions, depth]"""
        out = array.array("f")
        for head in range(self.sizes.heads):
            out += self.rows(f"{name}/{head}", self.sizes.depth, positions)
        return out

    def attention(self, normalised, layer, queries):
        """[heads, queries, all]: the future is -inf in the scores and 0 in the probabilities."""
        out = array.array("f")
        for head in range(self.sizes.heads):
            for q in queries:
                seen = [((layer + 3) * (head + 5) * (q + k + 7) % 31) / 31 for k in range(q + 1)]
                beyond = 0.0 if normalised else -math.inf
                out.extend(softmax(seen) if normalised else seen)
                out.extend([beyond] * (len(self.fed) - q - 1))
        return out


# <<< what is yours
# --- 3. The protocol ------------------------------------------------------------------------------


class Refusal(Exception):
    """An `error` of this class: unsupported, input, resource or internal."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


class Sizes:
    """What of config.json shapes are made of."""

    def __init__(self, config):
        def size(key, default=None):
            value = config.get(key)
            value = default if value is None else value
            if type(value) is not int or value < 1:
                raise Refusal("input", f"config.json: {key} is {value!r}, expected a whole number from 1")
            return value

        self.layers, self.heads, self.width = size("n_layer"), size("n_head"), size("n_embd")
        self.inner, self.vocab = size("n_inner", 4 * self.width), size("vocab_size")
        self.positions = size("n_positions")
        if self.width % self.heads:
            raise Refusal("input", f"config.json: n_embd {self.width} isn't a multiple of n_head {self.heads}")
        self.depth = self.width // self.heads
        self.epsilon = config.get("layer_norm_epsilon", 1e-5)
        self.tied = config.get("tie_word_embeddings", True)
        # Other mathematics is refused, not ignored.
        plain = {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
        for key, known in plain.items():
            if config.get(key, known) != known:
                raise Refusal("unsupported", f"config.json: {key} is {config[key]!r}, this engine knows {known!r}")

    def weights(self):
        """Name and shape of every tensor. Weights of linear layers are [in, out]."""
        e, f = self.width, self.inner
        shapes = {"wte.weight": [self.vocab, e], "wpe.weight": [self.positions, e]}
        for i in range(self.layers):
            for norm in ["ln_1", "ln_2"]:
                shapes.update({f"h.{i}.{norm}.weight": [e], f"h.{i}.{norm}.bias": [e]})
            linears = {"attn.c_attn": [e, 3 * e], "attn.c_proj": [e, e], "mlp.c_fc": [e, f], "mlp.c_proj": [f, e]}
            for name, shape in linears.items():
                shapes.update({f"h.{i}.{name}.weight": shape, f"h.{i}.{name}.bias": shape[1:]})
        shapes.update({"ln_f.weight": [e], "ln_f.bias": [e]})
        if not self.tied:
            shapes["lm_head.weight"] = [self.vocab, e]
        return shapes


class Weights:
    """model.safetensors: a length, a header in JSON, then the data."""

    def __init__(self, path, sizes):
        self.path = path
        try:
            with open(path, "rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > os.path.getsize(path):
                    raise ValueError("the header is longer than the file")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            self.entries = {name[len("transformer.") :] if name.startswith("transformer.") else name: entry
                            for name, entry in header.items()}
            self.base = 8 + length
            for name, shape in sizes.weights().items():
                if name not in self.entries:
                    raise ValueError(f"no tensor {name}")
                if self.entries[name]["shape"] != shape:
                    raise ValueError(f"{name} is {self.entries[name]['shape']}, expected {shape}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise Refusal("input", f"failed to read {path}: {error}") from error

    def shape(self, name):
        return self.entries[name]["shape"]

    def read(self, name):
        """(dtype, bytes), as they are stored: F32 or F16, little endian, C order."""
        entry = self.entries[name]
        begin, end = entry["data_offsets"]
        with open(self.path, "rb") as file:
            file.seek(self.base + begin)
            data = file.read(end - begin)
        if len(data) != end - begin:
            raise Refusal("input", f"{self.path} ends in the middle of {name}")
        return entry["dtype"], data


class Show:
    """Writes what was asked for, step by step."""

    DTYPES = {"f": ("f32", "<f4"), "d": ("f64", "<f8"), "e": ("f16", "<f2"), "l": ("i64", "<i8"), "q": ("i64", "<i8")}

    def __init__(self, run, patterns, out_dir):
        self.run, self.out_dir, self.step = run, out_dir, 0
        alternatives = "|".join(".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns)
        self.asked = re.compile(alternatives or "(?!)", re.DOTALL)
        self.made = False

    def wants(self, point):
        return is_shown(point) and self.asked.fullmatch(point) is not None

    def __call__(self, point, value, shape=None):
        if not self.wants(point):
            return
        view = memoryview(value)
        shape = list(view.shape) if shape is None else shape
        name, descr = self.DTYPES[view.format.lstrip("<=@")]
        axes = "(" + "".join(f"{n}," for n in shape) + ")"
        header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {axes}, }}"
        header += " " * (63 - (10 + len(header)) % 64) + "\n"
        if not self.made:
            os.makedirs(self.out_dir, exist_ok=True)
            self.made = True
        path = os.path.join(self.out_dir, f"{self.step:04d}_{point}.npy")
        with open(path, "wb") as file:
            file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
            file.write(view.tobytes())
        send({"type": "tensor", "id": self.run, "point": point, "step": self.step, "file": os.path.abspath(path),
              "key": None, "dtype": name, "shape": shape})


def is_shown(point):
    return re.sub(r"^h\.\d+", "h.i", point) in SHOWN


def softmax(values):
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    total = math.fsum(exps)
    return array.array("f", (e / total for e in exps))


def send(message):
    MESSAGES.write(json.dumps(message, allow_nan=False).encode() + b"\n")
    MESSAGES.flush()


def hello(message):
    if message.get("protocol", 1) != 1:
        raise Refusal("unsupported", f"protocol {message['protocol']!r} isn't spoken here, 1 is")
    everything = ("tokens embeddings ln_f logits logits.last argmax next.probs "
                  "h.*.ln_1 h.*.attn.q h.*.attn.k h.*.attn.v h.*.attn.cache.k h.*.attn.cache.v h.*.attn.scores "
                  "h.*.attn.probs h.*.attn.context h.*.attn.out h.*.resid_mid h.*.ln_2 h.*.mlp.fc h.*.mlp.act "
                  "h.*.mlp.out").split()
    # `*` crosses dots, so that the blocks' own outputs must be named one by one.
    everything += [f"h.{i}" for i in range(100)]
    missing = [point for point in everything if not is_shown(point.replace("h.*", "h.0"))]
    return {"type": "hello", "protocol": 1, "name": NAME, "version": VERSION, "worth": WORTH,
            "capabilities": CAPABILITIES, "recipes": RECIPES, "deviations": [],
            "unsupported": [{"point": point, "reason": WHY_NOT} for point in missing]}


class Adapter:
    def __init__(self):
        self.engine = self.sizes = None
        self.inbox = queue.Queue()
        self.cancelled = set()

    def serve(self):
        threading.Thread(target=self.read, daemon=True).start()
        while (line := self.inbox.get()) is not None:
            answer, name = None, None
            try:
                message = self.parse(line)
                name = message.get("id") if isinstance(message.get("id"), str) else None
                answer = self.answer(message)
            except BrokenPipeError:
                return
            except Refusal as refusal:
                answer = self.error(name, refusal.kind, str(refusal))
            except Exception as error:  # whatever went wrong, the next request may go well
                traceback.print_exc()
                answer = self.error(name, "internal", f"{type(error).__name__}: {error}")
            if answer is not None:
                send(answer)

    def read(self):
        """In a thread, so that a `cancel` is seen while a run is going on."""
        for line in sys.stdin.buffer:
            if line.strip():
                try:
                    message = json.loads(line)
                    if message["type"] == "cancel":
                        self.cancelled.add(message["id"])
                        continue
                except (ValueError, KeyError, TypeError, RecursionError):
                    pass  # told when its turn comes
                self.inbox.put(line)
        self.inbox.put(None)

    def parse(self, line):
        def no_constant(name):
            raise ValueError(f"{name} isn't JSON")

        try:
            message = json.loads(line, parse_constant=no_constant)
        except (ValueError, RecursionError) as error:
            raise Refusal("input", f"bad JSON: {error}") from error
        if not isinstance(message, dict):
            raise Refusal("input", "expected a JSON object")
        return message

    def error(self, name, kind, text):
        return {"type": "error", "id": name, "class": kind, "message": " ".join(text.split())[:400] or kind}

    def answer(self, message):
        kind = message.get("type")
        if kind == "hello":
            return hello(message)
        if kind == "load":
            return self.load(message)
        if kind == "run":
            return self.run(message)
        raise Refusal("unsupported", f"{kind!r} isn't something that {NAME} does")

    def load(self, message):
        started = time.perf_counter()
        self.engine = self.sizes = None  # one that fails leaves none
        if message.get("dtype", "f32") != "f32":
            raise Refusal("unsupported", f"{NAME} doesn't compute in {message['dtype']}")
        folder = message.get("model_dir")
        try:
            with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
                sizes = Sizes(json.load(file))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise Refusal("input", f"failed to read the model in {folder!r}: {error}") from error
        weights = Weights(os.path.join(folder, "model.safetensors"), sizes)
        self.engine, self.sizes = Engine(sizes, weights, message.get("threads", 1)), sizes
        return {"type": "loaded", "seconds": time.perf_counter() - started}

    def run(self, message):
        name = message.get("id")
        if not isinstance(name, str):
            raise Refusal("input", "`id` isn't a string")
        if self.engine is None:
            raise Refusal("input", "no model is loaded")
        ids = self.tokens(message, "ids")
        n = message.get("max_new_tokens", 0)
        if type(n) is not int or n < 0:
            raise Refusal("input", f"`max_new_tokens` is {n!r}, expected a whole number from 0")
        if not ids:
            raise Refusal("input", "`ids` is empty")
        needed = len(ids) + max(n, 1) - 1
        if needed > self.sizes.positions:
            raise Refusal("input", f"context overflow: {needed} positions, the model has {self.sizes.positions}")
        forced = self.tokens(message, "forced_ids") if message.get("forced_ids") is not None else None
        if forced is not None and len(forced) != n:
            raise Refusal("input", f"`forced_ids` has {len(forced)} entries, max_new_tokens is {n}")
        if message.get("inject"):
            raise Refusal("unsupported", f"{NAME} can't inject")
        if (message.get("sampling") or {}).get("temperature", 0) != 0:
            raise Refusal("unsupported", f"{NAME} can't sample")
        points, out_dir = message.get("points", []), message.get("out_dir")
        if not isinstance(points, list) or not all(isinstance(p, str) for p in points):
            raise Refusal("input", "`points` isn't a list of strings")
        show = Show(name, points, out_dir)
        every = [p.replace("h.i", f"h.{i}") for p in SHOWN for i in range(self.sizes.layers)]
        if not isinstance(out_dir, str) and any(map(show.wants, every)):
            raise Refusal("input", "`out_dir` is missing: there is nowhere to put the tensors")

        self.engine.reset()
        generated, seconds = [], [0.0, 0.0]
        for step in range(max(n, 1)):
            if name in self.cancelled:
                raise Refusal("resource", "cancelled")
            started, show.step = time.perf_counter(), step
            show("tokens", array.array("q", ids), [len(ids)])
            last = memoryview(self.engine.forward(ids, show))
            show("logits.last", last)
            best = max(range(len(last)), key=last.__getitem__)  # the first of equals
            show("argmax", array.array("q", [best]), [])
            if show.wants("next.probs"):
                show("next.probs", softmax(last))
            ids = [best if forced is None else forced[step] if n else best]
            generated += ids
            seconds[min(step, 1)] += time.perf_counter() - started
        return {"type": "done", "id": name, "generated": generated[:n], "text": None,
                "seconds": {"prefill": seconds[0], "decode": seconds[1] if n > 1 else None}}

    def tokens(self, message, field):
        ids = message.get(field)
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < self.sizes.vocab for i in ids):
            raise Refusal("input", f"`{field}` isn't a list of token ids from 0 to {self.sizes.vocab - 1}")
        return ids


if __name__ == "__main__":
    Adapter().serve()
