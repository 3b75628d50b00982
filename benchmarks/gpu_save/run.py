"""On a GPU: how long a save keeps training from going on, and how much longer steps take that save, against the copy over PCIe."""

import shutil
import statistics
from pathlib import Path

import torch

from benchmarks.harness import figures, settings
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from holdfast_api import __version__

HERE = Path(__file__).resolve().parent
NAME = "Holdfast"
STALL, OVERLAP = Goal(1.08), Goal(0.10)
WHAT = {
    "gpu_save.stall": ("stall of a save / copy into page-locked memory", STALL),
    "gpu_save.overlap": (
        "(step that saves - step that does not) / copy into page-locked memory, steps of at least twice the copy",
        OVERLAP,
    ),
}
EVERY = 5


def main() -> None:
    scale = settings.scale()
    if not torch.cuda.is_available():
        skip("no CUDA device on this machine", scale)
        return
    disk, memory = settings.disk(), settings.memory()
    try:
        outcomes = compete([ours(scale.mebibytes, disk)], scale.rounds, memory, warm_up=2)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(outcomes, scale)


def skip(reason: str, scale: settings.Scale) -> None:
    print(f"   skipped: {reason}", flush=True)
    page = Report("gpu_save", HERE, [], scale)
    for id, (what, goal) in WHAT.items():
        page.add(figures.measure(id, what, "s", None, goal=goal, skipped=reason, of_ratio=True))
    page.text(f"Not run: {reason}.")
    page.size = ""
    page.write()


def ours(mebibytes: int, disk: Path) -> Contender:
    def rounds() -> Rounds:
        from benchmarks.harness.agent import Local

        local = Local(
            disk / "gpu",
            "--every-steps",
            str(EVERY),
            rank={"model": "products", "mebibytes": mebibytes, "device": "cuda"},
        )
        try:
            count, done = int(local.ready["bytes"]), 1
            local.wait_for_slots(count, 2)
            copy = local.tell("copy_from_device")["seconds"]
            one = statistics.median(local.tell("steps", count=EVERY - 2, work=10)["steps"][1:]) / 10
            work = max(10, round(2.5 * copy / one))
            yield None
            while True:
                copy = local.tell("copy_from_device")["seconds"]
                saving = local.tell("steps", count=1, work=work)
                # The next step waits at the gate for whatever the save still copies: it belongs to the save.
                after = local.tell("steps", count=1, work=work)
                local.wait_for_commits(done)
                done += 1
                quiet = statistics.median(local.tell("steps", count=EVERY - 2, work=work)["steps"])
                growth = saving["steps"][0] + after["steps"][0] - 2 * quiet
                yield Sample(
                    saving["stalls"][0], count, 0.0, {"copy, s": copy, "growth, s": growth, "quiet step, s": quiet}
                )
                yield None
        finally:
            local.close()

    return Contender(
        NAME, Kind.OURS, rounds, __version__, "real agent, parameters on the device; matrix products between saves"
    )


def report(outcomes: list[Outcome], scale: settings.Scale) -> None:
    page = Report("gpu_save", HERE, outcomes, scale)
    me = figures.named(outcomes, NAME)
    if me:
        copies = [s.extra["copy, s"] for s in me.samples]
        found = {
            "gpu_save.stall": [s.seconds for s in me.samples],
            "gpu_save.overlap": [s.extra["growth, s"] for s in me.samples],
        }
        for id, values in found.items():
            what, goal = WHAT[id]
            ratios = [v / c for v, c in zip(values, copies, strict=True)]
            ours = statistics.median(values)
            page.add(
                figures.measure(
                    id, what, "s", ours, goal=goal, ratios=ratios, floor=statistics.median(copies), floor_name="device to page-locked memory",
                    device=torch.cuda.get_device_name(),
                )
            )  # fmt: skip
    page.table(outcomes, (("stall, s", figures.seconds, ".3f"), ("GB/s", figures.rate, ".2f")))
    page.bars("stall.svg", figures.seconds, "seconds in which training cannot go on (less is better)")
    page.write()
