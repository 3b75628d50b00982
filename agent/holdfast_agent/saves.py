"""The coordinator's part of a save: allot a number, let every worker flush, look for a newer claim, commit, tell everybody (A5, A6, A8, B1, E5).

The lead coordinates periodic saves, for which no agreement is needed: it waits until every worker has offered the same boundary. Whoever runs a round
(rounds.py) coordinates that round's save.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from holdfast_agent.clock import Deadline, now
from holdfast_agent.errors import AgentError, SaveGivenUp
from holdfast_agent.shared import Shared
from holdfast_agent.threads import Stop, persist
from holdfast_agent.writing import PERIODIC_SECONDS
from holdfast_api import peers
from holdfast_api.manifest import CheckpointKind, CommitRecord, Progress, RankEntry
from holdfast_api.messages import Cause, CheckpointInfo, Stage
from holdfast_store.errors import NotOnRecord, StoreError, Superseded

log = logging.getLogger(__name__)
TELL_SECONDS = 20.0
"""How long members are told how a save ended; a member that is gone learns it from the store when it returns."""
OFFERS_KEPT = 64
FINAL_TRIES = 5


class Saves:
    """One attempt's. Called on the event loop's thread."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._lock = asyncio.Lock()
        self._offers: dict[int, set[int]] = {}
        self._periodic: asyncio.Task[None] | None = None
        self._tries: dict[int, int] = {}
        self.started_at = time.monotonic()
        """Of the newest save; `every.seconds` counts from it."""

    # ---- periodic

    def offered(self, offer: peers.SaveOffer) -> None:
        """The lead: a worker's ranks all hold a boundary."""
        self._offers.setdefault(offer.boundary, set()).add(offer.worker)
        for old in sorted(self._offers)[:-OFFERS_KEPT]:
            del self._offers[old]
        self.kick()

    def kick(self) -> None:
        """Something may have become possible: an offer, or the end of an evacuation."""
        idle = self._periodic is None or self._periodic.done()
        if idle and self._next_offer() is not None and not self._shared.record.evacuating:
            self._periodic = asyncio.ensure_future(self._run_periodic())

    def _next_offer(self) -> int | None:
        """The newest boundary that everybody holds and that is not committed; what is older is not worth a save any more (A8)."""
        workers = set(self._shared.mesh.workers)
        complete = [b for b, who in self._offers.items() if who >= workers and b > self._shared.last_boundary]
        return max(complete, default=None)

    async def _run_periodic(self) -> None:
        while (boundary := self._next_offer()) is not None and self._shared.record.claim is not None:
            final = self._is_final(boundary)
            self._tries[boundary] = self._tries.get(boundary, 0) + 1
            last_try = not final or self._tries[boundary] >= FINAL_TRIES
            try:
                deadline = Deadline.after(PERIODIC_SECONDS)
                await self.make(
                    boundary, Cause.FINAL if final else Cause.PERIODIC, deadline=deadline, give_up_loudly=last_try
                )
            except SaveGivenUp:
                if last_try:
                    self._offers.pop(boundary, None)
                else:
                    await asyncio.sleep(2.0 ** self._tries[boundary])
            for old in [b for b in self._offers if b <= self._shared.last_boundary]:
                del self._offers[old]

    def _is_final(self, boundary: int) -> bool:
        held = self._shared.crew.held(boundary)
        return bool(held) and (held[0].kind == "final" or self._shared.crew.done_at == boundary)

    async def step_aside(self) -> None:
        """An emergency: the periodic save ends now, unless its commit record is on the way."""
        task = self._periodic
        if task is not None and not task.done() and not self._shared.committing:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def close(self) -> None:
        if self._periodic is not None:
            self._periodic.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._periodic

    @property
    def pending(self) -> bool:
        """The lead still has something to commit."""
        return self._lock.locked() or self._next_offer() is not None

    # ---- one save

    async def make(
        self,
        boundary: int,
        cause: Cause,
        *,
        deadline: Deadline,
        emergency: bool = False,
        sealed: Callable[[], bool] = lambda: False,
        give_up_loudly: bool = True,
    ) -> CheckpointInfo:
        """Commits `boundary`, which every rank of the job holds. `sealed` is asked when the commit is there. Raises SaveGivenUp."""
        async with self._lock:
            s = self._shared
            save = s.next_save()
            self.started_at = time.monotonic()
            try:
                record, text = await self._commit(save, boundary, cause, emergency, deadline)
            except Exception as e:
                if not isinstance(e, StoreError | SaveGivenUp):
                    log.exception("save %d failed unexpectedly", save)  # a bug ends this save, not the saving
                s.metrics.saves.labels(cause.value, "given-up").inc()
                self._note(save, e)
                if isinstance(e, Superseded):
                    s.supersede(e.newest.attempt)
                if isinstance(e, NotOnRecord):
                    s.base = None  # it may be what is missing: the next save leans on nothing (B4)
                if give_up_loudly and not sealed():
                    await self._tell(peers.Committed(s.attempt, save, ""))
                raise SaveGivenUp(str(e)) from e
            info = info_of(record)
            s.metrics.saves.labels(cause.value, "committed").inc()
            s.metrics.save_seconds.labels("whole").observe(time.monotonic() - self.started_at)
            is_seal = sealed()
            if is_seal:
                s.record.stage(Stage.SEALED, record.created_at)
            await self._tell(peers.Committed(s.attempt, save, text, info, is_seal))
            log.info("checkpoint %s is committed at boundary %d (%s)", record.ref, boundary, cause.value)
            return info

    async def seal(self, info: CheckpointInfo | None) -> None:
        """The evacuation ends without a save of its own: `info` is the commit that holds everything already, None if something is lost."""
        self._shared.record.stage(Stage.SEALED)
        await self._tell(peers.Committed(self._shared.attempt, max(1, self._shared.highest_save), "", info, True))

    async def _commit(
        self, save: int, boundary: int, cause: Cause, emergency: bool, deadline: Deadline
    ) -> tuple[CommitRecord, str]:
        s = self._shared
        if s.store is None:
            raise SaveGivenUp("the store is not open")
        base = s.base.ref if s.base is not None else None
        order = peers.FlushOrder(s.attempt, save, boundary, base, cause, emergency, deadline.at)
        answers = await self._flushed(order, deadline)
        if s.highest_save > save:
            raise SaveGivenUp(f"save {s.highest_save} is newer (A8)")
        record = self._record(order, answers)
        stop = Stop()
        stop.at = time.monotonic() + deadline.remaining
        s.committing = True
        try:
            text = await asyncio.shield(
                asyncio.ensure_future(s.threads.call(persist, stop, lambda: _committing(s, record, stop)))
            )
        finally:
            s.committing = False
            s.changes.bump()
        return record, text

    async def _flushed(self, order: peers.FlushOrder, deadline: Deadline) -> list[peers.Flushed]:
        """All answers, or SaveGivenUp at the first worker that has none: the others' work is for nothing then."""
        s = self._shared
        tasks = [asyncio.ensure_future(self._flushed_by(w, order, deadline)) for w in s.mesh.workers]
        try:
            answers = [await done for done in asyncio.as_completed(tasks)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return answers

    async def _flushed_by(self, worker: int, order: peers.FlushOrder, deadline: Deadline) -> peers.Flushed:
        try:
            answer: peers.Flushed = await self._shared.mesh.ask(worker, order, until=deadline)
        except AgentError as e:
            raise SaveGivenUp(str(e)) from e
        if answer.error:
            raise SaveGivenUp(f"worker {worker}: {answer.error}")
        return answer

    def _record(self, order: peers.FlushOrder, answers: list[peers.Flushed]) -> CommitRecord:
        s = self._shared
        config = s.settings.config
        entries: dict[int, RankEntry] = {e.rank: e for a in answers for e in a.ranks}
        if sorted(entries) != list(range(s.order.world_size)):
            raise SaveGivenUp(f"ranks {sorted(entries)} are written where {s.order.world_size} are needed")
        first = min(answers, key=lambda a: min(e.rank for e in a.ranks))
        return CommitRecord(
            job_uid=config.job_uid,
            namespace=config.namespace,
            job=config.job,
            attempt=order.attempt,
            save=order.save,
            kind=CheckpointKind.FULL,
            cause=order.cause,
            created_at=now(),
            progress=Progress(order.boundary, first.updates, first.epoch, first.samples),
            ranks=tuple(entries[r] for r in sorted(entries)),
            base=order.base,
            refers_to=tuple(sorted({ref for a in answers for ref in a.refers_to})),
            bytes_logical=sum(a.bytes_logical for a in answers),
            bytes_sent=sum(a.bytes_sent for a in answers),
            metrics=first.metrics,
            run=first.run,
            timings={"flush": time.monotonic() - self.started_at},
        )

    async def _tell(self, message: peers.Committed) -> None:
        """Everybody, for a bounded time; who is unreachable does not hold up the others."""
        s = self._shared
        answers = await s.mesh.ask_all(message, until=Deadline.after(TELL_SECONDS))
        for worker, answer in answers.items():
            if isinstance(answer, BaseException):
                log.warning("worker %d was not told how save %d ended: %s", worker, message.save, answer)

    def _note(self, save: int, e: Exception) -> None:
        log.warning("save %d is given up: %s", save, e)
        self._shared.record.storage_note = f"save {save} was given up: {e}"[:1000]
        self._shared.record.changed()


def _committing(shared: Shared, record: CommitRecord, stop: Stop) -> str:
    assert shared.store is not None
    return shared.store.until(stop.at).commit(record, incarnation=shared.incarnation)


def info_of(record: CommitRecord) -> CheckpointInfo:
    return CheckpointInfo(
        attempt=record.attempt,
        save=record.save,
        boundary=record.progress.boundary,
        cause=record.cause,
        committed_at=record.created_at,
        bytes_logical=record.bytes_logical,
        bytes_sent=record.bytes_sent,
        metrics=dict(record.metrics),
    )
