#!/usr/bin/env python3
"""Load on an OpenAI-compatible completions server: so many clients at once, each sending its next request when its last
is answered, all of them streamed. Every prompt is different from its first token on, so that no server has seen it."""

import argparse
import asyncio
import json
import random
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "soak"))

import wire  # noqa: E402
from wire import Connection, Cut, now  # noqa: E402

# GPT-2's ids without <|endoftext|>, which is the last.
VOCABULARY = 50256
# How long one request may take, and how long all of a `drive`: slow servers are told, not waited for.
REQUEST_LIMIT = 180
DRIVE_LIMIT = 1200


class LoadError(Exception):
    """A server that can't be measured, in one sentence."""


@dataclass
class Prompts:
    """Prompts that never come twice: `seed` and a counter give each."""

    length: int
    seed: int = 0
    given: int = 0

    def next(self):
        self.given += 1
        if self.given > VOCABULARY:
            raise LoadError(f"more than {VOCABULARY} prompts")
        # The first id is the counter, shuffled: no two prompts begin alike.
        first = (self.given * 7919 + self.seed * 104729) % VOCABULARY
        draw = random.Random(f"{self.seed} {self.given}")
        return [first, *(draw.randrange(VOCABULARY) for _ in range(self.length - 1))]


@dataclass
class Measured:
    """What one `drive` saw. Times in seconds."""

    clients: int
    seconds: float = 0.0
    tokens: int = 0
    first_token: list = field(default_factory=list)
    # Of each request: from its first event to its last, by its tokens less one. Servers hold back events while a
    # character is unfinished, so that events can't be counted as tokens.
    per_token: list = field(default_factory=list)
    # Between neighbouring events of one stream.
    gaps: list = field(default_factory=list)
    connections: int = 0

    def summary(self):
        return {
            "clients": self.clients,
            "requests": len(self.first_token),
            "connections": self.connections,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.seconds,
            "first_token_median": statistics.median(self.first_token),
            "first_token_p99": percentile(self.first_token, 99),
            "per_token_median": statistics.median(self.per_token),
            "per_token_p99": percentile(self.per_token, 99),
            "gap_p99": percentile(self.gaps, 99),
        }


def percentile(values, percent):
    """The smallest value that so many percent of them don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


async def drive(host, port, prompts, clients, new_tokens, extra=None, path="/v1/completions"):
    """Sends all prompts from so many clients; each must be answered with `new_tokens` tokens."""
    measured = Measured(clients)
    left = iter(prompts)
    headers = []

    async def client():
        connection = None
        try:
            for ids in left:
                # What llama-server needs so that the work is the same is unknown to others, and ignored by them.
                body = {"prompt": ids, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
                        "stream_options": {"include_usage": True}, **(extra or {})}
                data = wire.request("POST", path, body, headers)
                async with asyncio.timeout(REQUEST_LIMIT):
                    while True:
                        fresh = connection is None or not connection.reusable
                        if fresh:
                            if connection is not None:
                                connection.close()
                            connection = await Connection.open(host, port)
                            measured.connections += 1
                        try:
                            await one(connection, data, new_tokens, measured)
                            break
                        except Cut as e:
                            # A server may close a kept-alive connection at any time between two answers.
                            if fresh or e.received:
                                raise
        except Cut as e:
            raise LoadError(f"a connection broke: {e}") from None
        except TimeoutError:
            raise LoadError(f"no whole answer within {REQUEST_LIMIT} s") from None
        except OSError as e:
            raise LoadError(f"no connection to {host}:{port}: {wire.name_of(e)}") from None
        finally:
            if connection is not None:
                connection.close()

    started = now()
    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        async with asyncio.timeout(DRIVE_LIMIT):
            await asyncio.gather(*tasks)
    except TimeoutError:
        raise LoadError(f"not done after {DRIVE_LIMIT} s") from None
    finally:
        for task in tasks:
            task.cancel()
    measured.seconds = now() - started
    return measured


async def one(connection, data, new_tokens, measured):
    sent = now()
    await connection.send(data)
    status, _ = await connection.head()
    if status != 200:
        body = b"".join([piece async for piece in connection.pieces()])
        raise LoadError(f"answered {status}: {body[:300].decode(errors='replace')}")
    first = last = None
    tokens = None
    gaps = []
    async for event in connection.events():
        moment = now()
        if event == b"[DONE]":
            continue
        try:
            value = json.loads(event)
        except ValueError:
            raise LoadError(f"an event that is no JSON: {event[:200]!r}") from None
        if "error" in value:
            raise LoadError(f"an error in the stream: {event[:300].decode(errors='replace')}")
        usage = value.get("usage")
        if usage:
            tokens = usage.get("completion_tokens")
        choices = value.get("choices")
        # The event with the finish_reason is no token's.
        if choices and choices[0].get("finish_reason") is None:
            if first is None:
                first = moment
            else:
                gaps.append(moment - last)
            last = moment
    if tokens != new_tokens:
        raise LoadError(f"{tokens} tokens were generated instead of {new_tokens}")
    if first is None:
        raise LoadError("a stream without text")
    measured.tokens += tokens
    measured.first_token.append(first - sent)
    measured.per_token.append((last - first) / max(1, tokens - 1))
    measured.gaps += gaps or [0.0]


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="load.py", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Exit codes: 0 measured, 2 usage, 3 the server can't be measured, 130 interrupted.")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the server is")
    parser.add_argument("--clients", type=positive, default=16, help="clients at once")
    parser.add_argument("--requests", type=positive, default=32, help="requests in all")
    parser.add_argument("--prompt-tokens", type=positive, default=32, help="tokens of each prompt")
    parser.add_argument("--new-tokens", type=positive, default=64, help="tokens that each answer has")
    parser.add_argument("--seed", type=int, default=0, help="which prompts")
    return parser.parse_args(arguments)


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return number


def main():
    args = parse(sys.argv[1:])
    try:
        url = urlsplit(args.url)
        host, port = url.hostname, url.port or 80
    except ValueError:
        host = None
    if not host or url.scheme != "http":
        print(f"error: {args.url} is no http address", file=sys.stderr)
        return 2
    prompts = Prompts(args.prompt_tokens, args.seed)
    try:
        measured = asyncio.run(drive(host, port, [prompts.next() for _ in range(args.requests)], args.clients,
                                     args.new_tokens))
    except LoadError as e:
        print(f"error: {e}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
    print(json.dumps(measured.summary(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
