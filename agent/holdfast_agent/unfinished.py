"""What was left whole on this node when an attempt ended, and never became a checkpoint, is brought into the store by whoever comes next (E6, E5).

Looked for when an attempt is joined: then the attempt before is over (A3), so it begins no more saves. Each part is sent as far as it is missing, with its
manifests; then the commit record is written as soon as the manifests of all ranks lie in the store, by the first who sees them there. It ends when the new
attempt has claimed: from then on nothing of the old one counts (A7). What does not verify, or is excluded, is dropped and said.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from holdfast_agent.clock import monotonic
from holdfast_agent.experience import Experience
from holdfast_agent.metrics import Metrics
from holdfast_agent.record import Record
from holdfast_agent.threads import Stop, Threads, persist
from holdfast_api.manifest import CommitRecord, Pending, RankManifest
from holdfast_api.messages import UnfinishedCopy
from holdfast_store.errors import (
    Absent,
    AlreadyExists,
    Corrupt,
    Denied,
    NotOnRecord,
    StoreError,
    Superseded,
    Unavailable,
)
from holdfast_store.job import JobStore
from holdfast_store.local import Left, LocalTier

log = logging.getLogger(__name__)
T = TypeVar("T")
LOOK_SECONDS = 0.5
LOOKED_SECONDS = 2.0
"""So long the first look into the node's directory is waited for by whoever asks."""
BUFFER_BYTES = 64 << 20
"""Of all chunks together that are in memory on their way."""
MOST_AT_ONCE = 8
LATE = 1.5
"""Times as long as expected, before a chunk that has not arrived says something."""
TOLD = 8
"""Parts in a report."""


class Dropped(Exception):
    """This part can be finished never: what lies here is not whole, or is excluded."""


@dataclass(eq=False, slots=True)
class Part:
    """One worker's, found on this node, or taken into this pod's memory (rescue.py)."""

    pending: Pending
    tier: LocalTier
    """Where it lies."""
    state: str = "sending"
    detail: str = ""
    there: tuple[int, ...] = ()
    bytes_to_send: int = 0
    """Of what was missing when it was looked at; before that, of all images."""
    bytes_sent: int = 0
    bytes_under_way: int = 0
    """Of chunks that are on their way now."""
    began_at: float = 0.0
    newest_at: float = 0.0
    """When the last chunk had arrived."""

    @contextlib.contextmanager
    def sending(self, count: int) -> Iterator[None]:
        """A chunk of so many bytes. On the event loop's thread."""
        self.bytes_under_way += count
        try:
            yield
            self.bytes_sent += count
            self.newest_at = monotonic()
        finally:
            self.bytes_under_way -= count

    @property
    def size(self) -> int:
        return sum(e.image_bytes for e in self.pending.ranks)


class Unfinished:
    """The agent's. Called on the event loop's thread."""

    def __init__(
        self,
        node: LocalTier | None,
        store: Callable[[], JobStore | None],
        threads: Threads,
        experience: Experience,
        metrics: Metrics,
        record: Record,
        in_memory: LocalTier | None = None,
    ) -> None:
        """`in_memory`: on the memory volume, where other workers' parts are taken that the node has no room for; nothing stays there."""
        self._in_memory = in_memory
        self._tiers = tuple(t for t in (node, in_memory) if t is not None)
        self._claimed = False
        self._store = store
        self._threads = threads
        self._experience = experience
        self._metrics = metrics
        self._record = record
        self._parts: list[Part] = []
        self._stop = Stop()
        self._looked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self, attempt: int) -> None:
        """`attempt` is joined: what lies here of earlier ones is finished from now on."""
        self.end(f"attempt {attempt} is joined")
        self._parts, self._stop, self._looked, self._claimed = [], Stop(), asyncio.Event(), False
        if not self._tiers:
            self._looked.set()
            return
        self._task = asyncio.ensure_future(self._run(attempt, self._stop, self._looked, self._task))

    def end(self, reason: str, *, claimed: bool = False) -> None:
        """Nothing more is sent or committed. Twice is fine. `claimed`: nor will be, by anybody (A5)."""
        self._claimed |= claimed
        self._stop.set(reason)

    async def copies(self) -> tuple[UnfinishedCopy, ...]:
        """As of now, newest first."""
        if not self._looked.is_set():
            looked = asyncio.ensure_future(self._looked.wait())
            await asyncio.wait([looked], timeout=LOOKED_SECONDS)
            looked.cancel()
        return self._told()

    # ---- the procedure

    async def _run(self, attempt: int, stop: Stop, looked: asyncio.Event, before: asyncio.Task[None] | None) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
            for tier in self._tiers:
                if tier is not self._in_memory or tier.root.is_dir():
                    await self._find(tier, attempt)
            looked.set()
            if self._parts:
                await self._finish(await self._opened(stop), stop)
        except Exception as e:  # nobody awaits this task: it must not end without a word
            log.exception("what was left on this node is not finished")
            for part in self._parts:
                self._ended(part, "given-up", f"{type(e).__name__}: {e}")
        finally:
            looked.set()
            self._say()
            await self._tidy_memory(stop)

    async def _find(self, node: LocalTier, attempt: int) -> None:
        try:
            found = await self._threads.on_node(node.left)
        except (StoreError, OSError) as e:
            log.warning("whether something was left on this node is not known: %s: %s", type(e).__name__, e)
            return
        for left in found:
            if left.pending is not None and left.ref.attempt < attempt:
                self._parts.append(
                    Part(left.pending, node, bytes_to_send=sum(e.image_bytes for e in left.pending.ranks))
                )
            elif left.pending is None and left.ref.attempt < attempt:
                await self._forget_unreadable(node, left)
        self._say()

    async def _finish(self, store: JobStore | None, stop: Stop) -> None:
        if store is None:
            return None
        for part in self._parts:
            log.info(
                "save %s at boundary %d of worker %d lies whole on this node and is not committed: it is finished (E6)",
                part.pending.ref, part.pending.progress.boundary, part.pending.worker,
            )  # fmt: skip
            await self._tried(part, stop, self._send(store, part, stop))
        while not stop.wanted and (stored := [p for p in self._parts if p.state == "stored"]):
            for part in stored:
                await self._tried(part, stop, self._commit(store, part, stop))
                if part.state == "committed":
                    return await self._settle_older(part)
            await asyncio.sleep(LOOK_SECONDS)
        for part in self._parts:
            await self._last_look(store, part, stop)
        return None

    async def _tried(self, part: Part, stop: Stop, doing: Awaitable[None]) -> None:
        """Whatever fails ends this part and nothing else."""
        try:
            await doing
        except (Dropped, Superseded, NotOnRecord, AlreadyExists) as e:
            self._ended(part, "given-up", str(e))
            await self._forget(part)
        except (StoreError, OSError) as e:
            if not stop.wanted:
                self._ended(part, "given-up", f"{type(e).__name__}: {e}")
        self._say()

    async def _send(self, store: JobStore, part: Part, stop: Stop) -> None:
        state = await self._persisted(stop, lambda: store.look_at(part.pending))
        part.there = state.ranks
        if not state.committed:
            manifests = await self._threads.on_node(_manifests, part.tier, part.pending)
            missing = await self._persisted(stop, lambda: store.missing(manifests))
            part.bytes_to_send = sum(manifests[n].chunks[i].length for n, i in missing)
            part.began_at = monotonic()
            self._say()
            await self._chunks(store, part, manifests, missing, stop)
            for manifest in manifests:
                await self._persisted(stop, partial(store.create_manifest, manifest))
        part.state = "stored"

    async def _chunks(
        self,
        store: JobStore,
        part: Part,
        manifests: Sequence[RankManifest],
        missing: Sequence[tuple[int, int]],
        stop: Stop,
    ) -> None:
        """A few at a time; the first failure ends all."""
        if not missing:
            return
        largest = max(m.chunk_bytes for m in manifests)
        room = asyncio.Semaphore(max(1, min(MOST_AT_ONCE, BUFFER_BYTES // largest)))
        over = Stop()

        async def one(number: int, index: int) -> None:
            async with room:
                if not (stop.wanted or over.wanted):
                    with part.sending(manifests[number].chunks[index].length):
                        await self._threads.send(_chunk, part.tier, store, part, manifests[number], index, stop)

        sending = [asyncio.ensure_future(one(*which)) for which in missing]
        try:
            await asyncio.gather(*sending)
        finally:
            over.set("another chunk failed")
            await asyncio.gather(*sending, return_exceptions=True)
        if stop.wanted:
            raise Unavailable(stop.reason)

    async def _commit(self, store: JobStore, part: Part, stop: Stop) -> None:
        state = await self._persisted(stop, lambda: store.look_at(part.pending))
        part.there = state.ranks
        if stop.wanted:
            return
        record = await self._persisted(stop, lambda: store.finish(part.pending))
        if record is None:
            return
        self._ended(part, "committed", "")
        log.info("save %s is finished: it is a checkpoint at boundary %d", record.ref, record.progress.boundary)
        await self._keep_committed(part.tier, store, record)

    async def _last_look(self, store: JobStore, part: Part, stop: Stop) -> None:
        """The claim may have come before this agent has seen what another one has committed: it is a checkpoint here too. What is not, waits for nothing
        any more (A5); whoever finds it later drops it."""
        if part.state not in ("sending", "stored"):
            return
        try:
            record, _ = await self._threads.call(store.read_commit, part.pending.ref)
        except Absent:
            self._ended(part, "given-up", stop.reason)
        except StoreError as e:
            self._ended(part, "given-up", f"{stop.reason}; whether it is a checkpoint is not known: {e}")
        else:
            self._ended(part, "committed", "")
            await self._keep_committed(part.tier, store, record)

    async def _keep_committed(self, node: LocalTier, store: JobStore, record: CommitRecord) -> None:
        """From now on it is the node's copy of a checkpoint."""
        try:
            _, text = await self._threads.call(store.read_commit, record.ref)
            await self._threads.on_node(node.write_commit, record.ref, text)
            await self._threads.on_node(node.drop_older, record.ref)
        except StoreError as e:
            log.warning("the node's copy of %s is not marked as a checkpoint's: %s", record.ref, e)

    async def _settle_older(self, committed: Part) -> None:
        """A8."""
        for part in self._parts:
            if part.state in ("sending", "stored"):
                same = part.pending.ref == committed.pending.ref
                words = "" if same else f"{committed.pending.ref} has been committed (A8)"
                self._ended(part, "committed" if same else "given-up", words)
                if part.tier is not committed.tier:
                    await self._drop_older(part.tier, committed.pending)

    # ---- inside

    async def _opened(self, stop: Stop) -> JobStore | None:
        while not stop.wanted:
            if (store := self._store()) is not None:
                return store.until(0.0)  # tries once: repeating is `persist`'s, which ends with `stop`
            await asyncio.sleep(LOOK_SECONDS)
        return None

    async def _persisted(self, stop: Stop, function: Callable[[], T]) -> T:
        return await self._threads.call(persist, stop, function)

    async def _forget_unreadable(self, node: LocalTier, left: Left) -> None:
        denied = isinstance(left.problem, Denied)
        log.warning(
            "what worker %d left of save %s on this node cannot be read and is %s: %s",
            left.worker,
            left.ref,
            "left alone" if denied else "dropped",
            left.problem,
        )
        self._metrics.unfinished.labels("given-up").inc()
        if denied:
            return  # of another user, who may come back for it
        try:
            await self._threads.on_node(node.drop_pending, left.ref, left.worker)
        except StoreError as e:
            log.warning("it is not removed: %s", e)

    async def _forget(self, part: Part) -> None:
        pending = part.pending
        try:
            await self._threads.on_node(part.tier.drop_pending, pending.ref, pending.worker)
        except StoreError as e:
            log.warning("what cannot be finished of save %s is not removed: %s", pending.ref, e)

    async def _drop_older(self, tier: LocalTier, committed: Pending) -> None:
        try:
            await self._threads.on_node(tier.drop_older, committed.ref)
        except StoreError as e:
            log.warning("what waited beside %s is not removed: %s", committed.ref, e)

    async def _tidy_memory(self, stop: Stop) -> None:
        """What was taken into memory goes as soon as nobody can finish it any more, or it is finished: training may need the room."""
        tier = self._in_memory
        if tier is None or not tier.root.is_dir():
            return
        try:
            if (self._claimed and stop is self._stop) or not await self._threads.on_node(tier.left):
                await self._threads.on_node(tier.prune, set())
        except (StoreError, OSError) as e:
            log.warning("what was taken into memory is not removed: %s", e)

    def _ended(self, part: Part, state: str, detail: str) -> None:
        if part.state in ("committed", "given-up"):
            return
        part.state, part.detail = state, detail[:500]
        self._metrics.unfinished.labels(state).inc()
        if state == "given-up":
            log.warning("save %s of worker %d is not finished: %s", part.pending.ref, part.pending.worker, detail)

    def _say(self) -> None:
        self._record.finishes(self._told())

    def _told(self) -> tuple[UnfinishedCopy, ...]:
        return tuple(self._copy(p) for p in self._parts[:TOLD])

    def _copy(self, part: Part) -> UnfinishedCopy:
        p = part.pending
        return UnfinishedCopy(
            attempt=p.attempt,
            save=p.save,
            worker=p.worker,
            boundary=p.progress.boundary,
            ranks=tuple(e.rank for e in p.ranks),
            state=part.state,
            seconds=round(self._seconds(part), 3),
            there=part.there,
            step_seconds=p.step_seconds,
            world_size=p.world_size,
            detail=part.detail,
        )

    def _seconds(self, part: Part) -> float:
        """Until it is stored: by how it goes, before that by what its maker expected, else by what was measured earlier on this machine."""
        if part.state != "sending":
            return 0.0
        before = sum(self._alone(p) for p in self._parts[: self._parts.index(part)] if p.state == "sending")
        return before + self._alone(part)

    def _alone(self, part: Part) -> float:
        expected = self._expected(part)
        return (
            expected
            if not part.began_at
            else seconds_left(
                monotonic() - part.began_at,
                (part.newest_at or part.began_at) - part.began_at,
                left=part.bytes_to_send - part.bytes_sent,
                sent=part.bytes_sent,
                under_way=part.bytes_under_way,
                expected=expected,
            )
        )

    def _expected(self, part: Part) -> float:
        """For what is left, as its maker said or as was measured on this machine."""
        left = max(0, part.bytes_to_send - part.bytes_sent)
        if part.pending.store_seconds > 0:
            return part.pending.store_seconds * min(1.0, left / max(1, part.size))
        return self._experience.store(left, based=False).likely


def seconds_left(took: float, newest: float, *, left: int, sent: int, under_way: int, expected: float) -> float:
    """Of sending that has lasted for `took` seconds, at `newest` of which the last chunk had arrived. Chunks that are under way come on as fast as those before
    them did, or, before any, as was expected: else time without an arrival would look like a store that stands still. Of those that are late half is believed,
    for then it may. Pure and total."""
    if left <= 0:
        return 0.0
    speed = sent / newest if sent > 0 and newest > 0 else left / expected if expected > 0 else 0.0
    by_now = speed * max(0.0, took - newest)
    moving = min(by_now, float(under_way)) if by_now <= LATE * under_way else under_way / 2
    done = sent + moving
    return max(0.0, left - moving) * took / done if done > 0 and took > 0 else expected


def _manifests(node: LocalTier, pending: Pending) -> list[RankManifest]:
    """On a node thread. Dropped if one is not what it was."""
    try:
        return [node.read_manifest(pending.ref, entry) for entry in pending.ranks]
    except (Absent, Corrupt) as e:
        raise Dropped(f"it is not whole on this node: {e}") from e


def _chunk(node: LocalTier, store: JobStore, part: Part, manifest: RankManifest, index: int, stop: Stop) -> None:
    """Read, verified against the manifest, sent. On a thread."""
    chunk = manifest.chunks[index]
    view = memoryview(bytearray(chunk.length))
    try:
        node.read_chunk_into(manifest, index, view)
    except (Absent, Corrupt) as e:
        raise Dropped(f"it is not whole on this node: rank {manifest.rank}: {e}") from e
    persist(stop, lambda: store.put_chunk(part.pending.ref, chunk.digest, view))
