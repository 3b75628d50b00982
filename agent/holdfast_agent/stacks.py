"""What the threads of a training process, and of the processes that it has forked, are doing: asked for by the signal that the library has set up
(holdfast_rank.stacks), and seen from /proc. Blocking; on a worker thread.

A signal that a process does not catch would end it, so the kernel is asked first. A process that is stopped gets none: it would die or answer whenever it
is continued.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

ANSWER_SECONDS = 3.0
SETTLED_SECONDS = 0.15
"""A dump that has not grown for so long is whole."""
MAX_BYTES = 64 << 10
MAX_CHILDREN = 4
CHILD_SECONDS = 5.0
"""A younger child may be between fork and exec: what it catches now it may not catch when the signal arrives."""
PROC = Path("/proc")


def state_of(pid: int) -> str:
    """Of its main thread: one letter of /proc/PID/stat; empty if there is no such process, or no /proc."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def group_of(pid: int) -> int:
    """Its process group; 0 if there is no such process."""
    try:
        return os.getpgid(pid) if pid > 0 else 0
    except OSError:
        return 0


def take(pid: int, path: str, number: int) -> str:
    """Stacks of `pid`, then of its oldest children. Empty when none is to be had. Never raises."""
    if not path or number <= 0:
        return ""
    found = _ask(pid, path, number)
    for child in _children(pid):
        if words := _ask(child, path, number):
            # The main process comes last: that is where readers look for its main thread.
            found = f"process {child}, forked by {pid}:\n{words}\n\n{found}"
    return found[-MAX_BYTES:]


def _ask(pid: int, path: str, number: int) -> str:
    state = state_of(pid)
    if state in ("", "T", "t", "Z", "X") or not _catches(pid, number):
        return ""
    try:
        os.truncate(path, 0)  # it is written to its end, wherever that is
        os.kill(pid, number)
    except OSError:
        return ""
    return _read(path)


def _read(path: str) -> str:
    end, size, since = time.monotonic() + ANSWER_SECONDS, 0, time.monotonic()
    while time.monotonic() < end:
        time.sleep(0.02)
        with contextlib.suppress(OSError):
            if (now := os.stat(path).st_size) != size:
                size, since = now, time.monotonic()
        if size and time.monotonic() - since >= SETTLED_SECONDS:
            break
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""


def _catches(pid: int, number: int) -> bool:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
        mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return False
    return bool(mask >> (number - 1) & 1)


def _children(pid: int) -> Iterator[int]:
    """Those that have lived for a while, oldest first."""
    try:
        numbers = [
            int(n) for task in (PROC / str(pid) / "task").iterdir() for n in (task / "children").read_text().split()
        ]
        now = float((PROC / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return
    aged = []
    for number in numbers:
        fields = _stat(number)
        if fields and (age := now - float(fields[19]) / os.sysconf("SC_CLK_TCK")) >= CHILD_SECONDS:
            aged.append((-age, number))
    yield from (number for _, number in sorted(aged)[:MAX_CHILDREN])


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may hold anything."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
