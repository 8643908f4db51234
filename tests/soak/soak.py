#!/usr/bin/env python3
"""Load and faults against llorch-cpud: many requests, clients that hang up, clients that are slow, and the end."""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import signal
import socket
import statistics
import sys
from pathlib import Path

import wire
from wire import Connection, Cut, Server, ServerError, metrics, now

# How long the daemon may take to be ready. It loads nano in less than a second; machines are shared.
START_LIMIT = 60
# Nano gives hundreds of tokens a second even on a busy machine, and no request here asks for more than 200. Whoever waits
# longer than this for a whole answer, the queue included, waits for ever.
ANSWER_LIMIT = 60
# How long counters may take to come to rest after the last client has gone: the daemon notices between two steps.
REST_LIMIT = 5
# `serve` finishes what it accepted within 60 s; a little more is given to a busy machine.
DRAIN_LIMIT = 65
# The daemon gives the head of a request 20 s, and its body as much (--header-timeout); the rest is for a busy machine.
SLOW_LIMIT = 35
# What /health may take while others are slow: a hundred times what it takes. The short form runs on machines that may be busy
# with anything, so that all it asks is that /health is answered in its turn, not after the slow ones.
HEALTH_LIMIT = 0.1
HEALTH_LIMIT_SHORT = 2
# How far memory may grow from the first quarter of the hang-ups to the last: the allocator's own unrest is 2 MB; 8 MB
# are 5 kB for each of 1,500 clients, and a request that is never let go of takes more.
GROWTH_LIMIT = 8 << 20
# A request that was sent this long before the signal has been in the daemon's hands. Later ones may have crossed it.
CROSSING = 0.1
# When new connections must be refused: the signal has to be noticed and the socket closed.
REFUSING = 0.3
# Failures that are shown of each kind.
SHOWN = 5

# Statuses that are documented for requests that are wrong, and may not be anything else.
DOCUMENTED = {400, 401, 404, 405, 408, 413, 415, 422}


class Sizes:
    """How much of everything: `--short` is for each change, the full size for each night."""

    def __init__(self, short):
        self.requests = 1000 if short else 20000
        self.connections = 64
        # More than are computed and wait together (16 and 64), fewer than connections are taken (896).
        self.burst = 200 if short else 600
        self.hangups = 300 if short else 2000
        self.slow = 120 if short else 500
        self.slow_bodies = 12 if short else 50
        self.health_limit = HEALTH_LIMIT_SHORT if short else HEALTH_LIMIT
        self.sigterms = 5 if short else 50


class Report:
    """What a part counted and what did not hold."""

    def __init__(self, part):
        self.part = part
        self.counts = collections.Counter()
        self.notes = []
        self.failures = collections.Counter()
        self.examples = collections.defaultdict(list)
        self.latencies = collections.defaultdict(list)

    def fail(self, kind, example=""):
        self.failures[kind] += 1
        if example and len(self.examples[kind]) < SHOWN:
            self.examples[kind].append(example)

    def check(self, holds, kind, example=""):
        if not holds:
            self.fail(kind, example)

    def rows(self):
        yield from ((name, str(count)) for name, count in sorted(self.counts.items()))
        yield from self.notes
        for name, seconds in sorted(self.latencies.items()):
            median = statistics.median(seconds) * 1000
            yield f"{name}: median, maximum", f"{median:.1f} ms, {max(seconds) * 1000:.1f} ms"

    def show(self):
        rows = [*self.rows(), ("held" if not self.failures else "DID NOT HOLD",
                               "all" if not self.failures else str(sum(self.failures.values())))]
        width = max(len(name) for name, _ in rows)
        print(f"\n{self.part}")
        for name, value in rows:
            print(f"  {name:<{width}}  {value}")
        for kind, count in self.failures.items():
            print(f"  FAILED {count} times: {kind}")
            for example in self.examples[kind]:
                print(f"    {example}")
        sys.stdout.flush()


def say(message):
    print(message, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------- requests

PROMPTS = ["Hello.", "The king", "And the LORD said", "In the beginning", "A hacker is", "Once upon a time", "x", "1 2 3",
           "Marriage, n.", "What is a program?", "Behold, ", "To be or", "The devil's", " ", "Über", "naïve 日本 ☃",
           "And it came to pass", "def main():", "Ten years ago", "A cat, a dog", "No", "She said: \"", "\n\n", "War and"]

# Requests that are wrong, and what may be said of them: method, path, body, headers, statuses.
JSON = ("Content-Type", "application/json")
COMPLETIONS = "/v1/completions"
WRONG = [
    ("no JSON", "POST", COMPLETIONS, b"{\"prompt\": ", [JSON], {400, 422}),
    ("a list", "POST", COMPLETIONS, [1, 2], [], {400, 422}),
    ("not UTF-8", "POST", COMPLETIONS, b"{\"prompt\": \"\xff\xfe\"}", [JSON], {400, 422}),
    ("no prompt", "POST", COMPLETIONS, {"max_tokens": 3}, [], {400, 422}),
    ("prompt is a number", "POST", COMPLETIONS, {"prompt": 3}, [], {400, 422}),
    ("no tokens", "POST", COMPLETIONS, {"prompt": []}, [], {400, 422}),
    ("id outside of the vocabulary", "POST", COMPLETIONS, {"prompt": [60000]}, [], {400, 422}),
    ("too long", "POST", COMPLETIONS, {"prompt": "Hello.", "max_tokens": 100000}, [], {400, 422}),
    ("temperature", "POST", COMPLETIONS, {"prompt": "Hello.", "temperature": -1}, [], {400, 422}),
    ("top_p", "POST", COMPLETIONS, {"prompt": "Hello.", "top_p": 2}, [], {400, 422}),
    ("logprobs", "POST", COMPLETIONS, {"prompt": "Hello.", "logprobs": 6}, [], {400, 422}),
    ("stream is a text", "POST", COMPLETIONS, {"prompt": "Hello.", "stream": "yes"}, [], {400, 422}),
    ("another model", "POST", COMPLETIONS, {"prompt": "Hello.", "model": "gpt-5"}, [], {404}),
    ("another path", "POST", "/v1/chat", {"prompt": "Hello."}, [], {404}),
    ("another method", "GET", COMPLETIONS, None, [], {405}),
    ("another type", "POST", COMPLETIONS, b"prompt=Hello.", [("Content-Type", "application/x-www-form-urlencoded")],
     {400, 415}),
]


class Answers:
    """Answers to one request are the same whenever it is asked, whoever else is computed beside it."""

    def __init__(self, report):
        self.report = report
        self.first = {}

    def check(self, key, text, ids, finish):
        answer = (text, tuple(ids), finish)
        first = self.first.setdefault(key, answer)
        self.report.check(answer == first, "the same request got another answer", f"{key}: {answer!r}, before {first!r}")


def completion(random_, kind):
    """The body of a request of a kind, and what its answer depends on."""
    prompt = random_.choice(PROMPTS)
    # From the prompt, so that a request comes again often enough to be compared.
    body = {"prompt": prompt, "max_tokens": 3 + len(prompt) % 5 * 4, "temperature": 0, "return_token_ids": True}
    if kind == "seeded":
        body |= {"temperature": 0.9, "top_k": 40, "seed": random_.randrange(8)}
    elif kind == "longer":
        start = random_.randrange(4)
        body |= {"prompt": [(start * 1000 + i * 37) % 50000 for i in range(150)], "max_tokens": 48, "ignore_eos": True}
    elif kind == "logprobs":
        body |= {"logprobs": random_.randrange(6), "stop": ["\n", " the"]}
    key = json.dumps(body, sort_keys=True)
    return body, key


async def take(connection, body, report, label="completion", draining=False):
    """Sends a completion and reads its answer to the end: status and, of a 200, (text, ids, finish_reason).
    A daemon that is `draining` may answer 503."""
    started = now()
    await connection.send(wire.request("POST", COMPLETIONS, body))
    status, headers = await connection.head()
    streamed = body.get("stream") and status == 200
    if not streamed:
        parts = [piece async for piece in connection.pieces()]
        answer = wire.Answer(status, headers, b"".join(parts))
        report.latencies[f"{label}, whole" if status == 200 else f"refused with {status}"].append(now() - started)
        if status != 200:
            return check_refusal(answer, report, {503} if draining else None), None
        choice = first_choice(answer.json(), report)
        if choice is None:
            return 200, None
        report.check(choice.get("finish_reason") in ("stop", "length"), "a whole answer without finish_reason",
                     answer.body[-200:].decode(errors="replace"))
        return 200, (choice["text"], choice.get("token_ids") or [], choice.get("finish_reason"))
    text, ids, finish, done = "", [], None, False
    async for event in connection.events():
        if not text and not ids:
            report.latencies[f"{label}, first event"].append(now() - started)
        report.check(not done, "an event after [DONE]", event[:200].decode(errors="replace"))
        if event == b"[DONE]":
            done = True
            continue
        try:
            value = json.loads(event)
        except ValueError:
            value = None
        choice = first_choice(value, report)
        if choice is not None:
            text += choice["text"]
            ids += choice.get("token_ids") or []
            finish = choice.get("finish_reason") or finish
    report.latencies[f"{label}, streamed to the end"].append(now() - started)
    report.check(done, "a stream without [DONE]", text[-100:])
    report.check(finish in ("stop", "length"), "a stream without finish_reason", text[-100:])
    return 200, (text, ids, finish)


def first_choice(body, report):
    choices = body.get("choices") if isinstance(body, dict) else None
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)
            and isinstance(choices[0].get("text"), str)):
        report.fail("an answer that is no completion", json.dumps(body)[:200])
        return None
    return choices[0]


def check_refusal(answer, report, allowed=None):
    """Errors are in the documented form. Returns the status."""
    said = answer.body[:200].decode(errors="replace")
    error = answer.error()
    report.check(error is not None, "an error that isn't in the documented form", f"{answer.status} {said}")
    report.check("x-request-id" in answer.headers, "an error without x-request-id", f"{answer.status} {said}")
    if answer.status == 429:
        report.check("retry-after" in answer.headers, "429 without Retry-After", said)
    elif allowed is not None:
        report.check(answer.status in allowed, "another status than documented", f"{answer.status}, not {allowed}: {said}")
    else:
        report.fail("a right request was refused", f"{answer.status} {said}")
    return answer.status


async def requests(daemon_of, sizes, random_, report):
    """Mixed requests on kept-alive connections, then a burst that the queue can't hold."""
    # More connections than sequences and queue together would be refused; here all are to be answered.
    daemon = await daemon_of("--queue", str(sizes.connections))
    answers = Answers(report)
    left = iter(range(sizes.requests))
    progress = Progress("requests", sizes.requests)

    async def client():
        connection = None
        for _ in left:
            progress.step()
            try:
                async with asyncio.timeout(ANSWER_LIMIT):
                    if connection is None or not connection.reusable:
                        if connection is not None:
                            connection.close()
                        report.counts["connections"] += 1
                        connection = await Connection.open(daemon.host, daemon.port)
                    await mixed(connection, random_, answers, report)
            except (Cut, OSError, TimeoutError) as e:
                report.fail("a request was lost", f"{type(e).__name__}: {e}")
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()

    started = now()
    await asyncio.gather(*(client() for _ in range(sizes.connections)))
    report.notes.append(("seconds", f"{now() - started:.1f}"))
    report.notes.append(("different answers that were compared", str(len(answers.first))))

    # Each on a connection of its own, all at once: what doesn't fit is refused, and nothing is lost.
    async def one():
        body, _ = completion(random_, "greedy")
        await asyncio.sleep(random_.random() * 0.2)
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                connection = await Connection.open(daemon.host, daemon.port)
                try:
                    status, _ = await take(connection, body, report, "in the burst")
                    report.counts[f"burst: {status}"] += 1
                    report.counts["completions that were answered"] += status == 200
                finally:
                    connection.close()
        except (Cut, OSError, TimeoutError) as e:
            report.fail("a request of the burst was lost", f"{type(e).__name__}: {e}")

    await asyncio.gather(*(one() for _ in range(sizes.burst)))
    report.check(report.counts["burst: 200"] > 0, "a burst of which nothing was answered")
    await too_large(daemon, report)
    await at_rest(daemon, report, answered=report.counts["completions that were answered"])
    await ended_well(daemon, report)


async def mixed(connection, random_, answers, report):
    """One request of the mixture."""
    kinds = ["greedy", "seeded", "longer", "logprobs", "wrong", "other"]
    kind = random_.choices(kinds, [60, 10, 5, 7, 12, 6])[0]
    if kind == "wrong":
        what, method, path, body, headers, allowed = random_.choice(WRONG)
        answer = await connection.ask(method, path, body, headers)
        report.counts[f"wrong: {answer.status}"] += 1
        if answer.status == 429:
            report.fail("a wrong request was put into the queue", what)
        check_refusal(answer, report, allowed)
        return
    if kind == "other":
        method, path, body = random_.choice([("GET", "/health", None), ("GET", "/v1/models", None),
                                             ("POST", "/tokenize", {"text": "Hello."}), ("GET", "/metrics", None)])
        started = now()
        answer = await connection.ask(method, path, body)
        report.latencies[path].append(now() - started)
        report.counts[f"{path}: {answer.status}"] += 1
        report.check(answer.status == 200, f"{path} failed", f"{answer.status} {answer.body[:200]!r}")
        return
    body, key = completion(random_, kind)
    if random_.random() < 0.5:
        body["stream"] = True
    status, answer = await take(connection, body, report)
    report.counts[f"{kind}: {status}"] += 1
    if status == 200:
        report.counts["completions that were answered"] += 1
        if answer is not None:
            answers.check(key, *answer)


async def too_large(daemon, report):
    """A body of 64 MB is refused before it is read whole."""

    def blocking():
        # Not by asyncio: where a write fails, it forgets what could still be read.
        head = b"\r\n".join([b"POST /v1/completions HTTP/1.1", b"Host: localhost", b"Content-Type: application/json",
                             b"Content-Length: 67108864", b"", b""])
        with socket.create_connection((daemon.host, daemon.port), timeout=10) as s:
            sent, got = 0, b""
            with contextlib.suppress(OSError):
                s.sendall(head)
                while sent < 67108864:
                    s.sendall(b" " * 65536)
                    sent += 65536
            with contextlib.suppress(OSError):
                while piece := s.recv(65536):
                    got += piece
        return sent, got

    sent, got = await asyncio.to_thread(blocking)
    report.notes.append(("bytes taken of a body that is too large", str(sent)))
    report.check(sent < 67108864, "a body of 64 MB was read whole")
    report.check(got.startswith(b"HTTP/1.1 413 "), "a body that is too large did not get 413", repr(got[:60]))


async def at_rest(daemon, report, answered=None, abandoned_allowed=False):
    """Waits until nothing runs; then the counters must agree with what was seen."""
    until = now() + REST_LIMIT
    while True:
        try:
            samples = await metrics(daemon)
        except (Cut, OSError, TimeoutError) as e:
            report.fail("no /metrics", str(e))
            return
        running = samples.get("llorch_running_sequences")
        waiting = samples.get("llorch_waiting_sequences")
        ended = {name: value for name, value in samples.items()
                 if name.startswith("llorch_completions_ended_total{")}
        accepted = samples.get("llorch_completions_accepted_total", -1)
        if (running, waiting) == (0, 0) and sum(ended.values()) == accepted or now() > until:
            break
        await asyncio.sleep(0.05)
    outcome = {name.partition('outcome="')[2].partition('"')[0]: int(value) for name, value in ended.items()}
    report.notes.append(("/metrics: accepted", str(int(accepted))))
    report.notes.append(("/metrics: ended", ", ".join(f"{name} {count}" for name, count in sorted(outcome.items()))))
    report.check((running, waiting) == (0, 0), "sequences are left", f"running {running}, waiting {waiting}")
    report.check(sum(outcome.values()) == accepted, "accepted is not what ended", f"{accepted} and {outcome}")
    for bad in ("failed", "timed_out", *(() if abandoned_allowed else ("abandoned",))):
        report.check(outcome.get(bad, 0) == 0, f"/metrics tells of {bad}", str(outcome))
    if answered is not None:
        report.check(accepted == answered, "accepted is not what was answered", f"{accepted} and {answered}")
    return outcome


async def ended_well(daemon, report):
    code = await daemon.stop(DRAIN_LIMIT)
    report.check(code == 0, "the daemon did not end with 0", f"{code}{daemon.said()}")


class Progress:
    """A line now and then, on stderr."""

    def __init__(self, what, total):
        self.what, self.total, self.done, self.last = what, total, 0, now()

    def step(self):
        self.done += 1
        if now() - self.last > 10:
            self.last = now()
            say(f"  {self.what}: {self.done} of {self.total}")


# ----------------------------------------------------------------------------------------------------------- hangups

LONG = {"prompt": "And it came to pass", "max_tokens": 200, "temperature": 1, "ignore_eos": True, "stream": True}


async def hangups(daemon_of, sizes, random_, report):
    """Clients that hang up at every moment there is, with honest clients beside them."""
    daemon = await daemon_of()
    # All caches are filled once, so that what they take is no growth.
    await fill(daemon, report)
    fresh = {"prompt": "Hello.", "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    before, first = await quick(daemon, fresh, report)
    await asyncio.sleep(0.3)
    descriptors = daemon.descriptors()
    at_once = 24
    resident = []
    progress = Progress("hang-ups", sizes.hangups)
    ended = asyncio.Event()

    async def honest():
        while not ended.is_set():
            try:
                async with asyncio.timeout(ANSWER_LIMIT):
                    connection = await Connection.open(daemon.host, daemon.port)
                    try:
                        status, answer = await take(connection, fresh, report, "honest client")
                    finally:
                        connection.close()
                report.counts[f"honest clients: {status}"] += 1
                if status == 200:
                    report.check(answer == first, "an honest client got another answer", repr(answer))
            except (Cut, OSError, TimeoutError) as e:
                report.fail("an honest client's request was lost", f"{type(e).__name__}: {e}")
            await asyncio.sleep(0.02)

    async def rude(left):
        for _ in left:
            progress.step()
            try:
                async with asyncio.timeout(ANSWER_LIMIT):
                    await hang_up(daemon, random_, report)
            except TimeoutError:
                report.fail("a client that wanted to hang up waited in vain")
            except OSError as e:
                report.fail("the daemon refused a connection", wire.name_of(e))
            except Cut as e:
                report.fail("the daemon hung up first", str(e))

    beside = [asyncio.create_task(honest()) for _ in range(2)]
    for _ in range(4):
        left = iter(range(sizes.hangups // 4))
        await asyncio.gather(*(rude(left) for _ in range(at_once)))
        resident.append(daemon.resident())
    ended.set()
    await asyncio.gather(*beside)
    gone = now()
    outcome = await at_rest(daemon, report, abandoned_allowed=True)
    report.notes.append(("at rest after", f"{now() - gone:.2f} s"))
    after, _ = await quick(daemon, fresh, report, first)
    report.notes.append(("a fresh request before, after", f"{before * 1000:.0f} ms, {after * 1000:.0f} ms"))
    # Eight tokens of nano take some milliseconds; a second is a machine that is busy with other things.
    report.check(after < 1, "a fresh request was not answered at once", f"{after:.2f} s")
    if outcome is not None:
        report.check(outcome.get("abandoned", 0) > 0, "/metrics knows of nobody that hung up", str(outcome))
    until = now() + REST_LIMIT
    while daemon.descriptors() != descriptors and now() < until:
        await asyncio.sleep(0.05)
    left = daemon.descriptors()
    report.notes.append(("open files before, after", f"{descriptors}, {left}"))
    report.check(left == descriptors, "open files are left", f"{left}, before {descriptors}")
    if None not in resident:
        report.notes.append(("MB resident after each quarter", ", ".join(f"{r / 1e6:.1f}" for r in resident)))
        growth = resident[-1] - resident[0]
        report.check(growth <= GROWTH_LIMIT, "memory grows", f"{growth / 1e6:.1f} MB from the first quarter to the last")
    await ended_well(daemon, report)


async def fill(daemon, report):
    """As many sequences at once as are computed together, each as long as the context."""
    models = (await daemon.ask("GET", "/v1/models")).json()
    # Nano's context, where the daemon doesn't tell.
    positions = models["data"][0].get("n_positions", 256) if models else 256

    async def one(i):
        body = {"prompt": [(i * 97 + j * 31) % 50000 for j in range(positions - 16)], "max_tokens": 16, "ignore_eos": True}
        try:
            answer = await daemon.ask("POST", COMPLETIONS, body, limit=ANSWER_LIMIT)
            report.check(answer.status == 200, "filling the caches failed", f"{answer.status} {answer.body[:200]!r}")
        except (Cut, OSError, TimeoutError) as e:
            report.fail("filling the caches failed", f"{type(e).__name__}: {e}")

    await asyncio.gather(*(one(i) for i in range(16)))


async def quick(daemon, body, report, expected=None):
    """Seconds that a request takes, and its answer, which must be the expected one."""
    started = now()
    try:
        async with asyncio.timeout(ANSWER_LIMIT):
            connection = await Connection.open(daemon.host, daemon.port)
            try:
                _, answer = await take(connection, body, report, "alone")
            finally:
                connection.close()
    except (Cut, OSError, TimeoutError) as e:
        report.fail("a fresh request was lost", f"{type(e).__name__}: {e}")
        answer = None
    if expected is not None:
        report.check(answer == expected, "a fresh request got another answer", f"{answer!r}, before {expected!r}")
    return now() - started, answer


async def hang_up(daemon, random_, report):
    """One client that leaves. Half of them politely (FIN), half of them not (RST)."""
    when = random_.choices(["without a request", "in the headers", "in the body", "right after the request",
                            "before the first byte", "in the stream", "before a whole answer"],
                           [5, 5, 5, 15, 15, 40, 15])[0]
    report.counts[f"hung up {when}"] += 1
    connection = await Connection.open(daemon.host, daemon.port)
    try:
        data = wire.request("POST", COMPLETIONS, LONG | {"stream": when != "before a whole answer"})
        if when == "without a request":
            return
        if when == "in the headers":
            await connection.send(data[: random_.randrange(1, 60)])
            return
        if when == "in the body":
            await connection.send(data[: len(data) - random_.randrange(1, 100)])
            return
        await connection.send(data)
        if when == "right after the request":
            return
        if when in ("before the first byte", "before a whole answer"):
            await asyncio.sleep(random_.random() * 0.05)
            return
        status, _ = await connection.head()
        if status != 200:
            report.counts[f"refused with {status}"] += 1
            report.check(status == 429, "a request was refused otherwise than by 429", str(status))
            return
        wanted = random_.randrange(0, 40)
        async for event in connection.events():
            wanted -= 1
            if wanted < 0:
                return
            if event == b"[DONE]":
                report.counts["streams that ended first"] += 1
    finally:
        connection.close(reset=random_.random() < 0.5)


# ------------------------------------------------------------------------------------------------------ slow headers

async def slow_headers(daemon_of, sizes, random_, report):
    """Clients that never finish their request, while others want to be answered."""
    daemon = await daemon_of()
    head = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 400 + b"\r\n")
    ended = asyncio.Event()

    async def slow(kind):
        await asyncio.sleep(random_.random())
        try:
            connection = await Connection.open(daemon.host, daemon.port)
        except OSError as e:
            report.fail("the daemon refused a connection", wire.name_of(e))
            return
        started = now()
        body = b'{"prompt": "' + b"a" * 400
        complete = b"\r\n".join([b"POST /v1/completions HTTP/1.1", b"Host: localhost", b"Content-Type: application/json",
                                 b"Content-Length: 2000", b"", b""])
        rest = head
        if kind == "body, a byte a second":
            await connection.send(complete)
            rest = body
        elif kind == "body, stopped":
            await connection.send(complete + body[: random_.randrange(len(body))])
            rest = b""
        elif kind == "headers, stopped":
            await connection.send(head[: random_.randrange(1, len(head))])
            rest = b""
        elif kind == "headers, nothing sent":
            rest = b""
        got = b""
        trickle = asyncio.create_task(one_by_one(connection, rest))
        try:
            async with asyncio.timeout(SLOW_LIMIT + 5):
                # Read to the end: what the daemon says before it closes is told too.
                while piece := await connection.reader.read(65536):
                    got += piece
            ending = "closed"
        except TimeoutError:
            ending = "left open"
        except OSError:
            ending = "reset"
        finally:
            trickle.cancel()
            connection.close()
        seconds = now() - started
        said = got.split(b"\r\n", 1)[0].decode(errors="replace")[:30] or "no answer"
        report.counts[f"{kind}: {ending}, {said}"] += 1
        if ending != "left open":
            report.latencies[f"closed: {kind.partition(',')[0]}"].append(seconds)
        report.check(ending != "left open" and seconds <= SLOW_LIMIT,
                     f"{kind}: not closed within {SLOW_LIMIT} s", f"{ending} after {seconds:.1f} s")
        if said != "no answer":
            report.check(said.split(" ")[1:2] == ["408"], "a slow client got another answer than 408", said)

    async def one_by_one(connection, data):
        for byte in data:
            await asyncio.sleep(1)
            await connection.send(bytes([byte]))

    async def health():
        while not ended.is_set():
            started = now()
            try:
                answer = await daemon.ask("GET", "/health", limit=ANSWER_LIMIT)
                seconds = now() - started
                report.latencies["/health"].append(seconds)
                report.check(answer.status == 200, "/health is not 200", str(answer.status))
                report.check(seconds <= sizes.health_limit, f"/health took longer than {sizes.health_limit * 1000:.0f} ms",
                             f"{seconds * 1000:.0f} ms")
            except (Cut, OSError, TimeoutError) as e:
                report.fail("/health was not answered", f"{type(e).__name__}: {e}")
            await asyncio.sleep(max(0, 0.5 - (now() - started)))

    async def completions():
        body = {"prompt": "Hello.", "max_tokens": 8, "temperature": 0, "return_token_ids": True, "stream": True}
        first = None
        while not ended.is_set():
            _, answer = await quick(daemon, body, report, first)
            first = first or answer
            report.counts["completions beside"] += answer is not None
            await asyncio.sleep(0.5)

    kinds = ["headers, a byte a second", "headers, stopped", "headers, a byte a second", "headers, nothing sent"]
    bodies = ["body, a byte a second", "body, stopped"]
    beside = [asyncio.create_task(health()), asyncio.create_task(completions())]
    say(f"  slow clients: {sizes.slow} headers, {sizes.slow_bodies} bodies, up to {SLOW_LIMIT + 6} s")
    await asyncio.gather(*(slow(kinds[i % len(kinds)]) for i in range(sizes.slow)),
                         *(slow(bodies[i % len(bodies)]) for i in range(sizes.slow_bodies)))
    ended.set()
    await asyncio.gather(*beside)
    await at_rest(daemon, report, answered=report.counts["completions beside"])
    await ended_well(daemon, report)


# ----------------------------------------------------------------------------------------------------------- sigterm

async def sigterm(daemon_of, sizes, random_, report):
    """A signal at a random moment under load: what was accepted is answered whole.

    What is accepted? A request whose answer has begun must be answered to the end. One that was sent well before the
    signal was in the daemon's hands, and must be answered too. One that crossed the signal, or came after it, may meet a
    connection that is closed, or reset because of bytes nobody read: if not one byte of an answer came, its client knows
    that nothing was done and sends it elsewhere. A 503 in the documented form says the same.
    """
    progress = Progress("signals", sizes.sigterms)
    for turn in range(sizes.sigterms):
        progress.step()
        daemon = await daemon_of()
        await one_signal(daemon, random_, report, turn)


async def one_signal(daemon, random_, report, turn):
    signalled = None
    exited = asyncio.Event()

    async def client(i):
        await asyncio.sleep(random_.random() * 0.2)
        connection = None
        while not exited.is_set():
            # A quarter of them ask for much, so that there is something left to finish.
            body = {"prompt": random_.choice(PROMPTS), "max_tokens": 200 if i % 4 == 0 else random_.randrange(1, 40),
                    "ignore_eos": True, "stream": random_.random() < 0.5, "return_token_ids": True}
            sent = None
            try:
                async with asyncio.timeout(ANSWER_LIMIT):
                    # Every third comes with a new connection each time.
                    if connection is not None and (i % 3 == 0 or not connection.reusable):
                        connection.close()
                        connection = None
                    if connection is None:
                        connection = await Connection.open(daemon.host, daemon.port)
                    sent = now()
                    status, answer = await take(connection, body, report, draining=True)
                late = signalled is not None and sent > signalled
                if status == 200 and answer is not None:
                    report.check(len(answer[1]) == body["max_tokens"], "an answer is shorter than it was wanted",
                                 f"{len(answer[1])} of {body['max_tokens']} tokens")
                if status == 503:
                    report.check(late, "503 before the signal")
                report.counts[f"answered {'after' if late else 'before'} the signal: {status}"] += 1
                if signalled is not None and not late:
                    report.counts["in the daemon's hands at the signal, answered whole"] += 1
            except ConnectionRefusedError:
                report.check(signalled is not None, "a connection was refused before the signal")
                report.counts["connections refused after the signal"] += 1
                return
            except TimeoutError:  # Before OSError, of which it is one.
                report.fail("a request was neither answered nor refused", f"turn {turn}")
                return
            except OSError as e:
                # The connection itself did not come about: no request was sent.
                report.check(signalled is not None, "a connection failed before the signal", wire.name_of(e))
                report.counts["connections that failed after the signal"] += 1
                return
            except Cut as e:
                connection.close()
                connection = None
                when = None if signalled is None else sent - signalled
                if e.received > 0:
                    report.fail("an answer was cut", f"turn {turn}: {e}")
                elif when is None or when < -CROSSING:
                    before = "no signal yet" if when is None else f"sent {-when * 1000:.0f} ms before the signal"
                    report.fail("a request that was accepted got no answer", f"turn {turn}: {e}, {before}")
                else:
                    side = "crossed" if when < 0 else "after"
                    report.counts[f"closed without a byte of an answer: {side} the signal"] += 1

    async def refused():
        """New connections are refused as long as the daemon goes on."""
        await asyncio.sleep(REFUSING)
        while not exited.is_set():
            try:
                async with asyncio.timeout(5):
                    connection = await Connection.open(daemon.host, daemon.port)
                report.fail("a new connection was taken after the signal",
                            f"turn {turn}: {now() - signalled:.2f} s after it")
                connection.close()
                return
            except (OSError, TimeoutError):
                report.counts["probes refused while it drained"] += 1
            await asyncio.sleep(0.05)

    clients = [asyncio.create_task(client(i)) for i in range(16)]
    try:
        await asyncio.sleep(0.05 + random_.random() * 1.5)
        report.check(daemon.child.returncode is None, "the daemon ended by itself", f"{daemon.said()}")
        signalled = now()
        daemon.signal(signal.SIGTERM)
        prober = asyncio.create_task(refused())
        code = await daemon.end(DRAIN_LIMIT)
        report.latencies["from the signal to the end"].append(now() - signalled)
        exited.set()
        report.counts[f"exit code {code}"] += 1
        report.check(code == 0, "the daemon did not end with 0",
                     f"turn {turn}: {'not at all' if code is None else code}{daemon.said()}")
        await asyncio.gather(prober, *clients)
    finally:
        for task in clients:
            task.cancel()


# -------------------------------------------------------------------------------------------------------------- main

PARTS = {"requests": requests, "hangups": hangups, "slow-headers": slow_headers, "sigterm": sigterm}
# No part takes longer than this, whatever happens: short, full.
PART_LIMITS = {"requests": (300, 1800), "hangups": (300, 900), "slow-headers": (120, 180), "sigterm": (300, 1800)}


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="soak.py",
        description=__doc__,
        epilog="Each part starts a daemon of its own. Exit codes: 0 all held, 1 something did not hold, 2 usage, "
               "3 environment: the daemon can't be started, 130 interrupted.")
    parser.add_argument("--cpud", type=Path, default=Path("target/release/llorch-cpud"),
                        help="the daemon's program (default: %(default)s)")
    parser.add_argument("--part", action="append", choices=[*PARTS, "all"],
                        help="what to do; may be repeated (default: all)")
    parser.add_argument("--short", action="store_true", help="about a minute, for each change")
    parser.add_argument("--model", default="nano", help="the model that is served (default: %(default)s)")
    parser.add_argument("--serve-option", action="append", default=[], metavar="OPTION",
                        help="another option of `serve`, one word each: --serve-option=--threads --serve-option=2")
    parser.add_argument("--seed", type=int, default=None, help="for all that is random; drawn and told if not given")
    return parser.parse_args(arguments)


async def run_part(name, args, seed):
    report = Report(name)
    limit = PART_LIMITS[name][0 if args.short else 1]
    daemons = []

    async def daemon_of(*options):
        command = [args.cpud, "serve", "--model", args.model, "--host", "127.0.0.1", "--port", "0", "--quiet", *options]
        daemon = Server([*command, *args.serve_option])
        daemons.append(daemon)
        return await daemon.start(START_LIMIT)

    try:
        async with asyncio.timeout(limit) as whole:
            await PARTS[name](daemon_of, Sizes(args.short), random.Random(f"{seed} {name}"), report)
    except (Cut, OSError) as e:
        # TimeoutError is an OSError.
        report.fail(f"the part was not done after {limit} s" if whole.expired() else "the daemon could not be asked",
                    f"{type(e).__name__}: {e}")
    except ServerError:
        # The first start tells about the environment, a later one about the daemon.
        if len(daemons) <= 1:
            raise
        report.fail("the daemon did not start again", str(sys.exc_info()[1]))
    finally:
        for daemon in daemons:
            await daemon.kill()
    return report


async def run(args):
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    chosen = args.part or ["all"]
    names = list(PARTS) if "all" in chosen else [name for name in PARTS if name in chosen]
    print(f"seed {seed}, {'short' if args.short else 'full'}")
    held = True
    for name in names:
        say(name)
        report = await run_part(name, args, seed)
        report.show()
        held = held and not report.failures
    print("\nall held" if held else "\nsomething did not hold")
    return 0 if held else 1


def main():
    args = parse(sys.argv[1:])
    # Whoever ends this ends the servers too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(run(args))
    except ServerError as e:
        print(f"error: {e}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever reads the table has seen enough.
        return 1


if __name__ == "__main__":
    sys.exit(main())
