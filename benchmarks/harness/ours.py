"""Holdfast's own parts as contenders call them: the library's image and copy, the agent's flush and restore, on stores made for measuring."""

import asyncio
import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.states import State
from holdfast.copying import copy_pool
from holdfast.progress import Progress
from holdfast.snapshot import SlotWriter, SnapshotPlan, document_bytes
from holdfast.state import Registry
from holdfast_agent import flush
from holdfast_agent.threads import Stop, Threads
from holdfast_api import __version__
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import CheckpointKind, Claim, CommitRecord
from holdfast_api.manifest import Progress as Position
from holdfast_api.messages import Cause, Member
from holdfast_store.bucket import Buffer
from holdfast_store.job import JobStore
from holdfast_store.local import LocalTier
from holdfast_store.memory import MemoryBucket

NAMESPACE, JOB, UID = "bench", "bench", "00000000-0000-4000-8000-00000000be7c"
CHUNK_BYTES = 16 << 20
VERSION = __version__


class Discarding(MemoryBucket):
    """Acknowledges chunks and forgets them; keeps what is small. What is left is what the node's disk costs."""

    def create(self, key: str, data: Buffer, **options: Any) -> None:
        if "/chunks/" not in key:
            super().create(key, data, **options)

    def put(self, key: str, data: Buffer, **options: Any) -> None:
        if "/chunks/" not in key:
            super().put(key, data, **options)


class Model(torch.nn.Module):
    """The state's tensors as parameters."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.tensors.items():
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(tensor, requires_grad=False))


@dataclass
class Slot:
    """A slot of an arena with the library's writer for it."""

    path: Path
    plan: SnapshotPlan
    memory: mmap.mmap
    captured: Any
    document: bytes
    writer: SlotWriter
    pool: ThreadPoolExecutor

    @classmethod
    def of(cls, state: State, folder: Path) -> "Slot":
        captured = Registry({"model": Model(state)}).capture(Progress(), window_open=False)
        plan = SnapshotPlan.of(1, captured, CHUNK_BYTES)
        path = folder / "slot"
        with path.open("wb+") as file:
            file.truncate(plan.layout.image_bytes)
            memory = mmap.mmap(file.fileno(), plan.layout.image_bytes)
        memory[:: mmap.PAGESIZE] = bytes(
            len(range(0, plan.layout.image_bytes, mmap.PAGESIZE))
        )  # prefaulted, as the agent does
        return cls(
            path, plan, memory, captured, document_bytes(captured.document), SlotWriter(plan, memory), copy_pool()
        )

    def copy(self) -> None:
        self.writer.write(self.captured.leaves.tensors, self.document, self.pool)

    @property
    def image_bytes(self) -> int:
        return self.plan.layout.image_bytes


def flushed(slot: Slot, save: int, store: JobStore, node: LocalTier | None, threads: Threads) -> flush.Written:
    """One flush of the slot, as for an emergency with time: nothing to lean on, node and store both."""
    part = flush.Part(0, slot.path, slot.image_bytes, save, slot.plan.layout.entries)
    job = flush.Job(UID, CheckpointRef(1, save), 1, CHUNK_BYTES, (part,))

    async def run() -> flush.Written:
        return await flush.write(job, store, node, threads, Stop())

    return asyncio.run(run())


def tier(root: Path) -> LocalTier:
    root.mkdir(exist_ok=True)
    return LocalTier(root, NAMESPACE, JOB, UID)


def job_store(bucket: Any) -> JobStore:
    return JobStore(bucket, NAMESPACE, JOB, UID)


def claim(store: JobStore) -> None:
    """Attempt 1, so that saves of it may be committed (A6)."""
    store.claim(Claim(UID, 1, "bench", (Member(0, "bench", UID, 1, "", ""),), None, datetime.now(UTC)))


def commit(store: JobStore, save: int, written: flush.Written) -> None:
    store.commit(
        CommitRecord(
            job_uid=UID, namespace=NAMESPACE, job=JOB, attempt=1, save=save, kind=CheckpointKind.FULL, cause=Cause.PERIODIC, created_at=datetime.now(UTC),
            progress=Position(save), ranks=written.entries, base=None, refers_to=written.refers_to, bytes_logical=written.bytes_logical,
            bytes_sent=written.bytes_sent,
        )
    )  # fmt: skip
