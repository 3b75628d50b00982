"""The same save with and without its checksums: to an S3 sink of a stated rate, and to the local disk. And boto3 with its default checksum and without."""

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

from benchmarks.harness import figures, servers, settings, states
from benchmarks.harness.contender import Contender, Kind, Rounds
from benchmarks.harness.crew import Outcome, compete
from benchmarks.harness.figures import Goal
from benchmarks.harness.report import Report
from benchmarks.nvme_flush.run import ours as to_disk
from benchmarks.store_upload.clients import CHUNK_BYTES, IN_FLIGHT, contender
from benchmarks.store_upload.run import ours as to_store

HERE = Path(__file__).resolve().parent
GOAL = Goal(1.05)
RATES = (1e9, 5e9)
WITH, WITHOUT = "Holdfast", "Holdfast, nothing hashed"
BOTO3, BOTO3_WITHOUT = "boto3, its default checksum", "boto3, no checksum"


def main() -> None:
    scale = settings.scale()
    state = states.make(scale.mebibytes)
    disk, memory = settings.disk(), settings.memory()
    path = memory / "state"
    path.write_bytes(memoryview(state.memory)[: state.bytes])
    found: dict[str, list[Outcome]] = {}
    try:
        with servers.sink(memory) as sink:
            for rate in RATES:
                sink.limit(rate)
                sink.forget()
                where = f"sink limited to {rate / 1e9:.0f} GB/s"
                print(f"   {where}", flush=True)
                one = to_store(state, memory, sink)
                peers = [boto3(sink, path, state.bytes, default=default) for default in (True, False)]
                found[where] = compete([one, unhashed(one), *peers], scale.rounds, memory)
        print("   local disk", flush=True)
        one = to_disk(state, disk, memory)
        found["local disk"] = compete([one, unhashed(one)], scale.rounds, memory)
    finally:
        shutil.rmtree(disk)
        shutil.rmtree(memory)
    report(found, scale)


def unhashed(one: Contender) -> Contender:
    """The same work in a process whose hash functions have been taken away: names of chunks are counted, and the server is told no checksum. What it stores
    could not be verified by anybody; it is a yardstick."""

    def rounds() -> Rounds:
        import obstore

        from holdfast_agent import flush

        numbers, client = itertools.count(os.getpid() << 32), obstore.store.S3Store
        flush.digest = lambda view: f"{next(numbers):064x}"
        obstore.store.S3Store = lambda *args, checksum_algorithm, **named: client(*args, **named)  # type: ignore[misc,assignment]
        yield from one.make()

    settings = "no BLAKE3 and no CRC64NVME, else the same"
    return Contender(WITHOUT, Kind.FLOOR, rounds, one.version, settings)


def boto3(server: servers.Server, path: Path, count: int, *, default: bool) -> Contender:
    def prepare() -> Any:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        options: dict[str, Any] = {} if default else {"request_checksum_calculation": "when_required"}
        style = {"addressing_style": "path", "payload_signing_enabled": False}
        config = Config(max_pool_connections=32, s3=style, **options)
        client = boto3.client("s3", endpoint_url=server.endpoint, config=config)
        transfer = TransferConfig(
            multipart_threshold=CHUNK_BYTES, multipart_chunksize=CHUNK_BYTES, max_concurrency=IN_FLIGHT, preferred_transfer_client="classic"
        )  # fmt: skip
        return lambda prefix: client.upload_file(str(path), servers.BUCKET, f"{prefix}/state", Config=transfer)

    name = BOTO3 if default else BOTO3_WITHOUT
    settings = f"upload_file, 16 MiB parts, {IN_FLIGHT} threads, " + ("as it is" if default else "when_required")
    return contender(name, Kind.PEER, "boto3", settings, count, prepare, server.environ)


def report(found: dict[str, list[Outcome]], scale: settings.Scale) -> None:
    page = Report("checksum_cost", HERE, [o for outcomes in found.values() for o in outcomes], scale)
    for where, outcomes in found.items():
        id = "disk" if where == "local disk" else where.split()[3] + "gbps"
        me, bare = figures.named(outcomes, WITH), figures.named(outcomes, WITHOUT)
        if me and bare:
            page.add(
                figures.measure(
                    f"checksum_cost.{id}", f"time of a save with its checksums / without, {where}", "s", figures.median(me, figures.seconds), goal=GOAL,
                    ratios=figures.paired(me, bare, figures.seconds), floor=figures.median(bare, figures.seconds), floor_name=WITHOUT,
                    peers=figures.table_of_peers(outcomes, figures.seconds),
                )
            )  # fmt: skip
        page.text(f"**{where}**")
        page.table(outcomes)
        page.bars(f"{id}.svg", figures.seconds, f"seconds, {where} (less is better)", outcomes)
    page.write()
