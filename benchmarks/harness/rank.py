"""The training process below a measured agent: builds the state that BENCH_RANK names, registers it, and does what BENCH_CONTROL tells it, one JSON line
per order and per answer.

BENCH_RANK: {"model": a name of MODELS, and its options}. Orders are the functions of `Rank` that return a dictionary.
"""

import json
import os
import socket
import sys
import time
from typing import Any

BEGAN = time.time()

import torch  # noqa: E402  (how long the import takes is measured)

import holdfast  # noqa: E402
from benchmarks.harness import models, states  # noqa: E402

IMPORTED = time.time()


class Rank:
    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.made = models.make(**options)
        self.checkpointer = holdfast.Checkpointer(**self.made.parts)
        before = time.time()
        self.checkpointer.restore()
        self.times = {"began": BEGAN, "imported": IMPORTED, "asked": before, "restored": time.time()}

    def steps(self, count: int, busy_seconds: float = 0.0, change: bool = False) -> dict[str, Any]:
        """So many iterations; returns the duration of each `ckpt.step()`, and of the update with its hooks. `change` alters every chunk of the state first."""
        stalls, updates, whole = [], [], []
        if change:
            states.touch(self.made.tensors)
        for _ in range(count):
            start = time.perf_counter()
            self.made.work(busy_seconds)
            before = time.perf_counter()
            self.made.update()
            between = time.perf_counter()
            self.checkpointer.step()
            end = time.perf_counter()
            updates.append(between - before)
            stalls.append(end - between)
            whole.append(end - start)
        return {"stalls": stalls, "updates": updates, "steps": whole, "boundary": self.checkpointer.boundary}

    def until(self, path_pattern: str, commits: int, busy_seconds: float, at_least: int = 1) -> dict[str, Any]:
        """Iterations until so many commit records are there, and `at_least` so many: what a step takes while the agent writes."""
        from pathlib import Path

        folder, _, pattern = path_pattern.partition("//")
        whole: list[float] = []
        stalls: list[float] = []
        while len(whole) < at_least or len(list(Path(folder).glob(pattern))) < commits:
            found = self.steps(1, busy_seconds)
            whole += found["steps"]
            stalls += found["stalls"]
        return {"steps": whole, "stalls": stalls, "boundary": self.checkpointer.boundary}


def main() -> None:
    rank = Rank(json.loads(os.environ["BENCH_RANK"]))
    control = socket.socket(socket.AF_UNIX)
    control.connect(os.environ["BENCH_CONTROL"])
    first = rank.steps(1)
    ready = {
        "pid": os.getpid(),
        "bytes": rank.made.bytes,
        "first_step": time.time(),
        **rank.times,
        "boundary": first["boundary"],
    }
    control.sendall(json.dumps(ready).encode() + b"\n")
    for line in control.makefile("r"):
        order = json.loads(line)
        do = order.pop("do")
        if do == "finish":
            rank.checkpointer.finish()
            control.sendall(b"{}\n")
            break
        control.sendall(json.dumps(getattr(rank, do)(**order)).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
