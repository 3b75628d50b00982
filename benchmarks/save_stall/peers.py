"""How others take a snapshot: how long each keeps the training loop from changing its state. Each at its best settings on a machine without a GPU."""

import os
import shutil
from pathlib import Path

import torch

from benchmarks.harness.contender import Contender, Kind, Rounds
from benchmarks.harness.states import State
from benchmarks.harness.usage import metered
from benchmarks.nvme_flush.peers import version_of


def peers(state: State, disk: Path, memory: Path) -> list[Contender]:
    torch_version = version_of("torch")
    return [
        Contender(
            "torch.save to tmpfs",
            Kind.PEER,
            lambda: _torch_save(state, memory),
            torch_version,
            "the copy that has to be complete before training goes on",
        ),
        Contender(
            "DCP async_save",
            Kind.PEER,
            lambda: _dcp(state, disk),
            torch_version,
            "thread, DefaultStager in shared memory that keeps its buffers between saves",
        ),
        Contender(
            "torch_checkpointing, async",
            Kind.PEER,
            lambda: _torch_checkpointing(state, disk),
            version_of("torch-checkpointing"),
            "pool in shared memory, prewarmed; until its lock lets the optimizer step",
        ),
        Contender(
            "DLRover flash checkpoint",
            Kind.PEER,
            lambda: _dlrover(state, disk),
            version_of("dlrover"),
            "DdpCheckpointer, StorageType.MEMORY",
        ),
    ]


def _threads() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))


def _torch_save(state: State, memory: Path) -> Rounds:
    _threads()
    path = memory / "torch-save"
    yield None
    while True:
        with metered(state.bytes) as work:
            torch.save(state.tensors, path)
        yield work.sample()
        yield None  # the file is overwritten: its pages are there already


def _dcp(state: State, disk: Path) -> Rounds:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    _threads()
    dist.init_process_group("gloo", init_method=f"file://{disk}/dcp-group", rank=0, world_size=1)
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
        )
    )
    target = disk / "dcp-async"
    yield None
    while True:
        with metered(state.bytes) as work:
            saved = dcp.async_save(
                state.tensors, storage_writer=dcp.FileSystemWriter(target, thread_count=8), async_stager=stager
            )
        saved.result() if not hasattr(saved, "upload_completion") else saved.upload_completion.result()
        yield work.sample()
        shutil.rmtree(target)
        yield None


def _torch_checkpointing(state: State, disk: Path) -> Rounds:
    import torch_checkpointing.checkpoint_manager as manager
    from torch_checkpointing.config import AsyncCheckpointSaverConfig
    from torch_checkpointing.schema import ItemSpec
    from torch_checkpointing.staging import CheckpointStagerConfig
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    _threads()
    staging = CheckpointStagerConfig()
    for name, value in (("use_pinned_memory", False), ("use_non_blocking_copy", False), ("use_shared_memory", True)):
        if hasattr(staging, name):
            setattr(staging, name, value)
    one = manager.CheckpointManager.Config(
        items={"model": ItemSpec(requires_copy=True)},
        save=AsyncCheckpointSaverConfig(staging_config=staging),
        storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
    ).build()
    one.prewarm_staging({"model": state.tensors})
    target = disk / "torch-checkpointing"
    yield None
    while True:
        with metered(state.bytes) as work:
            written = one.save(str(target), {"model": state.tensors})
            with one.lock():
                pass
        assert written is not None
        written.result()
        yield work.sample()
        shutil.rmtree(target)
        yield None


def _dlrover(state: State, disk: Path) -> Rounds:
    from dlrover.trainer.torch.flash_checkpoint.checkpointer import StorageType
    from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer

    _threads()
    for name, value in (
        ("LOCAL_RANK", "0"),
        ("RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("LOCAL_WORLD_SIZE", "1"),
        ("ELASTIC_JOB_NAME", f"bench-{os.getpid()}"),
    ):
        os.environ[name] = value
    target = disk / "dlrover"
    target.mkdir()
    one = DdpCheckpointer(str(target))
    step = 0
    yield None
    try:
        while True:
            step += 1
            with metered(state.bytes) as work:
                one.save_checkpoint(step, dict(state.tensors), str(target / f"{step}.pt"), StorageType.MEMORY)
            yield work.sample()
            yield None
    finally:
        one._engine.close() if hasattr(one, "_engine") else None
