"""A worker's part of a save: flush when the coordinator says so, learn how it ended, give slots back (A8, B4, E4).

Everything is idempotent: the same FlushOrder joins the flush that runs, the same Committed changes nothing.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from holdfast_agent import described, flush, slots, storage
from holdfast_agent.clock import Deadline, monotonic, now
from holdfast_agent.crew import Rank
from holdfast_agent.errors import AgentError, SaveGivenUp
from holdfast_agent.outlook import outlook_of
from holdfast_agent.peers import LATER, LATER_SECONDS
from holdfast_agent.progress import Progress
from holdfast_agent.shared import Shared
from holdfast_agent.threads import Stop
from holdfast_agent.warming import Warming
from holdfast_api import codec, peers
from holdfast_api import ranks as wire
from holdfast_api.errors import ContractError
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import MAX_MANIFEST_BYTES, CommitRecord, Pending, RankEntry, RankManifest
from holdfast_api.manifest import Progress as Position
from holdfast_api.messages import Cause, Stage
from holdfast_store.errors import StoreError, Unavailable
from holdfast_store.records import self_proving

log = logging.getLogger(__name__)
PERIODIC_SECONDS = 1800
"""A periodic save that takes longer is given up."""
HISTORY_SECONDS = 10.0
LOOK_SECONDS = 0.5
STANDS_SECONDS, STANDS_STEPS = 2.0, 2.0
"""A rank without a slot that has passed no boundary for so long, in seconds and in steps of its own, waits for one."""
REMEMBERED = 32
"""Ended flushes whose answer is kept for a repeated question."""


@dataclass(eq=False, slots=True)
class Flush:
    """One save, as far as this worker is concerned."""

    order: peers.FlushOrder
    stop: Stop
    deadline: Deadline
    task: asyncio.Task[peers.Flushed]
    unread: asyncio.Future[None]
    """Done when no thread reads the slots any more: after the store the node may still read them."""
    progress: Progress
    written: flush.Written | None = None
    over: bool = False
    pending: bool = False
    """Its part is written down on the node as what may be finished (E6), or is being written down."""
    decided: bool = False
    """Committed, or given up for good: there is nothing to finish. One that the end has cut short is over and not decided."""

    @property
    def wants_slot(self) -> bool:
        """While training goes on: nobody says how a save on the node alone ended if its evacuation was withdrawn, and what is whole there needs no slot."""
        return not self.over and (self.order.to_store or not self.task.done())


class Writing:
    """One attempt's. Called on the event loop's thread."""

    def __init__(self, shared: Shared, sealed: Callable[[peers.Committed], None]) -> None:
        self._shared = shared
        self._sealed = sealed
        self._flushes: dict[int, Flush] = {}
        self._learning: asyncio.Task[None] | None = None
        self._node_work: asyncio.Task[None] | None = None
        """Removes older images of the node; the next image is written after it."""
        self._noting = asyncio.Lock()
        """One change of what waits on the node after the other: what was dropped must not be written down once more."""
        self._dropping: set[asyncio.Task[None]] = set()
        self._part: peers.Part | None = None
        """Of the newest save that has been hashed here."""
        self._warming = Warming()

    # ---- orders

    async def ordered(self, order: peers.FlushOrder) -> object:
        """The answer to a FlushOrder, or LATER."""
        running = self._flushes.get(order.save)
        if running is not None and (running.order.boundary, running.order.base) != (order.boundary, order.base):
            # Two coordinators with one number (B1): what was written for the one is never the answer to the other.
            error = f"{SaveGivenUp.__name__}: save {order.save} is another one here"
            return peers.Flushed(order.attempt, order.save, (), error=error)
        if running is None or self._may_repeat(running, order):
            running = self._start(order)
        elif not running.task.done() and (
            running.order.deadline != order.deadline or (order.full_speed and not running.order.full_speed)
        ):
            self._renew(running, order)
        await asyncio.wait([running.task], timeout=LATER_SECONDS)
        return running.task.result() if running.task.done() else LATER

    @staticmethod
    def _may_repeat(running: Flush, order: peers.FlushOrder) -> bool:
        """The store did not take a last state, and the coordinator goes on with the same save (B1: it was not abandoned)."""
        return not running.over and running.order != order and running.task.done() and bool(running.task.result().error)

    @staticmethod
    def _renew(running: Flush, order: peers.FlushOrder) -> None:
        """The deadline has proved to be another one while the flush runs (F1, F3), or an emergency has taken it over."""
        deadline = Deadline.of(order.deadline, otherwise_seconds=PERIODIC_SECONDS)
        log.info("save %d has %.1f s now", order.save, deadline.remaining)
        running.order, running.deadline.at = order, deadline.at
        running.stop.move(monotonic() + deadline.remaining)
        if order.full_speed:
            running.stop.hurry()

    def committed(self, message: peers.Committed) -> None:
        """How a save ended."""
        s = self._shared
        s.highest_save = max(s.highest_save, message.save)
        ended = self._flushes.get(message.save)
        if ended is not None and not ended.over:
            ended.over = True
            ended.decided = bool(message.record) or not message.sealed
            boundary = ended.order.boundary
            if message.record:
                self._adopt(message, ended)
            else:
                ended.stop.set("the save was given up")
                if ended.decided:
                    self._drop(ended.order.save)
            self._give_back(lambda r: slots.freed_by_end(r.book, boundary) if r.book else [])
        if message.sealed:
            self._sealed(message)
        s.changes.bump()

    async def dropped(self) -> None:
        """Until no part of a save that was given up can be finished from this node any more: its coordinator takes away what it has stored (E6, D4)."""
        if self._dropping:
            await asyncio.wait(self._dropping)

    def warm(self) -> None:
        """A save is coming: connections to the store are opened meanwhile."""
        s = self._shared
        self._warming.begin(s.store, s.attempt, s.threads.sending, requests=s.threads.link.requests)

    def abandon(self, boundary: int) -> list[asyncio.Future[None]]:
        """Stops every flush of a boundary whose slot is needed: an emergency's, and the one that stepped aside for it. Done, each of what is returned,
        when that flush does not read the slot any more."""
        reading = [f for f in self._flushes.values() if f.order.boundary == boundary and not f.unread.done()]
        for running in reading:
            running.stop.set("a newer boundary needs the slot")
        return [f.unread for f in reading]

    def release_round(self, keep: int = 0) -> None:
        """A round is over and training goes on: what it captured and no save wants is given back. `keep` is wanted by a save that is about to begin."""
        wanted = frozenset(f.order.boundary for f in self._flushes.values() if f.wants_slot) | {keep}
        self._give_back(lambda r: slots.freed_by_open(r.book, wanted) if r.book else [])

    def free(self, rank: Rank, slot: int) -> None:
        """The rank may overwrite the slot."""
        assert rank.book is not None
        held = rank.book.free(slot)
        rank.send(wire.SlotFree(slot, held.captured.boundary, held.committed))

    def wants(self, boundary: int) -> bool:
        """A save of it has begun here and is not over."""
        in_plan = self._shared.record.evacuating
        return any(
            f.order.boundary == boundary and (f.wants_slot or (in_plan and not f.over)) for f in self._flushes.values()
        )

    @property
    def busy(self) -> bool:
        """The newest save is not over, and its coordinator still has time to say so."""
        if not self._flushes:
            return False
        newest = self._flushes[max(self._flushes)]
        return not newest.over and not Deadline.of(newest.order.deadline, otherwise_seconds=PERIODIC_SECONDS).passed

    @property
    def progress(self) -> Progress | None:
        """Of the newest flush that runs."""
        running = [save for save, f in self._flushes.items() if not f.task.done()]
        return self._flushes[max(running)].progress if running else None

    @property
    def failing(self) -> Unavailable | None:
        """Why a flush that runs does not get on, as far as it is the store."""
        return next((f.stop.failing for f in self._flushes.values() if not f.task.done() and f.stop.failing), None)

    async def close(self) -> None:
        """Nobody reads a slot afterwards."""
        for running in self._flushes.values():
            running.stop.set("the attempt is over")
        if self._node_work is not None:
            self._node_work.cancel()  # the node's copy is not worth waiting for; what is torn does not verify
        waiting = [f.unread for f in self._flushes.values() if not f.unread.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=10)

    # ---- one flush

    def _start(self, order: peers.FlushOrder) -> Flush:
        s = self._shared
        s.highest_save = max(s.highest_save, order.save)
        for older in self._flushes.values():
            if order.save > older.order.save and (order.emergency or not older.over):  # A8
                # A checkpoint's copy on the node is finished beside the next periodic save: a slow disk would never have one otherwise.
                older.stop.set(f"save {order.save} is newer")
        stop = Stop()
        deadline = Deadline.of(order.deadline, otherwise_seconds=PERIODIC_SECONDS)
        stop.at = monotonic() + deadline.remaining
        # All ranks of the job hold this boundary, or the coordinator would not ask: what is older may go (E4).
        self._give_back(lambda r: slots.freed_by_newer(r.book, order.boundary) if r.book else [])
        unread = asyncio.get_running_loop().create_future()
        full_speed = order.emergency or order.full_speed
        limited = s.threads.throttle.bytes_per_second > 0
        progress = Progress(full_speed=full_speed, held_back=limited and not full_speed)
        task = asyncio.ensure_future(self._run(order, stop, deadline, unread, progress))
        running = Flush(order, stop, deadline, task, unread, progress)
        self._flushes[order.save] = running
        for save in sorted(self._flushes)[:-REMEMBERED]:
            if self._flushes[save].task.done() and self._flushes[save].unread.done():
                del self._flushes[save]
        return running

    async def _run(
        self,
        order: peers.FlushOrder,
        stop: Stop,
        deadline: Deadline,
        unread: asyncio.Future[None],
        progress: Progress,
    ) -> peers.Flushed:
        s = self._shared
        held = [(r, r.book.at(order.boundary)) for r in s.crew if r.book is not None]
        missing = len(s.crew.ranks) - sum(h is not None for _, h in held)
        if missing or s.store is None:
            unread.set_result(None)
            reason = (
                "the store is not open" if s.store is None else f"{missing} ranks do not hold boundary {order.boundary}"
            )
            return peers.Flushed(s.attempt, order.save, (), error=f"{SaveGivenUp.__name__}: {reason}")
        readers = [h[1] for _, h in held if h is not None]
        for h in readers:
            h.readers += 1
        reading: asyncio.Future[Any] | None = None

        def not_read(_: object = None) -> None:
            for h in readers:
                h.readers -= 1
            unread.set_result(None)
            self._give_back_late(order.save)
            s.changes.bump()

        if not order.emergency:
            await self._learn_history()
        started = monotonic()

        def durable(at: datetime) -> None:
            s.record.keeps_locally(None)
            s.experience.on_node(sum(p.image_bytes for p in job.parts), monotonic() - started)
            if order.emergency:
                s.record.stage(Stage.LOCAL_DURABLE, at)

        waited_for = asyncio.ensure_future(self._hurry_if_waited_for(order, stop))
        try:
            job = self._job(order, deadline)
            store = s.store.until(stop.at)
            written = await flush.write(
                job,
                store,
                s.node if order.to_node else None,
                s.threads,
                stop,
                node_free=self._node_work,
                node_yields=lambda: self._node_yields(order.save),
                on_node_durable=durable,
                on_node_trouble=self._node_fails,
                on_node_whole=lambda manifests, entries: self._note_pending(order, manifests, entries),
                on_described=lambda manifests, entries: self._may_be_taken(order, manifests, entries),
                progress=progress,
            )
            reading = written.unread
        except (StoreError, AgentError, OSError, ContractError) as e:
            log.warning("save %d of attempt %d is not written: %s", order.save, order.attempt, e)
            return peers.Flushed(s.attempt, order.save, (), error=f"{type(e).__name__}: {e}"[:1000])
        finally:
            waited_for.cancel()
            if reading is None or reading.done():
                not_read()
            else:
                reading.add_done_callback(not_read)
        seconds = monotonic() - started
        if not order.to_store:
            return await self._flushed(order, written, seconds, deadline)
        s.experience.flushed(
            logical=written.bytes_logical,
            sent=written.bytes_sent,
            seconds=seconds - written.waited_seconds,
            emergency=order.emergency or order.full_speed,
            based=bool(job.base_has),
            at_its_pace=written.at_its_pace,
        )
        return await self._flushed(order, written, seconds, deadline)

    async def _flushed(
        self, order: peers.FlushOrder, written: flush.Written, seconds: float, deadline: Deadline
    ) -> peers.Flushed:
        s = self._shared
        s.metrics.save_seconds.labels("flush").observe(seconds)
        s.metrics.store_requests.set(s.threads.link.requests)
        s.metrics.store_refusals.inc(s.threads.link.new_refusals())
        if order.save in self._flushes:
            self._flushes[order.save].written = written
        ref = CheckpointRef(order.attempt, order.save)
        for rank in s.crew:
            if rank.book is not None and (found := rank.book.at(order.boundary)):
                s.arena.note(rank.number, found[0], s.settings.config.job_uid, ref)
        # A commit of our own that is under way is of an older save: it is decided before a newer one may be (A8).
        if not await s.changes.until(lambda: not s.committing, deadline):
            reason = f"{SaveGivenUp.__name__}: the commit of an older save is not decided (A8)"
            return peers.Flushed(s.attempt, order.save, (), error=reason)
        first = s.crew.held(order.boundary)
        told = first[0] if first else None
        return peers.Flushed(
            attempt=order.attempt,
            save=order.save,
            ranks=written.entries,
            refers_to=written.refers_to,
            bytes_logical=written.bytes_logical,
            bytes_sent=written.bytes_sent,
            bytes_stored=written.bytes_stored,
            updates=told.updates if told else 0,
            epoch=told.epoch if told else 0,
            samples=told.samples if told else 0,
            metrics=told.metrics if told else {},
            run=told.run if told else {},
            config=told.config if told else {},
            history=told.history if told else (),
            local_durable_at=written.node_durable_at,
            replicas=written.replicas,
        )

    # ---- what may be finished from the node (E6)

    async def _note_pending(
        self, order: peers.FlushOrder, manifests: tuple[RankManifest, ...], entries: tuple[RankEntry, ...]
    ) -> None:
        """The images are durable: what makes them a part of a save goes beside them, last of all what says so. Nothing of it once the save is decided."""
        s = self._shared
        running = self._flushes.get(order.save)
        pending = self._pending(order, entries)
        if running is None or s.node is None or pending is None:
            return
        async with self._noting:
            if running.decided or (s.base is not None and s.base.ref >= pending.ref):
                return
            running.pending = True
            await s.threads.on_node(s.node.leave, pending, manifests)
            if not running.decided:
                s.record.lies_on_node(pending.ref, order.boundary)

    def _pending(self, order: peers.FlushOrder, entries: tuple[RankEntry, ...]) -> Pending | None:
        """What says that this worker's part of the save is whole."""
        s = self._shared
        running = self._flushes.get(order.save)
        held = s.crew.held(order.boundary)
        if running is None or s.incarnation is None or not held:
            return None
        told = held[0]
        return Pending(
            job_uid=s.settings.config.job_uid,
            attempt=order.attempt,
            save=order.save,
            worker=s.settings.config.worker,
            incarnation=s.incarnation,
            world_size=s.order.world_size,
            base=order.base,
            cause=order.cause,
            progress=Position(order.boundary, told.updates, told.epoch, told.samples),
            ranks=entries,
            created_at=now(),
            step_seconds=s.record.step_seconds,
            store_seconds=outlook.store.likely if (outlook := outlook_of(s, running.progress)) is not None else 0.0,
            metrics=told.metrics,
            run=described.complete(
                told.run, s.settings.config.image, os.environ, config=told.config, metrics=told.metrics
            ),
            config=told.config,
            history=told.history,
        )

    def _may_be_taken(
        self, order: peers.FlushOrder, manifests: tuple[RankManifest, ...], entries: tuple[RankEntry, ...]
    ) -> None:
        """Everything is hashed: another worker may read it from the slots as long as they hold it."""
        s = self._shared
        if len(s.order.members) < 2 or (pending := self._pending(order, entries)) is None:
            return
        texts = [codec.to_json(m) for m in manifests]
        slots_of = {r.number: r.book.at(order.boundary) for r in s.crew if r.book is not None}
        images = [(m, s.arena.path(m.rank, at[0])) for m in manifests if (at := slots_of.get(m.rank)) is not None]
        s.giving.saved(images, texts)
        lengths = tuple(len(t) for t in texts)
        text = self_proving(pending).decode()
        self._part = peers.Part(s.attempt, order.save, s.settings.config.worker, text, lengths)
        s.changes.bump()

    async def part(self, message: peers.PartWanted) -> object:
        """What another worker has to know to take it, or LATER: nothing is hashed yet."""
        s = self._shared
        await s.changes.until(lambda: self._part_of(message.save) is not None, Deadline.after(LATER_SECONDS))
        return self._part_of(message.save) or LATER

    def _part_of(self, save: int) -> peers.Part | None:
        """None: not yet. What is older than the newest will not come any more."""
        if self._part is None or self._part.save < save:
            return None
        if self._part.save > save:
            return peers.Part(self._shared.attempt, save, self._shared.settings.config.worker, "")
        return self._part

    def _drop(self, save: int) -> None:
        """The save was given up: nobody is to finish it."""
        task = asyncio.ensure_future(self._drop_pending(save))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def _drop_pending(self, save: int) -> None:
        s = self._shared
        async with self._noting:
            running = self._flushes.get(save)
            if s.node is None or running is None or not running.pending:
                return
            ref = CheckpointRef(running.order.attempt, save)
            while True:
                try:
                    await s.threads.on_node(s.node.drop_pending, ref, s.settings.config.worker)
                    break
                except StoreError as e:
                    self._node_fails(e)
                    await asyncio.sleep(LOOK_SECONDS)
            running.pending = False
            s.record.off_node(ref)

    def _node_fails(self, error: StoreError) -> None:
        """Training goes on, and so does the save: said once, until an image is on the node again (fault scenarios 11-13)."""
        s = self._shared
        assert s.node is not None
        trouble = storage.local_trouble(error, s.node.root)
        if s.record.local is None or s.record.local.reason != trouble.reason:
            log.warning("%s: %s", trouble.reason, trouble.message)
        s.metrics.local_failures.labels(trouble.reason).inc()
        s.record.keeps_locally(trouble)

    def _node_yields(self, save: int) -> bool:
        """The copy of a save that has ended has not begun, because the disk is busy with an older one, and a rank stands still for want of a slot."""
        ended = self._flushes.get(save)
        return ended is not None and ended.over and self._a_rank_stands()

    def _a_rank_stands(self) -> bool:
        """For want of a slot."""
        return any(
            r.book is not None
            and not r.book.has_free
            and r.passed_at is not None
            and monotonic() - r.passed_at > STANDS_SECONDS + STANDS_STEPS * r.step_seconds
            for r in self._shared.crew
        )

    async def _hurry_if_waited_for(self, order: peers.FlushOrder, stop: Stop) -> None:
        """What holds a save back beside training (its pace, the user's limit) is no use where a rank stands until the save is written."""
        limit = self._shared.threads.throttle.bytes_per_second
        if order.emergency or order.full_speed:
            return
        while not stop.hurried:
            await asyncio.sleep(LOOK_SECONDS)
            if self._a_rank_stands():
                if limit:
                    log.warning(
                        "save %d is no longer held back to %d bytes a second: a rank waits for its slot. "
                        "Raise spec.checkpoint.backgroundBytesPerSecond, or save less often",
                        order.save, limit,
                    )  # fmt: skip
                stop.hurry()

    async def _learn_history(self) -> None:
        """How old the base's chunks are (B5), once in an attempt, not in an emergency. A store that does not say it now is asked at the next save."""
        s = self._shared
        if s.base is None or s.history or all(r.attempt == s.attempt for r in (s.base.ref, *s.base.refers_to)):
            return
        if self._learning is None or self._learning.done():
            self._learning = asyncio.ensure_future(self._read_history(s.base))
        await asyncio.wait([self._learning], timeout=HISTORY_SECONDS)

    async def _read_history(self, base: CommitRecord) -> None:
        s = self._shared
        assert s.store is not None
        s.made_at[base.ref] = base.created_at
        oldest = min(ref.attempt for ref in (base.ref, *base.refers_to))
        try:
            s.history = await s.threads.call(s.store.stretches, s.attempt, oldest=oldest)
        except StoreError as e:
            log.warning("the age of older chunks is not known: %s", e)

    def _job(self, order: peers.FlushOrder, deadline: Deadline) -> flush.Job:
        s = self._shared
        at = deadline.at  # once it moves, a machine is about to go
        parts = []
        for rank in s.crew:
            assert rank.book is not None
            assert rank.plan is not None
            found = rank.book.at(order.boundary)
            assert found is not None
            parts.append(
                flush.Part(
                    rank.number,
                    s.arena.path(rank.number, found[0]),
                    rank.plan.image_bytes,
                    order.boundary,
                    rank.plan.tensors,
                    rank.plan.must_be_finite,
                )
            )
        return flush.Job(
            job_uid=s.settings.config.job_uid,
            ref=CheckpointRef(order.attempt, order.save),
            world_size=s.order.world_size,
            chunk_bytes=s.settings.config.chunk_bytes,
            parts=tuple(parts),
            base_has=s.base_has(order.base, CheckpointRef(order.attempt, order.save), emergency=order.emergency),
            wait_for_node=False,
            base=order.base,
            emergency=order.emergency or order.full_speed,
            looks=lambda: not order.emergency and deadline.at == at and not s.record.evacuating,
            to_store=order.to_store,
            worker=s.place,
        )

    # ---- afterwards

    def _adopt(self, message: peers.Committed, ended: Flush) -> None:
        """The save is a checkpoint: the next one leans on it."""
        s = self._shared
        record = codec.from_json(CommitRecord, message.record.encode(), max_bytes=MAX_MANIFEST_BYTES)
        if s.base is None or record.ref > s.base.ref:
            s.base = record
            # Chunks of later saves can lie nowhere else (B4), so the age of the others is forgotten.
            s.made_at = {r: s.made_at[r] for r in record.refers_to if r in s.made_at} | {record.ref: record.created_at}
            s.base_manifests = {m.rank: m for m in ended.written.manifests} if ended.written is not None else {}
        for rank in s.crew:
            if rank.book is not None:
                rank.book.mark_committed(ended.order.boundary)
        if message.info is not None:
            s.record.committed(message.info)
        if message.info is not None and (s.last is None or message.info.boundary >= s.last.boundary):
            s.last = message.info  # never back: how an older save ended may be heard late
            s.metrics.last_checkpoint.set(message.info.committed_at.timestamp())
            s.metrics.last_boundary.set(message.info.boundary)
        if ended.written is not None:
            s.metrics.logical_bytes.inc(ended.written.bytes_logical)
            s.metrics.sent_bytes.inc(ended.written.bytes_sent)
            s.metrics.stored_bytes.inc(ended.written.bytes_stored)
        if s.node is not None:
            self._node_work = asyncio.ensure_future(self._on_node(record.ref, message.record, ended, self._node_work))

    async def _on_node(self, ref: CheckpointRef, text: str, ended: Flush, before: asyncio.Task[None] | None) -> None:
        """The node keeps the newest committed checkpoint that it has whole; a full disk costs the node's copy and nothing else.

        The room of the one before stays for the next image, unless this is the last.
        """
        s = self._shared
        assert s.node is not None
        waiting = [t for t in (before, ended.written.on_node if ended.written else None) if t is not None]
        if waiting:
            await asyncio.wait(waiting)
        if ended.written is None or ended.written.on_node.result() is None:
            await self._drop_older(ref)
            return
        newer = {CheckpointRef(ref.attempt, save) for save in self._flushes if save > ref.save}
        ranks = [] if ended.order.cause is Cause.FINAL else [m.rank for m in ended.written.manifests]
        try:
            for manifest in () if ended.pending else ended.written.manifests:
                await s.threads.call(s.node.write_manifest, manifest)
            await s.threads.call(s.node.write_commit, ref, text)
            await self._drop_older(ref)
            await s.threads.call(partial(s.node.prune, {ref} | newer, spares_of=ranks))
        except (OSError, StoreError) as e:
            self._node_fails(e if isinstance(e, StoreError) else Unavailable(str(e)))

    async def _drop_older(self, ref: CheckpointRef) -> None:
        """Nothing up to a commit waits any more (A8)."""
        s = self._shared
        assert s.node is not None
        s.record.off_node(ref)
        async with self._noting:
            try:
                await s.threads.on_node(s.node.drop_older, ref)
            except StoreError as e:
                self._node_fails(e)

    def _give_back_late(self, save: int) -> None:
        """The slot was read for longer than the save counted, by the node or by a flush that a newer one has stopped (A8): nobody else will give it back."""
        ended = self._flushes.get(save)
        if ended is not None and ended.over:
            self._give_back(lambda r: slots.freed_by_end(r.book, ended.order.boundary) if r.book else [])
        newest = self._flushes[max(self._flushes)].order if self._flushes else None
        if newest is not None and newest.save > save:
            self._give_back(lambda r: slots.freed_by_newer(r.book, newest.boundary) if r.book else [])

    def _give_back(self, which: Callable[[Rank], list[int]]) -> None:
        for rank in self._shared.crew:
            for slot in which(rank):
                assert rank.book is not None
                if not slots.is_last_state(rank.book, slot, rank.done_at):
                    self.free(rank, slot)
