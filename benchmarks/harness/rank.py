"""The training process below a measured agent: builds the state that BENCH_RANK names, registers it, and does what BENCH_CONTROL tells it, one JSON line
per order and per answer.

BENCH_RANK: {"model": a name of MODELS, and its options}. Orders are the functions of `Rank` that return a dictionary.
"""

import ctypes
import json
import mmap
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BEGAN = time.time()

import torch  # noqa: E402  (how long the import takes is measured)

import holdfast  # noqa: E402
from benchmarks.harness import files, models, states  # noqa: E402

IMPORTED = time.time()


class Rank:
    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.made = models.make(**options)
        self.checkpointer = holdfast.Checkpointer(**self.made.parts)
        before = time.time()
        self.checkpointer.restore()
        self._target: mmap.mmap | None = None
        self._pinned: dict[str, torch.Tensor] | None = None
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self.times = {"began": BEGAN, "imported": IMPORTED, "asked": before, "restored": time.time()}

    def steps(self, count: int, work: float = 0.0, change: bool = False) -> dict[str, Any]:
        """So many iterations; returns the duration of each `ckpt.step()`, of the update with its hooks, and of the whole. `work`: what the model takes for
        forward and backward (models.py). `change` alters every chunk of the state first."""
        stalls, updates, whole = [], [], []
        if change:
            states.touch(self.made.tensors)
        for _ in range(count):
            start = time.perf_counter()
            self.made.work(work)
            before = time.perf_counter()
            self.made.update()
            between = time.perf_counter()
            self.checkpointer.step()
            end = time.perf_counter()
            updates.append(between - before)
            stalls.append(end - between)
            whole.append(end - start)
        return {
            "stalls": stalls, "updates": updates, "steps": whole, "boundary": self.checkpointer.boundary,
            "loop": self.checkpointer._run.get("loop", ""), "why": self.checkpointer._run.get("loop_why", ""),
        }  # fmt: skip

    def prepare(self) -> dict[str, Any]:
        """Waits until the slots are mapped and page-locked, as they are in any training that runs for a moment before its first save."""
        saver = self.checkpointer._saver
        assert saver is not None
        if saver.arena is None:
            return {"prepared": False}
        saver.arena.prepared()
        return {"prepared": True, "pinned": saver.arena.pinned}

    def copy(self, threads: int) -> dict[str, Any]:
        """The floor, in this process and of the same pages: memmove of the state into shared memory that was touched before. Returns seconds."""
        if self._target is None:
            self._target = mmap.mmap(-1, self.made.bytes)
            self._target[:: mmap.PAGESIZE] = bytes(len(range(0, self.made.bytes, mmap.PAGESIZE)))
        to, pieces = files.address(self._target), []
        for tensor in self.made.tensors.values():
            pieces += [
                (to + at, tensor.data_ptr() + at, min(files.PIECE_BYTES, tensor.nbytes - at))
                for at in range(0, tensor.nbytes, files.PIECE_BYTES)
            ]
            to += tensor.nbytes
        pool = self._pools.setdefault(threads, ThreadPoolExecutor(threads))
        list(pool.map(time.sleep, [0.001] * threads))  # the threads are there
        start = time.perf_counter()
        list(pool.map(lambda p: ctypes.memmove(*p), pieces))
        return {"seconds": time.perf_counter() - start}

    def copy_from_device(self) -> dict[str, Any]:
        """The floor on a GPU: every tensor into page-locked memory that was there before, on one stream. Returns seconds."""
        tensors = dict(self.made.tensors)
        for part in self.made.parts.values():
            if isinstance(part, torch.optim.Optimizer):
                for i, state in enumerate(part.state.values()):
                    tensors |= {f"{i}.{k}": v for k, v in state.items() if v.is_cuda and v.dim()}
        if self._pinned is None:
            self._pinned = {name: torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for name, t in tensors.items()}
        torch.cuda.synchronize()
        start = time.perf_counter()
        for name, tensor in tensors.items():
            self._pinned[name].copy_(tensor.detach(), non_blocking=True)
        torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - start}

    def until(self, folder: str, pattern: str, files: int, work: float, most: int) -> dict[str, Any]:
        """Iterations until `folder` holds so many files of a pattern, or `most`: what a step takes while the agent writes."""
        whole: list[float] = []
        while len(whole) < most and len(list(Path(folder).glob(pattern))) < files:
            whole += self.steps(1, work)["steps"]
        return {"steps": whole, "boundary": self.checkpointer.boundary}


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
    main()
