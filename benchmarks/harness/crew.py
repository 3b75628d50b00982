"""Contenders in processes of their own, one at work at a time.

Each is forked from a parent that has imported torch and made the state in shared memory, so all read the same bytes, nobody shares an interpreter with
another, and one that crashes takes nobody along: it is listed with its reason. The parent has no threads when it forks.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.harness.contender import Contender, Sample
from benchmarks.harness.order import rotated
from benchmarks.harness.usage import tree_anonymous_bytes

SETUP_SECONDS = 120.0
ROUND_SECONDS = 240.0
END_SECONDS = 20.0
"""For tidying at the end, before it is killed."""
SETTLE_SECONDS = 0.05
"""Between two contenders, for what the one has left to the kernel."""
_SAMPLING_SECONDS = 0.05


@dataclass
class Outcome:
    """What one contender has done."""

    contender: Contender
    samples: list[Sample] = field(default_factory=list)
    early: list[Sample] = field(default_factory=list)
    """The rounds before, which warm up and do not count."""
    anonymous_bytes: int = 0
    """The most that it held beside the state while it worked, over what it held when it was ready."""
    failure: str = ""
    """Why it does not count: did not start, or broke in a round."""

    def plain(self) -> dict[str, object]:
        c = self.contender
        return {
            "name": c.name, "kind": c.kind.value, "version": c.version, "settings": c.settings, "failure": self.failure,
            "anonymous_mb": round(self.anonymous_bytes / 1e6, 1), "early": [asdict(s) for s in self.early], "samples": [asdict(s) for s in self.samples],
        }  # fmt: skip


class _Broken(Exception):
    """A contender's process has ended, or is ended because it takes too long; the message says which."""


class _Worker:
    def __init__(self, contender: Contender, log: Path) -> None:
        self.log = log
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            ours.close()
            _serve(contender, theirs, log)
        theirs.close()
        self._socket = ours
        self._lines = ours.makefile("r")
        self.peak = 0

    def ask(self, seconds: float) -> Sample | None:
        """The next thing that the contender yields."""
        with contextlib.suppress(BrokenPipeError):
            self._socket.sendall(b"\n")
        return self.answer(seconds)

    def answer(self, seconds: float) -> Sample | None:
        end = time.monotonic() + seconds
        while not select.select([self._socket], [], [], _SAMPLING_SECONDS)[0]:
            self.peak = max(self.peak, tree_anonymous_bytes(self.pid))
            if time.monotonic() > end:
                raise _Broken(f"did not answer within {seconds:.0f} s")
        line = self._lines.readline()
        if not line:
            raise _Broken(f"ended: {self.last_words()}")
        message = json.loads(line)
        if "error" in message:
            raise _Broken(str(message["error"]))
        return Sample(**message["sample"]) if message["sample"] else None

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def end(self) -> None:
        """Lets it tidy, then makes sure that nothing of it is left."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        until = time.monotonic() + END_SECONDS
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                break
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._socket.close()


def _serve(contender: Contender, link: socket.socket, log: Path) -> None:
    """The life of a contender's process. Never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        lines = link.makefile("r")
        rounds = contender.make()
        while True:
            found = next(rounds)
            link.sendall(json.dumps({"sample": asdict(found) if found else None}).encode() + b"\n")
            if not lines.readline():
                break
        rounds.close()  # type: ignore[attr-defined]
        code = 0
    except BaseException as e:
        traceback.print_exc()
        with contextlib.suppress(OSError):
            link.sendall(json.dumps({"error": f"{type(e).__name__}: {e}"[:400]}).encode() + b"\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def compete(
    contenders: Sequence[Contender], rounds: int, folder: Path, *, warm_up: int = 1, say: Callable[[str], None] = print
) -> list[Outcome]:
    """`rounds` rounds after `warm_up` that do not count, in rotated order. Never raises for a contender that fails; see `Outcome.failure`."""
    outcomes = {c.name: Outcome(c) for c in contenders}
    workers: dict[str, _Worker] = {}
    baseline: dict[str, int] = {}

    def drop(name: str, why: str) -> None:
        outcomes[name].failure = why
        say(f"   {name}: left out: {why}")
        workers.pop(name).end()

    try:
        for number, contender in enumerate(contenders):
            worker = workers[contender.name] = _Worker(contender, folder / f"contender-{number}.log")
            try:
                worker.answer(SETUP_SECONDS)
                baseline[contender.name] = tree_anonymous_bytes(worker.pid)
            except _Broken as e:
                drop(contender.name, f"set-up {e}")
        for round in range(-warm_up, rounds):
            for name in rotated(list(workers), round + warm_up):
                worker = workers[name]
                try:
                    worker.peak = 0
                    sample = worker.ask(ROUND_SECONDS)
                    peak = worker.peak
                    worker.ask(ROUND_SECONDS)
                except _Broken as e:
                    drop(name, str(e))
                    continue
                assert sample is not None
                (outcomes[name].samples if round >= 0 else outcomes[name].early).append(sample)
                if round >= 0:
                    outcomes[name].anonymous_bytes = max(outcomes[name].anonymous_bytes, peak - baseline[name])
                time.sleep(SETTLE_SECONDS)
            if round >= 0:
                say(f"   round {round + 1}/{rounds}: " + _line(outcomes, workers))
    finally:
        for worker in workers.values():
            worker.end()
    return list(outcomes.values())


def _line(outcomes: dict[str, Outcome], workers: dict[str, _Worker]) -> str:
    return ", ".join(f"{name} {outcomes[name].samples[-1].seconds:.3f} s" for name in workers)
