"""The Unix socket on which the training processes talk to the agent (holdfast_api.ranks). Transport and admission only; what a message means is attempt.py's.

Agent and training code are one trust domain (H3), but a broken script must not take the agent down with it: a line that is malformed, too long, out of
order or of another attempt closes that connection with a logged reason and nothing else (S27).
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable
from typing import Protocol, get_args

from holdfast_agent.errors import ProtocolBroken
from holdfast_agent.rank_socket import Listening
from holdfast_api import ranks as wire
from holdfast_api.errors import ContractError

log = logging.getLogger(__name__)
MAX_CONNECTIONS = 1024
HELLO_SECONDS = 30
"""A connection that says nothing is closed."""
MAX_UNSENT_BYTES = 64 << 20
"""A rank that does not read is given up rather than remembered without bound."""
_FROM_RANK = get_args(wire.FromRank)


class RankLink:
    """One rank's connection after its Hello."""

    def __init__(self, hello: wire.Hello, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self._writer = writer

    @property
    def rank(self) -> int:
        return self.hello.rank

    @property
    def open(self) -> bool:
        return not self._writer.is_closing()

    def send(self, message: wire.FromAgent) -> None:
        """Never blocks, never raises: a rank that is gone is found out by its reader."""
        if self._writer.is_closing():
            return
        self._writer.write(wire.to_line(message))
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.warning("rank %d does not read what it is told; its connection is closed", self.rank)
            self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


class Listener(Protocol):
    """Who gets what the ranks say. Called on the event loop's thread, in order per rank."""

    def admit(self, hello: wire.Hello) -> str:
        """Why this rank may not join, or ""."""

    def joined(self, link: RankLink) -> None: ...

    def said(self, link: RankLink, message: wire.FromRank) -> Awaitable[None] | None:
        """May raise ProtocolBroken."""

    def left(self, link: RankLink) -> None: ...


class RankServer:
    """Serves the socket from `start` to `close`."""

    def __init__(self, listening: Listening, listener: Listener) -> None:
        self.path = listening.path
        self._socket = listening.socket
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, sock=self._socket, limit=wire.MAX_LINE_BYTES)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        for left in self.path.parent.glob(f"{self.path.name}.stacks-*"):
            left.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS and _same_user(writer):
                await self._serve(reader, writer)
        except (ProtocolBroken, ContractError, ValueError, asyncio.LimitOverrunError) as e:
            log.warning("a connection of a training process is closed: %s", str(e)[:500])
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as e:
            log.debug("a connection of a training process ended: %s", e)
        finally:
            self._open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HELLO_SECONDS):
            line = await _line(reader)
        first = wire.from_line(line)
        if not isinstance(first, wire.Hello):
            raise ProtocolBroken(f"the first line is {type(first).__name__}, not Hello")
        link = RankLink(first, writer)
        if reason := self._listener.admit(first):
            link.send(wire.Refused(reason))
            await writer.drain()
            raise ProtocolBroken(reason)
        self._listener.joined(link)
        try:
            while line := await _line(reader):
                message = wire.from_line(line)
                if not isinstance(message, _FROM_RANK) or isinstance(message, wire.Hello):
                    raise ProtocolBroken(f"rank {link.rank} sent {type(message).__name__}, which it must not")
                answer = self._listener.said(link, message)
                if answer is not None:
                    await answer
        finally:
            writer.close()
            self._listener.left(link)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """One line with its newline; empty at the end. An end without a newline is a torn message: it is dropped."""
    line = await reader.readline()
    return line if line.endswith(b"\n") else b""


def _same_user(writer: asyncio.StreamWriter) -> bool:
    """The file's mode says so already; on Linux the kernel is asked as well."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid = struct.unpack("3i", raw)[1]
    return uid in (os.getuid(), 0)
