"""Starts and ends processes by pid and start time, never by name.

A pid alone may have been given to another process since it was written down; together with the start time it cannot.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.errors import ClusterError


@dataclass(frozen=True)
class Recorded:
    """A process as it is kept in a state file."""

    pid: int
    #: Clock ticks from the machine's boot to the start of the process.
    started: int

    def alive(self) -> bool:
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """The start time of a process, or None if there is no such process or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else int(fields[19])


def spawn(argv: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> Recorded:
    """Starts a process that outlives us, in a session of its own so that Ctrl-C in our terminal does not reach it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    started = start_time(child.pid)
    # The state file owns the process from here on: without this, Python warns that nobody waited for it.
    child.returncode = 0
    # A process that has ended already keeps its place as one that is not alive.
    return Recorded(child.pid, -1 if started is None else started)


def end(process: Recorded, first_signal: signal.Signals = signal.SIGTERM, patience_seconds: float = 10.0) -> None:
    """Ends a recorded process; harmless if it is gone and its pid belongs to another by now."""
    if not process.alive():
        return
    os.kill(process.pid, first_signal)
    deadline = time.monotonic() + patience_seconds
    while process.alive():
        reap(process.pid)
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            deadline += patience_seconds
        time.sleep(0.02)


def reap(pid: int) -> None:
    """Collects a child of ours that has ended; a process of another parent is not ours to collect."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def children(pid: int) -> list[Recorded]:
    """The living children of a process, as they can be recorded."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [(int(child), start_time(int(child))) for child in listed]
    return [Recorded(child, started) for child, started in found if started is not None]


def run(*argv: str | Path, feed: str | None = None, timeout: float | None = None) -> str:
    """Runs a program to its end and returns what it printed; a failure carries the last lines of its errors."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, input=feed, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-600:]
        raise ClusterError(f"{' '.join(words[:6])} ended with {done.returncode}: {said}")
    return done.stdout


def succeeds(*argv: str | Path) -> bool:
    """Whether a program ends well; what it says is of no interest."""
    return subprocess.run([str(word) for word in argv], capture_output=True, check=False).returncode == 0
