"""A worker's part of a restore: fetch what the lead has resolved, hand it to the ranks once every member has every byte (C3).

A store that cannot be read is not the checkpoint's fault: the agent is blocked, says why, and goes on trying.
"""

import asyncio
import errno
import logging

from holdfast_agent import restore, storage
from holdfast_agent.clock import Deadline, now
from holdfast_agent.crew import Rank
from holdfast_agent.errors import CheckpointBad, MemoryTooSmall
from holdfast_agent.peers import LATER, LATER_SECONDS
from holdfast_agent.saves import info_of
from holdfast_agent.shared import Shared
from holdfast_agent.threads import Stop
from holdfast_api import codec, peers
from holdfast_api import ranks as wire
from holdfast_api.manifest import MAX_MANIFEST_BYTES, CommitRecord
from holdfast_api.messages import Blocked, BlockedReason, Rejection, Stage
from holdfast_store.errors import StoreError

log = logging.getLogger(__name__)
RETRY_SECONDS = 3.0


class Restoring:
    """One attempt's. Called on the event loop's thread."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._resolved: peers.Resolved | None = None
        self._may_load = False
        self._fetching: asyncio.Task[Rejection | None] | None = None
        self._stop = Stop()
        self._images: dict[int, restore.Image] = {}
        self._record: CommitRecord | None = None
        self.refused = ""
        """Why no rank can be served, for every rank that asks."""

    async def resolved(self, message: peers.Resolved) -> object:
        """Fetched, or LATER. The lead repeats it until everybody has answered."""
        if self._resolved is None or self._resolved.parent != message.parent:
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

    def wanted(self, rank: Rank) -> None:
        """The rank asks for its state."""
        rank.wants_restore = True
        if self._shared.crew.all(lambda r: r.wants_restore):
            self._shared.record.stage(Stage.LIBRARY_READY)
        self._deliver()

    def loaded(self, rank: Rank) -> None:
        rank.handed, rank.loaded = False, True
        self._check_all_loaded()

    def failed(self, rank: Rank, message: wire.LoadFailed) -> Rejection | None:
        """The rejection to tell the lead, or None if the checkpoint is not at fault: then the job waits for a person."""
        rank.handed = False
        if message.of_checkpoint and self._record is not None:
            return Rejection(
                self._record.attempt, self._record.save, f"rank {rank.number}: {message.message}"[:2000], True, now()
            )
        self._shared.record.block(Blocked(BlockedReason.STATE_MISMATCH, message.message[:4000]))
        return None

    async def close(self) -> None:
        self._stop.set("the attempt is over")
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    # ---- inside

    async def _begin(self, message: peers.Resolved) -> None:
        await self.close()
        s = self._shared
        self._resolved, self._may_load, self._images, self._stop = message, False, {}, Stop()
        s.record.resolved = True
        s.incarnation = message.incarnation
        s.record.changed()
        for rank in s.crew:
            rank.handed = False
        if message.parent is None:
            self._record = None
            s.record.fresh = True
            self._fetching = asyncio.ensure_future(_nothing())
        else:
            self._record = codec.from_json(CommitRecord, message.commit.encode(), max_bytes=MAX_MANIFEST_BYTES)
            s.record.fresh = False
            self._fetching = asyncio.ensure_future(self._fetch(self._record, self._stop))

    async def _fetch(self, record: CommitRecord, stop: Stop) -> Rejection | None:
        """None once everything is there and verified."""
        s = self._shared
        if any(r.loaded for r in s.crew):
            return Rejection(
                record.attempt,
                record.save,
                "a rank has loaded another checkpoint already; a new attempt is needed",
                False,
                now(),
            )
        while True:
            try:
                self._images = await self._try(record, stop)
                break
            except CheckpointBad as e:
                return Rejection(record.attempt, record.save, str(e)[:2000], True, now())
            except (MemoryTooSmall, OSError) as e:
                if isinstance(e, OSError) and e.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
                    log.warning("the slots cannot be used: %s", e)
                self.refused = str(e)
                s.record.block(Blocked(BlockedReason.MEMORY_TOO_SMALL, str(e)[:4000]))
                self._deliver()
            except StoreError as e:
                s.record.block(storage.blocked(e, s.settings.config.storage))
            await asyncio.sleep(RETRY_SECONDS)
        self.refused = ""
        s.record.block(None)
        s.record.stage(Stage.FETCHED)
        return None

    async def _try(self, record: CommitRecord, stop: Stop) -> dict[int, restore.Image]:
        s = self._shared
        await s.changes.until(lambda: s.store is not None, Deadline.after(3600))
        assert s.store is not None
        own = record.job_uid == s.settings.config.job_uid
        store = s.store if own else s.store.for_job(record.job_uid)
        tally = restore.Tally(self._count)
        stop.at = float("inf")
        try:
            return await restore.fetch(
                record,
                s.settings.ranks,
                store=store,
                node=s.node if own else None,
                arena=s.arena,
                threads=s.threads,
                tally=tally,
                stop=stop,
            )
        finally:
            s.distrusted |= tally.distrusted

    def _count(self, source: str, count: int) -> None:
        fetched = self._shared.record.fetched_from
        fetched[source] = fetched.get(source, 0) + count
        self._shared.metrics.restored_bytes.labels(source).inc(count)

    def _deliver(self) -> None:
        """To every rank that asks and has not been served."""
        for rank in self._shared.crew:
            if not rank.wants_restore or rank.handed or rank.loaded:
                continue
            if self.refused:
                rank.send(wire.Refused(self.refused))
            elif not self._may_load:
                continue
            elif self._record is None:
                rank.send(wire.StartFresh())
                rank.loaded = True
            else:
                rank.send(_ready(self._images[rank.number], self._record))
                rank.handed = True
        self._check_all_loaded()

    def _check_all_loaded(self) -> None:
        s = self._shared
        if s.record.loaded or not s.crew.all(lambda r: r.loaded):
            return
        s.record.loaded = True
        s.record.stage(Stage.LOADED)
        if self._record is not None:
            info = info_of(self._record)
            s.record.restored = info
            s.record.boundary = info.boundary
            s.last = info
            if self._record.job_uid == s.settings.config.job_uid:
                s.base = self._record
                s.base_manifests = {i.rank: i.manifest for i in self._images.values()}
        s.record.changed()
        s.changes.bump()


def _ready(image: restore.Image, record: CommitRecord) -> wire.RestoreReady:
    m = image.manifest
    return wire.RestoreReady(str(image.path), m.image_bytes, record.attempt, record.save, m.boundary, m.tensors)


async def _nothing() -> Rejection | None:
    return None
