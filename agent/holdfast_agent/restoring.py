"""A worker's part of a restore: fetch what the lead has resolved, hand it to the ranks once every member has every byte (C3).

Before the lead has resolved anything it may say what it would resolve (prefetch.py): that is fetched as well, and rejects, blocks and decides nothing.

A store that cannot be read is not the checkpoint's fault: the agent is blocked, says why, and goes on trying. What is blocked here ends as soon as
the store gives bytes again, not only when the last one is there.
"""

import asyncio
import errno
import functools
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast_agent import asking, restore, storage
from holdfast_agent.clock import Deadline, now
from holdfast_agent.contents import Contents
from holdfast_agent.crew import Rank
from holdfast_agent.errors import AgentError, CheckpointBad, MemoryTooSmall, NoRoom, NotCovered, PeerRefused
from holdfast_agent.peers import LATER, LATER_SECONDS
from holdfast_agent.reshaping import Reshaping
from holdfast_agent.saves import info_of
from holdfast_agent.shared import Shared
from holdfast_agent.threads import Stop
from holdfast_agent.unexpected import unexpected
from holdfast_api import codec, peers
from holdfast_api import ranks as wire
from holdfast_api.errors import ContractError
from holdfast_api.manifest import MAX_MANIFEST_BYTES, CommitRecord, ParentRef, RankManifest
from holdfast_api.messages import Blocked, BlockedReason, Rejection, Stage
from holdfast_store.errors import StoreError

log = logging.getLogger(__name__)
RETRY_SECONDS = 3.0


@dataclass(slots=True)
class Ahead:
    """A prefetch that runs, or has run."""

    parent: ParentRef
    stop: Stop
    task: asyncio.Task[None]

    async def end(self) -> None:
        """No thread of it writes into a slot afterwards."""
        self.stop.set("what was fetched ahead is taken over")
        await asyncio.gather(self.task, return_exceptions=True)


class Restoring:
    """One attempt's. Called on the event loop's thread."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._ahead: Ahead | None = None
        self._is_there = False
        """What was fetched ahead is whole."""
        self._closed = False
        """No prefetch begins any more."""
        self._over = False
        """Nor anything else: the slots may be another attempt's."""
        self._beginning = asyncio.Lock()
        self._contents = Contents()
        self._resolved: peers.Resolved | None = None
        self._may_load = False
        self._fetching: asyncio.Task[Rejection | None] | None = None
        self._stop = Stop()
        self._away: Blocked | None = None
        """What this restore has blocked the agent with, for a reason of the store."""
        self._handed_at: float | None = None
        """When the last rank was told where its image lies."""
        self._begun: dict[int, wire.RestoreBegun] = {}
        """By rank, what is being fetched and where it will lie."""
        self._images: dict[int, restore.Image] = {}
        self._record: CommitRecord | None = None
        self._reshaping: Reshaping | None = None
        """Where `_record` is of another number of ranks."""
        self.refused = ""
        """Why no rank can be served, for every rank that asks."""

    def prefetch(self, message: peers.Prefetch) -> None:
        """Fetches ahead of the claim, as far as memory allows; begins anew for another checkpoint, and where the last try has failed."""
        s = self._shared
        if self._closed or s.record.evacuating or s.store is None:
            return
        before = self._ahead
        if before is not None and before.parent == message.parent and (not before.task.done() or self._is_there):
            return
        record = codec.from_json(CommitRecord, message.commit.encode(), max_bytes=MAX_MANIFEST_BYTES)
        stop = Stop()
        self._is_there = False
        self._ahead = Ahead(message.parent, stop, asyncio.ensure_future(self._fetch_ahead(record, stop, before)))

    async def _fetch_ahead(self, record: CommitRecord, stop: Stop, before: Ahead | None) -> None:
        if before is not None:
            await before.end()
        s, started = self._shared, time.monotonic()
        tally = restore.Tally(functools.partial(self._count, asyncio.get_running_loop()), self._contents)
        try:
            await self._fetch_into_slots(record, tally, stop, ahead=True)
        except (AgentError, StoreError, OSError, ContractError) as e:
            # Nothing is said but here: the fetch after the claim meets it again, and knows what it means (C3, C4).
            log.info("checkpoint %s is not fetched ahead: %s: %s", record.ref, type(e).__name__, e)
        else:
            seconds = time.monotonic() - started
            s.metrics.restore_seconds.labels("prefetch").observe(seconds)
            self._is_there = True
            s.record.stage(Stage.PREFETCHED)
            log.info("checkpoint %s was fetched ahead in %.1f s", record.ref, seconds)

    async def resolved(self, message: peers.Resolved) -> object:
        """Fetched, or LATER. The lead repeats it until everybody has answered."""
        async with self._beginning:  # an answer that is late is asked for again
            if self._resolved is None or _choice(self._resolved) != _choice(message):
                await self._begin(message)
        assert self._fetching is not None
        await asyncio.wait([self._fetching], timeout=LATER_SECONDS)
        if not self._fetching.done():
            return LATER
        rejection = self._fetching.result()
        if rejection is None and message.load and not self._may_load:
            self._may_load = True
            self._deliver()
        return peers.Fetched(self._shared.attempt, self._shared.settings.config.worker, rejection)

    def wanted(self, rank: Rank, message: wire.RestoreWanted) -> None:
        """The rank asks for its state."""
        rank.wants_restore, rank.reshards, rank.prepares = True, message.reshards, message.prepares
        if self._shared.crew.all(lambda r: r.wants_restore):
            self._shared.record.stage(Stage.LIBRARY_READY)
        self._tell_begun(rank)
        self._deliver()

    def parts_wanted(self, rank: Rank, message: wire.PartsWanted) -> None:
        """What it needs of a checkpoint of another number of ranks."""
        if self._reshaping is not None:
            self._reshaping.wanted(rank, message)

    def loaded(self, rank: Rank) -> None:
        rank.handed, rank.loaded = False, True
        self._check_all_loaded()

    def failed(self, rank: Rank, message: wire.LoadFailed) -> Rejection | None:
        """The rejection to tell the lead, or None if the checkpoint is not at fault: then the job waits for a person."""
        rank.handed = False
        if self._reshaping is not None:
            self._reshaping.ask_again(rank)
        if message.of_checkpoint and self._record is not None:
            return Rejection(
                self._record.attempt, self._record.save, f"rank {rank.number}: {message.message}"[:2000], True, now()
            )
        self._shared.record.block(Blocked(BlockedReason.STATE_MISMATCH, message.message[:4000]))
        return None

    async def close(self) -> None:
        """No thread writes into a slot afterwards, nor will."""
        self._closed = self._over = True
        self._shared.giving.close()
        await self._end_fetches()
        self._forget_states()

    async def _end_fetches(self) -> None:
        self._stop.set("the attempt is over")
        if self._ahead is not None:
            await self._ahead.end()
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    # ---- inside

    async def _begin(self, message: peers.Resolved) -> None:
        self._closed = True
        await self._end_fetches()
        if self._over:
            raise PeerRefused("the attempt is over")
        s = self._shared
        self._forget_states()
        self._resolved, self._may_load, self._images, self._begun, self._stop = message, False, {}, {}, Stop()
        s.record.resolved = True
        s.incarnation = message.incarnation
        s.record.changed()
        if message.parent is None:
            self._record = None
            s.record.fresh = True
            self._fetching = asyncio.ensure_future(_nothing())
        else:
            self._record = codec.from_json(CommitRecord, message.commit.encode(), max_bytes=MAX_MANIFEST_BYTES)
            s.record.fresh = False
            if len(self._record.ranks) != s.order.world_size:
                self._reshaping = Reshaping(s, self._record, self._deliver)
            self._fetching = asyncio.ensure_future(self._fetch(self._record))

    async def _fetch(self, record: CommitRecord) -> Rejection | None:
        """None once everything is there and verified."""
        s = self._shared
        # A rank may be loading the checkpoint that another one has just refused: what it reads must not change under it (C3).
        while any(r.handed and r.ended is None for r in s.crew):
            await s.changes.until(lambda: not any(r.handed and r.ended is None for r in s.crew), Deadline.after(60))
        if any(r.loaded for r in s.crew):
            return Rejection(
                record.attempt,
                record.save,
                "a rank has loaded a checkpoint already; a new attempt is needed",
                False,
                now(),
            )
        tally = restore.Tally(functools.partial(self._count, asyncio.get_running_loop()), self._contents)
        started = time.monotonic()
        while True:
            try:
                self._images = await self._try(record, tally)
                break
            except CheckpointBad as e:
                return Rejection(record.attempt, record.save, str(e)[:2000], True, now())
            except (MemoryTooSmall, OSError) as e:
                if isinstance(e, OSError) and e.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
                    log.warning("the slots cannot be used: %s", e)
                self.refused = str(e)
                s.record.block(Blocked(BlockedReason.MEMORY_TOO_SMALL, str(e)[:4000]))
                self._deliver()
            except NotCovered as e:
                if not self.refused:
                    self._refuse_state(f"checkpoint {record.ref} of {len(record.ranks)} ranks: {e}")
            except StoreError as e:
                log.warning("the checkpoint %s waits for the store: %s", record.ref, e)
                self._block(storage.blocked(e, s.settings.config.storage))
            except BaseException as e:  # nobody awaits this task but for its result: it must not end without one
                self._block(unexpected(e, f"fetching checkpoint {record.ref}"))
            await asyncio.sleep(RETRY_SECONDS)
        s.metrics.restore_seconds.labels("fetch").observe(time.monotonic() - started)
        self.refused, self._away = "", None
        s.record.block(None)
        s.record.stage(Stage.FETCHED)
        return None

    def _refuse_state(self, why: str) -> None:
        """The script and the checkpoint do not fit: the ranks raise it, the job waits for a person."""
        self.refused = why
        self._shared.record.block(Blocked(BlockedReason.STATE_MISMATCH, why[:4000]))
        self._deliver()

    def _forget_states(self) -> None:
        if self._reshaping is not None:
            self._reshaping.forget()
        self._reshaping = None

    def _block(self, blocked: Blocked) -> None:
        self._away = blocked
        self._shared.record.block(blocked)

    def _goes_on(self) -> None:
        """The store gives bytes. What somebody else has blocked the agent with is left alone."""
        if self._away is not None and self._shared.record.blocked == self._away:
            self._shared.record.block(None)
        self._away = None

    async def _try(self, record: CommitRecord, tally: restore.Tally) -> dict[int, restore.Image]:
        s = self._shared
        while s.store is None:
            await s.changes.until(lambda: s.store is not None, Deadline.after(3600))
        self._stop = Stop()
        return await self._fetch_into_slots(record, tally, self._stop, ahead=False)

    async def _fetch_into_slots(
        self, record: CommitRecord, tally: restore.Tally, stop: Stop, *, ahead: bool
    ) -> dict[int, restore.Image]:
        s = self._shared
        assert s.store is not None
        if len(record.ranks) != s.order.world_size:
            return await self._reshape(record, tally, stop)
        own = record.job_uid == s.settings.config.job_uid
        try:
            return await restore.fetch(
                record,
                s.ranks,
                store=s.store if own else s.store.for_job(record.job_uid),
                node=s.node if own else None,
                arena=s.arena,
                threads=s.threads,
                tally=tally,
                stop=stop,
                ahead=ahead,
                members=_from_members(s, stop, ahead=ahead),
                giving=s.giving,
                begun=self._note_begun,
            )
        finally:
            s.distrusted |= tally.distrusted

    def _note_begun(self, manifest: RankManifest, path: Path) -> None:
        self._begun[manifest.rank] = wire.RestoreBegun(str(path), manifest.image_bytes)
        for rank in self._shared.crew:
            if rank.number == manifest.rank:
                self._tell_begun(rank)

    def _tell_begun(self, rank: Rank) -> None:
        """So that it prepares its load meanwhile. Nothing depends on it."""
        waits = rank.wants_restore and not self._may_load and not rank.handed and not rank.loaded
        if rank.prepares and waits and (begun := self._begun.get(rank.number)) is not None:
            rank.send(begun)

    async def _reshape(self, record: CommitRecord, tally: restore.Tally, stop: Stop) -> dict[int, restore.Image]:
        s, reshaping = self._shared, self._reshaping
        if reshaping is None:  # a prefetch: what is needed is known once the ranks have been built
            raise NoRoom(f"it was made by {len(record.ranks)} ranks, and {s.order.world_size} need other parts of it")
        self._deliver()  # a rank that cannot is told so before anything is read
        if reshaping.why_not:
            raise NotCovered(reshaping.why_not)
        try:
            return await reshaping.fetch(tally, stop)
        finally:
            s.distrusted |= tally.distrusted

    def _count(self, loop: asyncio.AbstractEventLoop, source: str, count: int) -> None:
        """From chunk threads, one at a time."""
        if source == restore.InStore.name and self._away is not None:
            loop.call_soon_threadsafe(self._goes_on)
        fetched = self._shared.record.fetched_from
        fetched[source] = fetched.get(source, 0) + count
        self._shared.metrics.restored_bytes.labels(source).inc(count)

    def _deliver(self) -> None:
        """To every rank that asks and has not been served."""
        if self._reshaping is not None and not self.refused and (why := self._reshaping.why_not):
            self._refuse_state(why)  # which comes back here
            return
        for rank in self._shared.crew:
            if not rank.wants_restore or rank.handed or rank.loaded:
                continue
            if self.refused:
                rank.send(wire.Refused(self.refused))
            elif not self._may_load:
                if self._reshaping is not None:
                    self._reshaping.tell(rank)
            elif self._record is None:
                rank.send(wire.StartFresh())
                rank.loaded = True
            else:
                rank.send(_ready(self._images[rank.number], self._record))
                rank.handed, self._handed_at = True, time.monotonic()
        self._check_all_loaded()

    def _check_all_loaded(self) -> None:
        s = self._shared
        if s.record.loaded or not s.crew.all(lambda r: r.loaded):
            return
        s.record.loaded = True
        s.record.stage(Stage.LOADED)
        if self._handed_at is not None:
            s.metrics.restore_seconds.labels("load").observe(time.monotonic() - self._handed_at)
        if self._record is not None:
            info = info_of(self._record)
            if s.crew.all(lambda r: r.looks):
                # Every rank has looked at what it loaded (C4), also at what nobody had looked at when it was saved.
                info = replace(info, finite=True, not_finite=())
            s.record.restored = info
            s.record.boundary = info.boundary
            s.last = info
            # The images of another number of ranks are no base: the next save leans on nothing (B4).
            if self._reshaping is None and self._record.job_uid == s.settings.config.job_uid:
                s.base = self._record
                s.base_manifests = {i.rank: i.manifest for i in self._images.values()}
        self._forget_states()
        s.record.changed()
        s.changes.bump()


def _ready(image: restore.Image, record: CommitRecord) -> wire.RestoreReady:
    m = image.manifest
    # Every chunk has been verified against the manifest that this very entry names: what was seen at the save is true of these bytes (C3, C4).
    # Of another number of ranks, of all of them: any rank's image may be in it.
    own = m.world_size == len(record.ranks)
    finite = all(e.finite is True for e in record.ranks if not own or e.rank == m.rank)
    return wire.RestoreReady(str(image.path), m.image_bytes, record.attempt, record.save, m.boundary, m.tensors, finite)


def _choice(message: peers.Resolved) -> tuple[object, int]:
    """What the lead offers: a checkpoint that was refused and is offered again, because it may have been mended, is another offer."""
    return message.parent, message.choice


def _from_members(shared: Shared, stop: Stop, *, ahead: bool) -> asking.FromMembers | None:
    """None where there is nobody else."""
    s, members = shared, shared.order.members
    if len(members) < 2:
        return None
    return asking.FromMembers(members, s.settings.config.worker, len(s.ranks), s.mesh.signed_get, stop, ahead=ahead)


async def _nothing() -> Rejection | None:
    return None
