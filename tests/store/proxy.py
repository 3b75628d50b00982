"""A TCP proxy for tests: shows what a client sends, and cuts, hangs, slows or refuses what it is told to."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class Proxy:
    """Stands before `endpoint`. `cut_after`: close both sides after so many bytes from the client; None lets all pass.

    `swallow_answers`: the request arrives, the answer is thrown away and the connection closed. `hangs` and `refuses` are asked with the number of each
    PUT (from 1): it is never read to its end and never answered, the connection stays; or it is read and answered with 503 SlowDown.
    """

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._target = (str(parts.hostname), int(parts.port or 0))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.cut_after: int | None = None
        self.swallow_answers = 0
        self.silent_connections = 0
        """So many of the next connections are accepted and never answered: a server that hangs, or a firewall that drops."""
        self.pause_after: int | None = None
        """A connection falls silent after so many bytes from the server, once; it stays open."""
        self.bytes_per_second: float | None = None
        """What all clients together may send; None lets everything pass at once."""
        self._link = threading.Lock()
        self.accepted = 0
        self._held: list[socket.socket] = []
        self.hangs: Callable[[int], bool] = lambda number: False
        self.refuses: Callable[[int], bool] = lambda number: False
        self.puts = 0
        self.hung = threading.Semaphore(0)
        """Released once for each request that hangs."""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.heads: list[bytes] = []
        """The first piece of each thing that a client has sent: request line and headers."""
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._closed.set()
        self._server.close()
        for held in self._held:
            held.close()

    def requests(self, method: str) -> list[bytes]:
        return [head for head in self.heads if head.startswith(method.encode() + b" ")]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.accepted += 1
            if self.silent_connections > 0:
                self.silent_connections -= 1
                self._held.append(client)
                continue
            upstream = socket.create_connection(self._target)
            for a, b, forward in ((client, upstream, True), (upstream, client, False)):
                threading.Thread(target=self._pump, args=(a, b, forward), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, forward: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(4096 if self.bytes_per_second else 65536):
                if forward and data.split(b" ", 1)[0] in (b"PUT", b"GET", b"POST", b"HEAD", b"DELETE"):
                    self.heads.append(data.split(b"\r\n\r\n")[0])
                    if data.startswith(b"PUT ") and self._taken_over(source, data):
                        continue
                if forward and self.cut_after is not None and passed + len(data) > self.cut_after:
                    sink.sendall(data[: self.cut_after - passed])
                    break
                if not forward and self.swallow_answers:
                    self.swallow_answers -= 1
                    break
                if not forward and self.pause_after is not None and passed + len(data) > self.pause_after:
                    self.pause_after = None
                    self._held += [source, sink]
                    return
                if forward and self.bytes_per_second:
                    with self._link:
                        time.sleep(len(data) / self.bytes_per_second)
                sink.sendall(data)
                passed += len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _taken_over(self, client: socket.socket, data: bytes) -> bool:
        """A PUT that the server never sees."""
        with self._lock:
            self.puts += 1
            number = self.puts
        if self.hangs(number):
            self.hung.release()
            client.settimeout(0.1)
            while not self._closed.is_set():
                # As a machine that is gone: nothing is read, nothing said. Only the client's own end is noticed.
                with contextlib.suppress(TimeoutError):
                    if not client.recv(1, socket.MSG_PEEK):
                        break
                time.sleep(0.05)
            raise OSError("ordered fault")
        if not self.refuses(number):
            return False
        head, _, body = data.partition(b"\r\n\r\n")
        left = int(re.search(rb"content-length: *(\d+)", head.lower())[1]) - len(body)
        while left > 0 and (more := client.recv(min(left, 1 << 20))):
            left -= len(more)
        client.sendall(
            b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(SLOW_DOWN)
        )
        client.sendall(SLOW_DOWN)
        return True
