"""Forks training processes that have torch imported: `python -m tests.matrix.server SOCKET`. One thread, nothing of torch has run yet when it forks.

Each has its own session, as a training process of the agent has, and dies with whoever asked for it (stub.py) or with this server.
"""

import ctypes
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Request:
    arguments: list[str]
    environment: dict[str, str]
    agent: int
    """Its process."""


class Server:
    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._asking: dict[int, socket.socket | None] = {}
        """By process; None once who asked is gone."""
        self._wake, waker = os.pipe()
        self._waker = waker
        os.set_blocking(waker, False)
        os.set_blocking(self._wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)

    def serve(self) -> Request:
        """Returns in the children only."""
        while True:
            asking = [s for s in self._asking.values() if s is not None]
            ready, _, _ = select.select([self._listener, self._wake, *asking], [], [])
            for file in ready:
                if file is self._listener:
                    if (request := self._accept()) is not None:
                        return request
                elif file == self._wake:
                    with suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                else:
                    self._gone(file)
            self._reap()

    def _accept(self) -> Request | None:
        asking, _ = self._listener.accept()
        try:
            request, files = _read(asking)
        except (OSError, ValueError):
            asking.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._become(asking, files)
            return request
        for file in files:
            os.close(file)
        self._asking[pid] = asking
        return None

    def _become(self, asking: socket.socket, files: list[int]) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for target, file in zip((1, 2), files, strict=True):
            os.dup2(file, target)
            os.close(file)
        for known in (asking, self._listener, *self._asking.values()):
            if known is not None:
                known.close()
        os.close(self._wake)
        os.close(self._waker)

    def _gone(self, asking: socket.socket) -> None:
        """Who asked for it has been killed: so is all of its session. It is reaped as any other."""
        for pid, known in self._asking.items():
            if known is asking:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                asking.close()
                self._asking[pid] = None
                return

    def _reap(self) -> None:
        while self._asking:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # loader workers that outlive it, as the agent does it
            asking = self._asking.pop(pid)
            if asking is not None:
                with suppress(OSError):
                    asking.sendall(str(os.waitstatus_to_exitcode(ended)).encode())
                asking.close()


def _read(asking: socket.socket) -> tuple[Request, list[int]]:
    head, files, _, _ = socket.recv_fds(asking, 8, 2)
    if len(files) != 2:
        raise ValueError("stdout and stderr are wanted")
    wanted, data = int.from_bytes(head, "big"), b""
    while len(data) < wanted:
        piece = asking.recv(wanted - len(data))
        if not piece:
            raise ValueError("the request was cut short")
        data += piece
    found: dict[str, Any] = json.loads(data)
    return Request(**found), files


def main() -> None:
    server = Server(sys.argv[1])
    # What a first step would import otherwise: seconds for each process.
    import numpy  # noqa: F401
    import torch
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.optim
    import torch.utils.checkpoint

    torch.set_num_threads(1)
    from tests.matrix import loop

    print("ready", flush=True)
    request = server.serve()
    os.environ.clear()
    os.environ.update(request.environment)
    loop.main(request.arguments, request.agent)


if __name__ == "__main__":
    main()
