"""Reads one state back, from a local disk and from a store of a stated rate, verified."""

import shutil
import statistics
from pathlib import Path

from benchmarks.harness import figures, floors, servers, settings, states
from benchmarks.harness.contender import Kind
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import COLUMNS, Report
from benchmarks.restore_speed import readers
from benchmarks.restore_speed.sources import lay_down

HERE = Path(__file__).resolve().parent
NAME, LOADED = "Holdfast", "Holdfast, and load"
DISK, STORE, PEERS, PASSES = Goal(0.97, at_least=True), Goal(0.92, at_least=True), Goal(1.0, at_least=True), Goal(1.0)
RATE = 1e9
IN_FLIGHT = (8, 16)


def main() -> None:
    scale = settings.scale()
    state = states.make(scale.mebibytes)
    disk, memory = settings.disk(), settings.memory()
    try:
        # On the disk: three formats of the state in memory beside every reader's own copies were more than 24 GiB.
        with servers.sink(memory, keep=disk / "server") as sink:
            sources = lay_down(state, disk, memory, sink)
            arena = readers.prefaulted(sources, memory)
            print("   from the local disk", flush=True)
            from_disk = compete(
                [
                    *(readers.holdfast(sources, arena, store=False, load=load) for load in (False, True)),
                    *(floors.direct_read(sources.raw, state.bytes, n, arena.path(0, 0)) for n in IN_FLIGHT),
                    *readers.disk_peers(sources),
                ],
                scale.rounds,
                memory,
            )
            print(f"   from a store limited to {RATE / 1e9:.0f} GB/s", flush=True)
            sink.limit(RATE)
            from_store = compete(
                [
                    *(readers.holdfast(sources, arena, store=True, load=load) for load in (False, True)),
                    *(readers.plain_get(sources, n) for n in IN_FLIGHT),
                    *readers.store_peers(sources),
                ],
                scale.rounds,
                memory,
            )
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(from_disk, from_store, scale)


def report(from_disk: list[Outcome], from_store: list[Outcome], scale: settings.Scale) -> None:
    page = Report("restore_speed", HERE, [*from_disk, *from_store], scale)
    for id, what, outcomes, goal in (
        ("disk", "local disk", from_disk, DISK),
        ("store", "store limited to 1 GB/s", from_store, STORE),
    ):
        me, loaded = figures.named(outcomes, NAME), figures.named(outcomes, LOADED)
        floor = figures.best(figures.running(outcomes, Kind.FLOOR), figures.rate, larger=True)
        peer = figures.best(
            [o for o in figures.running(outcomes, Kind.PEER) if o.contender.name in readers.NAMED],
            figures.rate,
            larger=True,
        )
        known = figures.table_of_peers(outcomes, figures.rate)
        if me and floor:
            page.add(
                figures.measure(
                    f"restore_speed.{id}", f"restore from a {what}, verified / raw read", "GB/s", figures.median(me, figures.rate), goal=goal,
                    ratios=figures.paired(me, floor, figures.rate), floor=figures.median(floor, figures.rate), floor_name=floor.contender.name, peers=known,
                )
            )  # fmt: skip
        if loaded and peer:
            page.add(
                figures.measure(
                    f"restore_speed.{id}_peers", f"restore from a {what} into live tensors, verified / {peer.contender.name}, not verified",
                    "GB/s", figures.median(loaded, figures.rate), goal=PEERS, ratios=figures.paired(loaded, peer, figures.rate), peers=known,
                )
            )  # fmt: skip
        page.text(f"**From a {what}**")
        page.table(outcomes, COLUMNS)
        page.bars(f"{id}.svg", figures.rate, f"GB/s from a {what} (more is better)", outcomes)
    passes = [
        s.extra["hashed / image"]
        for o in (from_disk, from_store)
        for me in [figures.named(o, NAME)]
        if me
        for s in me.samples
    ]
    if passes:
        page.add(
            figures.measure(
                "restore_speed.passes", "bytes hashed while restoring / bytes of the checkpoint", "×", round(statistics.median(passes), 3), goal=PASSES,
                values=[round(p, 2) for p in passes],
            )
        )  # fmt: skip
    page.write()
