#!/usr/bin/env python3
"""Two adapters side by side on one model: prefill and decode in tokens/s, and their ratio.

    cargo build --release
    benches/side_by_side.py synth:gpt2 'target/release/llorch-cpud trace' 'PATH/llorch-adapter-candle'

Both stay loaded and are asked in turn, A B A B, so that a neighbour's load hits both alike; the table
has medians and the range. Speed counts only for equal output, so the generated ids are compared
first: greedy, from a prompt of 2 tokens and from the long one. Needs Python 3.9 and nothing else. How to get
the candle adapter: `llorch-diff adapters setup candle`, then `llorch-diff adapters list` says where it is.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile


class Adapter:
    def __init__(self, command, model_dir, threads):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(shlex.split(command), stdin=pipe, stdout=pipe, text=True)
        self.name = self.ask(type="hello", protocol=1)["name"]
        self.ask(type="load", model_dir=model_dir, dtype="f32", threads=threads)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"failed to ask {self.process.args}: it ended")
        answer = json.loads(line)
        if answer["type"] == "error":
            sys.exit(f"failed to ask {self.process.args}: {answer['message']}")
        return answer

    def run(self, ids, new, out_dir):
        """Generated ids, seconds of the prefill, seconds of the later steps."""
        done = self.ask(type="run", id="bench", ids=ids, points=[], max_new_tokens=new, out_dir=out_dir)
        seconds = done["seconds"]
        return done["generated"], seconds["prefill"], seconds.get("decode")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def model_folder(name, engine):
    """A folder as it is; anything else is resolved by the engine."""
    if os.path.isdir(name):
        return os.path.abspath(name)
    command = [shlex.split(engine)[0], "inspect", name, "--json"]
    return json.loads(subprocess.check_output(command))["model"]["dir"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a folder, or a name that the first command's program resolves")
    parser.add_argument("a", help="command of the first adapter: llorch-cpud trace")
    parser.add_argument("b", help="command of the second adapter")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill measured")
    parser.add_argument("--decode", type=int, default=32, help="decode steps measured, after 2 tokens")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    folder = model_folder(args.model, args.a)
    adapters = [Adapter(command, folder, args.threads) for command in (args.a, args.b)]
    with open(os.path.join(folder, "config.json")) as file:
        vocabulary = json.load(file)["vocab_size"]
    long = [i * 7919 % vocabulary for i in range(args.prompt)]
    short = [15496 % vocabulary, 13]

    rates = {"prefill": [[], []], "decode": [[], []]}
    with tempfile.TemporaryDirectory() as out_dir:
        # The first round warms up and is compared, not counted.
        for round in range(args.rounds + 1):
            texts = []
            for rate, adapter in enumerate(adapters):
                first, prefill, _ = adapter.run(long, 1, out_dir)
                text, _, decode = adapter.run(short, args.decode + 1, out_dir)
                texts.append(first + text)
                if round > 0:
                    rates["prefill"][rate].append(args.prompt / prefill)
                    rates["decode"][rate].append(args.decode / decode)
            if round == 0 and texts[0] != texts[1]:
                sys.exit(f"the outputs differ, so their speed does not count:\n{texts[0]}\n{texts[1]}")
    for adapter in adapters:
        adapter.close()

    names = [adapter.name for adapter in adapters]
    print(f"{args.model}, {args.threads} threads, tokens/s: median (min to max) of {args.rounds}, outputs equal")
    print(f"{'':16} {names[0]:>26} {names[1]:>26} {'ratio':>7}")
    for what, label in (("prefill", f"prefill {args.prompt}"), ("decode", f"decode {args.decode}")):
        medians = [statistics.median(r) for r in rates[what]]
        cells = [f"{m:.1f} ({min(r):.1f} to {max(r):.1f})" for m, r in zip(medians, rates[what])]
        print(f"{label:16} {cells[0]:>26} {cells[1]:>26} {medians[0] / medians[1]:7.2f}")


if __name__ == "__main__":
    main()
