"""Writes what one worker's ranks have captured: slot -> chunks in the store and an image on the node, at the same time, from the same memory (B4, B6, B9).

A chunk that the base has is referred to, not sent; a chunk that two ranks of this worker share is sent once. Nothing here makes a checkpoint exist: that is
the commit record, written by the coordinator (saves.py).
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from holdfast_agent.arena import Mapped
from holdfast_agent.clock import now
from holdfast_agent.errors import SaveGivenUp
from holdfast_agent.threads import Stop, Threads, persist
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk, RankEntry, RankManifest, TensorEntry
from holdfast_store.chunks import digest
from holdfast_store.errors import StoreError
from holdfast_store.job import JobStore
from holdfast_store.local import LocalTier

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's image, in a slot that nobody writes until the flush has ended."""

    rank: int
    path: Path
    image_bytes: int
    boundary: int
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """What to write, and what the base already has."""

    job_uid: str
    ref: CheckpointRef
    world_size: int
    chunk_bytes: int
    parts: tuple[Part, ...]
    base_has: Mapping[str, CheckpointRef] = field(default_factory=dict)
    """Digest -> the checkpoint under which the chunk lies; without chunks that once failed verification (B5)."""
    wait_for_node: bool = True
    """False in an emergency: the store decides, the node's copy is taken if it is there in time."""


@dataclass(frozen=True, slots=True)
class Written:
    manifests: tuple[RankManifest, ...]
    entries: tuple[RankEntry, ...]
    refers_to: tuple[CheckpointRef, ...]
    bytes_logical: int
    bytes_sent: int
    node_durable_at: datetime | None
    on_node: asyncio.Task[datetime | None]
    """Ends when the node's images are written, or could not be; in an emergency perhaps later than the flush."""


class Sender:
    """Sends each distinct chunk of one save once. Called on chunk threads."""

    def __init__(self, job: Job, store: JobStore, stop: Stop) -> None:
        self._job = job
        self._store = store
        self._stop = stop
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self.bytes_sent = 0

    def send(self, view: memoryview) -> Chunk:
        if self._stop.wanted:
            raise SaveGivenUp(self._stop.reason or "the time is up")
        name = digest(view)
        if (at := self._job.base_has.get(name)) is not None:
            return Chunk(name, len(view), at)
        with self._lock:
            first = name not in self._taken
            self._taken.add(name)
        # The second one does not wait for the first: if that fails, the whole save fails.
        if first and persist(self._stop, lambda: self._store.put_chunk(self._job.ref, name, view)):
            with self._lock:
                self.bytes_sent += len(view)
        return Chunk(name, len(view), self._job.ref)


async def write(
    job: Job,
    store: JobStore,
    node: LocalTier | None,
    threads: Threads,
    stop: Stop,
    *,
    node_free: asyncio.Task[None] | None = None,
    on_node_durable: Callable[[datetime], None] = lambda at: None,
) -> Written:
    """Raises StoreError or SaveGivenUp. When it returns or raises, no thread reads the slots any more (but see `wait_for_node`).

    `node_free`: what still tidies the node's directory; the node's part begins after it. `on_node_durable` is called when all images are on the
    node, in an emergency perhaps after this has returned.
    """
    sender = Sender(job, store, stop)
    mapped: list[Mapped] = []
    on_node: asyncio.Task[datetime | None] | None = None
    try:
        for part in job.parts:
            mapped.append(Mapped(part.path, part.image_bytes, write=False))
        on_node = asyncio.ensure_future(_to_node(job, node, mapped, threads, stop, node_free, on_node_durable))
        manifests = await _gather(
            [_send_part(job, p, m, sender, threads) for p, m in zip(job.parts, mapped, strict=True)], stop
        )
        entries = await _gather([threads.call(persist, stop, _creating(store, m)) for m in manifests], stop)
        durable_at = await on_node if job.wait_for_node or on_node.done() else None
    finally:
        if on_node is not None and not on_node.done() and job.wait_for_node:
            await asyncio.wait([on_node])
        if on_node is None or on_node.done():
            _close(mapped)
        else:
            on_node.add_done_callback(lambda _: _close(mapped))
    refers = {c.at for m in manifests for c in m.chunks} - {job.ref}
    logical = sum(p.image_bytes for p in job.parts)
    return Written(
        tuple(manifests), tuple(entries), tuple(sorted(refers)), logical, sender.bytes_sent, durable_at, on_node
    )


async def _send_part(job: Job, part: Part, mapped: Mapped, sender: Sender, threads: Threads) -> RankManifest:
    loop = asyncio.get_running_loop()
    size = job.chunk_bytes
    views = [mapped.view[at : at + size] for at in range(0, part.image_bytes, size)]
    results = await asyncio.gather(
        *(loop.run_in_executor(threads.chunks, sender.send, v) for v in views), return_exceptions=True
    )
    for view in views:
        view.release()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    chunks = tuple(r for r in results if isinstance(r, Chunk))
    return RankManifest(
        job_uid=job.job_uid,
        attempt=job.ref.attempt,
        save=job.ref.save,
        rank=part.rank,
        world_size=job.world_size,
        boundary=part.boundary,
        image_bytes=part.image_bytes,
        chunk_bytes=size,
        chunks=chunks,
        tensors=part.tensors,
    )


async def _to_node(
    job: Job,
    node: LocalTier | None,
    mapped: list[Mapped],
    threads: Threads,
    stop: Stop,
    free: asyncio.Task[None] | None,
    on_durable: Callable[[datetime], None],
) -> datetime | None:
    """When all images are durable on the node; None if there is no node tier or it failed: the store is what counts (fault scenarios 12, 13)."""
    if node is None:
        return None
    if free is not None:
        await asyncio.wait([free])

    def all_parts() -> datetime | None:
        for part, m in zip(job.parts, mapped, strict=True):
            if stop.wanted:
                return None
            node.write_image(job.ref, part.rank, m.view)
        return now()

    try:
        at = await threads.call(all_parts)
        if at is not None:
            on_durable(at)
        return at
    except (OSError, StoreError) as e:
        log.warning("save %s is not on the node: %s", job.ref, e)
        return None


def _close(mapped: list[Mapped]) -> None:
    for m in mapped:
        m.close()


def _creating(store: JobStore, manifest: RankManifest) -> Callable[[], RankEntry]:
    return lambda: store.create_manifest(manifest)


async def _gather(coroutines: Iterable[Coroutine[Any, Any, T]], stop: Stop) -> list[T]:
    """All results, or the first failure after all have ended: nobody may still read a slot when the caller frees it."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        stop.set("the save is abandoned")
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    except Exception:
        stop.set("another part of the save failed")
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return [t.result() for t in tasks]
