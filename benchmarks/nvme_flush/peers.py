"""How others write a state to a local disk, each at its best settings here. Every one is durable when its round is over: fsync of files and directories."""

import importlib.metadata
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import files
from benchmarks.harness.contender import Contender, Kind, Rounds
from benchmarks.harness.states import State
from benchmarks.harness.usage import metered

THREADS = 8


def peers(state: State, folder: Path) -> list[Contender]:
    buffered = "CheckpointManager, synchronous, use_direct_io=False, fsync"
    direct = "CheckpointManager, synchronous, as it comes (use_direct_io=True), fsync"
    return [
        _peer("torch.save", "torch", "zip format, fsync", state, folder, _torch_save),
        _peer(
            "DCP, 8 threads", "torch", "FileSystemWriter(thread_count=8), no collectives, fsync", state, folder, _dcp
        ),
        _peer("safetensors", "safetensors", "save_file, fsync", state, folder, _safetensors),
        _peer(
            "torchsnapshot", "torchsnapshot", "Snapshot.take, 16 writes at once, fsync", state, folder, _torchsnapshot
        ),
        _peer(
            "torch_checkpointing", "torch-checkpointing", buffered, state, folder, lambda: _torch_checkpointing(False)
        ),
        _peer(
            "torch_checkpointing, direct",
            "torch-checkpointing",
            direct,
            state,
            folder,
            lambda: _torch_checkpointing(True),
        ),
    ]


Save = Callable[[dict[str, torch.Tensor], Path], None]


def _peer(name: str, package: str, settings: str, state: State, folder: Path, prepare: Callable[[], Save]) -> Contender:
    def rounds() -> Rounds:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        save = prepare()
        target = folder / name.replace(" ", "-").replace(",", "")
        yield None
        while True:
            with metered(state.bytes) as work:
                save(state.tensors, target)
                files.sync_tree(target) if target.is_dir() else files.sync_file(target)
            written = sum(p.stat().st_size for p in (files.files_below(target) if target.is_dir() else [target]))
            assert written >= state.bytes, f"{written} bytes on disk where {state.bytes} were to be saved"
            yield work.sample()
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            yield None

    return Contender(name, Kind.PEER, rounds, version_of(package), settings)


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _torch_save() -> Save:
    return lambda tensors, target: torch.save(tensors, target)


def _dcp() -> Save:
    import torch.distributed.checkpoint as dcp

    def save(tensors: dict[str, torch.Tensor], target: Path) -> None:
        dcp.save(
            tensors, storage_writer=dcp.FileSystemWriter(target, thread_count=THREADS, sync_files=True), no_dist=True
        )

    return save


def _safetensors() -> Save:
    from safetensors.torch import save_file

    return lambda tensors, target: save_file(tensors, target)


def _torchsnapshot() -> Save:
    from torchsnapshot import Snapshot, StateDict

    os.environ.setdefault("TORCHSNAPSHOT_MAX_PER_RANK_IO_CONCURRENCY_OVERRIDE", "16")

    def save(tensors: dict[str, torch.Tensor], target: Path) -> None:
        Snapshot.take(str(target), {"state": StateDict(**{n.replace(".", "_"): t for n, t in tensors.items()})})

    return save


def _torch_checkpointing(direct: bool) -> Save:
    import torch_checkpointing.checkpoint_manager as manager
    from torch_checkpointing.config import SyncCheckpointSaverConfig
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    one = manager.CheckpointManager.Config(
        save=SyncCheckpointSaverConfig(), storage_config=LocalFileSystemStorageConfig(use_direct_io=direct)
    ).build()
    return lambda tensors, target: one.save(str(target), {"model": tensors}) and None
