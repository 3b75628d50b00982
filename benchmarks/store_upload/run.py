"""Sends one state to an S3 server: a sink that takes a stated rate, and a real server."""

import shutil
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import figures, servers, settings, states
from benchmarks.harness.contender import Contender, Kind, Rounds, Sample
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import COLUMNS, Report
from benchmarks.store_upload.clients import OBSTORE as RIVAL
from benchmarks.store_upload.clients import clients
from hack import s3_server
from holdfast_api import __version__

HERE = Path(__file__).resolve().parent
NAME = "Holdfast"
FLOOR, OBSTORE, CPU, CPU_PEER = Goal(0.92, at_least=True), Goal(1.0, at_least=True), Goal(0.40), Goal(0.3)
RATES = (1e9, 5e9)
OVER_TLS = "versitygw over TLS"
"""Its objects lie in memory: on a disk everybody would wait for the disk and nobody for TLS."""
LARGE = 1 << 20
"""Bytes from which an object is part of a state, and not a record of ours."""
IDS = {"versitygw": "real", OVER_TLS: "tls"}
CLIENTS = {
    "s5cmd": Goal(5.0, True),
    "boto3, tuned": Goal(15.0, True),
    "awscrt": Goal(3.0, True),
    "s3torchconnector": Goal(3.0, True),
}
"""As fast as ours is to be against each, on loopback at 5 GB/s."""


def main() -> None:
    scale = settings.scale()
    state = states.make(scale.mebibytes)
    disk, memory = settings.disk(), settings.memory()
    path = memory / "state"
    path.write_bytes(memoryview(state.memory)[: state.bytes])
    results: dict[str, list[Outcome]] = {}
    try:
        with servers.sink(memory) as sink:
            for rate in RATES:
                sink.limit(rate)
                sink.forget()
                name = f"sink limited to {rate / 1e9:.0f} GB/s"
                print(f"   {name}", flush=True)
                crew = [
                    ours(state, memory, sink),
                    *clients(sink, memoryview(state.memory)[: state.bytes], path, signed=False),
                ]
                results[name] = compete(crew, scale.rounds, memory)
        program = s3_server.find()
        if program is None:
            print("   versitygw is not built: the real server is left out (`make test` builds it)", flush=True)
        else:
            for name, folder, tls in (("versitygw", disk / "s3", False), (OVER_TLS, memory / "s3", True)):
                with servers.versitygw(program, folder, tls=tls) as server:
                    print(f"   {name}", flush=True)
                    crew = [
                        ours(state, memory, server),
                        *clients(server, memoryview(state.memory)[: state.bytes], path, signed=True),
                    ]
                    crew = [emptied(c, folder) for c in crew]
                    results[name] = compete(crew, 2 if scale.quick else 3, memory, warm_up=0 if scale.quick else 1)
                shutil.rmtree(folder)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(results, scale)


def emptied(contender: Contender, folder: Path) -> Contender:
    """What it sent is taken off the server's disk after each turn: eight contenders and four rounds would fill it, or the memory it lies in."""

    def rounds() -> Rounds:
        for sample in contender.make():
            if sample is not None:
                for path in folder.rglob("*"):
                    if path.is_file() and path.stat().st_size >= LARGE:
                        path.unlink()
            yield sample

    return replace(contender, make=rounds)


def ours(state: states.State, memory: Path, server: servers.Server) -> Contender:
    """Copy, then flush and commit, one after the other; `upload s` is without the copy, which is what the others are compared with."""

    def rounds() -> Rounds:
        import os

        from benchmarks.harness import ours as parts
        from benchmarks.harness.usage import metered
        from holdfast_agent.threads import Threads
        from holdfast_store.opening import open_bucket

        os.environ.update(server.environ)
        slot, threads = parts.Slot.of(state, memory), Threads()
        bucket = open_bucket(server.config(f"holdfast-{server.name}-{os.getpid()}"), os.environ)
        store = parts.job_store(bucket)
        parts.claim(store)
        yield None
        save = 0
        try:
            while True:
                save += 1
                with metered(state.bytes) as work:
                    slot.copy()
                    with metered(state.bytes) as upload:
                        written = parts.flushed(slot, save, store, None, threads)
                        parts.commit(store, save, written)
                assert written.bytes_sent >= state.bytes, "something was left out"
                yield Sample(
                    upload.seconds,
                    state.bytes,
                    work.cpu_seconds,
                    {"with the copy, s": work.seconds, "upload CPU s": upload.cpu_seconds},
                )
                yield None
        finally:
            slot.path.unlink(missing_ok=True)

    return Contender(
        NAME,
        Kind.OURS,
        rounds,
        __version__,
        "flush and commit record; BLAKE3 and CRC64NVME of every chunk; CPU includes the copy into the slot",
    )


def report(found: dict[str, list[Outcome]], scale: settings.Scale) -> None:
    page = Report("store_upload", HERE, [o for outcomes in found.values() for o in outcomes], scale)
    for where, outcomes in found.items():
        me = figures.named(outcomes, NAME)
        floor = figures.best(figures.running(outcomes, Kind.FLOOR), figures.rate, larger=True)
        rival = figures.named(outcomes, RIVAL)
        known = figures.table_of_peers(outcomes, figures.rate)
        id = IDS.get(where) or where.split()[3] + "gbps"
        if me and floor:
            page.add(
                figures.measure(
                    f"store_upload.{id}", f"upload to a {where} / plain PUTs with the mandatory checksum", "GB/s", figures.median(me, figures.rate), goal=FLOOR,
                    ratios=figures.paired(me, floor, figures.rate), floor=figures.median(floor, figures.rate), floor_name=floor.contender.name, peers=known,
                )
            )  # fmt: skip
        if me and rival:
            page.add(
                figures.measure(
                    f"store_upload.{id}_obstore", f"upload to {where} / obstore alone with the same checksum", "GB/s", figures.median(me, figures.rate),
                    goal=OBSTORE, ratios=figures.paired(me, rival, figures.rate), peers=known,
                )
            )  # fmt: skip
        if me and id == "5gbps":
            for name, goal in CLIENTS.items():
                if other := figures.named(outcomes, name):
                    page.add(
                        figures.measure(
                            f"store_upload.5gbps_{name.split(',')[0]}", f"upload to {where} / {name}", "GB/s", figures.median(me, figures.rate),
                            goal=goal, ratios=figures.paired(me, other, figures.rate), peers=known,
                        )
                    )  # fmt: skip
            costs = figures.table_of_peers(outcomes, figures.cpu)
            cheapest = figures.best(
                [o for o in figures.running(outcomes, Kind.PEER) if o is not rival], figures.cpu, larger=False
            )
            values = [figures.cpu(s) for s in me.samples]
            page.add(
                figures.measure(
                    "store_upload.cpu",
                    "processor time of copy, BLAKE3, CRC64 and PUT",
                    "CPU s/GB",
                    figures.median(me, figures.cpu),
                    goal=CPU,
                    values=values,
                    peers=costs,
                )
            )
            if cheapest:
                page.add(
                    figures.measure(
                        "store_upload.cpu_peers", f"processor time of copy, BLAKE3, CRC64, PUT / most frugal peer beside obstore ({cheapest.contender.name})",
                        "CPU s/GB", figures.median(me, figures.cpu), goal=CPU_PEER, ratios=figures.paired(me, cheapest, figures.cpu), peers=costs,
                    )
                )  # fmt: skip
        page.text(f"**{where}**")
        page.table(outcomes, COLUMNS)
        page.bars(f"{id}.svg", figures.rate, f"GB/s to {where} (more is better)", outcomes)
    page.write()
