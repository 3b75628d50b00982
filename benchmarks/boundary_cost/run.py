"""What `ckpt.step()` costs at a boundary where nothing is saved."""

import math
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.harness import figures, settings
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from holdfast_api import __version__

HERE = Path(__file__).resolve().parent
STEP_SECONDS = 0.005
STEPS = 200
"""Per round; with 5 ms steps a round takes a second."""
NEVER = 1_000_000_000
GOALS = {"no buffers": Goal(50), "159 buffers": Goal(120)}


def main() -> None:
    scale = settings.scale()
    disk, memory = settings.disk(), settings.memory()
    try:
        outcomes = compete([ours(name, disk) for name in GOALS], scale.rounds, memory)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(outcomes, scale)


def ours(name: str, disk: Path) -> Contender:
    def rounds() -> Rounds:
        from benchmarks.harness.agent import Local

        local = Local(
            disk / name.replace(" ", "-"),
            "--every-steps",
            str(NEVER),
            rank={"model": "small", "buffers": name != "no buffers"},
        )
        try:
            local.tell("steps", count=STEPS, work=STEP_SECONDS)
            yield None
            while True:
                found = local.tell("steps", count=STEPS, work=STEP_SECONDS)
                stalls = [s * 1e6 for s in found["stalls"]]
                updates = [s * 1e6 for s in found["updates"]]
                extra = {
                    "median us": statistics.median(stalls), "mean us": statistics.fmean(stalls), "p99 us": results.quantile(stalls, 0.99),
                    "max us": max(stalls), "optimizer us": statistics.median(updates),
                }  # fmt: skip
                yield Sample(sum(found["stalls"]), 1, 0.0, extra)
                yield None
        finally:
            local.close()

    return Contender(
        name, Kind.OURS, rounds, __version__, "real agent; 5 ms of matrix products, optimizer step, `ckpt.step()`"
    )


def named(key: str) -> Any:
    return lambda sample: sample.extra[key]


def report(outcomes: list[Outcome], scale: settings.Scale) -> None:
    page = Report("boundary_cost", HERE, outcomes, scale)
    for name, goal in GOALS.items():
        me = figures.named(outcomes, name)
        if me:
            values = [s.extra["median us"] for s in me.samples]
            page.add(
                figures.measure(
                    f"boundary_cost.{name.replace(' ', '_')}", f"`ckpt.step()` when nothing is saved, {name}, median of {STEPS * len(values)} steps of 5 ms",
                    "us", statistics.median(values), goal=goal, values=values, p99=math.ceil(max(s.extra["p99 us"] for s in me.samples)),
                )
            )  # fmt: skip
    columns = [
        (key.replace(" us", ", us"), named(key), ".0f")
        for key in ("median us", "mean us", "p99 us", "max us", "optimizer us")
    ]
    page.table(outcomes, columns)
    page.bars("cost.svg", named("median us"), "microseconds per boundary, median (less is better)")
    page.size = f"{scale.rounds} rounds of {STEPS} steps{' (QUICK=1)' if scale.quick else ''}."
    page.write()
