"""Processes of the script's beside the one that was started: helpers that write on, and what an earlier life has left running. Linux only (/proc)."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

ENV_KEEPER = "HOLDFAST_DIRECTORY_PID"
"""In the script's environment: who started it."""
GONE_SECONDS = 10.0


def others_of_this_session() -> list[int]:
    """Living processes of this process's session but itself and its ancestors: what the script has forked, unless it is a daemon."""
    own, spared = os.getsid(0), {os.getpid(), os.getppid()}
    found = []
    for pid in _all():
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, session = _stat(pid)
            if session == own and state not in "ZX" and pid not in spared:
                found.append(pid)
    return found


def end_strays(mark: str) -> list[int]:
    """Kills every process that has `mark` in its environment and whose keeper is gone, and waits until they are. Returns their ids.

    Workers of torchrun lead sessions of their own and outlive it: killed with its agent, they would write into what this life restores.
    """
    killed = [pid for pid in _all() if pid != os.getpid() and _is_stray(pid, mark)]
    for pid in killed:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + GONE_SECONDS
    while time.monotonic() < end and any(_is_stray(pid, mark) for pid in killed):
        time.sleep(0.02)
    return killed


def _is_stray(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read().split(b"\0")
        if os.fsencode(mark) not in environment or _stat(pid)[0] in "ZX":
            return False
        prefix = f"{ENV_KEEPER}=".encode()
        keeper = next(int(e[len(prefix) :]) for e in environment if e.startswith(prefix))
    except (
        OSError,
        ValueError,
        StopIteration,
        IndexError,
    ):  # gone, a zombie, a thread of the kernel's, somebody else's
        return False
    return keeper == os.getpid() or not _lives(keeper)


def _lives(pid: int) -> bool:
    try:
        return _stat(pid)[0] not in "ZX"
    except (OSError, ValueError, IndexError):
        return False


def _stat(pid: int) -> tuple[str, int]:
    """State and session. Raises OSError, IndexError, ValueError."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return fields[0].decode(), int(fields[3])


def _all() -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    yield from (int(name) for name in names if name.isdigit())
