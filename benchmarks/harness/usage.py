"""Processor time and memory of a process and everything below it, and how one round is measured."""

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.contender import Sample

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Metered:
    """Filled when the `with` block of `metered` ends."""

    bytes: int
    extra: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def sample(self) -> Sample:
        return Sample(self.seconds, self.bytes, self.cpu_seconds, dict(self.extra))


@contextlib.contextmanager
def metered(count: int) -> Iterator[Metered]:
    """Measures the block: wall time and processor time of this process and its children. `count`: the bytes that it deals with."""
    work = Metered(count)
    cpu, began = cpu_seconds(), time.perf_counter()
    try:
        yield work
    finally:
        work.seconds = time.perf_counter() - began
        work.cpu_seconds = cpu_seconds() - cpu


def cpu_seconds() -> float:
    """Of this process and all its descendants, those included that have ended and were waited for. Of living descendants in steps of 10 ms."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(_ticks(pid) for pid in descendants(os.getpid()))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime + living / _TICKS


def descendants(root: int) -> list[int]:
    """Living processes below `root`, without it."""
    parents: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def anonymous_bytes(pid: int) -> int:
    """RssAnon: what a process holds beside files and shared memory. 0 once it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def tree_anonymous_bytes(pid: int) -> int:
    return sum(anonymous_bytes(p) for p in (pid, *descendants(pid)))


def _ticks(pid: int) -> int:
    """utime, stime, and those of its ended children."""
    fields = _stat(pid)
    return sum(int(n) for n in fields[11:15]) if fields else 0


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
