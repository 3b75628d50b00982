"""Who reads the state back: Holdfast's restore, raw reads, and others. Every round ends when every byte is in memory; files are cold before it."""

import mmap
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.contender import Contender, Kind, Rounds
from benchmarks.harness.servers import BUCKET, CREDENTIALS
from benchmarks.harness.states import State
from benchmarks.harness.usage import Metered, metered
from benchmarks.nvme_flush.peers import version_of
from benchmarks.restore_speed.sources import Sources, forget
from holdfast_agent.arena import Arena
from holdfast_api import __version__
from holdfast_api.manifest import RankManifest

CHUNK_BYTES = 16 << 20
FAST, RUNAI, S3TORCH = "fastsafetensors", "Run:ai streamer", "s3torchconnector DCP reader"
NAMED = (FAST, RUNAI, S3TORCH)
"""The restorers that a goal names; the rest stands in the table."""


def prefaulted(sources: Sources, memory: Path) -> Arena:
    """One slot for all who read into one: they take turns."""
    arena = Arena(memory / "arena")
    arena.ensure({(0, 0): sources.image_bytes})
    return arena


def holdfast(sources: Sources, shared: Arena, *, store: bool, load: bool) -> Contender:
    """restore.fetch into an arena that has been prefaulted before; with `load` also the library's way into live tensors, checks included."""

    def rounds() -> Rounds:
        import asyncio

        import blake3

        from benchmarks.harness.ours import Model
        from holdfast import ahead
        from holdfast.load import load_image
        from holdfast.progress import Progress
        from holdfast.state import Registry
        from holdfast_agent import restore
        from holdfast_agent.threads import Stop, Threads
        from holdfast_api.layout import CheckpointRef

        hashed = [0]
        plain = blake3.blake3

        class Counting:
            """Whoever hashes while restoring is counted, at once or piece by piece."""

            def __init__(self, data: bytes | memoryview = b"", **options: Any) -> None:
                hashed[0] += len(data)
                self._hash = plain(data, **options)

            def update(self, data: bytes | memoryview) -> None:
                hashed[0] += len(data)
                self._hash.update(data)

            def hexdigest(self) -> str:
                return self._hash.hexdigest()

        blake3.blake3 = Counting  # type: ignore[misc,assignment]
        folder = shared.folder
        job, node, threads = sources.store(), None if store else sources.node(), Threads()
        record, _ = job.read_commit(CheckpointRef(1, 1))
        live = Model(_empty(sources))
        registry = Registry({"model": live})
        registry.capture(Progress(), window_open=False)

        prepared: list[ahead.Ahead | None] = []

        def begun(manifest: RankManifest, path: Path) -> None:
            if load:
                prepared.append(ahead.begin(str(path), manifest.image_bytes, registry.memory))

        def one(work: Metered) -> None:
            hashed[0] = 0
            (folder / "slots.json").unlink(missing_ok=True)
            arena, tally = Arena(folder), restore.Tally(lambda source, count: None)
            images = asyncio.run(
                restore.fetch(
                    record, range(1), store=job, node=node, arena=arena, threads=threads, tally=tally, stop=Stop(), begun=begun
                )
            )  # fmt: skip
            if load:
                image, beside = images[0], prepared.pop()
                assert beside is not None
                beside.stop()
                m = image.manifest
                load_image(
                    str(image.path), m.image_bytes, m.tensors, registry, Progress(), finite=True, image=beside.image
                )
                beside.close()
            work.extra["hashed / image"] = hashed[0] / sources.image_bytes

        yield None
        yield from _rounds(sources, one, None if store else sources.disk / "holdfast")

    name = "Holdfast, and load" if load else "Holdfast"
    what = "every chunk verified while hot; prefaulted arena" + (
        "; then copied into live tensors, as what was seen to be finite when it was saved" if load else ""
    )
    return Contender(name, Kind.OURS, rounds, __version__, what)


def disk_peers(sources: Sources) -> list[Contender]:
    d = sources.disk
    tensors, runai = (
        d / "model.safetensors",
        "safetensors, 16 threads, 2 MiB blocks as its defaults, copied out of its buffer",
    )
    return [
        _peer("torch.load(mmap)", "torch", "weights_only, every page touched", sources, d / "torch.pt", _torch_load(d, mapped=True)),
        _peer("torch.load", "torch", "weights_only", sources, d / "torch.pt", _torch_load(d, mapped=False)),
        _peer("safetensors", "safetensors", "load_file, every page touched", sources, tensors, _safetensors(d)),
        _peer(FAST, "fastsafetensors", "nogds, CPU, 16 threads", sources, tensors, _fastsafetensors(d)),
        _peer("DCP load", "torch", "into live tensors, no collectives", sources, d / "dcp", _dcp(sources)),
        _peer(RUNAI, "runai-model-streamer", runai, sources, tensors, _runai(str(tensors))),
    ]  # fmt: skip


def store_peers(sources: Sources) -> list[Contender]:
    runai = _runai(f"s3://{BUCKET}/safetensors/model.safetensors", sources, threads=32)
    return [
        _peer(S3TORCH, "s3torchconnector", "S3StorageReader, dcp_optimized, into live tensors", sources, None, _s3torch(sources)),
        _peer(RUNAI, "runai-model-streamer", "safetensors, 32 threads, copied out of its buffer", sources, None, runai),
        _peer("obstore", "obstore", "ranges of 16 MiB, 8 threads, copied into memory", sources, None, _obstore(sources)),
    ]  # fmt: skip


def plain_get(sources: Sources, threads: int) -> Contender:
    """recv_into prefaulted memory over kept connections: nothing is verified."""

    def rounds() -> Rounds:
        count = sources.state.bytes
        target = mmap.mmap(-1, count)
        target[:count:4096] = bytes(len(range(0, count, 4096)))
        view = memoryview(target)
        lines = [socket.create_connection(("127.0.0.1", sources.server.port)) for _ in range(threads)]
        pool = ThreadPoolExecutor(threads)

        def get(start: int) -> None:
            line = lines.pop()
            end = min(start + CHUNK_BYTES, count)
            line.sendall(f"GET /{BUCKET}/raw HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{end - 1}\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += line.recv(1)
            done = start
            while done < end:
                got = line.recv_into(view[done:end])
                if not got:
                    raise EOFError("cut")
                done += got
            lines.append(line)

        yield None
        yield from _rounds(sources, lambda work: _all(pool.map(get, range(0, count, CHUNK_BYTES))), None)

    return Contender(
        f"plain ranged GET, {threads} connections",
        Kind.FLOOR,
        rounds,
        "",
        "stdlib sockets, recv_into prefaulted memory, not verified",
    )


def _rounds(sources: Sources, one: Callable[[Metered], None], files: Path | None) -> Rounds:
    while True:
        if files is not None:
            forget(files)
        with metered(sources.state.bytes) as work:
            one(work)
        yield work.sample()
        yield None


def _all(results: Iterable[object]) -> None:
    """Waits for each; the first failure is raised."""
    for _ in results:
        pass


Prepare = Callable[[], Callable[[], dict[str, torch.Tensor]]]
"""In the reader's own process: a function that reads everything; what it returns is compared once with what was saved."""


def _peer(name: str, package: str, settings: str, sources: Sources, files: Path | None, prepare: Prepare) -> Contender:
    def rounds() -> Rounds:
        os.environ.update(
            CREDENTIALS
            | {
                "AWS_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_ENDPOINT_URL": sources.server.endpoint,
            }
        )
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        read = prepare()
        found = read()
        for key, tensor in sources.state.tensors.items():
            assert torch.equal(found[key], tensor), f"{key} is not what was saved"
        del found
        yield None
        yield from _rounds(sources, lambda work: touch(read()), files)

    return Contender(name, Kind.PEER, rounds, version_of(package), settings)


def touch(tensors: dict[str, torch.Tensor]) -> None:
    """A word of every page: what is only mapped has to be read."""
    for tensor in tensors.values():
        tensor.view(-1)[::1024].sum()


def _empty(sources: Sources) -> State:
    copies = {name: torch.zeros_like(tensor) for name, tensor in sources.state.tensors.items()}
    return State(copies, sources.state.memory, sources.state.bytes)


def _torch_load(disk: Path, *, mapped: bool) -> Prepare:
    return lambda: lambda: torch.load(disk / "torch.pt", mmap=mapped, weights_only=True)


def _safetensors(disk: Path) -> Prepare:
    def prepare() -> Callable[[], dict[str, torch.Tensor]]:
        from safetensors.torch import load_file

        return lambda: load_file(disk / "model.safetensors")

    return prepare


def _fastsafetensors(disk: Path) -> Prepare:
    def prepare() -> Callable[[], dict[str, torch.Tensor]]:
        from fastsafetensors import SafeTensorsFileLoader, SingleGroup

        def read() -> dict[str, torch.Tensor]:
            loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True, max_threads=16)
            loader.add_filenames({0: [str(disk / "model.safetensors")]})
            buffer = loader.copy_files_to_device()
            found = (
                {key: buffer.get_tensor(key).clone() for key in loader.get_keys()}
                if not hasattr(read, "checked")
                else {}
            )
            if not found:
                found = {key: buffer.get_tensor(key) for key in loader.get_keys()}
                touch(found)
                found = {}
            read.checked = True  # type: ignore[attr-defined]
            buffer.close()
            loader.close()
            return found

        return read

    return prepare


def _dcp(sources: Sources) -> Prepare:
    def prepare() -> Callable[[], dict[str, torch.Tensor]]:
        import torch.distributed.checkpoint as dcp

        live = {name: torch.zeros_like(tensor) for name, tensor in sources.state.tensors.items()}

        def read() -> dict[str, torch.Tensor]:
            dcp.load(live, storage_reader=dcp.FileSystemReader(sources.disk / "dcp"), no_dist=True)
            return live

        return read

    return prepare


def _runai(path: str, sources: Sources | None = None, threads: int = 16) -> Prepare:
    def prepare() -> Callable[[], dict[str, torch.Tensor]]:
        os.environ["RUNAI_STREAMER_CONCURRENCY"] = str(threads)
        os.environ["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] = "0"
        if sources is not None:
            os.environ["RUNAI_STREAMER_S3_ENDPOINT"] = sources.server.endpoint
        from runai_model_streamer import SafetensorsStreamer

        live: dict[str, torch.Tensor] = {}

        def read() -> dict[str, torch.Tensor]:
            with SafetensorsStreamer() as streamer:
                streamer.stream_file(path)
                for name, tensor in streamer.get_tensors():
                    # Its buffer is used again: what is kept has to be copied, as its users do.
                    if name in live:
                        live[name].copy_(tensor)
                    else:
                        live[name] = tensor.clone()
            return live

        return read

    return prepare


def _s3torch(sources: Sources) -> Prepare:
    def prepare() -> Callable[[], dict[str, torch.Tensor]]:
        import torch.distributed.checkpoint as dcp
        from s3torchconnector import S3ClientConfig
        from s3torchconnector._s3client import S3Client
        from s3torchconnector.dcp import S3StorageReader

        config = S3ClientConfig(throughput_target_gbps=100.0, force_path_style=True)
        live = {name: torch.zeros_like(tensor) for name, tensor in sources.state.tensors.items()}

        def read() -> dict[str, torch.Tensor]:
            reader = S3StorageReader("us-east-1", f"s3://{BUCKET}/dcp", s3client_config=config)
            reader.fs._client = S3Client(
                "us-east-1", endpoint=sources.server.endpoint, s3client_config=config
            )  # it has no setting for an endpoint
            dcp.load(live, storage_reader=reader, no_dist=True)
            return live

        return read

    return prepare


def _obstore(sources: Sources) -> Prepare:
    def prepare() -> Callable[[], dict[str, torch.Tensor]]:
        import obstore

        store = obstore.store.S3Store(
            BUCKET, endpoint=sources.server.endpoint, region="us-east-1", access_key_id="test", secret_access_key="testsecret",
            virtual_hosted_style_request=False, client_options={"allow_http": True, "timeout": "120s"},
        )  # fmt: skip
        count = sources.state.bytes
        memory = mmap.mmap(-1, count)
        memory[:count:4096] = bytes(len(range(0, count, 4096)))
        view, pool = memoryview(memory), ThreadPoolExecutor(8)
        whole = torch.frombuffer(memory, dtype=torch.float32)
        each = count // 4 // len(sources.state.tensors)

        def get(start: int) -> None:
            end = min(start + CHUNK_BYTES, count)
            view[start:end] = memoryview(obstore.get_range(store, "raw", start=start, end=end))

        def read() -> dict[str, torch.Tensor]:
            list(pool.map(get, range(0, count, CHUNK_BYTES)))
            return {
                name: whole[i * each : (i + 1) * each].view(-1, 1024) for i, name in enumerate(sources.state.tensors)
            }

        return read

    return prepare
