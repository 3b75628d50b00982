"""Starts and ends the training processes of one attempt, as torchrun would, and reaps orphans as PID 1 must.

Each rank is the leader of its own session: SIGTERM to the container reaches the agent only, ranks and their data-loader workers are shielded (E7), and a
whole group can be killed at once. All methods run on the event loop's thread.
"""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast_api import names
from holdfast_rank import shield

log = logging.getLogger(__name__)
TAIL_BYTES = 2048
"""Of a rank's stderr, kept for the report of a failure."""
SHIELD = shield.__file__


@dataclass(frozen=True, slots=True)
class RankSpec:
    """Where one process stands in the job."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    group_rank: int
    attempt: int
    master_addr: str
    socket: str

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Exactly what torchrun sets, and the two names of ours. `base` has been stripped of the agent's own configuration."""
        return dict(base) | {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_RANK": str(self.group_rank),
            "GROUP_WORLD_SIZE": str(self.world_size // self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(names.rendezvous_port(self.attempt)),
            names.ENV_SOCKET: self.socket,
            names.ENV_ATTEMPT: str(self.attempt),
        }


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

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._processes: dict[int, Process] = {}
        loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def start(self, spec: RankSpec, command: tuple[str, ...], base: Mapping[str, str]) -> Process:
        """Returns at once; a command that cannot be run shows as exit status 126 or 127."""
        read, write = os.pipe()
        try:
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", SHIELD, str(os.getpid()), *command],
                env=spec.environment(base),
                stdin=subprocess.DEVNULL,
                stderr=write,
                start_new_session=True,
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        process = Process(spec.rank, popen, self._loop.create_future())
        self._processes[popen.pid] = process
        self._pass_on(process, read)
        self.reap()  # it may have ended before it was registered
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
