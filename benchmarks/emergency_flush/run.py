"""From a notice to the commit record of the state at hand: a real agent and a real rank against a store of a stated rate."""

import random
import shutil
import statistics
import time
from pathlib import Path

from benchmarks.emergency_flush.peers import peers
from benchmarks.harness import figures, floors, servers, settings, states
from benchmarks.harness.agent import Pod
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from benchmarks.store_upload.clients import clients
from holdfast_api import __version__

HERE = Path(__file__).resolve().parent
GOAL, ALLOWED_SECONDS = Goal(1.12), 0.3
RATE = 1e9
STEP_SECONDS = (0.2, 2.0)
BUDGET_SECONDS = 120


def main() -> None:
    scale = settings.scale()
    state = states.make(scale.mebibytes)
    disk, memory = settings.disk(), settings.memory()
    compared = (
        STEP_SECONDS[:1] if scale.quick else STEP_SECONDS
    )  # others wait for whole steps, ten minutes would not do
    try:
        with servers.sink(memory) as sink:
            sink.limit(RATE)
            view = memoryview(state.memory)[: state.bytes]
            plain = [c for c in clients(sink, view, memory / "none", signed=False) if c.kind is Kind.FLOOR]
            copies = [floors.memcpy(state.memory, state.bytes, n) for n in sorted({1, floors.cores()})]
            outcomes = compete(
                [
                    *(ours(seconds, scale.mebibytes, disk, memory, sink) for seconds in STEP_SECONDS),
                    *copies,
                    *plain,
                    *(peer for seconds in compared for peer in peers(seconds, scale.mebibytes, disk, sink)),
                ],
                scale.rounds,
                memory,
                warm_up=0,
            )
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(outcomes, scale)


def name_of(step_seconds: float) -> str:
    return f"Holdfast, steps of {step_seconds} s"


def ours(step_seconds: float, mebibytes: int, disk: Path, memory: Path, sink: servers.SinkServer) -> Contender:
    """Every round is a pod of its own: it ends with its node."""

    def rounds() -> Rounds:
        from benchmarks.harness.usage import cpu_seconds

        chance = random.Random(1)
        number = 0
        yield None
        while True:
            number += 1
            sink.forget()
            folder = disk / f"pod-{step_seconds}-{number}"
            pod = Pod(
                folder,
                memory,
                sink.config("jobs"),
                rank={"model": "headed", "mebibytes": mebibytes},
                environ=servers.CREDENTIALS,
                every_steps=0,
            )
            try:
                pod.begin()
                pod.connect()
                pod.wait_for_slots(int(pod.ready["bytes"]), 2)
                pod.tell(
                    "steps", count=6, work=0.3
                )  # until it is copied between updates: seen clean in three iterations
                pod.send("steps", count=1000, work=step_seconds)
                time.sleep(1.0 + chance.uniform(0, step_seconds))
                cpu, began = cpu_seconds(), time.monotonic()
                pod.notice(BUDGET_SECONDS)
                acknowledged = time.monotonic()
                committed = _commit_at(pod, sink)
                spent = cpu_seconds() - cpu
                report = pod.report()
                stages = {f"{name}, s": at.timestamp() for name, at in report.stages.items()}
                noticed = stages.get("noticed, s", 0.0)
                extra = {name: at - noticed for name, at in stages.items() if at > noticed > 0}
                yield Sample(
                    committed - began,
                    int(pod.ready["bytes"]),
                    spent,
                    {"notice answered, s": acknowledged - began, **extra},
                )
            finally:
                pod.close()
                shutil.rmtree(folder, ignore_errors=True)
            yield None

    return Contender(
        name_of(step_seconds),
        Kind.OURS,
        rounds,
        __version__,
        "pod's agent, order by signed HTTP, one rank, notice at a random moment of a step",
    )


def _commit_at(pod: Pod, sink: servers.SinkServer) -> float:
    """When the commit record was complete in the store."""
    until = time.monotonic() + BUDGET_SECONDS
    while time.monotonic() < until:
        found = [at for key, at in sink.stats()["keys"].items() if key.endswith("/commit.json")]
        if found:
            return float(max(found))
        time.sleep(0.05)
    raise TimeoutError(f"no commit within {BUDGET_SECONDS} s: {pod.words()}")


def report(outcomes: list[Outcome], scale: settings.Scale) -> None:
    page = Report("emergency_flush", HERE, outcomes, scale)
    copy = figures.best([o for o in outcomes if o.contender.name.startswith("memcpy")], figures.seconds, larger=False)
    upload = figures.best([o for o in outcomes if o.contender.name.startswith("plain")], figures.seconds, larger=False)
    for seconds in STEP_SECONDS:
        me = figures.named(outcomes, name_of(seconds))
        if not (me and copy and upload):
            continue
        theirs = figures.table_of_peers(
            [o for o in outcomes if o.contender.name.endswith(f"steps of {seconds} s")], figures.seconds
        )
        bounds = [max(a.seconds, b.seconds) for a, b in zip(copy.samples, upload.samples, strict=True)]
        ratios = [(s.seconds - ALLOWED_SECONDS) / bound for s, bound in zip(me.samples, bounds, strict=True)]
        what = f"(notice → commit record in the store, less {ALLOWED_SECONDS} s) / the longer of copy and upload, steps of {seconds} s"
        page.add(
            figures.measure(
                f"emergency_flush.{round(seconds * 1000)}ms_steps", what, "s", figures.median(me, figures.seconds), goal=GOAL, ratios=ratios,
                floor=statistics.median(bounds), floor_name=upload.contender.name,
                peers=theirs, store_bytes_per_second=RATE, step_seconds=seconds,
            )
        )  # fmt: skip
        names = sorted({n for s in me.samples for n in s.extra} - {"notice answered, s"})
        stages = [(statistics.median(s.extra.get(n, 0.0) for s in me.samples), n.removesuffix(", s")) for n in names]
        words = ", ".join(f"{name} {at:.2f} s" for at, name in sorted(stages))
        page.text(f"{me.contender.name}, as its agent reports it, after it had the notice, median: {words}.")
    page.table(outcomes)
    page.bars(
        "commit.svg",
        figures.seconds,
        f"seconds until committed, store limited to {RATE / 1e9:.0f} GB/s (less is better)",
    )
    page.write()
