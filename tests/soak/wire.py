"""What the programs here and in benches/serve share: HTTP/1.1 over asyncio, as bare as it can be so that every byte and
every end of a connection can be told apart, and a server process that is started, looked at and stopped."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import tempfile
import time
from pathlib import Path

# Heads and lines of events are far shorter; this only bounds what a broken server can make us hold.
LONGEST_LINE = 1 << 22


class Cut(Exception):
    """The connection ended, or made no sense, before the answer was whole. `received` bytes of it had come."""

    def __init__(self, what, received):
        super().__init__(f"{what} after {received} bytes of the answer")
        self.received = received


class ServerError(Exception):
    """A server that can't be started, in one sentence."""


def request(method, path, body=None, headers=()):
    """The bytes of a request; a body that isn't bytes is sent as JSON."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
        if not any(name.lower() == "content-type" for name, _ in headers):
            lines.append("Content-Type: application/json")
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class Answer:
    def __init__(self, status, headers, body=b""):
        self.status = status
        self.headers = headers
        self.body = body

    def json(self):
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def error(self):
        """The error of the documented form that this is; None where it isn't in that form."""
        body = self.json()
        error = body.get("error") if isinstance(body, dict) else None
        if not isinstance(error, dict) or set(error) < {"message", "type", "param", "code"}:
            return None
        if not (isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str)):
            return None
        return error


class Connection:
    """One connection. Whoever waits on it sets the limit, by `asyncio.timeout`."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer
        self.received = 0
        # Whether another request may follow the answer that was read last.
        self.reusable = False

    @classmethod
    async def open(cls, host, port):
        return cls(*await asyncio.open_connection(host, port, limit=LONGEST_LINE))

    def close(self, reset=False):
        """Closes at once: what is unsent is dropped. `reset` sends RST in place of FIN."""
        self.reusable = False
        if reset:
            # Without lingering, the kernel sends RST in place of FIN.
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def send(self, data):
        self.received = 0
        self.reusable = False
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError:
            # How the connection ended, and what came before that, is told to whoever reads.
            pass

    async def head(self):
        """Status and headers, names in lower case."""
        line = await self._line()
        parts = line.split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            raise Cut(f"no status line but {line[:60]!r}", self.received)
        headers = {}
        while line := await self._line():
            name, _, value = line.partition(b":")
            headers[name.decode("latin-1").strip().lower()] = value.decode("latin-1").strip()
        self._headers = headers
        return int(parts[1]), headers

    async def pieces(self):
        """The body of the answer whose head was read, as it comes."""
        headers = self._headers
        if "chunked" in headers.get("transfer-encoding", ""):
            while True:
                line = await self._line()
                try:
                    size = int(line.split(b";")[0], 16)
                except ValueError:
                    raise Cut(f"no length of a chunk but {line[:60]!r}", self.received) from None
                data = await self._exactly(size + 2)
                if size == 0:
                    break
                yield data[:-2]
        elif "content-length" in headers:
            yield await self._exactly(int(headers["content-length"]))
        else:
            # Nothing says how long it is, so that a cut can't be told from the end.
            raise Cut("an answer without a length", self.received)
        self.reusable = headers.get("connection", "").lower() != "close"

    async def events(self):
        """The data of the server-sent events of a body."""
        rest = b""
        async for piece in self.pieces():
            # Servers differ in the end of line, never inside of JSON.
            *events, rest = (rest + piece.replace(b"\r\n", b"\n")).split(b"\n\n")
            for event in events:
                lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
                if lines:
                    yield b"\n".join(lines)

    async def answer(self):
        """Head and body."""
        status, headers = await self.head()
        body = b"".join([piece async for piece in self.pieces()])
        return Answer(status, headers, body)

    async def ask(self, method, path, body=None, headers=()):
        await self.send(request(method, path, body, headers))
        return await self.answer()

    async def _line(self):
        try:
            line = await self.reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as e:
            self.received += len(e.partial)
            raise Cut("closed", self.received) from None
        except asyncio.LimitOverrunError:
            raise Cut("a line without an end", self.received) from None
        except OSError as e:
            raise Cut(name_of(e), self.received) from None
        self.received += len(line)
        return line.rstrip(b"\r\n")

    async def _exactly(self, count):
        try:
            data = await self.reader.readexactly(count)
        except asyncio.IncompleteReadError as e:
            self.received += len(e.partial)
            raise Cut("closed", self.received) from None
        except OSError as e:
            raise Cut(name_of(e), self.received) from None
        self.received += len(data)
        return data


def name_of(error):
    """What happened to a connection, in a word or two."""
    if isinstance(error, ConnectionResetError):
        return "reset"
    if isinstance(error, BrokenPipeError):
        return "broken pipe"
    # Not strerror: asyncio puts the address into it.
    return os.strerror(error.errno) if error.errno else type(error).__name__


class Server:
    """A server process: llorch-cpud says where it listens, others are told."""

    def __init__(self, command, host="127.0.0.1", port=None):
        self.command = [str(part) for part in command]
        self.host = host
        self.port = port
        self.child = None
        self.log = None

    async def start(self, limit):
        """Starts it and waits until /health says 200."""
        # Files, not pipes: nobody has to read them for the server to go on.
        self.log = tempfile.TemporaryFile()
        given_port = self.port is not None
        out = self.log if given_port else asyncio.subprocess.PIPE
        try:
            self.child = await asyncio.create_subprocess_exec(
                *self.command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=self.log)
        except OSError as e:
            raise ServerError(f"{self.command[0]} can't be started: {e.strerror}") from None
        try:
            async with asyncio.timeout(limit):
                if not given_port:
                    self.port = await self._listening()
                await self._healthy()
        except TimeoutError:
            await self.kill()
            raise ServerError(f"{self.command[0]} was not ready after {limit} s{self.said()}") from None
        except BaseException:
            await self.kill()
            raise
        return self

    async def _listening(self):
        line = (await self.child.stdout.readline()).decode(errors="replace").strip()
        start = "listening on http://"
        port = line.rpartition(":")[2].rstrip("/")
        if not line.startswith(start) or not port.isdigit():
            await self.kill()
            said = f"but {line!r}" if line else "before it ended"
            raise ServerError(f"{self.command[0]} did not say where it listens {said}{self.said()}")
        return int(port)

    async def _healthy(self):
        while True:
            if self.child.returncode is not None:
                raise ServerError(f"{self.command[0]} ended with {self.child.returncode}{self.said()}")
            try:
                if (await self.ask("GET", "/health")).status == 200:
                    return
            except (OSError, Cut):
                pass
            await asyncio.sleep(0.05)

    async def ask(self, method, path, body=None, headers=(), limit=30):
        """One request on a connection of its own."""
        async with asyncio.timeout(limit):
            connection = await Connection.open(self.host, self.port)
            try:
                return await connection.ask(method, path, body, [*headers, ("Connection", "close")])
            finally:
                connection.close()

    def signal(self, number):
        # Not send_signal, which would reap a child that has just ended, so that its exit code is lost to asyncio.
        with contextlib.suppress(ProcessLookupError):
            if self.child.returncode is None:
                os.kill(self.child.pid, number)

    async def end(self, limit):
        """Waits for its end; its exit code, or None if it had to be killed after `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                return await self.child.wait()
        except TimeoutError:
            await self.kill()
            return None

    async def stop(self, limit=70):
        self.signal(signal.SIGTERM)
        return await self.end(limit)

    async def kill(self):
        if self.child is not None and self.child.returncode is None:
            self.signal(signal.SIGKILL)
            await self.child.wait()

    def said(self):
        """The last lines of its output, for an error message."""
        try:
            self.log.seek(0)
            lines = self.log.read().decode(errors="replace").strip().splitlines()[-8:]
        except (OSError, ValueError):
            lines = []
        return "".join(f"\n  | {line}" for line in lines)

    def resident(self):
        """Bytes of memory that it has resident; None where the system doesn't tell."""
        try:
            status = Path(f"/proc/{self.child.pid}/status").read_text()
        except OSError:
            return None
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return None

    def descriptors(self):
        try:
            return len(os.listdir(f"/proc/{self.child.pid}/fd"))
        except OSError:
            return None

    def processor_seconds(self):
        try:
            # After the name in brackets, which may hold spaces: state is field 3, utime 14, stime 15.
            fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def metrics(server):
    """`/metrics` as a dict from a sample's name and labels, as they stand there, to its value."""
    answer = await server.ask("GET", "/metrics")
    if answer.status != 200:
        raise Cut(f"/metrics says {answer.status}", len(answer.body))
    found = {}
    for line in answer.body.decode(errors="replace").splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            try:
                found[name] = float(value)
            except ValueError:
                raise Cut(f"/metrics has a line that is no sample: {line[:80]!r}", len(answer.body)) from None
    return found


def free_port(host="127.0.0.1"):
    """A port that is free at this moment, for servers that can't say which one they took."""
    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def now():
    return time.monotonic()
