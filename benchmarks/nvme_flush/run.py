"""Writes one state to a local disk, durable, by Holdfast, by raw writes, and by what others use."""

import shutil
from pathlib import Path

from benchmarks.harness import figures, floors, settings, states
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from benchmarks.nvme_flush.peers import peers

HERE = Path(__file__).resolve().parent
RAW, PEER, CPU, CPU_PEER = Goal(0.97, at_least=True), Goal(3.3, at_least=True), Goal(0.40), Goal(0.3)
NAME = "Holdfast"


def main() -> None:
    scale = settings.scale()
    state = states.make(scale.mebibytes)
    disk, memory = settings.disk(), settings.memory()
    try:
        contenders = [
            ours(state, disk, memory),
            *(floors.direct_write(state.memory, state.bytes, disk, n) for n in (8, 16)),
            floors.fio(disk, state.bytes, "write"),
            *peers(state, disk),
        ]
        outcomes = compete(contenders, scale.rounds, memory)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(outcomes, scale)


def ours(state: states.State, disk: Path, memory: Path) -> Contender:
    """Copy into the slot and flush, one after the other; `flush s` is the flush alone, which is what the raw write is compared with."""

    def rounds() -> Rounds:
        from benchmarks.harness import ours as parts
        from benchmarks.harness.usage import metered
        from holdfast_agent.threads import Threads

        slot, threads = parts.Slot.of(state, memory), Threads()
        node, store = parts.tier(disk / "holdfast"), parts.job_store(parts.Discarding())
        yield None
        save = 0
        while True:
            save += 1
            with metered(state.bytes) as work:
                slot.copy()
                with metered(state.bytes) as flush:
                    written = parts.flushed(slot, save, store, node, threads)
            assert written.node_durable_at is not None, "the image is not on the node"
            work.extra = {"flush s": flush.seconds, "flush CPU s": flush.cpu_seconds}
            yield work.sample()
            node.prune(set())
            yield None

    from holdfast_api import __version__

    return Contender(
        NAME,
        Kind.OURS,
        rounds,
        __version__,
        "copy into the slot, then hash, write and fdatasync; a store that discards",
    )


def report(outcomes: list[Outcome], scale: settings.Scale) -> None:
    page = Report("nvme_flush", HERE, outcomes, scale)
    me = figures.named(outcomes, NAME)
    raw = figures.best([o for o in outcomes if o.contender.kind is Kind.FLOOR], figures.rate, larger=True)
    peer = figures.best(figures.running(outcomes, Kind.PEER), figures.rate, larger=True)
    cheapest = figures.best(figures.running(outcomes, Kind.PEER), figures.cpu, larger=False)

    def flush_rate(sample: Sample) -> float:
        return sample.bytes / 1e9 / sample.extra["flush s"]

    rates, costs = figures.table_of_peers(outcomes, figures.rate), figures.table_of_peers(outcomes, figures.cpu)
    if me and raw:
        page.add(
            figures.measure(
                "nvme_flush.raw", "flush of a slot to the local disk / raw O_DIRECT write", "GB/s", figures.median(me, flush_rate),
                goal=RAW, ratios=figures.paired(me, raw, flush_rate, figures.rate), floor=figures.median(raw, figures.rate), floor_name=raw.contender.name,
            )
        )  # fmt: skip
    if me and peer:
        page.add(
            figures.measure(
                "nvme_flush.peers", f"copy and flush to the local disk / the best of the peers ({peer.contender.name})", "GB/s",
                figures.median(me, figures.rate), goal=PEER, ratios=figures.paired(me, peer, figures.rate), peers=rates,
            )
        )  # fmt: skip
    if me:
        page.add(
            figures.measure(
                "nvme_flush.cpu", "processor time of copy, BLAKE3 and write", "CPU s/GB", figures.median(me, figures.cpu),
                goal=CPU, values=[figures.cpu(s) for s in me.samples], peers=costs,
            )
        )  # fmt: skip
    if me and cheapest:
        page.add(
            figures.measure(
                "nvme_flush.cpu_peers", f"processor time of copy, BLAKE3 and write / the most frugal of the peers ({cheapest.contender.name})", "CPU s/GB",
                figures.median(me, figures.cpu), goal=CPU_PEER, ratios=figures.paired(me, cheapest, figures.cpu), peers=costs,
            )
        )  # fmt: skip
    page.bars("rate.svg", figures.rate, "GB/s, durable on disk (more is better)")
    page.write()
