"""Writes what one worker's ranks have captured: slot -> chunks in the store and an image on the node, at the same time, from the same memory (B4, B6, B9).

Each chunk is hashed once, and handed on while it is hot: to the node's file and, unless the base has it, to the store. The two go their own pace, and
neither waits for the other. Then, where there is time, it is seen whether the weights in it are finite (C4). A chunk that several ranks hold is sent
once, also if they are of several workers (J4). Nothing here makes a checkpoint exist: that is the commit record, written by the coordinator (saves.py).
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from holdfast_agent import replicas, shares
from holdfast_agent.errors import AgentError, SaveGivenUp
from holdfast_agent.finite import Look
from holdfast_agent.lanes import Lane
from holdfast_agent.mappings import Mappings, Use
from holdfast_agent.pace import Pace, pace_of
from holdfast_agent.progress import Progress
from holdfast_agent.sending import NotSent, Sending
from holdfast_agent.threads import Stop, Threads
from holdfast_agent.tonode import ToNode
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk, LooseDigest, RankEntry, RankManifest, TensorEntry
from holdfast_api.peers import ReplicaDigest
from holdfast_store.chunks import digest, ranges
from holdfast_store.errors import StoreError
from holdfast_store.job import JobStore
from holdfast_store.local import LocalTier
from holdfast_store.records import entry_of

log = logging.getLogger(__name__)
T = TypeVar("T")
Described = asyncio.Future[tuple[tuple[RankManifest, ...], tuple[RankEntry, ...]]]
"""What is known of the images once all of them are hashed."""
LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's image, in a slot that nobody writes until the flush has ended."""

    rank: int
    path: Path
    image_bytes: int
    boundary: int
    tensors: tuple[TensorEntry, ...]
    must_be_finite: tuple[str, ...] | None = None
    """Of `tensors`, by name; None: unknown."""


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
    """Whether `write` returns only when the node's part has ended as well. The agent does not wait: neither slows the other."""
    base: CheckpointRef | None = None
    """The node keeps its copy while there is room for it."""
    emergency: bool = True
    """At full speed. Otherwise beside training, which must not become slower."""
    looks: Callable[[], bool] = lambda: False
    """Whether there is time to see if what is saved is finite. Asked again for each chunk."""
    to_store: bool = True
    """False: on the node alone (E6). Then `write` returns when that is durable, or raises."""
    worker: int = 0
    """Place among the members of the one whose ranks these are."""


@dataclass(frozen=True, slots=True)
class Written:
    manifests: tuple[RankManifest, ...]
    entries: tuple[RankEntry, ...]
    refers_to: tuple[CheckpointRef, ...]
    bytes_logical: int
    bytes_sent: int
    bytes_stored: int
    """Of the chunks that lie under this save."""
    node_durable_at: datetime | None
    """None: not yet, or not at all."""
    at_its_pace: bool
    """Not held back by the user's limit, nor hurried on its way: how long it took says something about the store."""
    on_node: asyncio.Task[datetime | None]
    """Ends when the node's images are durable, or could not be, perhaps later than the flush."""
    unread: asyncio.Future[Any]
    """Done when no thread reads the slots any more."""
    waited_seconds: float = 0.0
    """For other workers alone."""
    replicas: tuple[ReplicaDigest, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """A part in this process's memory."""

    part: Part
    reading: Use
    views: tuple[memoryview, ...]
    compared: Mapping[str, replicas.Compared]
    """What other ranks should hold as well."""
    shared_by: Mapping[int, tuple[int, ...]]
    """By the number of the chunk, the workers that do."""

    @classmethod
    def of(cls, part: Part, job: Job, slots: Mappings) -> "Image":
        reading = slots.read(part.path, part.image_bytes)
        views = tuple(reading.view[at : at + n] for at, n in ranges(part.image_bytes, job.chunk_bytes))
        compared = replicas.compared(part.tensors, part.image_bytes, job.chunk_bytes)
        return cls(part, reading, views, compared, shares.shared_by(compared, len(job.parts)))

    @property
    def rank(self) -> int:
        return self.part.rank

    def close(self) -> None:
        for view in self.views:
            with contextlib.suppress(BufferError):  # a request that was cut lets go of it a moment later
                view.release()
        self.reading.close()


async def write(
    job: Job,
    store: JobStore,
    node: LocalTier | None,
    threads: Threads,
    stop: Stop,
    *,
    node_free: asyncio.Task[None] | None = None,
    node_yields: Callable[[], bool] = lambda: False,
    on_node_durable: Callable[[datetime], None] = lambda at: None,
    on_node_trouble: Callable[[StoreError], None] = lambda error: None,
    on_node_whole: Callable[[tuple[RankManifest, ...], tuple[RankEntry, ...]], Awaitable[None]] | None = None,
    on_described: Callable[[tuple[RankManifest, ...], tuple[RankEntry, ...]], None] = lambda manifests, entries: None,
    progress: Progress | None = None,
) -> Written:
    """Returns when the store has the chunks and the manifests. Raises StoreError or SaveGivenUp, when no thread reads the slots any more.

    `node_free`: what still tidies the node's directory; the node's part begins after it, or not at all once `node_yields`. `on_node_durable` is called
    when all images are on the node, `on_node_trouble` if they cannot be, either perhaps after this has returned. `on_node_whole` comes after
    `on_node_durable`, with what has to lie beside the images so that they can be used: the node's part ends after it. `on_described` is called with the
    same as soon as everything is hashed. `progress` is told how far it is.
    """
    of_node = _OfNode(node_free, node_yields, on_node_durable, on_node_trouble, on_node_whole)
    writing = asyncio.ensure_future(_write(job, store, node, threads, stop, of_node, on_described, progress))
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        stop.set("the save is abandoned")
        await asyncio.wait([writing])
        raise


@dataclass(frozen=True, slots=True)
class _OfNode:
    """What `write` was told about the node's part."""

    free: asyncio.Task[None] | None
    yields: Callable[[], bool]
    on_durable: Callable[[datetime], None]
    on_trouble: Callable[[StoreError], None]
    on_whole: Callable[[tuple[RankManifest, ...], tuple[RankEntry, ...]], Awaitable[None]] | None


async def _write(
    job: Job,
    store: JobStore,
    node: LocalTier | None,
    threads: Threads,
    stop: Stop,
    of_node: _OfNode,
    on_described: Callable[[tuple[RankManifest, ...], tuple[RankEntry, ...]], None],
    progress: Progress | None,
) -> Written:
    """`write`, never cancelled."""
    pace = pace_of(emergency=job.emergency, cpus=threads.cpus)
    images: list[Image] = []
    on_node: asyncio.Task[datetime | None] | None = None
    quiet: asyncio.Future[None] | None = None
    described: Described = asyncio.get_running_loop().create_future()
    try:
        for part in job.parts:
            images.append(Image.of(part, job, threads.slots))
        to_node = None
        if node is not None:
            to_node = ToNode(job.ref, job.base, images, node, threads.node, pace.node_writes, stop)
        on_node = asyncio.ensure_future(_node_part(job, to_node, of_node, described, stop))
        logical = sum(p.image_bytes for p in job.parts)
        told = progress or Progress(full_speed=job.emergency)
        lane = Lane(threads.sending, threads.link.begin(pace) if job.to_store else 1)
        sending: Sending | NotSent = NotSent(job.ref, job.base_has)
        if job.to_store:
            sending = Sending(
                job.ref, job.base_has, store, stop, threads.link, pace, lane, threads.throttle, logical, told,
                worker=job.worker, looking=threads.metadata,
            )  # fmt: skip
        held_back = sending.is_held_back
        looks = [Look(p.tensors, p.must_be_finite, len(i.views)) for p, i in zip(job.parts, images, strict=True)]

        async def describe(chunks: Sequence[Sequence[Chunk]]) -> tuple[RankManifest, ...]:
            """Everything is hashed: what was not sent yet may be finished from the node by now."""
            hashing = [threads.call(replicas.loose_digests, [*i.compared.values()], i.reading.view) for i in images]
            loose = await _gather(hashing, stop)
            manifests = tuple(_manifest(job, p, c, at) for p, c, at in zip(job.parts, chunks, loose, strict=True))
            if not described.done():
                entries = _with_looks(map(entry_of, manifests), looks)
                described.set_result((manifests, entries))
                on_described(manifests, entries)
            return manifests

        manifests, quiet = await _handed_on(images, sending, lane, to_node, threads, pace, stop, looks, job, describe)
        entries = await _gather([threads.send(sending.manifest, m) for m in manifests], stop)
        if job.wait_for_node or not job.to_store:
            await asyncio.wait([on_node])
        if not job.to_store and on_node.result() is None:
            raise SaveGivenUp(stop.reason or "the node did not take the images, and nobody else was to")
    except BaseException:
        stop.set("another part of the save failed")
        described.cancel()  # unless it is known already: then what lies on the node may be finished from there (E6)
        if reading := [f for f in (on_node, quiet) if f is not None]:
            await asyncio.wait(reading)
        _close(images)
        raise
    unread = asyncio.gather(on_node, quiet, return_exceptions=True)
    unread.add_done_callback(lambda _: _close(images))
    refers = {c.at for m in manifests for c in m.chunks} - {job.ref}
    return Written(
        manifests=manifests,
        entries=_with_looks(entries, looks),
        refers_to=tuple(sorted(refers)),
        bytes_logical=logical,
        bytes_sent=sending.bytes_sent,
        bytes_stored=sending.bytes_stored,
        at_its_pace=not (held_back or (stop.hurried and pace.background)),
        node_durable_at=on_node.result() if on_node.done() else None,
        on_node=on_node,
        unread=unread,
        waited_seconds=sending.waited_seconds,
        replicas=tuple(d for i, m in zip(images, manifests, strict=True) for d in replicas.summary(i.compared, m)),
    )


async def _handed_on(
    images: Sequence[Image],
    sending: Sending | NotSent,
    lane: Lane,
    to_node: ToNode | None,
    threads: Threads,
    pace: Pace,
    stop: Stop,
    looks: Sequence[Look],
    job: Job,
    describe: Callable[[Sequence[Sequence[Chunk]]], Coroutine[Any, Any, tuple[RankManifest, ...]]],
) -> tuple[tuple[RankManifest, ...], asyncio.Future[None]]:
    """What `describe` makes of the chunks of each image, once the store has them all. Nothing is sent when it returns, and nothing that counts is hashed;
    the slots are read no more when the future is done. Nothing at all runs when it raises: what the store said, else SaveGivenUp."""
    found: list[list[Chunk | None]] = [[None] * len(image.views) for image in images]
    handing = threading.Lock()
    calm = pace.background

    def one(number: int, piece: int) -> None:
        """May run twice at once (`urgent`): the first who has the name hands the piece on."""
        if stop.wanted:
            raise SaveGivenUp(stop.reason or "the time is up")
        view, began = images[number].views[piece], time.monotonic()
        name = digest(view)
        with handing:
            if found[number][piece] is not None:
                return
            if to_node is not None:
                to_node.offer(number, piece)
            found[number][piece] = sending.chunk(name, view, images[number].shared_by.get(piece, ()))
        if job.looks():
            looks[number].piece(view, piece * job.chunk_bytes)
        else:
            looks[number].skip()
        if calm:
            stop.pause(pace.rest(time.monotonic() - began), while_calm=True)

    hashing = Lane(threads.background if pace.background else threads.hashing, pace.hashers)
    lane.over.add_done_callback(lambda over: stop.set("another part of the save failed") if over.exception() else None)
    for number, image in enumerate(images):
        for piece in range(len(image.views)):
            hashing.add(partial(one, number, piece))
    hashing.end()

    urged = False

    def urgent() -> None:
        """An emergency has taken this save over (any thread)."""
        nonlocal urged
        if pace.background and stop.hurried and not urged:
            urged = True
            full = pace_of(emergency=True, cpus=threads.cpus)
            # Also what a thread of the lowest priority has in hand: training may not let it finish for long.
            hashing.move(threads.hashing, full.hashers, again=True)
            sending.hurry(full)

    with stop.heard_by(urgent):
        await asyncio.wait([hashing.over], timeout=pace.patience_seconds if pace.background else None)
        calm = False
        if not stop.hurried:
            hashing.move(threads.hashing, pace.hashers)
        await asyncio.wait([hashing.over])
        if hashing.over.exception() is None:
            sending.complete()
        lane.end()
        if to_node is not None:
            to_node.complete()
        describing = None
        if hashing.over.exception() is None:
            describing = asyncio.ensure_future(describe([[c for c in chunks if c is not None] for chunks in found]))
            await asyncio.wait([describing])
        await asyncio.wait([lane.over])
    failures = [e for e in (lane.over.exception(), hashing.over.exception()) if e is not None]
    for failure in sorted(failures, key=lambda e: not isinstance(e, StoreError)):
        await asyncio.wait([hashing.quiet])
        raise failure
    assert describing is not None
    if describing.exception() is not None:
        await asyncio.wait([hashing.quiet])
    return describing.result(), hashing.quiet


def _with_looks(entries: Iterable[RankEntry], looks: Sequence[Look]) -> tuple[RankEntry, ...]:
    return tuple(replace(e, finite=k.finite, not_finite=k.names) for e, k in zip(entries, looks, strict=True))


def _manifest(job: Job, part: Part, chunks: Sequence[Chunk], loose: tuple[LooseDigest, ...]) -> RankManifest:
    return RankManifest(
        job_uid=job.job_uid,
        attempt=job.ref.attempt,
        save=job.ref.save,
        rank=part.rank,
        world_size=job.world_size,
        boundary=part.boundary,
        image_bytes=part.image_bytes,
        chunk_bytes=job.chunk_bytes,
        chunks=tuple(chunks),
        tensors=part.tensors,
        loose=loose,
    )


async def _turn_of_the_node(free: asyncio.Task[None] | None, gives_up: Callable[[], bool]) -> bool:
    """False if it was not worth waiting for: a disk that hangs must not keep every slot."""
    while free is not None and not free.done():
        if gives_up():
            return False
        await asyncio.wait([free], timeout=LOOK_SECONDS)
    return True


async def _node_part(
    job: Job, to_node: ToNode | None, of_node: _OfNode, described: Described, stop: Stop
) -> datetime | None:
    """When all images are durable on the node; None if there is no node tier or it failed: the store is what counts (fault scenarios 12, 13)."""
    if to_node is None or not await _turn_of_the_node(of_node.free, lambda: stop.wanted or of_node.yields()):
        return None
    try:
        at = await to_node.run()
    except AgentError as e:
        log.info("save %s is not on the node: %s", job.ref, e)
        return None
    except StoreError as e:
        of_node.on_trouble(e)
        return None
    except Exception:
        log.exception("save %s is not on the node", job.ref)  # a bug costs the node's copy, not the save
        return None
    of_node.on_durable(at)
    if of_node.on_whole is None:
        return at
    try:
        await of_node.on_whole(*await described)
    except StoreError as e:
        of_node.on_trouble(e)
        return at if job.to_store else None
    except asyncio.CancelledError:
        return at  # another part of the save failed: there is nothing to write down
    except Exception:
        log.exception("save %s could not be finished from the node", job.ref)
        return at if job.to_store else None
    return at


def _close(images: Sequence[Image]) -> None:
    for image in images:
        image.close()


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
