"""Holds what lm_eval got over HTTP to the logits of the engine itself and to those of Hugging Face's model.

Usage: compare.py MODEL_DIR ENGINE HF SAMPLES SAMPLES…: two adapters as command lines (adapters/PROTOCOL.md), and
the folders of lm_eval's runs, all of the same tasks. Prints one JSON object; any surprise is an exception.

**Engine.** A log-likelihood is a sum of log softmax(logits)[token] in float64. The daemon and this script
compute it from the same f32 logits. A sum of V terms in float64 errs by at most V·u relative, u = 2⁻⁵³,
whatever the order, and so does its logarithm absolutely: twice 5.6e-12 for both sides, and the few roundings
of numbers below 100 are 1e-13. So |Δ| ≤ 2e-11 a token.

**Hugging Face.** If every logit differs by at most δ, log softmax differs by at most 2δ: the logit by δ, and
the logarithm of the normalizing sum by δ. So n tokens differ by at most 2δn. Each implementation's f32
logits are within 1e-5 of the exact ones, so that δ = 2e-5 (measured between the two: 1.2e-5), which is
itself checked at every logit. A token is greedy for both or for neither where it leads, or lags, by more
than 2δ.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ENGINE = 2e-11
DELTA = 2e-5
POSITIONS = 256
END_OF_TEXT = 50256


class Adapter:
    def __init__(self, command, model_dir, scratch):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(["sh", "-c", f"exec env {command}"], stdin=pipe, stdout=pipe, text=True)
        self.scratch = Path(scratch)
        self.seen = {}
        self.ask({"type": "hello", "protocol": 1})
        self.ask({"type": "load", "model_dir": model_dir, "dtype": "f32", "threads": 1})

    def ask(self, request):
        """The messages that answer a request, up to the one that ends it."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        messages = []
        while not messages or messages[-1]["type"] == "tensor":
            messages.append(json.loads(self.process.stdout.readline()))
            assert messages[-1]["type"] != "error", messages[-1]
        return messages

    def ids(self, text):
        return self.ask({"type": "tokenize", "id": "t", "text": text})[0]["ids"]

    def run(self, ids, points, new=0):
        sampling = {"temperature": 0, "top_k": 0, "top_p": 1, "seed": 0}
        run = {"type": "run", "id": "r", "ids": ids, "points": points, "max_new_tokens": new, "sampling": sampling}
        *tensors, done = self.ask({**run, "forced_ids": None, "inject": [], "out_dir": str(self.scratch)})
        read = []
        for t in tensors:
            assert t["key"] is None, t
            file = self.scratch / t["file"]
            read.append(np.load(file))
            file.unlink()
        return read, done

    def logits(self, ids):
        (logits,), _ = self.run(ids, ["logits"])
        assert logits.dtype == np.float32 and logits.shape[0] == len(ids), logits.shape
        return logits

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(60) == 0


def log_softmax(rows):
    rows = rows.astype(np.float64)
    top = rows.max(axis=1, keepdims=True)
    return rows - top - np.log(np.exp(rows - top).sum(axis=1, keepdims=True))


def samples(folder, task):
    (file,) = Path(folder).rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def results(folder):
    (file,) = Path(folder).rglob("results_*.json")
    return json.loads(file.read_text())["results"]


class Judge:
    """Sums of log-probabilities and greedy flags by both, and how far lm_eval's are from them."""

    def __init__(self, engine, hf):
        self.engine, self.hf = engine, hf
        self.tokens = self.greedy = self.undecided = 0
        self.worst = {"engine": 0.0, "hf": 0.0, "logit": 0.0}

    def expect(self, ids, start):
        """Of ids[start:] after ids[:start]."""
        ours, theirs = self.engine.logits(ids[:-1])[start - 1 :], self.hf.logits(ids[:-1])[start - 1 :]
        delta = float(np.abs(ours.astype(np.float64) - theirs).max())
        assert delta <= DELTA, f"logits differ by {delta}"
        self.worst["logit"] = max(self.worst["logit"], delta)
        at = (np.arange(len(ours)), np.array(ids[start:]))
        self.tokens += len(ours)
        sums = [float(log_softmax(rows)[at].sum()) for rows in (ours, theirs)]
        is_greedy = bool((ours[at] == ours.max(axis=1)).all())
        # How far each token is ahead of the best other one; behind, if negative.
        others = theirs.astype(np.float64)
        chosen = others[at].copy()
        others[at] = -np.inf
        lead = chosen - others.max(axis=1)
        if lead.min() > 2 * DELTA:
            assert is_greedy, ids
        elif lead.min() < -2 * DELTA:
            assert not is_greedy, ids
        else:
            self.undecided += 1
        return sums, is_greedy, len(ours)

    def hold(self, got, sums, n, what):
        for name, expected, bound in (("engine", sums[0], ENGINE), ("hf", sums[1], 2 * DELTA)):
            error = abs(got - expected)
            assert error <= n * bound, f"{what}: {got} and {expected} of {name} differ by {error} in {n} tokens"
            self.worst[name] = max(self.worst[name], error / (n * bound))


def choices(judge, folder):
    right = 0
    asked = samples(folder, "llorch_choices")
    for sample in asked:
        sums = []
        for end, ((got, greedy),) in zip(sample["doc"]["ends"], sample["resps"], strict=True):
            # lm_eval counts the blanks before an end as the end's.
            start = judge.engine.ids(sample["doc"]["start"].rstrip())
            ids = judge.engine.ids(sample["doc"]["start"] + end)
            expected, is_greedy, n = judge.expect(ids, len(start))
            judge.hold(float(got), expected, n, end)
            assert greedy == str(is_greedy), (end, greedy)
            judge.greedy += is_greedy
            sums.append(expected[0])
        right += int(np.argmax(sums)) == sample["doc"]["right"]
    # lm_eval counts likewise.
    assert results(folder)["llorch_choices"]["acc,none"] == right / len(asked)
    return len(asked)


def windows(ids):
    """lm_eval's: each token is predicted once, from as much before it as there is room for."""
    first = ids[:POSITIONS - 1]
    yield [END_OF_TEXT, *first], 1
    done = len(first)
    while done < len(ids):
        n = min(len(ids) - done, POSITIONS - 1)
        yield ids[done + n - POSITIONS : done + n], POSITIONS - n
        done += n


def passages(judge, folder):
    total = bytes_ = 0
    asked = samples(folder, "llorch_passages")
    for sample in asked:
        text = sample["doc"]["text"]
        parts = [judge.expect(*window) for window in windows(judge.engine.ids(text))]
        sums = [sum(part[0][i] for part in parts) for i in (0, 1)]
        # lm_eval writes one number for a passage.
        ((got,),) = sample["resps"]
        got = float(got[0] if isinstance(got, list) else got)
        judge.hold(got, sums, sum(part[2] for part in parts), text)
        total, bytes_ = total + got, bytes_ + len(text.encode())
    expected = -total / bytes_ / np.log(2)
    assert abs(results(folder)["llorch_passages"]["bits_per_byte,none"] - expected) < 1e-12
    return len(asked)


def texts(judge, folder):
    asked = samples(folder, "llorch_texts")
    for sample in asked:
        until = sample["arguments"]["gen_args_0"]["arg_1"]["until"]
        new = sample["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"]
        ids = judge.engine.ids(sample["doc"]["start"])
        rows, done = judge.engine.run(ids, ["logits.last"], new)
        assert len(rows) == new
        text = done["text"]
        for stop in [*until, "<|endoftext|>"]:
            text = text.split(stop)[0]
        assert sample["resps"] == [[text]], (sample["resps"], text)
        lead = min(float(np.diff(np.sort(row)[-2:])[0]) for row in rows)
        if lead > 2 * DELTA:
            assert judge.hf.run(ids, [], new)[1]["generated"] == done["generated"], text
        else:
            judge.undecided += 1
    return len(asked)


def main():
    model_dir, engine, hf, first, *more = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        judge = Judge(Adapter(engine, model_dir, scratch), Adapter(hf, model_dir, scratch))
        counts = {f.__name__: f(judge, first) for f in (choices, passages, texts)}
        judge.engine.end()
        judge.hf.end()
    # However the requests were put, one by one or many, as ids or as text: the same numbers, bit for bit.
    for folder in more:
        for task in ("llorch_choices", "llorch_passages", "llorch_texts"):
            a, b = ([s["resps"] for s in samples(f, task)] for f in (first, folder))
            assert a == b, task
    report = {"tokens": judge.tokens, "greedy": judge.greedy, "undecided": judge.undecided}
    print(json.dumps({**counts, **report, "worst": judge.worst}))


main()
