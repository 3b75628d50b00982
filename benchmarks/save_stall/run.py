"""How long a save keeps training from going on, against the time of a plain copy of the same bytes."""

import shutil
import statistics
from pathlib import Path

from benchmarks.harness import figures, floors, settings, states
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from benchmarks.save_stall.peers import peers
from holdfast_api import __version__

HERE = Path(__file__).resolve().parent
STALL, FIRST = Goal(1.08), Goal(1.1)
EVERY = 5
THREADS = sorted({1, floors.cores()})
SLOTS = 2
"""Each is used for the first time once: the first saves are as many."""
NAME = "Holdfast"


def main() -> None:
    scale = settings.scale()
    state = states.make(scale.mebibytes)
    disk, memory = settings.disk(), settings.memory()
    try:
        contenders = [
            ours(scale.mebibytes, disk),
            *(floors.memcpy(state.memory, state.bytes, n) for n in THREADS),
            *peers(state, disk, memory),
        ]
        outcomes = compete(contenders, scale.rounds, memory, warm_up=SLOTS)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(outcomes, scale)


def ours(mebibytes: int, disk: Path) -> Contender:
    def rounds() -> Rounds:
        from benchmarks.harness.agent import Local

        local = Local(disk / "stall", "--every-steps", str(EVERY), rank={"model": "plain", "mebibytes": mebibytes})
        try:
            count, done = int(local.ready["bytes"]), 1
            local.wait_for_slots(count, 2)
            local.tell("steps", count=EVERY - 2, work=0.3)  # training goes on while the rank maps what it was given
            yield None
            while True:
                copies = [local.tell("copy", threads=n)["seconds"] for n in THREADS]
                found = local.tell("steps", count=1, change=True)
                local.wait_for_commits(done)
                local.check_sent(count)
                yield Sample(found["stalls"][0], count, 0.0, {"memcpy, s": min(copies)})
                done += 1
                local.tell("steps", count=EVERY - 1, work=0.02)
                yield None
        finally:
            local.close()

    return Contender(
        NAME, Kind.OURS, rounds, __version__, "the whole `ckpt.step()` at which a save is due; real agent, two slots"
    )


def report(outcomes: list[Outcome], scale: settings.Scale) -> None:
    page = Report("save_stall", HERE, outcomes, scale)
    me = figures.named(outcomes, NAME)
    known = figures.table_of_peers(outcomes, figures.seconds)
    for outcome in outcomes:
        for sample in outcome.samples:
            sample.extra["first / later"] = _first(outcome) / figures.median(outcome, figures.seconds)
    if me:
        floor = [s.extra["memcpy, s"] for s in me.samples]
        page.add(
            figures.measure(
                "save_stall.stall", "stall of a save / memcpy into a prefaulted buffer by the same process", "s", figures.median(me, figures.seconds),
                goal=STALL, ratios=[s.seconds / f for s, f in zip(me.samples, floor, strict=True)],
                floor=statistics.median(floor), floor_name="memcpy", peers=known,
            )
        )  # fmt: skip
        steady = figures.median(me, figures.seconds)
        first = _first(me)
        firsts = {
            o.contender.name: {
                "version": o.contender.version,
                "value": round(_first(o) / figures.median(o, figures.seconds), 3),
            }
            for o in figures.running(outcomes, Kind.PEER)
        }
        page.add(
            figures.measure(
                "save_stall.first", f"stall of the slowest of the first {SLOTS} saves / of a later one", "s", first, goal=FIRST,
                ratios=[first / steady], floor=steady, floor_name="median of the later ones", peers=firsts,
            )
        )  # fmt: skip
    page.table(
        outcomes,
        (
            ("stall, s", figures.seconds, ".3f"),
            ("GB/s", figures.rate, ".2f"),
            ("first / later", lambda s: s.extra["first / later"], ".2f"),
        ),
    )
    page.bars("stall.svg", figures.seconds, "seconds in which training cannot go on (less is better)")
    page.write()


def _first(outcome: Outcome) -> float:
    return max(s.seconds for s in outcome.early)
