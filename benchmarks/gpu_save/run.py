"""On a GPU: how long a save keeps training from going on, and how much longer steps take that save, against the copy over PCIe."""

import os
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import figures, gpu, settings
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from holdfast_api import __version__, names

HERE = Path(__file__).resolve().parent
ROUNDS = 5
"""A GPU is dear."""
BESIDE, BLOCKING = "Holdfast, beside training", "Holdfast, boundary only"
STALL, OVERLAP, FIRST = Goal(1.08), Goal(0.10), Goal(1.1)
WHAT = {
    "gpu_save.stall": (
        "stall of a save of a loop that is copied at boundaries only / copy into page-locked memory",
        STALL,
    ),
    "gpu_save.first": ("stall of the first save / of a later one, of such a loop", FIRST),
    "gpu_save.overlap": (
        "(step that saves - step that does not) / copy into page-locked memory, steps of at least twice the copy",
        OVERLAP,
    ),
    "gpu_save.held": ("`step()` that begins a save beside training / copy into page-locked memory", None),
}
EVERY = 8
MOST = 6
"""So many saves at most until the loop's class is what it should be."""


def main() -> None:
    scale = replace(settings.scale(), rounds=min(ROUNDS, settings.scale().rounds))
    if not (device := gpu.name()):
        print("   skipped: no CUDA device on this machine; what stands in the results is of another one", flush=True)
        return
    disk, memory = settings.disk(), settings.memory()
    try:
        contenders = [ours(scale.mebibytes, disk, beside=True), ours(scale.mebibytes, disk, beside=False)]
        outcomes = compete(contenders, scale.rounds, memory)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(outcomes, scale, device)


def ours(mebibytes: int, disk: Path, *, beside: bool) -> Contender:
    def rounds() -> Rounds:
        from benchmarks.harness.agent import Local

        if not beside:
            os.environ[names.ENV_MID_STEP] = "off"
        local = Local(
            disk / ("beside" if beside else "blocking"),
            "--every-steps",
            str(EVERY),
            rank={"model": "trained", "mebibytes": mebibytes},
        )
        try:
            count = int(local.ready["bytes"])
            local.wait_for_slots(count, 2)
            while not local.tell("prepare")["prepared"]:
                local.tell("steps", count=1, work=1)
            copy = local.tell("copy_from_device")["seconds"]
            first = 0.0
            for _ in range(MOST):
                answer = local.tell("steps", count=1, work=1)
                answer = local.tell("steps", count=EVERY - answer["boundary"] % EVERY, work=1)
                first = first or answer["stalls"][-1]
                local.wait_for_commits(answer["boundary"] // EVERY)
                if answer["loop"] == ("mid-step" if beside else "boundary-only"):
                    break
            else:
                raise RuntimeError(f"the loop is {answer['loop']}: {answer['why']}")
            one = statistics.median(local.tell("steps", count=EVERY - 2, work=10)["steps"][1:]) / 10
            work = max(2, round(2.5 * copy / one))
            yield None
            while True:
                copy = local.tell("copy_from_device")["seconds"]
                local.tell("steps", count=1, work=work)  # the first one after a pause is slower
                saving = local.tell("steps", count=1, work=work)
                # The next step is what the copy runs beside, and waits at the gate for what is left of it: it belongs to the save.
                after = local.tell("steps", count=1, work=work)
                local.wait_for_commits(saving["boundary"] // EVERY)
                quiet = local.tell("steps", count=EVERY - 3, work=work)["steps"][1:]
                still = statistics.median(quiet)
                growth = saving["steps"][0] + after["steps"][0] - 2 * still
                yield Sample(
                    saving["stalls"][0],
                    count,
                    0.0,
                    {"copy, s": copy, "growth, s": growth, "quiet step, s": still, "first, s": first},
                )
                yield None
        finally:
            local.close()

    what = "real agent, AdamW; " + (
        "copied while the next step runs" if beside else "HOLDFAST_MID_STEP=off: copied before training goes on"
    )
    return Contender(BESIDE if beside else BLOCKING, Kind.OURS, rounds, __version__, what)


def report(outcomes: list[Outcome], scale: settings.Scale, device: str) -> None:
    page = Report("gpu_save", HERE, outcomes, scale)
    beside, blocking = figures.named(outcomes, BESIDE), figures.named(outcomes, BLOCKING)
    found: dict[str, tuple[list[float], list[float]]] = {}
    if blocking:
        stalls, copies = [s.seconds for s in blocking.samples], [s.extra["copy, s"] for s in blocking.samples]
        found["gpu_save.stall"] = stalls, copies
        found["gpu_save.first"] = [blocking.samples[0].extra["first, s"]], [statistics.median(stalls)]
    if beside:
        copies = [s.extra["copy, s"] for s in beside.samples]
        found["gpu_save.overlap"] = [s.extra["growth, s"] for s in beside.samples], copies
        found["gpu_save.held"] = [s.seconds for s in beside.samples], copies
    for id, (values, floors) in found.items():
        what, goal = WHAT[id]
        page.add(
            figures.measure(
                id, what, "s", statistics.median(values), goal=goal, ratios=[v / f for v, f in zip(values, floors, strict=True)],
                floor=statistics.median(floors), floor_name="a later save" if id.endswith("first") else "device to page-locked memory", device=device,
            )
        )  # fmt: skip
    page.table(
        outcomes,
        (
            ("stall, s", figures.seconds, ".4f"),
            ("growth, s", lambda s: s.extra["growth, s"], ".4f"),
            ("copy, s", lambda s: s.extra["copy, s"], ".4f"),
            ("quiet step, s", lambda s: s.extra["quiet step, s"], ".4f"),
        ),
    )
    page.bars("stall.svg", figures.seconds, "seconds in which training cannot go on (less is better)")
    page.text(f"On {device}, torch {torch.__version__}.")
    page.write()
