"""Watches and ends the training processes (spawning.py) of one attempt, and reaps orphans as PID 1 must. All methods run on the event loop's thread."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from holdfast_agent import standby
from holdfast_agent.spawning import RankSpec, Spawned, spawn

log = logging.getLogger(__name__)
TAIL_BYTES = 2048
"""Of a rank's stderr, kept for the report of a failure."""


@dataclass(eq=False, slots=True)
class Process:
    """A running or ended rank."""

    rank: int
    popen: subprocess.Popen[bytes]
    ended: asyncio.Future[int]
    """Exit status; negative for a signal, as in `subprocess`."""
    tail: deque[bytes] = field(default_factory=deque)
    tail_bytes: int = 0

    def keep(self, data: bytes) -> None:
        self.tail.append(data[-TAIL_BYTES:])
        self.tail_bytes += len(self.tail[-1])
        while self.tail_bytes - len(self.tail[0]) >= TAIL_BYTES:
            self.tail_bytes -= len(self.tail.popleft())

    @property
    def last_words(self) -> str:
        return b"".join(self.tail)[-TAIL_BYTES:].decode(errors="replace").strip()


class Launcher:
    """The children of this process. There is one for the life of the agent: children of an older attempt are its too."""

    def __init__(self, loop: asyncio.AbstractEventLoop, begun: Iterable[Spawned] = ()) -> None:
        """`begun`: processes that run already, or have run (headstart.py); whoever starts one of them gets it."""
        self._loop = loop
        self._processes: dict[int, Process] = {}
        self._standby: dict[int, Process] = {}
        """Local rank -> a process that waits to become it (standby.py)."""
        # All of them before the first is reaped: a child that nobody knows is taken for an orphan.
        self._begun = {s.spec: self._watch(s) for s in begun}
        loop.add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    def start(self, spec: RankSpec, command: tuple[str, ...]) -> Process:
        """As `spawn`."""
        process = self._begun.pop(spec, None) or self._from_standby(spec, command) or self._watch(spawn(spec, command))
        self.reap()  # it may have ended before it was registered
        return process

    def _watch(self, spawned: Spawned) -> Process:
        process = Process(spawned.spec.rank, spawned.popen, self._loop.create_future())
        self._processes[spawned.popen.pid] = process
        self._pass_on(process, spawned.stderr)
        return process

    def prepare(self, local_ranks: Iterable[int], command: tuple[str, ...]) -> None:
        """A process in waiting for each of these, where there is none. One that cannot be had is none: the rank is started as ever."""
        for local_rank in local_ranks:
            before = self._standby.get(local_rank)
            if before is not None and not before.ended.done():
                continue
            try:
                spawned = standby.spawn(command, local_rank)
            except OSError as e:
                log.warning("no training process is prepared: %s", e.strerror)
                return
            if spawned is not None:
                self._standby[local_rank] = self._watch(spawned)
        self.reap()

    def _from_standby(self, spec: RankSpec, command: tuple[str, ...]) -> Process | None:
        self.reap()
        process = self._standby.pop(spec.local_rank, None)
        if process is None or process.ended.done() or not standby.become(process.popen, spec, command):
            return None
        process.rank = spec.rank
        return process

    def kill(self, processes: list[Process]) -> None:
        """SIGKILL to each whole group: nothing of them may write into a slot afterwards."""
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.popen.pid, signal.SIGKILL)

    async def end(self, processes: list[Process]) -> None:
        """Kills and waits until all are reaped; a process in uninterruptible sleep is waited for 10 s."""
        self.kill(processes)
        waiting = [p.ended for p in processes if not p.ended.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=10)

    def reap(self) -> None:
        """Collects every ended child: ranks, and orphans that fell to PID 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self._processes.pop(pid, None)
            if process is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            process.popen.returncode = code
            if not process.ended.done():
                process.ended.set_result(code)

    def _pass_on(self, process: Process, read: int) -> None:
        os.set_blocking(read, False)

        def readable() -> None:
            try:
                data = os.read(read, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(read)
                os.close(read)
                return
            process.keep(data)
            with contextlib.suppress(OSError):
                os.write(2, data)

        self._loop.add_reader(read, readable)
