"""How others bring the state at hand into the store at a notice, which is a SIGTERM to them. Each round is a process of its own, as with ours."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.servers import BUCKET, SinkServer
from benchmarks.nvme_flush.peers import version_of

HF = "Hugging Face Trainer, enable_jit_checkpoint"
DLROVER = "DLRover, breakpoint save"
SECONDS = 200.0
LEFT_BY_DLROVER = Path("/dev/shm/ckpt_shm_0")
"""Its copy of the state, which outlives its processes: whoever measures next would be short of memory."""


def peers(step_seconds: float, mebibytes: int, disk: Path, sink: SinkServer) -> list[Contender]:
    def one(name: str, package: str, module: str, settings: str) -> Contender:
        def rounds() -> Rounds:
            return _rounds(module, step_seconds, mebibytes, disk, sink)

        return Contender(f"{name}, steps of {step_seconds} s", Kind.PEER, rounds, version_of(package), settings)

    return [
        one(HF, "transformers", "hf_trainer", "SIGTERM; its checkpoint on the disk, then boto3, 16 MiB parts, 8 threads"),
        one(DLROVER, "dlrover", "dlrover_saver", "a copy in memory every step; SIGTERM; its saver writes the disk, then boto3"),
    ]  # fmt: skip


def _rounds(module: str, step_seconds: float, mebibytes: int, disk: Path, sink: SinkServer) -> Rounds:
    from benchmarks.harness.usage import cpu_seconds

    chance, number = random.Random(1), 0
    yield None
    while True:
        number += 1
        sink.forget()
        folder = disk / f"{module}-{step_seconds}-{number}"
        folder.mkdir()
        order = {
            "folder": str(folder), "mebibytes": mebibytes, "step_seconds": step_seconds, "endpoint": sink.endpoint, "bucket": BUCKET,
            "prefix": f"{module}/{number}",
        }  # fmt: skip
        command = [sys.executable, "-m", f"benchmarks.emergency_flush.{module}", json.dumps(order)]
        with (folder.with_suffix(".log")).open("w") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True,
                env=os.environ | sink.environ, start_new_session=True,
            )  # fmt: skip
        try:
            assert process.stdout is not None
            _until("training", process, folder)
            time.sleep(1.0 + chance.uniform(0, step_seconds))
            cpu, began = cpu_seconds(), time.monotonic()
            process.send_signal(signal.SIGTERM)
            _until("on disk", process, folder)
            on_disk = time.monotonic()
            _until("stored", process, folder)
            stored = time.monotonic()
            yield Sample(stored - began, mebibytes << 20, cpu_seconds() - cpu, {"on disk, s": on_disk - began})
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has forked too
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
            LEFT_BY_DLROVER.unlink(missing_ok=True)
        yield None


def _until(word: str, process: "subprocess.Popen[str]", folder: Path) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    said = folder.with_suffix(".log").read_text().strip().splitlines()
    raise RuntimeError(f"ended before {word!r}: {said[-1][:300] if said else 'it said nothing'}")
