"""The same state, laid down once for everybody who reads it: on a local disk and in an S3 server, in each reader's own format."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import files, ours, servers
from benchmarks.harness.states import State
from holdfast_agent.threads import Threads
from holdfast_api.layout import CheckpointRef
from holdfast_store.opening import open_bucket


@dataclass(frozen=True)
class Sources:
    """`disk` holds a folder or file per format; `server` the same below its bucket."""

    state: State
    disk: Path
    server: servers.SinkServer
    image_bytes: int

    @property
    def raw(self) -> Path:
        return self.disk / "raw"

    def store(self) -> Any:
        os.environ.update(servers.CREDENTIALS)
        return ours.job_store(open_bucket(self.server.config("holdfast"), os.environ))

    def node(self) -> Any:
        return ours.tier(self.disk / "holdfast")


def lay_down(state: State, disk: Path, memory: Path, server: servers.SinkServer) -> Sources:
    """In a forked process, so that the parent stays without threads and connections."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            _lay_down(state, disk, memory, server)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the sources could not be laid down; the reason stands above")
    return Sources(state, disk, server, int((disk / "image-bytes").read_text()))


def _lay_down(state: State, disk: Path, memory: Path, server: servers.SinkServer) -> None:
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file

    os.environ.update(servers.CREDENTIALS)
    view = memoryview(state.memory)[: state.bytes]
    slot, threads = ours.Slot.of(state, memory), Threads()
    slot.copy()
    made = Sources(state, disk, server, slot.image_bytes)
    store, node = made.store(), made.node()
    ours.claim(store)
    written = ours.flushed(slot, 1, store, node, threads)
    ours.commit(store, 1, written)
    for manifest in written.manifests:
        node.write_manifest(manifest)
    record, text = store.read_commit(CheckpointRef(1, 1))
    node.write_commit(record.ref, text)
    slot.path.unlink()
    (disk / "image-bytes").write_text(str(slot.image_bytes))
    files.write_direct(made.raw, view, threads=8)
    torch.save(state.tensors, disk / "torch.pt")
    save_file(state.tensors, disk / "model.safetensors")
    dcp.save(state.tensors, storage_writer=dcp.FileSystemWriter(disk / "dcp", thread_count=8), no_dist=True)
    files.sync_tree(disk)
    _to_server(state, disk, server)


def _to_server(state: State, disk: Path, server: servers.SinkServer) -> None:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3", region_name="us-east-1", endpoint_url=server.endpoint, config=Config(s3={"addressing_style": "path"})
    )
    for path in (disk / "raw", disk / "model.safetensors", *files.files_below(disk / "dcp")):
        with path.open("rb") as body:
            key = f"safetensors/{path.name}" if path.suffix == ".safetensors" else str(path.relative_to(disk))
            client.put_object(Bucket=servers.BUCKET, Key=key, Body=body)


def forget(folder: Path) -> None:
    """Whatever lies below it is read from the disk the next time."""
    files.forget(files.files_below(folder) if folder.is_dir() else [folder])


def remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
