"""The rank's end of the Unix socket (holdfast_api.ranks).

A reader thread, the helper thread of part I, takes every message: gate orders are answered there at once, whatever the main thread is doing
(never through a Python signal handler); answers that the main thread waits for go to a mailbox. When the connection breaks, everyone who waits
is woken; whether that is an error is the caller's decision.
"""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from holdfast_api import ranks
from holdfast_api.errors import ContractError
from holdfast_rank.errors import LinkLost

PASSED_SECONDS = 0.2
"""`Passed` is sent at most this often; the newest value always gets there."""
SEND_SECONDS = 60
"""An agent that takes nothing for this long is taken for dead, so that training never hangs on a socket."""


class AgentLink:
    """One connection. `handle(message)` runs on the reader thread and returns True when it took the message; `lost(reason)` runs once."""

    def __init__(self, path: str, handle: Callable[[ranks.FromAgent], bool], lost: Callable[[str], None]) -> None:
        """Connects. Raises OSError."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        self._handle, self._lost = handle, lost
        self._sending = threading.Lock()
        self._arrived = threading.Condition()
        self._mailbox: deque[ranks.FromAgent] = deque()
        self._broken = ""
        self._closing = False
        self._passed: Callable[[], ranks.Passed] | None = None
        self._passed_at = float("-inf")
        self.tick: Callable[[], None] = lambda: None
        """Runs on the reader thread at least every PASSED_SECONDS."""
        # A forked data-loader worker would keep the connection open after this process has died.
        os.register_at_fork(after_in_child=self._socket.close)
        self._thread = threading.Thread(target=self._read, name="holdfast-agent-link", daemon=True)

    def start(self) -> None:
        """Messages are taken from now on; before it, the receiver may not be complete."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        return not self._broken

    def send(self, message: ranks.FromRank) -> bool:
        """Any thread. False when the link is broken."""
        if self._broken:
            return False
        line = ranks.to_line(message)
        try:
            with self._sending:
                self._socket.sendall(line)
        except OSError as e:
            self._break(f"sending failed: {e}")
            return False
        return True

    def send_passed(self, newest: Callable[[], ranks.Passed], now: float) -> None:
        """Main thread, at every boundary: sent at once if none was lately, else the reader thread asks `newest` within PASSED_SECONDS."""
        if now - self._passed_at >= PASSED_SECONDS:
            self._passed, self._passed_at = None, now
            self.send(newest())
        else:
            self._passed = newest

    def flush_passed(self) -> None:
        """Sends what `send_passed` still holds back."""
        waiting, self._passed = self._passed, None
        if waiting is not None:
            self._passed_at = time.monotonic()
            self.send(waiting())

    def expect(self, *types: type[Any], timeout: float | None = None) -> Any:
        """Main thread: the next message of one of `types`. Raises LinkLost, or TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._arrived:
            while True:
                for message in self._mailbox:
                    if isinstance(message, types):
                        self._mailbox.remove(message)
                        return message
                if self._broken:
                    raise LinkLost(self._broken)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                self._arrived.wait(left)

    def poll(self, *types: type[Any]) -> Any:
        """Main thread: the next message of one of `types` that has come already, or None."""
        with self._arrived:
            for message in self._mailbox:
                if isinstance(message, types):
                    self._mailbox.remove(message)
                    return message
        return None

    def close(self) -> None:
        """Ends the connection on purpose; `lost` is not called."""
        self._closing = True
        self._break("closed")
        self._thread.join(timeout=5)
        self._socket.close()

    def _read(self) -> None:
        try:
            self._read_lines()
        except (OSError, ContractError, ValueError) as e:
            self._break(str(e) or type(e).__name__)

    def _read_lines(self) -> None:
        buffer = bytearray()
        watched = select.poll()  # not select(), which refuses descriptors from 1,024 on: data sets keep many files open
        watched.register(self._socket, select.POLLIN)
        while not self._broken:
            readable = watched.poll(PASSED_SECONDS * 1000)
            self.tick()
            if self._passed is not None and time.monotonic() - self._passed_at >= PASSED_SECONDS:
                self.flush_passed()
            if not readable:
                continue
            data = self._socket.recv(1 << 16)
            if not data:
                self._break("the agent closed the connection")
                return
            buffer += data
            if len(buffer) > ranks.MAX_LINE_BYTES:
                self._break(f"the agent sent a line of more than {ranks.MAX_LINE_BYTES} bytes")
                return
            if b"\n" not in data:  # a plan comes in hundreds of pieces: do not search it again for each
                continue
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                self._take(ranks.from_line(bytes(line)))

    def _take(self, message: Any) -> None:
        if self._handle(message):
            return
        with self._arrived:
            self._mailbox.append(message)
            self._arrived.notify_all()

    def _break(self, reason: str) -> None:
        with self._arrived:
            if self._broken:
                return
            self._broken = reason
            self._arrived.notify_all()
        with contextlib.suppress(OSError):  # closed by the other side already
            self._socket.shutdown(socket.SHUT_RDWR)
        if not self._closing:
            self._lost(reason)
