"""The coordinator's part of a save: allot a number, let every worker flush, look for a newer claim, commit, tell everybody (A5, A6, A8, B1, E5).

The lead coordinates the saves beside training (periodic.py), whoever runs a round (rounds.py) that round's save.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from holdfast_agent import described, replicas, storage
from holdfast_agent.clock import Deadline, monotonic, now
from holdfast_agent.errors import AgentError, SaveGivenUp
from holdfast_agent.shared import Shared
from holdfast_agent.threads import Stop, persist
from holdfast_api import peers
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import REPLICAS, SUSPECT, CheckpointKind, CommitRecord, Progress, RankEntry
from holdfast_api.messages import Cause, CheckpointInfo, Stage
from holdfast_store.errors import AlreadyExists, Full, NotOnRecord, StoreError, Superseded

log = logging.getLogger(__name__)
TELL_SECONDS = 20.0
"""How long members are told how a save ended; a member that is gone learns it from the store when it returns."""
OWN_SECONDS = 1.0
NAMES_SECONDS = 10.0
"""So long the commit of a save beside training waits for the names of the tensors that differ; one in an emergency does not wait."""
LOOK_SECONDS = 60.0
"""A wait that is woken by every change need not look up more often."""
DECIDE_SECONDS = 10.0
"""An attempt that is over waits so long for a commit record that is on its way; the next claim makes a later one harmless (A7)."""


@dataclass(eq=False, slots=True)
class Commit:
    """A commit record on its way to the store. Nobody can call it back: it is waited for until it is decided (A8)."""

    save: int
    stop: Stop
    deadline: Deadline
    task: asyncio.Task[tuple[CommitRecord, str]]


@dataclass(frozen=True, slots=True)
class Unstored:
    """A last state that the store did not take. It stays the same save, so that what has arrived is not sent and stored once more (B1)."""

    save: int
    boundary: int
    base: CheckpointRef | None


class Saves:
    """One attempt's. Called on the event loop's thread."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._lock = asyncio.Lock()
        self._under_way: Commit | None = None
        self._unstored: Unstored | None = None
        self._did_not_fit: dict[int, bool] = {}
        """Saves of which something may still lie in the store -> whether their commit record may still come."""
        self._unheard: set[int] = set()
        """Saves that were given up, of which not everybody has heard it."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hurried = False
        """The save that is being made was begun beside training, and an emergency counts on it."""
        self.closed = False
        """The attempt is over: a commit that lands now is nobody's news here."""
        self.refused_by: StoreError | None = None
        """Why the last state is not stored yet, as far as it is the store."""
        self.started_at = monotonic()
        """Of the newest save; `every.seconds` counts from it."""

    async def close(self) -> None:
        """After everything that may begin a save has ended."""
        self.closed = True
        if self._under_way is not None and not self._under_way.task.done():
            self._under_way.stop.set("the attempt is over")
            await asyncio.wait([self._under_way.task], timeout=DECIDE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def forget_unstored(self) -> None:
        """The last state is given up: what arrived of it is not continued."""
        self._unstored = None

    @property
    def busy(self) -> bool:
        """A save is being made, or its commit is not decided."""
        return self._lock.locked() or self._shared.committing

    @property
    def failing(self) -> StoreError | None:
        """Why what is saved now does not get on, or was not taken, as far as it is the store."""
        commit = self._under_way
        return (commit.stop.failing if commit is not None and not commit.task.done() else None) or self.refused_by

    def deadline_moved(self) -> None:
        """The deadline of the save that is being made is another one now: what is under way goes by it (F1, F3)."""
        commit = self._under_way
        if commit is not None and not commit.stop.wanted:
            commit.stop.at = monotonic() + commit.deadline.remaining
        self._shared.changes.bump()

    def hurry(self) -> None:
        """What is being saved is wanted by an emergency, or in its way: nothing holds it back any more."""
        self._hurried = True
        self._shared.changes.bump()

    # ---- one save

    async def make(
        self,
        boundary: int,
        cause: Cause,
        *,
        deadline: Deadline,
        emergency: bool = False,
        sealed: Callable[[], bool] = lambda: False,
        for_good: Callable[[], bool] = lambda: True,
        to_node: bool = True,
        full_speed: bool = False,
        timings: Callable[[], Mapping[str, float]] = dict,
        takers: Callable[[], Mapping[int, int]] = dict,
    ) -> CheckpointInfo:
        """Commits `boundary`, which every rank of the job holds. `sealed` is asked when the commit is there, `for_good` when there is none: whether
        the save is abandoned. `takers` is asked while it is written: doomed worker -> survivor, if the latter had better take its part as well.
        Raises SaveGivenUp."""
        async with self._lock:
            s = self._shared
            await self._decided(deadline)
            if s.last is not None and boundary <= s.last_boundary:
                return s.last  # by the commit that was under way
            save = self._number_for(boundary)
            self._hurried = False
            self.started_at = monotonic()
            try:
                base = s.base.ref if s.base is not None else None
                order = peers.FlushOrder(
                    s.attempt, save, boundary, base, cause, emergency, deadline.at, to_node, full_speed
                )
                record, text = await self._commit(order, deadline, timings, takers)
            except Exception as e:
                kept = not (emergency or for_good())
                told = for_good() and not sealed()
                given_up = await self._failed(save, boundary, cause, e, told=told, kept=kept)
                if isinstance(given_up.storage, Full) and told and not emergency:
                    await self._give_back_room(save)
                raise given_up from e
            s.metrics.save_seconds.labels("whole").observe(monotonic() - self.started_at)
            return await self._made(record, text, is_seal=sealed())

    async def keep(
        self, boundary: int, cause: Cause, *, deadline: Deadline, takers: Mapping[int, int] | None = None
    ) -> None:
        """Writes `boundary`, which every rank of the job holds, on the nodes alone, for whoever returns there to finish (E6). It is no checkpoint and
        nothing is sealed. `takers`: doomed worker -> the survivor that takes its part; what happens on the doomed one's own node decides nothing then.
        Raises SaveGivenUp."""
        async with self._lock:
            s = self._shared
            await self._decided(deadline)
            self._unstored = None
            save = s.next_save()
            self.started_at = monotonic()
            base = s.base.ref if s.base is not None else None
            order = peers.FlushOrder(
                s.attempt, save, boundary, base, cause, True, deadline.at, to_node=True, to_store=False
            )
            try:
                await self._flushed(order, deadline, takers or {})
            except AgentError as e:
                s.metrics.saves.labels(cause.value, "given-up").inc()
                self._note(save, e)
                raise e if isinstance(e, SaveGivenUp) else SaveGivenUp(str(e)) from e
            s.metrics.saves.labels(cause.value, "rescued" if takers else "on-node").inc()
            if takers:
                log.warning(
                    "boundary %d is whole with the workers that stay (%s) and in no checkpoint: they finish it as %s when the next attempt is joined (E6)",
                    boundary, ", ".join(f"worker {w}'s part with {t}" for w, t in sorted(takers.items())), CheckpointRef(s.attempt, save),
                )  # fmt: skip
                return
            log.warning(
                "boundary %d is whole on the nodes of all workers and nowhere else: it becomes checkpoint %s if their pods return there before the next "
                "claim (E6)",
                boundary, CheckpointRef(s.attempt, save),
            )  # fmt: skip

    def _number_for(self, boundary: int) -> int:
        """A new number (B1), or that of the very same save, if the store did not take it and it was not abandoned."""
        s = self._shared
        base = s.base.ref if s.base is not None else None
        again = self._unstored
        self._unstored = None
        if again is not None and again == Unstored(s.highest_save, boundary, base):
            return again.save
        return s.next_save()

    async def _failed(
        self, save: int, boundary: int, cause: Cause, e: Exception, *, told: bool, kept: bool
    ) -> SaveGivenUp:
        """Says what to raise. `told`: everybody hears that the save is abandoned. `kept`: it is not, if it is the store that does not take it."""
        s = self._shared
        if not isinstance(e, StoreError | SaveGivenUp):
            log.exception("save %d failed unexpectedly", save)  # a bug ends this save, not the saving
        s.metrics.saves.labels(cause.value, "given-up").inc()
        self._note(save, e)
        if isinstance(e, Superseded):
            s.supersede(e.newest.attempt)
        if isinstance(e, NotOnRecord):
            s.base = None  # it may be what is missing: the next save leans on nothing (B4)
        given_up = e if isinstance(e, SaveGivenUp) else SaveGivenUp(str(e), storage=storage.refusal(e))
        if given_up.storage is not None:
            s.record.cannot_save(storage.blocked(given_up.storage, s.settings.config.storage))
        if told and not await self.tell(peers.Committed(s.attempt, save, "")):
            self._unheard.add(save)
        if kept and given_up.storage is not None:
            self._unstored = Unstored(save, boundary, s.base.ref if s.base is not None else None)
        return given_up

    async def _give_back_room(self, save: int) -> None:
        """Of a save that did not fit (D4). Else what is left of such saves takes all room that somebody makes.

        Once more for the one before: a worker may have heard late that it was given up. And for those whose tombstone did not fit until others had gone.
        """
        s = self._shared
        assert s.store is not None
        # Somebody who has not heard of it may have a part of it on his node, and finish it (E6).
        may_come = (self._under_way is not None and self._under_way.save == save) or save in self._unheard
        self._did_not_fit[save] = may_come
        for number, sent in sorted(self._did_not_fit.items(), key=lambda item: (item[1], -item[0])):
            try:
                freed = await s.threads.call(s.store.discard, CheckpointRef(s.attempt, number), sent=sent)
            except StoreError as e:
                log.warning("what save %d has stored is not removed yet: %s", number, e)
                if isinstance(e, Full):
                    continue
                break  # a store that is away, or lets nothing be deleted, says the same of all others
            if number != save:
                del self._did_not_fit[number]
            if freed:
                log.info("%d bytes of save %d, which did not fit, are removed", freed, number)

    async def _made(self, record: CommitRecord, text: str, *, is_seal: bool) -> CheckpointInfo:
        """The record is there: everybody learns it, also if the round that asked for it is withdrawn while they are told."""
        s = self._shared
        info = info_of(record)
        self.refused_by = None
        s.metrics.saves.labels(record.cause.value, "committed").inc()
        if record.cause is Cause.PERIODIC:
            s.measured = s.measured.persisted(monotonic() - self.started_at, _requests(s, record))
        if is_seal:
            s.record.stage(Stage.SEALED, record.created_at)
        try:
            await self.tell(peers.Committed(s.attempt, record.save, text, info, is_seal))
        except asyncio.CancelledError:
            self._later(self.tell(peers.Committed(s.attempt, record.save, text, info)))
            raise
        log.info("checkpoint %s is committed at boundary %d (%s)", record.ref, info.boundary, record.cause.value)
        if info.finite is False:
            named = ", ".join(info.not_finite)
            log.warning("checkpoint %s holds NaN or infinite values, no start will use it: %s", record.ref, named)
        return info

    # ---- a commit that is under way (A8)

    async def _decided(self, deadline: Deadline) -> None:
        """Until the commit of a save that was cancelled is decided, and adopted if it is there. Raises SaveGivenUp: no save number is used before."""
        commit = self._under_way
        if commit is None:
            return
        await asyncio.wait([commit.task], timeout=deadline.remaining)
        if not commit.task.done():
            raise SaveGivenUp(f"the commit of save {commit.save} is not decided yet (A8)", may_pass=True)
        await asyncio.sleep(0)  # its callbacks
        if self._tasks:  # this worker is told at once; who is unreachable does not hold up an evacuation
            await asyncio.wait(self._tasks, timeout=min(deadline.remaining, OWN_SECONDS))

    def _landed(self, commit: Commit) -> None:
        s = self._shared
        s.committing = False
        s.changes.bump()

    def _adopt_later(self, commit: Commit) -> None:
        """Whoever asked for the save is gone. If the record has arrived all the same, the save is a checkpoint like any other."""
        if commit.task.cancelled():
            return
        if commit.task.exception() is not None:
            log.info("save %d was withdrawn, and there is no commit: %s", commit.save, commit.task.exception())
        elif not self.closed:
            record, text = commit.task.result()
            self._later(self._made(record, text, is_seal=False))

    def _later(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def seal(self, info: CheckpointInfo | None) -> None:
        """The evacuation ends without a save of its own: `info` is the commit that holds everything already, None if something is lost."""
        self._shared.record.stage(Stage.SEALED)
        await self.tell(peers.Committed(self._shared.attempt, max(1, self._shared.highest_save), "", info, True))

    async def _commit(
        self,
        order: peers.FlushOrder,
        deadline: Deadline,
        timings: Callable[[], Mapping[str, float]],
        takers: Callable[[], Mapping[int, int]],
    ) -> tuple[CommitRecord, str]:
        s = self._shared
        save = order.save
        if s.store is None:
            raise SaveGivenUp("the store is not open")
        beside = asyncio.ensure_future(self._taken_beside(order, deadline, takers))
        try:
            answers = await self._flushed(order, deadline)
        finally:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
        if s.highest_save > save:
            raise SaveGivenUp(f"save {s.highest_save} is newer (A8)", may_pass=True)
        record = await self._with_replicas(self._record(order, answers, timings()), order, answers)
        began = monotonic()
        stop = Stop()
        stop.at = monotonic() + deadline.remaining
        writing = s.threads.call(persist, stop, lambda: _committing(s, record, stop))
        commit = self._under_way = Commit(save, stop, deadline, asyncio.ensure_future(writing))
        s.committing = True
        commit.task.add_done_callback(lambda _: self._landed(commit))
        try:
            made = await asyncio.shield(commit.task)
            s.experience.committed(monotonic() - began)
            self._later(s.experience.keep(s.threads))
            return made
        except asyncio.CancelledError:
            # The record may land any moment (A8): it is not tried again, and nothing newer is begun until it is decided.
            stop.set("the save was withdrawn")
            commit.task.add_done_callback(lambda _: self._adopt_later(commit))
            raise

    async def _flushed(
        self, order: peers.FlushOrder, deadline: Deadline, takers: Mapping[int, int] | None = None
    ) -> list[peers.Flushed]:
        """All answers, or SaveGivenUp at the first worker that has none: the others' work is for nothing then. `takers` answer for those who go."""
        s, takers = self._shared, takers or {}
        tasks = [
            asyncio.ensure_future(
                self._taken(w, takers[w], order, deadline) if w in takers else self._flushed_by(w, order, deadline)
            )
            for w in s.mesh.workers
        ]
        try:
            answers = [await done for done in asyncio.as_completed(tasks)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return answers

    async def _taken_beside(
        self, order: peers.FlushOrder, deadline: Deadline, takers: Callable[[], Mapping[int, int]]
    ) -> None:
        """What a survivor has taken counts only if the upload is late: then the very same save is finished from there (E6). It costs nobody anything that
        it fails."""
        s = self._shared
        if not (order.emergency and order.to_node) or not await s.changes.until(lambda: bool(takers()), deadline):
            return
        found = takers()
        log.warning(
            "the upload of save %d may be late: workers that stay take the parts of those that go as well (%s)",
            order.save, ", ".join(f"worker {w}'s to {t}" for w, t in sorted(found.items())),
        )  # fmt: skip
        asking = [
            s.mesh.ask(t, peers.RescueOrder(order.attempt, order.save, order.boundary, w, deadline.at), until=deadline)
            for w, t in sorted(found.items())
        ]
        for answer in await asyncio.gather(*asking, return_exceptions=True):
            why = str(answer) if isinstance(answer, BaseException) else answer.error
            if why:
                log.warning("a part of save %d is not taken: %s", order.save, why)

    async def _taken(self, worker: int, taker: int, order: peers.FlushOrder, deadline: Deadline) -> peers.Flushed:
        """The doomed worker hashes what it holds and gives it; only what the taker says counts."""
        giving = asyncio.ensure_future(self._flushed_by(worker, order, deadline))
        rescue = peers.RescueOrder(order.attempt, order.save, order.boundary, worker, deadline.at)
        try:
            answer = await self._shared.mesh.ask(taker, rescue, until=deadline)
        except AgentError as e:
            raise SaveGivenUp(str(e), may_pass=True) from e
        finally:
            giving.cancel()
            await asyncio.gather(giving, return_exceptions=True)
        if answer.error:
            raise SaveGivenUp(f"worker {taker}: {answer.error}", may_pass=True)
        return peers.Flushed(order.attempt, order.save, ())

    async def _flushed_by(self, worker: int, order: peers.FlushOrder, deadline: Deadline) -> peers.Flushed:
        try:
            answer = await self._asked(worker, order, deadline)
        except AgentError as e:
            raise SaveGivenUp(str(e), may_pass=True) from e
        if answer.error:
            raise SaveGivenUp(
                f"worker {worker}: {answer.error}",
                storage=storage.refusal_in(answer.error),
                may_pass=answer.error.startswith(SaveGivenUp.__name__),
            )
        return answer

    async def _asked(self, worker: int, order: peers.FlushOrder, deadline: Deadline) -> peers.Flushed:
        """The order is said again as soon as its deadline has moved or it has become urgent; the flush that runs takes it over. Raises AgentError."""
        answer: peers.Flushed | None = None
        while answer is None:
            answer = await self._asked_until_it_moves(worker, order, deadline)
        return answer

    async def _asked_until_it_moves(
        self, worker: int, order: peers.FlushOrder, deadline: Deadline
    ) -> peers.Flushed | None:
        changes, at, hurried = self._shared.changes, deadline.at, self._hurried
        said = replace(order, deadline=at, full_speed=order.full_speed or hurried)

        def same() -> bool:
            return deadline.at == at and self._hurried == hurried

        asking = asyncio.ensure_future(self._shared.mesh.ask(worker, said, until=deadline))
        asking.add_done_callback(lambda _: changes.bump())
        try:
            while not asking.done() and same():
                await changes.until(lambda: asking.done() or not same(), Deadline.after(LOOK_SECONDS))
            return asking.result() if asking.done() else None
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def _record(
        self, order: peers.FlushOrder, answers: list[peers.Flushed], timings: Mapping[str, float]
    ) -> CommitRecord:
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
            bytes_stored=sum(a.bytes_stored for a in answers),
            metrics=first.metrics,
            run=described.complete(first.run, config.image, os.environ, config=first.config, metrics=first.metrics),
            config=first.config,
            history=first.history,
            timings={"flush": monotonic() - self.started_at, **timings},
        )

    async def _with_replicas(
        self, record: CommitRecord, order: peers.FlushOrder, answers: list[peers.Flushed]
    ) -> CommitRecord:
        """Whether copies agree stands in the record and is said (J4). It is committed all the same: it may be the only checkpoint there is."""
        try:
            return await self._compared(record, order, [d for a in answers for d in a.replicas])
        except Exception:
            log.exception("save %d: copies are not compared", order.save)  # a bug costs the comparison, not the save
            return record

    async def _compared(
        self, record: CommitRecord, order: peers.FlushOrder, told: list[peers.ReplicaDigest]
    ) -> CommitRecord:
        if not replicas.is_compared(told):
            return record
        found = replicas.compare(told)
        if not found:
            return replace(record, run=record.run | {REPLICAS: "agree"})
        words = []
        for difference in found:
            names = () if order.emergency else await self._names_of(record, difference)
            words.append(difference.words + (f", in {replicas.listed(names)}" if names else ""))
        self._shared.metrics.replicas_differ.inc()
        log.error(
            "checkpoint %s is SUSPECT: %s. Either memory or a processor has changed bits, or these ranks have come apart. It is kept, and no start "
            "continues it while a sound one is left (spec.validation says otherwise). Look at the machines of the ranks",
            record.ref,
            "; ".join(words),
        )
        return replace(record, run=record.run | {REPLICAS: SUSPECT + "; ".join(words)[:4000]})

    async def _names_of(self, record: CommitRecord, difference: replicas.Difference) -> tuple[str, ...]:
        """From the manifests, which are in the store by now; none if that takes long."""
        s = self._shared
        assert s.store is not None
        store = s.store.until(monotonic() + NAMES_SECONDS)
        try:
            one, other = await asyncio.gather(
                *(s.threads.call(store.read_manifest, record, r) for r in (difference.odd[0], difference.others[0]))
            )
            return replicas.names_of(one, other)
        except Exception as e:  # what was found is said without names then
            log.warning("which tensors differ is not known: %s: %s", type(e).__name__, e)
            return ()

    async def tell(self, message: peers.Committed) -> bool:
        """Everybody, for a bounded time; who is unreachable does not hold up the others. Whether all have heard it."""
        s = self._shared
        answers = await s.mesh.ask_all(message, until=Deadline.after(TELL_SECONDS))
        for worker, answer in answers.items():
            if isinstance(answer, BaseException):
                log.warning("worker %d was not told how save %d ended: %s", worker, message.save, answer)
        return not any(isinstance(answer, BaseException) for answer in answers.values())

    def _note(self, save: int, e: Exception) -> None:
        log.warning("save %d is given up: %s", save, e)


def _committing(shared: Shared, record: CommitRecord, stop: Stop) -> tuple[CommitRecord, str]:
    """The record that stands, and its text. It is an earlier one if a try before had gone through and its answer was lost."""
    assert shared.store is not None
    store = shared.store.until(stop.at)
    try:
        return record, store.commit(record, incarnation=shared.incarnation)
    except AlreadyExists:
        standing, text = store.read_commit(record.ref)
        if _manifests(standing) != _manifests(record):
            raise
        return standing, text


def _manifests(record: CommitRecord) -> list[tuple[int, str]]:
    """What makes two records the same checkpoint: one try may have had the time to look whether weights are finite, and another not."""
    return [(entry.rank, entry.manifest_digest) for entry in record.ranks]


def _requests(shared: Shared, record: CommitRecord) -> float:
    """PUTs for each rank, as far as somebody pays for them (J3)."""
    config = shared.settings.config
    paid = not config.storage.uri.startswith("file:")
    return record.bytes_sent / config.chunk_bytes / len(record.ranks) if paid else 0.0


def info_of(record: CommitRecord) -> CheckpointInfo:
    return CheckpointInfo(
        attempt=record.attempt,
        save=record.save,
        boundary=record.progress.boundary,
        cause=record.cause,
        committed_at=record.created_at,
        bytes_logical=record.bytes_logical,
        bytes_sent=record.bytes_sent,
        bytes_stored=record.bytes_stored,
        metrics=dict(record.metrics),
        finite=record.finite,
        not_finite=record.not_finite,
        weights_only=record.kind is CheckpointKind.WEIGHTS_ONLY,
        suspect=record.suspect,
    )
