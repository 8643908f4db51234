"""The loop over requests.

A thread reads stdin, so that a `cancel` is seen while a run is going on. Everything else
happens on the main thread, one request after another.
"""

import json
import queue
import sys
import threading
import time
import traceback

from . import requests, stdio
from .adapter import PROTOCOL_VERSION
from .draws import execute_draw
from .errors import InputError, UnsupportedError, classify
from .run import execute

_END = object()


def serve(adapter):
    """Answers requests until stdin ends; returns the exit code."""
    incoming, outgoing = stdio.guard()
    return Server(adapter, outgoing).run(incoming)


class Server:
    def __init__(self, adapter, outgoing):
        self._adapter = adapter
        self._outgoing = outgoing
        self._inbox = queue.Queue()
        self._cancelled = set()  # ids, added by the reader and taken away by the main thread
        self._handlers = {
            "hello": self._hello,
            "load": self._load,
            "tokenize": self._tokenize,
            "run": self._run,
            "draw": self._draw,
            "cancel": self._cancel,
        }

    def run(self, incoming):
        threading.Thread(target=self._read, args=(incoming,), daemon=True).start()
        try:
            while (item := self._inbox.get()) is not _END:
                self._answer(item)
        except BrokenPipeError:
            # Nobody listens any more.
            return 0
        except KeyboardInterrupt:
            return 130
        return 0

    def _read(self, incoming):
        for line in incoming:
            if not line.strip():
                continue
            try:
                item = parse(line)
                if item.get("type") == "cancel" and isinstance(item.get("id"), str):
                    self._cancelled.add(item["id"])
            except InputError as error:
                item = error
            self._inbox.put(item)
        self._inbox.put(_END)

    def _answer(self, item):
        message_id = item.get("id") if isinstance(item, dict) else None
        message_id = message_id if isinstance(message_id, str) else None
        try:
            if isinstance(item, InputError):
                raise item
            kind = item.get("type")
            handler = self._handlers.get(kind) if isinstance(kind, str) else None
            if handler is None:
                raise UnsupportedError(f"unknown message type {kind!r}")
            reply = handler(item)
        except BrokenPipeError:
            raise
        except Exception as error:  # an adapter goes on whatever a request has done to it
            traceback.print_exc(file=sys.stderr)
            kind, text = classify(error)
            reply = {"type": "error", "id": message_id, "class": kind, "message": text}
        if reply is not None:
            self.send(reply)

    def send(self, message):
        # ASCII only: a text may hold what UTF-8 can't encode.
        self._outgoing.write(json.dumps(message, allow_nan=False).encode("ascii") + b"\n")
        self._outgoing.flush()

    def _hello(self, message):
        asked = message.get("protocol", PROTOCOL_VERSION)
        if asked != PROTOCOL_VERSION:
            raise UnsupportedError(f"protocol {asked!r} isn't spoken here, {PROTOCOL_VERSION} is")
        return self._adapter.hello()

    def _load(self, message):
        self._adapter.dims = None  # until the new model is there, there is none
        request = requests.parse_load(message)
        started = time.perf_counter()
        self._adapter.load(request.model_dir.absolute(), request.dtype, request.threads)
        seconds = time.perf_counter() - started
        return {"type": "loaded", "seconds": seconds, "dtype": self._adapter.computes()}

    def _tokenize(self, message):
        text = message.get("text")
        if not isinstance(text, str):
            raise InputError(f"`text` is {text!r}, expected a string")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"`text` isn't valid Unicode: {error.reason}") from error
        reply_id = requests.request_id(message)
        self._need_model()
        return {"type": "tokens", "id": reply_id, "ids": self._adapter.tokenize(text)}

    def _run(self, message):
        requests.request_id(message)
        self._need_model()
        request = requests.parse_run(message, self._adapter.dims)
        self._adapter.check(request)
        return execute(self._adapter, request, self.send, lambda: request.id in self._cancelled)

    def _draw(self, message):
        requests.request_id(message)
        self._need_model()
        return execute_draw(self._adapter, requests.parse_draw(message), self.send)

    def _cancel(self, message):
        # The reader has already marked it. By now the run has ended, one way or the other.
        self._cancelled.discard(requests.request_id(message))

    def _need_model(self):
        if self._adapter.dims is None:
            raise InputError("no model is loaded")


def parse(line):
    """One line of the protocol as an object."""
    try:
        message = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"bad JSON: {error}") from error
    if not isinstance(message, dict):
        raise InputError(f"bad message: expected an object, found {type(message).__name__}")
    return message


def _no_constant(name):
    raise ValueError(f"{name} isn't JSON")
