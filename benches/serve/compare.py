#!/usr/bin/env python3
"""llorch-cpud against llama.cpp's own llama-server: the same model, the same requests, the same load tool, in turn."""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import llama_server
from load import LoadError, Prompts, drive, positive
from wire import Cut, Server, ServerError, free_port, now

# Seconds until a server has a model of 0.5 GB ready.
START_LIMIT = 180
# Seconds in which both do nothing, to see that they do.
IDLE_SECONDS = 3
# As a part of one processor: more than this of a server that has nothing to do would disturb the other.
IDLE_MOST = 0.02
# Of one processor: what other programs may take before a cell is worth less. llama.cpp's threads wait for each other after
# each operation, so that a processor that is shared slows it more than it slows others.
FOREIGN_MOST = 0.1
# A warm-up: enough for all that a server sets up by need.
WARM_UP_TOKENS = 8
# Seconds for converting a model.
CONVERT_LIMIT = 600
# Answers that are compared, token by token.
COMPARED = 16


@dataclass(frozen=True)
class Form:
    """How llama-server is started, and what its requests say besides."""

    name: str
    options: tuple = ()
    body: tuple = ()

    def extra(self):
        return {"cache_prompt": False, **dict(self.body)}


def cache(kind):
    return ("-ctk", kind, "-ctv", kind)


# At temperature 0 the most likely token is all that is wanted; llama-server's default is a chain of samplers that ends
# there too, but orders candidates on the way.
GREEDY = (("samplers", ["top_k"]), ("top_k", 1))

# What `--tune` tries: one thing after the other is varied.
FORMS = [
    Form("fa off, f32 cache", ("-fa", "off", *cache("f32"))),
    Form("fa off, f16 cache", ("-fa", "off", *cache("f16"))),
    Form("fa off, bf16 cache", ("-fa", "off", *cache("bf16"))),
    Form("fa on, f32 cache", ("-fa", "on", *cache("f32"))),
    Form("fa on, f16 cache", ("-fa", "on", *cache("f16"))),
    Form("fa on, bf16 cache", ("-fa", "on", *cache("bf16"))),
    Form("fa on, f16 cache, greedy sampler", ("-fa", "on", *cache("f16")), GREEDY),
    Form("fa on, f16 cache, greedy sampler, unified cache", ("-fa", "on", *cache("f16"), "--kv-unified"), GREEDY),
    Form("fa on, f16 cache, greedy sampler, -ub 64", ("-fa", "on", *cache("f16"), "-ub", "64"), GREEDY),
    Form("fa on, f16 cache, greedy sampler, -ub 2048", ("-fa", "on", *cache("f16"), "-ub", "2048"), GREEDY),
    Form("fa on, f16 cache, greedy sampler, --no-repack", ("-fa", "on", *cache("f16"), "--no-repack"), GREEDY),
    Form("fa on, f16 cache, greedy sampler, --poll 100", ("-fa", "on", *cache("f16"), "--poll", "100"), GREEDY),
    Form("fa on, f16 cache, greedy sampler, no mmap", ("-fa", "on", *cache("f16"), "-lm", "none"), GREEDY),
    Form("fa on, f16 cache, backend sampling", ("-fa", "on", *cache("f16"), "--backend-sampling"), GREEDY),
    Form("fa off, f32 cache, greedy sampler", ("-fa", "off", *cache("f32")), GREEDY),
]
# The fastest of them; README.md has the figures.
FASTEST = {"f32": "fa on, f16 cache, greedy sampler", "bf16": "fa on, f16 cache, greedy sampler"}
BY_NAME = {form.name: form for form in FORMS}


class Environment(Exception):
    """Something that is needed and isn't there, in one sentence."""


def say(message):
    print(message, file=sys.stderr, flush=True)


def beside(foreign):
    """What is said of a cell that other programs disturbed."""
    return f", beside other programs on {foreign:.1f} processors" if (foreign or 0) > FOREIGN_MOST else ""


def convert(args, folder, programs):
    """The model as GGUF, in F32 and, if wanted, in BF16 by llama.cpp's own program."""
    f32 = folder / "f32.gguf"
    say(f"{args.model} as GGUF")
    run([args.llorch_diff, "export", "--gguf", f32, "--model", args.model, "--quiet"])
    files = {"f32": f32}
    if "bf16" in args.dtype:
        files["bf16"] = folder / "bf16.gguf"
        run([programs["llama-quantize"], f32, files["bf16"], "BF16"])
    return files


def run(command):
    try:
        done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", timeout=CONVERT_LIMIT)
    except OSError as e:
        raise Environment(f"{command[0]} can't be started: {e.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Environment(f"{command[0]} was not done after {CONVERT_LIMIT} s") from None
    if done.returncode != 0:
        last = "".join(f"\n  | {line}" for line in done.stdout.strip().splitlines()[-8:])
        raise Environment(f"{command[0]} ended with {done.returncode}{last}")


@dataclass
class Peer:
    """One of the two servers, while it runs."""

    name: str
    server: Server
    extra: dict = field(default_factory=dict)

    async def drive(self, prompts, clients, new_tokens):
        return await drive(self.server.host, self.server.port, prompts, clients, new_tokens, self.extra)

    async def ids(self, prompt, new_tokens):
        """The ids that a prompt goes on with."""
        body = {"prompt": prompt, "temperature": 0, "ignore_eos": True}
        if self.name == "llorch-cpud":
            path, body = "/v1/completions", body | {"max_tokens": new_tokens, "return_token_ids": True}
        else:
            path, body = "/completion", body | self.extra | {"n_predict": new_tokens, "return_tokens": True}
        answer = (await self.server.ask("POST", path, body, limit=180)).json() or {}
        try:
            ids = answer["tokens"] if path == "/completion" else answer["choices"][0]["token_ids"]
        except (KeyError, IndexError, TypeError):
            raise LoadError(f"{self.name} gave no token ids: {str(answer)[:200]}") from None
        return ids


async def start_cpud(args, dtype):
    command = [args.cpud, "serve", "--model", args.model, "--dtype", dtype, "--threads", args.threads, "--port", 0,
               "--quiet", *args.cpud_option]
    return Peer("llorch-cpud", await Server(command).start(START_LIMIT))


async def start_llama(args, gguf, form, programs):
    port = free_port()
    slots = max(args.clients)
    # As many tokens for each slot as a request has, to whole pages of 256 cells: more room would make nothing faster.
    context = -(-(args.prompt_tokens + args.new_tokens) // 256) * 256 * slots
    command = [programs["llama-server"], "-m", gguf, "--host", "127.0.0.1", "--port", port, "-np", slots,
               "-t", args.threads, "-tb", args.threads, "-c", context, "--cont-batching", "--no-ui",
               "--cache-ram", 0, *form.options]
    server = Server(command, port=port)
    return Peer("llama-server", await server.start(START_LIMIT), form.extra())


class Machine:
    """What all programs use of the processors, from a moment on."""

    def __init__(self, servers=()):
        self.servers = servers
        self.started = now()
        self.before = self.look()

    def look(self):
        """Seconds of all programs (and of other machines on the same processors), of each server, and of this program."""
        try:
            fields = Path("/proc/stat").read_text().splitlines()[0].split()
        except OSError:
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(f) for f in fields[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        own = [server.processor_seconds() or 0.0 for server in self.servers]
        return [busy, *own, sum(os.times()[:2])]

    def shares(self):
        """Of one processor: what nobody here used, and what each of the servers did. None where the system doesn't tell."""
        after = self.look()
        if self.before is None or after is None:
            return None, [None for _ in self.servers]
        seconds = max(now() - self.started, 1e-3)
        busy, *own = [(a - b) / seconds for a, b in zip(after, self.before)]
        return max(0.0, busy - sum(own)), own[:-1]


async def idle_use(peers):
    """Of one processor, what each server uses while nothing is asked."""
    await asyncio.sleep(1)
    machine = Machine([peer.server for peer in peers])
    await asyncio.sleep(IDLE_SECONDS)
    return machine.shares()[1]


async def quiet(limit):
    """Waits until other programs leave the processors alone, or for `limit` seconds."""
    until = now() + limit
    while now() < until:
        machine = Machine()
        await asyncio.sleep(1)
        foreign, _ = machine.shares()
        if foreign is None or foreign <= FOREIGN_MOST:
            return


async def measure(peer, other, prompts, clients, args):
    """One cell: the summary of a drive, with what the server, the other one and other programs used meanwhile."""
    await quiet(args.wait)
    machine = Machine([other.server, peer.server])
    measured = (await peer.drive(prompts, clients, args.new_tokens)).summary()
    foreign, (idle, own) = machine.shares()
    per_token = (own or 0.0) * measured["seconds"] * 1000 / measured["tokens"]
    return measured | {"processor_ms_per_token": per_token, "other_server_used": idle, "other_programs_used": foreign}


async def compare(args, dtype, gguf, form, programs):
    peers = []
    try:
        peers.append(await start_cpud(args, dtype))
        peers.append(await start_llama(args, gguf, form, programs))
        prompts = Prompts(args.prompt_tokens, args.seed)
        say(f"{dtype}: warm-up")
        for peer in peers:
            await peer.drive([prompts.next() for _ in range(max(args.clients))], max(args.clients), WARM_UP_TOKENS)
        idle = await idle_use(peers)
        cells = {clients: {peer.name: [] for peer in peers} for clients in args.clients}
        for turn in range(args.rounds):
            for clients in args.clients:
                # The same prompts for both, in the order A B, then B A: neither is always first.
                wanted = [prompts.next() for _ in range(max(4, clients * args.waves))]
                for peer in peers if turn % 2 == 0 else reversed(peers):
                    other = peers[1 - peers.index(peer)]
                    cell = await measure(peer, other, wanted, clients, args)
                    cells[clients][peer.name].append(cell)
                    say(f"{dtype}: round {turn + 1} of {args.rounds}, {clients} clients, {peer.name}: "
                        f"{cell['tokens_per_second']:.1f} tokens/s{beside(cell['other_programs_used'])}")
        same = await agreement(peers, [prompts.next() for _ in range(COMPARED)], args.new_tokens)
        return {"dtype": dtype, "form": form.name, "llama_server_options": list(form.options),
                "llama_server_body": form.extra(), "idle": dict(zip([p.name for p in peers], idle)),
                "agreement": same, "cells": cells}
    finally:
        for peer in peers:
            await peer.server.kill()


async def agreement(peers, prompts, new_tokens):
    """How far the two give the same ids."""
    # One server after the other, all prompts of one at once: only its answers matter here.
    both = [await asyncio.gather(*(peer.ids(prompt, new_tokens) for prompt in prompts)) for peer in peers]
    for peer, answers in zip(peers, both):
        if any(len(ids) != new_tokens for ids in answers):
            raise LoadError(f"{peer.name} gave {sorted({len(ids) for ids in answers})} ids instead of {new_tokens}")
    pairs = list(zip(*both))
    common = [next((i for i, (a, b) in enumerate(zip(*pair)) if a != b), new_tokens) for pair in pairs]
    return {"answers": len(pairs), "equal": sum(n == new_tokens for n in common),
            "first_token_equal": sum(n > 0 for n in common), "tokens_alike_median": statistics.median(common)}


async def tune(args, dtype, gguf, programs):
    """Tokens/s of each form, at the most clients and alone, in turn over the rounds.

    And what a token takes of the processors: with one thread (`--threads 1`), which waits for nobody, that is the figure
    that other programs disturb least.
    """
    forms = [BY_NAME[name] for name in args.form] if args.form else FORMS
    kept = ("many", "one", "processor_ms_per_token", "other_programs_used")
    results = {form.name: {key: [] for key in kept} for form in forms}
    prompts = Prompts(args.prompt_tokens, args.seed)
    most = max(args.clients)
    for turn in range(args.rounds):
        for form in forms:
            peers = []
            try:
                peers.append(await start_llama(args, gguf, form, programs))
                await peers[0].drive([prompts.next() for _ in range(most)], most, WARM_UP_TOKENS)
                await quiet(args.wait)
                machine = Machine([peers[0].server])
                many = await peers[0].drive([prompts.next() for _ in range(most * args.waves)], most, args.new_tokens)
                foreign, (own,) = machine.shares()
                one = await peers[0].drive([prompts.next() for _ in range(2)], 1, args.new_tokens)
            except (LoadError, ServerError) as e:
                # A form that this build hasn't got is no reason to give up the others.
                say(f"{dtype}: {form.name}: {e}")
                continue
            finally:
                for peer in peers:
                    await peer.server.kill()
            found = results[form.name]
            found["many"].append(many.summary()["tokens_per_second"])
            found["one"].append(one.summary()["tokens_per_second"])
            found["processor_ms_per_token"].append((own or 0.0) * many.seconds * 1000 / many.tokens)
            found["other_programs_used"].append(foreign)
            say(f"{dtype}: round {turn + 1} of {args.rounds}, {form.name}: {found['many'][-1]:.1f}, alone "
                f"{found['one'][-1]:.1f} tokens/s, {found['processor_ms_per_token'][-1]:.2f} ms of a processor a token"
                f"{beside(foreign)}")
    return {"dtype": dtype, "clients": most, "forms": results}


# ------------------------------------------------------------------------------------------------------------ tables

def spread(values, digits=0, factor=1):
    """The median, and in brackets the least and the most of the rounds."""
    low, mid, high = (v * factor for v in (min(values), statistics.median(values), max(values)))
    return f"{mid:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def markdown(result):
    of = {"A": "llorch-cpud", "B": "llama-server"}
    speed, latency = [], []
    for clients, cells in result["cells"].items():
        a, b = cells[of["A"]], cells[of["B"]]
        # Round by round: what the machine did at that moment was done to both.
        ratios = [x["tokens_per_second"] / y["tokens_per_second"] for x, y in zip(a, b)]
        speed.append([str(clients), spread([c["tokens_per_second"] for c in a], 1),
                      spread([c["tokens_per_second"] for c in b], 1), spread(ratios, 2),
                      *(spread([c["processor_ms_per_token"] for c in cells], 1) for cells in (a, b)),
                      spread([y["processor_ms_per_token"] / x["processor_ms_per_token"] for x, y in zip(a, b)
                              if x["processor_ms_per_token"]] or [0.0], 2)])

        def ms(cells, key, digits=0):
            return f"{statistics.median(c[key] for c in cells) * 1000:.{digits}f}"

        latency.append([str(clients),
                        *(f"{ms(c, 'first_token_median')} / {ms(c, 'first_token_p99')}" for c in (a, b)),
                        *(f"{ms(c, 'per_token_median', 1)} / {ms(c, 'per_token_p99', 1)}" for c in (a, b))])
    same, idle = result["agreement"], result["idle"]
    options = " ".join(str(o) for o in result["llama_server_options"])
    every = [c for cells in result["cells"].values() for rounds in cells.values() for c in rounds]
    used = max(c["other_server_used"] or 0 for c in every)
    foreign = sorted(c["other_programs_used"] or 0 for c in every)
    lines = [
        f"### {result['dtype']}",
        "",
        f"llama-server: {result['form']} (`{options}`, requests with `{json.dumps(result['llama_server_body'])}`).",
        "Tokens/s of all clients together, and what a token takes of the processors: median (least–most) of the rounds; ratios",
        "round by round, above 1 where llorch-cpud does better.",
        "",
        table(["clients", "llorch-cpud", "llama-server", "ratio", "processor ms a token, llorch-cpud",
               "processor ms a token, llama-server", "ratio"], speed),
        "",
        "Milliseconds, median / 99th percentile of the requests, of which the median over the rounds.",
        "",
        table(["clients", "first token, llorch-cpud", "first token, llama-server",
               "between tokens, llorch-cpud", "between tokens, llama-server"], latency),
        "",
        f"Equal answers: {same['equal']} of {same['answers']}; first token equal: {same['first_token_equal']} of "
        f"{same['answers']}; tokens alike, median: {same['tokens_alike_median']:g}.",
        f"Of one processor while idle: {', '.join(f'{name} {share or 0:.1%}' for name, share in idle.items())}; "
        f"the idle one at most {used:.1%} while the other was measured.",
        f"Other programs used {statistics.median(foreign):.0%} of one processor at the median, {foreign[-1]:.0%} at most.",
    ]
    return "\n".join(lines)


def tune_markdown(result):
    rows = [[name, spread(r["many"], 1), spread(r["one"], 1), spread(r["processor_ms_per_token"], 2)]
            if r["many"] else [name, "not to be had", "", ""]
            for name, r in sorted(result["forms"].items(),
                                  key=lambda item: -statistics.median(item[1]["many"] or [0]))]
    return "\n".join([f"### llama-server, {result['dtype']}", "",
                      table(["form", f"tokens/s, {result['clients']} clients", "tokens/s, alone",
                             "processor ms a token"], rows)])


# -------------------------------------------------------------------------------------------------------------- main

def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__,
        epilog="llama-server is compiled once into $XDG_CACHE_HOME/llorch. Exit codes: 0 measured, 1 measured, but a "
               "server that had nothing to do was not idle, 2 usage, 3 environment: something can't be built, started "
               "or asked, 130 interrupted.")
    dist = llama_server.REPOSITORY / "target" / "release"
    parser.add_argument("--cpud", type=Path, default=dist / "llorch-cpud", help="the daemon (default: target/release)")
    parser.add_argument("--llorch-diff", type=Path, default=dist / "llorch-diff",
                        help="what writes the GGUF (default: target/release)")
    parser.add_argument("--llama-bin", type=Path, metavar="FOLDER",
                        help="a folder with llama-server and llama-quantize, in place of building them")
    parser.add_argument("--model", default="synth:gpt2", help="default: %(default)s")
    parser.add_argument("--dtype", type=names("f32", "bf16"), default=["f32", "bf16"],
                        help="f32, bf16 or both: f32,bf16 (default)")
    parser.add_argument("--threads", type=positive, default=2, help="of each server (default: %(default)s)")
    parser.add_argument("--clients", type=numbers, default=[1, 4, 8, 16], help="default: 1,4,8,16")
    parser.add_argument("--rounds", type=positive, default=4, help="of each, in turn (default: %(default)s)")
    parser.add_argument("--waves", type=positive, default=2,
                        help="requests of each client in a round, and at least 4 in all (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=positive, default=32, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=positive, default=64, help="default: %(default)s")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS",
                        help="before each measurement, wait so long for other programs to be quiet (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="which prompts (default: %(default)s)")
    parser.add_argument("--form", action="append", choices=list(BY_NAME), metavar="NAME",
                        help="a form of llama-server of those that --tune tries (default: the fastest); with --tune it "
                             "may be repeated (default: all)")
    parser.add_argument("--cpud-option", action="append", default=[], metavar="OPTION",
                        help="another option of `serve`, one word each: --cpud-option=--max-batch --cpud-option=16")
    parser.add_argument("--tune", action="store_true", help="look for llama-server's fastest form; no comparison")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args(arguments)
    if args.form and len(args.form) > 1 and not args.tune:
        parser.error("--form may be repeated with --tune only")
    return args


def numbers(text):
    if not re.fullmatch(r"[1-9]\d{0,2}(,[1-9]\d{0,2})*", text):
        raise argparse.ArgumentTypeError("expected whole numbers with commas between: 1,4,8")
    return [int(part) for part in text.split(",")]


def names(*allowed):
    def read(text):
        parts = text.split(",")
        if not set(parts) <= set(allowed):
            raise argparse.ArgumentTypeError(f"expected one or more of {', '.join(allowed)}")
        return parts

    return read


def find_programs(args):
    if args.llama_bin is None:
        return llama_server.programs()
    found = {name: args.llama_bin / name for name in ("llama-server", "llama-quantize")}
    for path in found.values():
        if not path.exists():
            raise Environment(f"{path} is not there")
    return found


def run_all(args):
    programs = find_programs(args)
    for path in (args.cpud, args.llorch_diff):
        if not path.exists():
            raise Environment(f"{path} is not there; `cargo build --release` makes it")
    results = []
    with tempfile.TemporaryDirectory(prefix="llorch-compare-") as folder:
        files = convert(args, Path(folder), programs)
        for dtype in args.dtype:
            form = BY_NAME[args.form[0] if args.form else FASTEST[dtype]]
            work = (tune(args, dtype, files[dtype], programs) if args.tune
                    else compare(args, dtype, files[dtype], form, programs))
            results.append(asyncio.run(work))
            print(tune_markdown(results[-1]) if args.tune else markdown(results[-1]), end="\n\n", flush=True)
    if args.json:
        about = {"model": args.model, "threads": args.threads, "prompt_tokens": args.prompt_tokens,
                 "new_tokens": args.new_tokens, "llama_cpp_python": llama_server.version(),
                 "processor": re.search(r"model name\s*: (.*)|$", llama_server.processor()).group(1),
                 "results": results}
        args.json.write_text(json.dumps(about, indent=1) + "\n")
    busy = [share for r in results for share in (r.get("idle") or {}).values() if share and share > IDLE_MOST]
    if busy:
        say(f"a server used {max(busy):.0%} of a processor while nothing was asked: it disturbed the other")
    return 1 if busy else 0


def main():
    args = parse(sys.argv[1:])
    # Whoever ends this ends the servers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run_all(args)
    except (Environment, llama_server.BuildError, ServerError, LoadError) as e:
        print(f"error: {e}", file=sys.stderr)
    except (Cut, TimeoutError) as e:
        print(f"error: a server broke off: {e or 'no answer in time'}", file=sys.stderr)
    except OSError as e:
        print(f"error: {e}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 3


if __name__ == "__main__":
    sys.exit(main())
