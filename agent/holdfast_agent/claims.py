"""The lead: find what to continue, claim the attempt as late as possible, tell every member (A3-A9, C1-C3, D6).

A failure of the store or a decision that needs a person blocks the attempt, with the reason in the report, and is tried again every few seconds and whenever
the operator sends another order: the bucket, the Secret or the spec may have been mended.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
import uuid

from holdfast_agent import storage, worth_waiting
from holdfast_agent.clock import Deadline, monotonic, now
from holdfast_agent.errors import AgentError
from holdfast_agent.pins import without_carried_out
from holdfast_agent.prefetch import Scout
from holdfast_agent.saves import info_of
from holdfast_agent.shared import Shared
from holdfast_agent.strays import strays
from holdfast_agent.unexpected import unexpected
from holdfast_api import peers
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim, CommitRecord, ParentRef
from holdfast_api.messages import AttemptOrder, Blocked, BlockedReason, ClaimInfo, OfJob, Rejection, RestoreOrder, Stage
from holdfast_store.errors import Absent, Corrupt, NotOnRecord, StoreError, Superseded
from holdfast_store.job import JobStore
from holdfast_store.probe import probe
from holdfast_store.resolve import Candidate, Resolution

log = logging.getLogger(__name__)
RETRY_SECONDS = 3.0
PROBE_SECONDS = 12.0
"""A store that is away is reported within 30 s (fault scenario 48); the bucket's own retries end before."""
LOOK_AGAIN_SECONDS = 60.0
"""While nothing can be used, what was refused is tried again so often."""
TELL_SECONDS = 3600.0
"""A member fetches for as long as it takes; if it is gone the operator starts a new attempt, which ends this wait."""
UNFINISHED_SECONDS = 10.0
"""For the members' answers; who is silent has nothing. Nothing starts without them either, so a long wait delays no start that could succeed."""
FINISHED_LOOK_SECONDS = 0.5
DAMAGE_SECONDS = 3600.0
"""Between two looks at what scrubs have found: each lists everything that is stored."""


class NeedsPerson(AgentError):
    """The attempt cannot go on as it is ordered."""

    def __init__(self, reason: BlockedReason, message: str) -> None:
        super().__init__(message)
        self.blocked = Blocked(reason, message[:4000])


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """What the attempt continues; all None for a fresh start."""

    record: CommitRecord | None = None
    text: str = ""

    @property
    def parent(self) -> ParentRef | None:
        r = self.record
        return ParentRef(r.job_uid, r.attempt, r.save) if r is not None else None

    @property
    def candidate(self) -> Candidate | None:
        return Candidate(self.record, self.text) if self.record is not None else None


class Claims:
    """One attempt's, in the lead only. `run` is one task."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._incarnation = uuid.uuid4().hex  # A4: of this process's memory, never stored on the pod
        self._probed = False
        self._swept = False
        self._bad: dict[tuple[str, CheckpointRef], str] = {}
        self._bad_since = time.monotonic()
        self._choice: Choice | None = None
        self._why = ""
        """What the store's walk says about there being nothing to continue."""
        self._choices = 0
        """How many were made: a checkpoint that is chosen again after it was refused is to be tried again (C3)."""
        self._rejected = asyncio.Event()
        self._acted_on = shared.order
        """The order under which the last choice was looked for: another one makes it worth looking again."""
        self._waiting_since = 0.0
        """For what others finish; over all tries of this attempt."""
        self._scout = Scout(shared, self._would_choose)

    async def run(self) -> None:
        """Ends when the attempt is superseded; else waits for rejections as long as the attempt lives."""
        while True:
            self._acted_on = self._shared.order
            try:
                await self._go()
            except Superseded as e:
                self._shared.supersede(e.newest.attempt)
                return
            except StoreError as e:
                if self._shared.record.claim is None:
                    self._choice = None  # chosen from answers of a store that fails: look again (C1)
                self._shared.record.block(storage.blocked(e, self._shared.settings.config.storage))
            except NeedsPerson as e:
                self._shared.record.block(e.blocked)
            except BaseException as e:  # nobody awaits this task: it must not end without a word
                if self._shared.record.claim is None:
                    self._choice = None
                self._shared.record.block(unexpected(e, "looking for the checkpoint to continue"))
            order = self._acted_on
            await self._changed(order)
            if self._shared.order is not order or time.monotonic() - self._bad_since >= LOOK_AGAIN_SECONDS:
                self._bad.clear()  # somebody may have mended the store
                self._bad_since = time.monotonic()

    async def _changed(self, order: AttemptOrder) -> None:
        await self._shared.changes.until(lambda: self._shared.order is not order, Deadline.after(RETRY_SECONDS))

    def rejected(self, rejection: Rejection) -> None:
        """A member cannot use the checkpoint: the next older one for all (C3)."""
        choice = self._choice
        if (
            choice is None
            or choice.record is None
            or choice.record.ref != CheckpointRef(rejection.attempt, rejection.save)
        ):
            return  # said twice
        self._note(choice.record, rejection.reason, of_checkpoint=rejection.of_checkpoint)
        self._choice = None
        self._rejected.set()

    # ---- the procedure

    async def _go(self) -> None:
        await self._shared.changes.until(lambda: self._shared.store is not None, Deadline.after(3600))
        async with self._scout.ahead():
            await self._look_first()
            await self._may_claim()
            await self._finished_elsewhere()
        while True:
            if self._choice is None:
                self._choice = await self._choose()
                self._choices += 1
                self._scout.tell(self._choice.candidate)
            if self._shared.record.claim is None:
                await self._claim(self._choice)
            self._shared.record.block(None)
            if await self._distribute(self._choice):
                await self._sweep()
                while not self._rejected.is_set():
                    await self._look_for_damage()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._rejected.wait(), DAMAGE_SECONDS)
            self._rejected.clear()

    async def _look_first(self) -> None:
        """What can be found out before the operator allows the claim: is the bucket usable (B8), would a month of work be left behind (A9)."""
        s = self._shared
        store = self._store
        if not self._probed:
            quick = store.until(time.monotonic() + PROBE_SECONDS)
            result = await s.threads.call(probe, quick.bucket, prefix=store.prefix)
            s.record.storage_note = result.note
            self._probed = True
        restore = s.order.restore
        if restore.fresh or restore.resume_from_uid or await s.threads.call(_has_history, store):
            return
        earlier = await s.threads.call(store.earlier_jobs)
        if earlier:
            raise NeedsPerson(BlockedReason.EARLIER_JOB, earlier_job_message(earlier, laptop=s.settings.laptop))

    async def _may_claim(self) -> None:
        """A3. While the attempt waits for the operator it is not blocked. Where it need not wait, the reason of an earlier try stands until something
        has been chosen: what is tried every few seconds and fails is one trouble, not many."""
        s = self._shared
        while not s.order.may_claim:
            s.record.block(None)
            await s.changes.until(lambda: s.order.may_claim, Deadline.after(60))

    async def _finished_elsewhere(self) -> None:
        """E6: what members are bringing into the store from their nodes is waited for, as far as that is shorter than doing its steps again. Not where the
        order names what is to be used: then nothing newer is."""
        s = self._shared
        if s.order.restore.pinned is not None or s.record.claim is not None:
            return
        self._waiting_since = self._waiting_since or monotonic()
        said: CheckpointRef | None = None
        while (wait := await self._worth_waiting(monotonic() - self._waiting_since)) is not None:
            if wait.ref != said:
                said = wait.ref
                log.info(
                    "the claim waits for save %s at boundary %d, which members finish from their nodes: %.1f s expected for %d steps, which would take %.1f s",
                    wait.ref, wait.boundary, wait.seconds, wait.steps, wait.worth_seconds,
                )  # fmt: skip
            await asyncio.sleep(FINISHED_LOOK_SECONDS)

    async def _worth_waiting(self, waited_seconds: float) -> worth_waiting.Wait | None:
        s = self._shared
        answers = await s.mesh.ask_all(peers.Unfinished(s.attempt), until=Deadline.after(UNFINISHED_SECONDS))
        copies = [c for a in answers.values() if isinstance(a, peers.UnfinishedCopies) for c in a.copies]
        if not any(c.state in worth_waiting.UNDER_WAY for c in copies):
            return None
        newest = await s.threads.call(self._store.newest_claim)
        chosen = await self._would_choose()
        return worth_waiting.choose(
            copies,
            claimed=newest.attempt if newest is not None else 0,
            world_size=s.order.world_size,
            committed_boundary=chosen.record.progress.boundary if chosen is not None else 0,
            step_seconds=s.experience.step().likely,
            waited_seconds=waited_seconds,
        )

    async def _choose(self) -> Choice:
        """The newest checkpoint whose manifests all verify. Raises NeedsPerson rather than start from nothing (C1)."""
        while True:
            bad = len(self._bad)
            self._acted_on = self._shared.order
            choice = await self._look_for_one()
            if choice is not None:
                return choice
            if len(self._bad) == bad:
                raise self._nothing_usable()
            # What was found to be bad is excluded now, and older ones are looked for.

    async def _would_choose(self) -> Candidate | None:
        """What `_choose` would begin with now. Reads only."""
        _, resolution = await self._resolve()
        return next((c for c in resolution.candidates if (c.record.job_uid, c.record.ref) not in self._bad), None)

    async def _resolve(self) -> tuple[RestoreOrder, Resolution]:
        s = self._shared
        newest = await s.threads.call(self._store.newest_claim)
        order = without_carried_out(self._order_without_bad(), newest)
        return order, await s.threads.call(self._store.resolve, order, s.attempt)

    async def _look_for_one(self) -> Choice | None:
        s = self._shared
        order, resolution = await self._resolve()
        for rejection in resolution.rejections:
            s.record.reject(rejection)
        for candidate in resolution.candidates:
            record = candidate.record
            if (record.job_uid, record.ref) in self._bad:
                continue
            if await self._manifests_verify(record):
                return Choice(record, candidate.text)
        if resolution.fresh_allowed and (order.fresh or not (resolution.candidates or self._bad)):
            return Choice()
        self._why = resolution.reason
        return None

    def _nothing_usable(self) -> NeedsPerson:
        reasons = [f"{r.attempt}/{r.save}: {r.reason}" for r in self._shared.record.rejections if r.reason != self._why]
        return NeedsPerson(
            BlockedReason.NO_USABLE_CHECKPOINT,
            "checkpoints exist and none can be used, so nothing is started from zero: "
            + "; ".join([*([self._why] if self._why else []), *reasons])
            + "; mend the store, name one with spec.resumeFrom.checkpoint, or set spec.fresh: true to start from nothing"
            + (" (here: the options --processes and --fresh)" if self._shared.settings.laptop else ""),
        )

    async def _claim(self, choice: Choice) -> None:
        s = self._shared
        config = s.settings.config
        newest = await s.threads.call(self._store.newest_claim)
        if newest is not None and (
            newest.attempt > s.attempt or (newest.attempt == s.attempt and newest.incarnation != self._incarnation)
        ):
            raise Superseded(newest)
        claim = Claim(config.job_uid, s.attempt, self._incarnation, s.order.members, choice.parent, now())
        try:
            await s.threads.call(self._store.claim, claim)  # with the reference in another job's prefix before it (D6)
        except NotOnRecord:
            self._choice = None  # expired meanwhile: resolved again
            raise
        parent = info_of(choice.record) if choice.record is not None else None
        s.record.claim = ClaimInfo(
            attempt=s.attempt,
            incarnation=self._incarnation,
            claimed_at=claim.created_at,
            parent_attempt=parent.attempt if parent else 0,
            parent_save=parent.save if parent else 0,
            parent_boundary=parent.boundary if parent else 0,
            parent_job_uid=choice.record.job_uid
            if choice.record is not None and choice.record.job_uid != config.job_uid
            else "",
        )
        s.record.stage(Stage.CLAIMED, claim.created_at)
        log.info("attempt %d is claimed, continuing %s", s.attempt, choice.record.ref if choice.record else "nothing")

    async def _distribute(self, choice: Choice) -> bool:
        """Everybody fetches; then everybody loads. False if somebody rejected it, or the choice was replaced meanwhile."""
        s = self._shared
        for load in (False, True) if choice.record is not None else (True,):
            message = peers.Resolved(s.attempt, self._incarnation, choice.parent, choice.text, load, self._choices)
            answers = await s.mesh.ask_all(message, until=Deadline.after(TELL_SECONDS))
            for worker, answer in answers.items():
                if isinstance(answer, BaseException):
                    log.warning("worker %d did not take what was resolved: %s", worker, answer)
                    await asyncio.sleep(1)
                    return self._choice is not choice
                if answer.rejection is not None:
                    if not answer.rejection.of_checkpoint:
                        s.fail(f"worker {worker}: {answer.rejection.reason}")
                        return True
                    self.rejected(answer.rejection)
            if self._choice is not choice:
                return False
        return True

    async def _sweep(self) -> None:
        """D4: what earlier attempts left without a commit. Nothing waits for it, and nothing is lost if it fails."""
        s = self._shared
        if self._swept:
            return
        self._swept = True
        try:
            swept = await s.threads.call(self._store.sweep, attempt=s.attempt)
        except Superseded as e:
            s.supersede(e.newest.attempt)
        except Exception as e:
            log.warning("leftovers of earlier attempts are not swept: %s: %s", type(e).__name__, e)
        else:
            continued = self._choice.record if self._choice is not None else None
            spared = [found.ref for found in (continued, s.base, s.last) if found is not None]
            s.record.found_stray(strays(swept, s.order.restore, spared))

    async def _look_for_damage(self) -> None:
        """What scrubs have found since: retention must not count on it (C5). Nothing waits for it."""
        s = self._shared
        try:
            s.record.found_damaged(await s.threads.call(self._store.damaged))
        except Exception as e:
            log.warning("what scrubs have found is not known: %s: %s", type(e).__name__, e)

    # ---- inside

    @property
    def _store(self) -> JobStore:
        assert self._shared.store is not None
        return self._shared.store

    def _order_without_bad(self) -> RestoreOrder:
        order = self._shared.order.restore
        bad = (OfJob(uid, ref.attempt, ref.save) for uid, ref in self._bad)
        return dataclasses.replace(order, excluded_of=(*order.excluded_of, *bad))

    async def _manifests_verify(self, record: CommitRecord) -> bool:
        """The cheap half of the check, before the claim: digests chain from the commit record. The chunks are checked while they are fetched."""
        s = self._shared
        store = self._store if record.job_uid == s.settings.config.job_uid else self._store.for_job(record.job_uid)
        results = await asyncio.gather(
            *(s.threads.call(store.read_manifest, record, e.rank) for e in record.ranks), return_exceptions=True
        )
        for entry, result in zip(record.ranks, results, strict=True):
            if isinstance(result, Absent | Corrupt):
                self._note(record, f"manifest of rank {entry.rank}: {result}", of_checkpoint=True)
                return False
            if isinstance(result, BaseException):
                raise result
        return True

    def _note(self, record: CommitRecord, reason: str, *, of_checkpoint: bool) -> None:
        log.warning("checkpoint %s is rejected: %s", record.ref, reason)
        self._bad[record.job_uid, record.ref] = reason
        self._shared.metrics.rejected.inc()
        other = record.job_uid if record.job_uid != self._shared.settings.config.job_uid else ""
        self._shared.record.reject(Rejection(record.attempt, record.save, reason[:2000], of_checkpoint, now(), other))


def _has_history(store: JobStore) -> bool:
    """The job has begun under its own uid: whatever was to be decided about earlier ones is decided."""
    return store.newest_claim() is not None or store.ever_committed()


def earlier_job_message(uids: tuple[str, ...], *, laptop: bool = False) -> str:
    """A9: prints exactly what to add, for both choices."""
    if laptop:
        return (
            f"checkpoints of an earlier job exist in this directory (uid {', '.join(uids[:5])}). "
            f"To continue them add --resume-from {uids[-1]}; to leave them and start from nothing add --fresh"
        )
    return (
        f"checkpoints of an earlier job of this name exist (uid {', '.join(uids[:5])}). To continue them add to the spec:\n"
        f"  resumeFrom: {{uid: {uids[-1]}}}\n"
        "to leave them and start from nothing add:\n"
        "  fresh: true"
    )
