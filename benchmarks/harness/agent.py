"""A real `holdfast-agent` with a real rank below it, driven from a contender's process: the agent is started as a person would start it, the rank (rank.py)
does what it is told over a socket of its own."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness.usage import descendants

WAIT_SECONDS = 120.0


class Local:
    """`holdfast-agent run --local FOLDER/job`; the rank is built from `rank`, the options of rank.py."""

    def __init__(self, folder: Path, *options: str, rank: dict[str, Any], connect: bool = True) -> None:
        self.folder = folder
        self.job = folder / "job"
        self.job.mkdir(parents=True, exist_ok=True)
        control = folder / "control"
        control.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(control))
        self._listener.listen(1)
        self._listener.settimeout(WAIT_SECONDS)
        self.log = folder / "agent.log"
        environ = {**os.environ, "BENCH_CONTROL": str(control), "BENCH_RANK": json.dumps(rank)}
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "holdfast_agent", "run", "--local", str(self.job), *options, "--", sys.executable, "-m", "benchmarks.harness.rank"],
                env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        if connect:
            self.connect()

    def connect(self) -> None:
        """Waits until the rank has restored and is ready."""
        try:
            self._control, _ = self._listener.accept()
        except TimeoutError:
            raise RuntimeError(f"the rank did not come up: {self.words()}") from None
        self._control.settimeout(WAIT_SECONDS)
        self._lines = self._control.makefile("r")
        self.ready = self._answer()

    def tell(self, do: str, **options: Any) -> dict[str, Any]:
        """What the rank measured."""
        self.send(do, **options)
        return self._answer()

    def send(self, do: str, **options: Any) -> None:
        self._control.sendall(json.dumps({"do": do, **options}).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise RuntimeError(f"the rank has ended: {self.words()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def commits(self) -> list[Path]:
        return sorted(self.job.glob("local/run-*/checkpoints/*/*/commit.json"))

    def wait_for_commits(self, count: int) -> None:
        self.wait(lambda: len(self.commits()) >= count, f"{count} commits")

    def wait_for_slots(self, image_bytes: int, slots: int) -> None:
        """Until the agent has prefaulted the arena, as it has in any training that runs for a moment before its first save."""
        self.wait(
            lambda: sum(p.stat().st_blocks * 512 for p in self.arena.glob("rank-*-slot-*")) >= image_bytes * slots,
            "the arena",
        )

    @property
    def arena(self) -> Path:
        """Where the agent keeps the slots: a folder in shared memory named after the job's uid."""
        uid = json.loads((self.job / ".holdfast/job.json").read_text())["uid"]
        shared = Path(f"/dev/shm/holdfast-{os.getuid()}-{uid.replace('-', '')[:8]}")
        return shared if shared.exists() else self.job / ".holdfast/arena"

    def wait(self, condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"the agent ended with {self.process.returncode}: {self.words()}")
            if time.monotonic() > until:
                raise TimeoutError(f"not within {seconds:.0f} s: {what}; {self.words()}")
            time.sleep(0.01)

    @property
    def rank_pid(self) -> int:
        return int(self.ready["pid"])

    def words(self) -> str:
        return self.log.read_text(errors="replace")[-600:].strip().replace("\n", " | ") if self.log.exists() else ""

    def close(self) -> None:
        """Ends it hard: what is measured has been measured."""
        arena = self.arena if (self.job / ".holdfast/job.json").exists() else None
        below = descendants(self.process.pid)
        for pid in (self.process.pid, *below):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._listener.close()
        if arena is not None:
            shutil.rmtree(arena, ignore_errors=True)
        shutil.rmtree(self.job, ignore_errors=True)
