"""A proxy that understands HTTP and stands before a real S3 server: what becomes of each request is decided by a rule."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

BUSY = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
HTML = b"<html><body>Please accept the conditions of this network</body></html>"
HANG_SECONDS = 300


class Fate(StrEnum):
    PASS = "pass"
    BUSY = "503 SlowDown"
    LOST_ANSWER = "carried out, and the answer is lost"
    CUT = "half of the body arrives, then the connection ends"
    RESET = "the connection is reset before anything is passed on"
    HANG = "taken in whole and never answered"
    SLOW = "the answer comes byte by byte, for ever"
    TRUNCATED = "the answer's body ends in the middle"
    FLIPPED = "one bit of the answer's body is another"
    HTML = "200 and a page of somebody else"


@dataclass(frozen=True)
class Request:
    number: int
    """From 1."""
    method: str
    path: str
    body_bytes: int

    @property
    def is_chunk(self) -> bool:
        return "/chunks/" in self.path


class BadNetwork:
    """`fate(request)` is asked from several threads."""

    def __init__(self, endpoint: str, fate: Callable[[Request], Fate] = lambda request: Fate.PASS) -> None:
        parts = urlsplit(endpoint)
        self._target = (str(parts.hostname), int(parts.port or 0))
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.fate = fate
        self.seen: list[tuple[Request, Fate]] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._server.close()

    def struck(self, fate: Fate) -> list[Request]:
        return [request for request, found in self.seen if found is fate]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            head = _until_empty_line(client)
            lines = head.decode("latin-1").split("\r\n")
            method, path, _ = lines[0].split(" ", 2)
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
            if "100-continue" in headers.get("expect", "").lower():
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = _exactly(client, int(headers.get("content-length", "0")))
            with self._lock:
                request = Request(len(self.seen) + 1, method, path, len(body))
                fate = self.fate(request)
                self.seen.append((request, fate))
            self._meet(client, lines, body, fate)

    def _meet(self, client: socket.socket, lines: list[str], body: bytes, fate: Fate) -> None:
        match fate:
            case Fate.BUSY:
                client.sendall(_answer("503 Slow Down", "application/xml", BUSY))
            case Fate.HTML:
                client.sendall(_answer("200 OK", "text/html", HTML))
            case Fate.HANG:
                self._closed.wait(HANG_SECONDS)
            case Fate.RESET:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            case Fate.CUT:
                self._upstream(lines, body[: len(body) // 2], answered=False)
            case _:
                self._relay(client, self._upstream(lines, body), fate)

    def _relay(self, client: socket.socket, answer: bytes, fate: Fate) -> None:
        head, _, content = answer.partition(b"\r\n\r\n")
        middle = len(content) // 2
        match fate:
            case Fate.LOST_ANSWER:
                return
            case Fate.TRUNCATED:
                content = content[:middle]
            case Fate.FLIPPED if content:
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            case Fate.SLOW:
                for byte in head:
                    client.sendall(bytes([byte]))
                    if self._closed.wait(1.0):
                        return
        client.sendall(head + b"\r\n\r\n" + content)

    def _upstream(self, lines: list[str], body: bytes, *, answered: bool = True) -> bytes:
        """The whole answer. One connection for each request, so that its end is the answer's."""
        kept = [line for line in lines[1:] if line and not line.lower().startswith(("connection:", "expect:"))]
        head = "\r\n".join([lines[0], *kept, "Connection: close", "", ""]).encode("latin-1")
        with socket.create_connection(self._target) as upstream:
            upstream.sendall(head + body)
            if not answered:
                upstream.shutdown(
                    socket.SHUT_WR
                )  # as a client that has died: the server sees the end in the middle of the body
                upstream.settimeout(5)
                with contextlib.suppress(OSError):
                    upstream.recv(1 << 16)
                return b""
            return b"".join(iter(lambda: upstream.recv(1 << 16), b""))


class Storm:
    """Everything is refused for so long after the first request."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = float("inf")

    def __call__(self, request: Request) -> Fate:
        if self._end == float("inf"):
            self._end = time.monotonic() + self._seconds
        return Fate.BUSY if time.monotonic() < self._end else Fate.PASS


def _until_empty_line(client: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\r\n\r\n"):
        piece = client.recv(1)
        if not piece:
            raise ValueError("the client has gone")
        found += piece
    return found[:-4]


def _exactly(client: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = client.recv(min(1 << 16, count - len(found)))
        if not piece:
            raise ValueError("the client has gone")
        found += piece
    return bytes(found)


def _answer(status: str, kind: str, content: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    return head.encode() + content
