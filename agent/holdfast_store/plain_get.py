"""GET over plain HTTP/1.1 straight into the caller's memory: one system call from the socket to the arena, no copy in between.

On an endpoint without TLS this is two to three times as fast as a general client and costs a third of the CPU (docs/decisions/0006). It is kept small by
knowing one answer: status 200 with one Content-Length that is what was asked for. A refusal (4xx, 5xx) is handed back with its body. Everything else is
`Unusual`: the caller asks again through the general client, which says what it means.
"""

import contextlib
import re
import select
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from holdfast_store.patience import Limits

_HEAD_BYTES = 64 << 10
_BODY_BYTES = 64 << 10
"""Of a refusal."""
_IDLE_SECONDS = 15.0
"""A connection that was not used for longer is not trusted: servers and load balancers close them without a word."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})(?: [^\r\n]*)?\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*\Z")


class Unusual(Exception):
    """The answer is none that this client reads. Nothing may be concluded from it."""


class Stalled(Exception):
    """A limit was met: no byte for too long, or not all of them in time."""


class Broken(Exception):
    """The connection could not be made, or ended before the answer did."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of status 400 or more."""

    status: int
    body: bytes


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    used_at: float
    fresh: bool = True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()

    @property
    def usable(self) -> bool:
        """Nothing waits to be read: neither an end nor bytes that belong to no request."""
        if time.monotonic() - self.used_at > _IDLE_SECONDS:
            return False
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)


class PlainGet:
    """Requests to one host. Thread-safe: each thread has a connection of its own, which it keeps."""

    def __init__(self, host: str, port: int, *, connect_seconds: float) -> None:
        self._place = (host, port)
        self._connect_seconds = connect_seconds
        self._own = threading.local()

    def fill(self, target: str, headers: Mapping[str, str], view: memoryview, limits: Limits) -> Refusal | None:
        """Fills `view` with the body at `target` (the request line's path), which must have exactly this length, or returns why not.

        Raises Unusual, Stalled or Broken; then `view` may hold anything, and the next try begins on a new connection.
        """
        end = time.monotonic() + limits.whole_seconds
        request = _request(target, headers)
        connection = self._take(limits)
        try:
            try:
                head, rest = self._ask(connection, request, limits, end)
            except Broken:
                if connection.fresh:
                    raise
                # The server closed the kept connection while the request was on its way: the usual race of HTTP, and a GET may be repeated.
                connection.close()
                connection = self._connect(limits)
                head, rest = self._ask(connection, request, limits, end)
            answer = _read_head(head)
            refusal = self._body(connection, answer, rest, view, limits, end)
        except BaseException:
            connection.close()
            raise
        if refusal is None and answer.keep:
            connection.fresh, connection.used_at = False, time.monotonic()
            self._own.connection = connection
        else:
            connection.close()
        return refusal

    def forget(self) -> None:
        """Closes the connection that this thread keeps. One that was answered once too often gives every later request the answer of the one before, and
        where all objects have one length nothing but their content shows it."""
        kept: _Connection | None = getattr(self._own, "connection", None)
        self._own.connection = None
        if kept is not None:
            kept.close()

    def _take(self, limits: Limits) -> _Connection:
        kept: _Connection | None = getattr(self._own, "connection", None)
        self._own.connection = None
        if kept is not None:
            if kept.usable:
                return kept
            kept.close()
        return self._connect(limits)

    def _connect(self, limits: Limits) -> _Connection:
        try:
            made = socket.create_connection(self._place, timeout=min(self._connect_seconds, limits.whole_seconds))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as e:
            raise Broken(f"no connection: {e.strerror or e}") from e
        return _Connection(made, time.monotonic())

    def _ask(self, connection: _Connection, request: bytes, limits: Limits, end: float) -> tuple[bytes, bytes]:
        """The head of the answer, and what has come of the body with it."""
        try:
            connection.socket.settimeout(limits.silent_seconds)
            connection.socket.sendall(request)
        except TimeoutError as e:
            raise Stalled("the request could not be sent") from e
        except OSError as e:
            raise Broken(str(e.strerror or e)) from e
        data = bytearray(_HEAD_BYTES)
        view, done, found = memoryview(data), 0, -1
        while found < 0:
            if done == len(data):
                raise Unusual("the head of the answer is too long")
            done += _receive(connection.socket, view[done:], limits, end, f"{done} bytes of the head")
            found = data.find(b"\r\n\r\n", 0, done)
        return bytes(view[:found]), bytes(view[found + 4 : done])

    def _body(
        self, connection: _Connection, answer: "_Head", rest: bytes, view: memoryview, limits: Limits, end: float
    ) -> Refusal | None:
        if answer.status == 200:
            if answer.length != view.nbytes or len(rest) > view.nbytes:
                raise Unusual(f"{answer.length} bytes where {view.nbytes} were expected")
            _receive_all(connection.socket, rest, view, limits, end)
            return None
        if answer.status < 400 or answer.length is None or answer.length > _BODY_BYTES or len(rest) > answer.length:
            raise Unusual(f"status {answer.status}")
        body = bytearray(answer.length)
        _receive_all(connection.socket, rest, memoryview(body), limits, end)
        return Refusal(answer.status, bytes(body))


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    length: int | None
    keep: bool


def _request(target: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a line of the request holds a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _read_head(head: bytes) -> _Head:
    """Raises Unusual for everything that leaves a doubt about where the body ends or what it is."""
    first, *lines = head.split(b"\r\n")
    status = _STATUS.match(first)
    if not status:
        raise Unusual("no status line of HTTP/1.1")
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        field = _FIELD.match(line)
        if not field:
            raise Unusual("a header that cannot be read")
        fields.setdefault(field[1].lower(), []).append(field[2])
    if b"transfer-encoding" in fields or fields.get(b"content-encoding", [b"identity"]) != [b"identity"]:
        raise Unusual("an encoded body")
    length = fields.get(b"content-length", [])
    if len(length) > 1 or (length and not re.fullmatch(rb"\d{1,18}", length[0])):
        raise Unusual("a length that cannot be read")
    keep = b"close" not in b",".join(fields.get(b"connection", [])).lower()
    return _Head(int(status[1]), int(length[0]) if length else None, keep)


def _receive_all(source: socket.socket, first: bytes, view: memoryview, limits: Limits, end: float) -> None:
    done = len(first)
    view[:done] = first
    while done < view.nbytes:
        done += _receive(source, view[done:], limits, end, f"{done} of {view.nbytes} bytes")


def _receive(source: socket.socket, view: memoryview, limits: Limits, end: float, so_far: str) -> int:
    """At least one byte."""
    left = end - time.monotonic()
    try:
        source.settimeout(max(0.001, min(limits.silent_seconds, left)))
        got = source.recv_into(view)
    except TimeoutError as e:
        if left < limits.silent_seconds:
            raise Stalled(f"after {limits.whole_seconds:.1f} s there were {so_far}") from e
        raise Stalled(f"not a byte for {limits.silent_seconds:.1f} s after {so_far}") from e
    except OSError as e:
        raise Broken(f"{e.strerror or e} after {so_far}") from e
    if not got:
        raise Broken(f"the answer ended after {so_far}")
    if left <= 0:
        raise Stalled(f"after {limits.whole_seconds:.1f} s there were {so_far}")
    return got
