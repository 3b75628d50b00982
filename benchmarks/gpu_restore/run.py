"""On a GPU: reads a checkpoint back from the local disk into tensors on the device, verified, against the longer of its two floors."""

import mmap
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import figures, files, gpu, settings, states
from benchmarks.harness.contender import Contender, Kind, Rounds
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from benchmarks.harness.usage import metered
from holdfast_api import __version__

HERE = Path(__file__).resolve().parent
ROUNDS = 5
"""A GPU is dear."""
NAME = "Holdfast"
ID, WHAT, GOAL = (
    "gpu_restore.wall",
    "restore from a local disk into tensors on a GPU, verified / the longer of raw read and copy to the device",
    Goal(1.08),
)
LOAD_ID, LOAD = (
    "gpu_restore.load",
    "from the image in memory into tensors on a GPU, checks included / copy to the device",
)
IN_FLIGHT = 16


def main() -> None:
    scale = replace(settings.scale(), rounds=min(ROUNDS, settings.scale().rounds))
    if not (device := gpu.name()):
        print("   skipped: no CUDA device on this machine; what stands in the results is of another one", flush=True)
        return
    disk, memory = settings.disk(), settings.memory()
    try:
        outcomes = compete([ours(scale.mebibytes, disk, memory)], scale.rounds, memory)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(outcomes, scale, device)


class Trained(torch.nn.Module):
    """The state as parameters that are trained: they are looked through for values that are not finite."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(tensor))


def ours(mebibytes: int, disk: Path, memory: Path) -> Contender:
    def rounds() -> Rounds:
        import asyncio
        import time

        from benchmarks.harness import ours as engine
        from holdfast import ahead
        from holdfast.copying import copy_pool
        from holdfast.load import load_image
        from holdfast.progress import Progress
        from holdfast.snapshot import SlotWriter, SnapshotPlan, document_bytes
        from holdfast.state import Registry
        from holdfast_agent import flush, restore
        from holdfast_agent.arena import Arena
        from holdfast_agent.threads import Stop, Threads
        from holdfast_api.layout import CheckpointRef

        state = states.make(mebibytes)
        files.write_direct(disk / "raw", memoryview(state.memory)[: state.bytes], threads=8)
        captured = Registry({"model": Trained(state.tensors)}).capture(Progress(), window_open=False)
        plan = SnapshotPlan.of(1, captured, engine.CHUNK_BYTES)
        path = memory / "slot"
        with path.open("wb+") as file:
            file.truncate(plan.layout.image_bytes)
            slot = mmap.mmap(file.fileno(), plan.layout.image_bytes)
        SlotWriter(plan, slot).write(captured.leaves.tensors, document_bytes(captured.document), copy_pool())
        threads = Threads()
        store, node = engine.job_store(engine.Discarding()), engine.tier(disk / "holdfast")
        engine.claim(store)
        part = flush.Part(0, path, plan.layout.image_bytes, 1, plan.layout.entries)
        job = flush.Job(engine.UID, CheckpointRef(1, 1), 1, engine.CHUNK_BYTES, (part,))
        written = asyncio.run(flush.write(job, store, node, threads, Stop()))
        engine.commit(store, 1, written)
        for manifest in written.manifests:
            node.write_manifest(manifest)
        record, text = store.read_commit(CheckpointRef(1, 1))
        node.write_commit(record.ref, text)
        path.unlink()
        files.sync_tree(disk)

        folder = memory / "arena"
        Arena(folder).ensure({(0, 0): plan.layout.image_bytes})
        live = Trained({n: torch.zeros_like(t, device="cuda") for n, t in state.tensors.items()})
        registry = Registry({"model": live})
        registry.capture(Progress(), window_open=False)
        pinned = torch.empty(state.bytes, dtype=torch.uint8, pin_memory=True)
        target = torch.empty(state.bytes, dtype=torch.uint8, device="cuda")
        with Arena(folder).path(0, 0).open("r+b") as file:
            into = memoryview(mmap.mmap(file.fileno(), state.bytes))

        def restored(extra: dict[str, float]) -> None:
            """As an agent and its rank do it, the first stroke being the second one too: there are no other members."""
            (folder / "slots.json").unlink(missing_ok=True)
            arena, tally, prepared = (
                Arena(folder),
                restore.Tally(lambda source, count: None),
                list[ahead.Ahead | None](),
            )
            images = asyncio.run(
                restore.fetch(
                    record, range(1), store=store, node=node, arena=arena, threads=threads, tally=tally, stop=Stop(),
                    begun=lambda m, path: prepared.append(ahead.begin(str(path), m.image_bytes, registry.memory)),
                )
            )  # fmt: skip
            began = time.perf_counter()
            image, beside = images[0], prepared[0]
            assert beside is not None
            beside.stop()
            m = image.manifest
            load_image(str(image.path), m.image_bytes, m.tensors, registry, Progress(), finite=True, image=beside.image)
            torch.cuda.synchronize()
            extra["load, s"] = time.perf_counter() - began
            beside.close()
            extra["let go, s"] = time.perf_counter() - began - extra["load, s"]

        restored({})
        for name, tensor in state.tensors.items():
            found = getattr(live, name.replace(".", "_")).detach().cpu()
            assert torch.equal(found, tensor), f"{name} is not what was saved"
        yield None
        while True:
            files.forget([disk / "raw"])
            began = time.perf_counter()
            files.read_direct(disk / "raw", into, threads=IN_FLIGHT)
            read = time.perf_counter() - began
            torch.cuda.synchronize()
            began = time.perf_counter()
            target.copy_(pinned, non_blocking=True)
            torch.cuda.synchronize()
            extra = {"read, s": read, "to the device, s": time.perf_counter() - began}
            files.forget(files.files_below(disk / "holdfast"))
            with metered(state.bytes) as work:
                restored(extra)
            work.extra |= extra
            yield work.sample()
            yield None

    return Contender(
        NAME,
        Kind.OURS,
        rounds,
        __version__,
        "every chunk verified while hot; prefaulted arena, page-locked beside the fetch; then copied to the device, and unlocked",
    )


def report(outcomes: list[Outcome], scale: settings.Scale, device: str) -> None:
    page = Report("gpu_restore", HERE, outcomes, scale)
    me = figures.named(outcomes, NAME)
    if me:
        floors = [max(s.extra["read, s"], s.extra["to the device, s"]) for s in me.samples]
        devices = [s.extra["to the device, s"] for s in me.samples]
        loads = [s.extra["load, s"] for s in me.samples]
        walls = [s.seconds for s in me.samples]
        for id, what, goal, values, against, floor in (
            (ID, WHAT, GOAL, walls, floors, "the longer of O_DIRECT read and copy to the device"),
            (LOAD_ID, LOAD, None, loads, devices, "page-locked memory to the device"),
        ):
            page.add(
                figures.measure(
                    id, what, "s", statistics.median(values), goal=goal, ratios=[v / f for v, f in zip(values, against, strict=True)],
                    floor=statistics.median(against), floor_name=floor, device=device,
                )
            )  # fmt: skip
    page.table(
        outcomes,
        (
            ("restore, s", figures.seconds, ".3f"),
            ("load, s", lambda s: s.extra["load, s"], ".3f"),
            ("unlock, s", lambda s: s.extra["let go, s"], ".3f"),
            ("raw read, s", lambda s: s.extra["read, s"], ".3f"),
            ("copy to the device, s", lambda s: s.extra["to the device, s"], ".3f"),
        ),
    )
    page.text(f"On {device}, torch {torch.__version__}.")
    page.write()
