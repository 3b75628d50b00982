"""How much longer a step takes while a save is written in the background."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import figures, settings, states
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from benchmarks.nvme_flush.peers import version_of
from holdfast_api import __version__

HERE = Path(__file__).resolve().parent
NAME = "Holdfast"
GROWTH = Goal(1.02)
PRODUCTS = 80
"""Matrix products per step: some 20 ms on one core of the machine shown."""
QUIET_STEPS = 60
EVERY = 20_000
"""Boundaries between saves; those that only fill up the count have no work."""


def main() -> None:
    scale = settings.scale()
    state = states.make(scale.mebibytes)
    disk, memory = settings.disk(), settings.memory()
    try:
        torch_version, kept = version_of("torch"), "FileSystemWriter(thread_count=2), staging buffers kept"
        contenders = [
            ours(scale.mebibytes, disk),
            Contender("DCP async_save, thread", Kind.PEER, lambda: _dcp(state, disk, "THREAD"), torch_version, kept),
            Contender("DCP async_save, process", Kind.PEER, lambda: _dcp(state, disk, "PROCESS"), torch_version, kept),
            Contender(
                "torch_checkpointing, async",
                Kind.PEER,
                lambda: _torch_checkpointing(state, disk),
                version_of("torch-checkpointing"),
                "pool in shared memory, writer process",
            ),
        ]
        outcomes = compete(contenders, scale.rounds, memory)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(outcomes, scale)


def ours(mebibytes: int, disk: Path) -> Contender:
    def rounds() -> Rounds:
        from benchmarks.harness.agent import Local

        local = Local(
            disk / "background", "--every-steps", str(EVERY), rank={"model": "products", "mebibytes": mebibytes}
        )
        try:
            count, saved = int(local.ready["bytes"]), 0
            local.wait_for_slots(count, 2)
            at = int(local.tell("steps", count=QUIET_STEPS, work=PRODUCTS)["boundary"])
            yield None
            while True:
                at = int(local.tell("steps", count=EVERY - 1 - QUIET_STEPS - at % EVERY, change=True)["boundary"])
                quiet = local.tell("steps", count=QUIET_STEPS, work=PRODUCTS)
                local.tell("steps", count=1)  # the save itself: its stall is another question's
                saved += 1
                began = time.perf_counter()
                busy = local.tell(
                    "until",
                    folder=str(local.job),
                    pattern="local/run-*/checkpoints/*/*/commit.json",
                    files=saved,
                    work=PRODUCTS,
                    most=EVERY // 2,
                )
                lasted = time.perf_counter() - began
                local.check_sent(count)
                at = int(busy["boundary"])
                yield _sample(count, quiet["steps"], busy["steps"], lasted)
                yield None
        finally:
            local.close()

    return Contender(
        NAME,
        Kind.OURS,
        rounds,
        __version__,
        "real agent in a process of its own; hash, write and fsync of every chunk, commit",
    )


def _sample(count: int, quiet: list[float], busy: list[float], lasted: float) -> Sample:
    """`seconds` is the mean step while the save was written."""
    step, before = statistics.fmean(busy), statistics.fmean(quiet)
    extra = {"growth": step / before, "quiet step ms": before * 1e3, "written in, s": lasted, "steps": float(len(busy))}
    return Sample(step, count, 0.0, extra)


def _steps_while(running: Callable[[], bool]) -> list[float]:
    from benchmarks.harness.models import fixed_work

    found: list[float] = []
    while running() or not found:
        start = time.perf_counter()
        fixed_work(PRODUCTS)
        found.append(time.perf_counter() - start)
    return found


def _times(count: int) -> Callable[[], bool]:
    left = iter(range(count))
    return lambda: next(left, None) is not None


def _unless(done: Callable[[], bool]) -> Callable[[], bool]:
    return lambda: not done()


def _peer(count: int, save: Callable[[], Any], tidy: Callable[[], None]) -> Rounds:
    """`save` returns a future that ends when the files are written."""
    torch.set_num_threads(1)
    yield None
    while True:
        quiet = _steps_while(_times(QUIET_STEPS))
        future = save()
        began = time.perf_counter()
        busy = _steps_while(_unless(future.done))
        lasted = time.perf_counter() - began
        future.result()
        yield _sample(count, quiet, busy, lasted)
        tidy()
        yield None


def _dcp(state: states.State, disk: Path, kind: str) -> Rounds:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    dist.init_process_group("gloo", init_method=f"file://{disk}/group-{kind}", rank=0, world_size=1)
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
        )
    )
    target = disk / f"dcp-{kind}"

    def save() -> Any:
        saved = dcp.async_save(
            state.tensors, storage_writer=dcp.FileSystemWriter(target, thread_count=2), async_stager=stager,
            async_checkpointer_type=AsyncCheckpointerType[kind],
        )  # fmt: skip
        return getattr(saved, "upload_completion", saved)

    yield from _peer(state.bytes, save, lambda: shutil.rmtree(target))


def _torch_checkpointing(state: states.State, disk: Path) -> Rounds:
    import torch_checkpointing.checkpoint_manager as manager
    from torch_checkpointing.schema import ItemSpec
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    one = manager.CheckpointManager.Config(
        items={"model": ItemSpec(requires_copy=True)}, storage_config=LocalFileSystemStorageConfig(use_direct_io=False)
    ).build()
    one.prewarm_staging({"model": state.tensors})
    target = disk / "torch-checkpointing"

    def save() -> Any:
        future = one.save(str(target), {"model": state.tensors})
        with one.lock():
            return future

    yield from _peer(state.bytes, save, lambda: shutil.rmtree(target))


def report(outcomes: list[Outcome], scale: settings.Scale) -> None:
    page = Report("background_persist", HERE, outcomes, scale)
    me = figures.named(outcomes, NAME)

    def growth(sample: Sample) -> float:
        return sample.extra["growth"]

    if me:
        page.add(
            figures.measure(
                "background_persist.growth", "step time while a save is written / without", "ms", figures.median(me, figures.seconds) * 1e3, goal=GROWTH,
                ratios=[growth(s) for s in me.samples], floor=statistics.median(s.extra["quiet step ms"] for s in me.samples), floor_name="quiet step",
                peers=figures.table_of_peers(outcomes, growth),
            )
        )  # fmt: skip
    page.table(
        outcomes,
        (
            ("growth", growth, ".3f"),
            ("step while writing, ms", lambda s: s.seconds * 1e3, ".1f"),
            ("quiet step, ms", lambda s: s.extra["quiet step ms"], ".1f"),
            ("written in, s", lambda s: s.extra["written in, s"], ".2f"),
        ),
    )
    page.bars("growth.svg", growth, "step time while a save is written / without (less is better)")
    page.write()
