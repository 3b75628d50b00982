"""The conditions: Ready, Reconciling and Stalled as kstatus reads them, and Holdfast's own. Each says what is so, and what to do about it.

| type            | True means                                                        |
|-----------------|-------------------------------------------------------------------|
| Ready           | the job trains, or has succeeded                                  |
| Reconciling     | the operator is on its way there                                  |
| Stalled         | it needs a person                                                 |
| Suspended       | spec.suspend is set                                               |
| StorageReady    | the store was reached and probed                                  |
| LocalStorageReady | nodes take copies; only there once one did not              |
| CheckpointUsable| there is a committed checkpoint that nothing speaks against       |
| ClocksAgree     | nodes and operator have the same time; only there once they had not |
| CheckpointFinite| the newest checkpoint holds no NaN; only there once one did   |
| StateOnNodes    | the newest state is in no checkpoint; only there once it was so   |
| ReplicasAgree   | no copies of one state differ in it; only there once some did |
| StoredIntact    | no scrub's finding stands; only there once one did            |
| RetentionMet    | what is kept fits spec.checkpoint.keep; only there once not   |
| FlushFits        | an emergency save is done in the time that an announcement leaves |
| StepsPass       | steps are passed; only there once none was for long          |
| RanksKeepPace   | no rank holds the others up; only there once one did        |
| Succeeded       | all workers have finished                                         |
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from holdfast_api.messages import BlockedReason, Cause
from holdfast_api.signing import LIFETIME_SECONDS
from holdfast_api.soundness import Grade
from holdfast_operator.core import (
    elastic,
    failures,
    feasibility,
    finish,
    interruptions,
    quarantine,
    queueing,
    retention,
    suspend,
    suspicion,
    unfinished,
    unsound,
)
from holdfast_operator.core.membership import describe_worker, members
from holdfast_operator.core.notices import CLOCKS_DIFFER_SECONDS
from holdfast_operator.core.observed import Observed
from holdfast_operator.core.trouble import Trouble
from holdfast_operator.crd.v1alpha1 import CheckpointStatus, Condition, Phase, TrainingJobStatus

_STORAGE = (
    BlockedReason.STORAGE_MISCONFIGURED.value,
    BlockedReason.STORAGE_DENIED.value,
    BlockedReason.STORAGE_UNREACHABLE.value,
)
MAX_MESSAGE = 8000
CLOCKS_AGREE_SECONDS = 2.0
"""A difference of more than CLOCKS_DIFFER_SECONDS is said until it is less than this."""
LOCAL = "LocalStorageReady"
FINITE = "CheckpointFinite"
NOT_FINITE = "NotFinite"
REPLICAS = "ReplicasAgree"
STORED = "StoredIntact"
DAMAGED = "DamagedInStore"
RETENTION = "RetentionMet"
DIFFER = "ReplicasDiffer"
"""Memory or a processor has changed bits, or ranks have come apart: what is saved from now on may be wrong."""
CLOCKS = "ClocksAgree"
CLOCKS_DIFFER = "ClocksDiffer"
FLUSH_FITS = "FlushFits"
ON_NODES = "StateOnNodes"
"""The newest state lies on nodes and nowhere else (E6)."""
STEPS = "StepsPass"
NO_STEP = "NoStep"
PACE = "RanksKeepPace"
STRAGGLER = "Straggler"
UNSAVED = "FinishedUnsaved"
"""The script ended well, and its last state is in no checkpoint."""
SAVES_FAIL = "SavesFail"
"""Training goes on, and nothing of it is being kept."""


@dataclass(frozen=True, slots=True)
class _Now:
    type: str
    status: str
    reason: str
    message: str = ""


def update(
    seen: Observed, status: TrainingJobStatus, trouble: Trouble | None, verdict: finish.Verdict | None, now: datetime
) -> TrainingJobStatus:
    """All conditions anew; a transition time changes only with the condition's status."""
    before = {c.type: c for c in status.conditions}
    new = tuple(
        _kept(before.get(c.type), c, seen.job.generation, now) for c in _all(seen, status, trouble, verdict, now)
    )
    return status if new == status.conditions else status.model_copy(update={"conditions": new})


def observed(status: TrainingJobStatus, generation: int) -> TrainingJobStatus:
    """A job at its end: what its conditions say stays, whatever becomes of its pods; a newer spec changes nothing and is acknowledged."""
    if status.observed_generation == generation:
        return status
    same = tuple(c.model_copy(update={"observed_generation": generation}) for c in status.conditions)
    return status.model_copy(update={"observed_generation": generation, "conditions": same})


def _kept(before: Condition | None, new: _Now, generation: int, now: datetime) -> Condition:
    since = before.last_transition_time if before is not None and before.status == new.status else now
    return Condition(
        type=new.type,
        status=new.status,
        reason=new.reason,
        message=new.message[:MAX_MESSAGE],
        last_transition_time=since,
        observed_generation=generation,
    )


def _all(
    seen: Observed, status: TrainingJobStatus, trouble: Trouble | None, verdict: finish.Verdict | None, now: datetime
) -> Iterator[_Now]:
    yield from _summary(seen, status, trouble, verdict, now)
    if seen.spec.suspend:
        yield _Now(suspend.CONDITION, "True", "Suspended", "spec.suspend is true")
    else:
        yield _Now(suspend.CONDITION, "False", "NotSuspended")
    yield _storage(seen, status, trouble)
    yield from _local(seen, status)
    yield _checkpoint(seen, status, trouble)
    yield from _finite(seen, status)
    yield from _replicas(seen, status)
    yield from _intact(status)
    yield from _retention(seen, status, now)
    yield from _clocks(seen, status)
    yield from _on_nodes(seen, status)
    yield from _flush(seen, status)
    yield from _steps(seen, status)
    yield from _pace(status)
    yield _succeeded(seen, status)


def _summary(
    seen: Observed, status: TrainingJobStatus, trouble: Trouble | None, verdict: finish.Verdict | None, now: datetime
) -> Iterator[_Now]:
    match status.phase:
        case Phase.SUCCEEDED:
            yield from _three("True", "False", "False", "Succeeded", "all workers have finished")
        case Phase.FAILED:
            yield from _failed(status, verdict)
        case _ if trouble is not None:
            stalled = "True" if trouble.stalled else "False"
            ready = "True" if status.phase is Phase.RUNNING else "False"
            moving = "False" if trouble.stalled else "True"
            words = elastic.in_words(seen, status) if status.phase is Phase.RUNNING else ""
            message = f"training goes on{words}. {trouble.message}" if words else trouble.message
            yield from _three(ready, moving, stalled, trouble.reason, message)
        case Phase.QUEUED if seen.spec.suspend:
            yield from _three(
                "False", "False", "False", "Suspended", "spec.suspend is true: nothing runs; set it to false to go on"
            )
        case Phase.QUEUED:
            yield from _three("False", "True", "False", "Queued", _where(seen, status))
        case Phase.RUNNING if not seen.spec.suspend:
            number = status.attempt.number if status.attempt else 0
            words = elastic.in_words(seen, status)
            yield from _three("True", "False", "False", "Running", f"attempt {number} trains{words}")
        case _:
            yield from _three("False", "True", "False", *_on_the_way(seen, status, now))


def _three(ready: str, reconciling: str, stalled: str, reason: str, message: str) -> Iterator[_Now]:
    found = (_Now("Ready", ready, reason, message), _Now("Reconciling", reconciling, reason, message))
    yield from found if stalled == "False" else ()
    yield _Now("Stalled", stalled, reason, message)  # first where it is True: it is what a person must see
    yield from found if stalled == "True" else ()


def _failed(status: TrainingJobStatus, verdict: finish.Verdict | None) -> Iterator[_Now]:
    """The reason is given once, in the round that decides; later rounds keep it."""
    if verdict is not None:
        yield from _three("False", "False", "True", verdict.reason, verdict.message)
        return
    before = next((c for c in status.conditions if c.type == "Stalled"), None)
    reason, message = (before.reason, before.message) if before else ("Failed", "the job has failed")
    yield from _three("False", "False", "True", reason, message)


def _on_the_way(seen: Observed, status: TrainingJobStatus, now: datetime) -> tuple[str, str]:
    open_entries = interruptions.unrecovered(status)
    about = f": {finish.describe(open_entries[-1])}" if open_entries else ""
    if seen.spec.suspend:
        return "Suspending", "a checkpoint is taken, then the pods go"
    if status.phase is Phase.EVACUATING:
        before = "the next attempt" if open_entries[-1].cause == Cause.RESIZE.value else "the worker goes"
        return "Evacuating", f"saving before {before}{about}"
    if status.retry_at is not None and interruptions.is_over(status):
        failure = failures.find(status, members(seen, status.attempt), now) or failures.of_start(seen, status, now)
        words = f"; {failure.message}" if failure is not None else about
        return "BackingOff", f"the next attempt starts at {status.retry_at:%H:%M:%S} UTC{words}"
    where = _where(seen, status)
    reason = "Recovering" if open_entries else "Starting"
    return reason, f"{where}{about}"


def _where(seen: Observed, status: TrainingJobStatus) -> str:
    attempt = status.attempt
    if attempt is None or interruptions.is_over(status):
        return "; ".join([*queueing.held(seen, status)][:8]) or "waiting for a pod for every worker"
    number = attempt.number
    if attempt.accepted_at is None:
        waits = [w.member.worker for w in members(seen, attempt) if w.report is None]
        return f"attempt {number}: waiting for the agents of workers {', '.join(map(str, waits[:8]))}"
    if attempt.claimed_at is None:
        left = status.unfinished
        first = f", and waits for {left.checkpoint} from the nodes" if left is not None and left.whole else ""
        return f"attempt {number}: the lead looks for the checkpoint to continue{first}"
    return f"attempt {number}: loading {attempt.parent}"


def _storage(seen: Observed, status: TrainingJobStatus, trouble: Trouble | None) -> _Now:
    if trouble is not None and trouble.reason in _STORAGE:
        return _Now("StorageReady", "False", trouble.reason, trouble.message)
    whos = members(seen, status.attempt)
    reports = [w.latest for w in whos if w.latest is not None]
    failing = next(((w, w.report.saving) for w in whos if w.report is not None and w.report.saving is not None), None)
    if failing is not None:
        who, blocked = failing
        newest = status.last_checkpoint
        since = (
            f"the newest checkpoint is {newest.name} at step {newest.step}" if newest else "there is no checkpoint yet"
        )
        name = describe_worker(who.member.worker, who.member.node)
        return _Now(
            "StorageReady", "False", SAVES_FAIL, f"new checkpoints cannot be stored, {since}. {name}: {blocked.message}"
        )
    note = next((r.storage_note for r in reports if r.storage_note), "")
    if note or (status.attempt is not None and status.attempt.claimed_at is not None):
        return _Now("StorageReady", "True", "Probed", note or seen.spec.checkpoint.storage.uri)
    return _Now("StorageReady", "Unknown", "NotProbed", "no agent has reached the store yet")


def _local(seen: Observed, status: TrainingJobStatus) -> Iterator[_Now]:
    """A node whose disk is full or broken slows down a restart on it and nothing else (fault scenarios 11-13): said only where it happens."""
    whos = members(seen, status.attempt)
    failing = next(((w, w.report.local) for w in whos if w.report is not None and w.report.local is not None), None)
    if failing is not None:
        who, local = failing
        reason = local.reason if local.reason.isalnum() and len(local.reason) < 64 else "LocalStorageFailed"
        yield _Now(LOCAL, "False", reason, f"{describe_worker(who.member.worker, who.member.node)}: {local.message}")
    elif any(c.type == LOCAL for c in status.conditions):
        yield _Now(LOCAL, "True", "Kept", "the newest checkpoint is on the nodes too")


def _checkpoint(seen: Observed, status: TrainingJobStatus, trouble: Trouble | None) -> _Now:
    if trouble is not None and trouble.reason == BlockedReason.NO_USABLE_CHECKPOINT.value:
        return _Now("CheckpointUsable", "False", trouble.reason, trouble.message)
    newest = status.last_checkpoint
    unused = _library_not_used(seen, status)
    if newest is None and unused:
        return _Now("CheckpointUsable", "False", BlockedReason.LIBRARY_NOT_USED.value, unused)
    if newest is None:
        return _Now("CheckpointUsable", "False", "NoneYet", "no checkpoint has been committed yet")
    newest = unsound.goes_back_to(seen, status) or newest
    found = unsound.grade_of(seen, status, newest)
    if status.checkpoints and found is Grade.NOT_FINITE:
        return _Now("CheckpointUsable", "False", NOT_FINITE, f"no checkpoint is finite: {_what_is_not(newest)}")
    unsure = found in (Grade.SUSPECT, Grade.DAMAGED)
    refused = "; nothing sound is left: " + unsound.what(newest) if unsure else ""
    refused += f"; {words}" if (words := quarantine.in_words(status)) else ""
    left_out = suspicion.suspended(status)
    refused += f"; left out of the next start: {left_out}" if left_out else ""
    return _Now(
        "CheckpointUsable", "True", "Committed", f"{newest.name} at step {newest.step} ({newest.cause}){refused}"
    )


def _finite(seen: Observed, status: TrainingJobStatus) -> Iterator[_Now]:
    """Weights that have become NaN stay so, and every hour of training on is lost: said within a save, and what can still be gone back to is kept (C5)."""
    newest = status.last_checkpoint
    if newest is not None and newest.finite is False:
        yield _Now(FINITE, "False", NOT_FINITE, f"{_what_is_not(newest)}. {_way_back(seen, status, newest)}")
    elif any(c.type == FINITE for c in status.conditions):
        known = newest is not None and newest.finite
        words = f"{newest.name} at step {newest.step}" if newest else "no checkpoint"
        yield _Now(FINITE, "True" if known else "Unknown", "Finite" if known else "Unknown", words)


def _replicas(seen: Observed, status: TrainingJobStatus) -> Iterator[_Now]:
    """Copies that differ stay so until a start loads one state into all of them (J4). Which of them is right nobody knows; what was saved before is."""
    newest = status.last_checkpoint
    if newest is not None and newest.suspect:
        words = f"in checkpoint {newest.name} at step {newest.step} copies of one state differ: {newest.suspect}"
        back = _way_back(seen, status, newest)
        yield _Now(REPLICAS, "False", DIFFER, f"{words}. {back}; look at the machines of these ranks")
    elif any(c.type == REPLICAS for c in status.conditions):
        yield _Now(REPLICAS, "True", "Agree", f"{newest.name} at step {newest.step}" if newest else "no checkpoint")


def _clocks(seen: Observed, status: TrainingJobStatus) -> Iterator[_Now]:
    """Deadlines are read by the operator's clock, so a difference costs nothing until signatures look too old; it should be mended all the same."""
    before = next((c for c in status.conditions if c.type == CLOCKS), None)
    differ = before is not None and before.status == "False"
    allowed = CLOCKS_AGREE_SECONDS if differ else CLOCKS_DIFFER_SECONDS
    heard = ((w, seen.heard.get(w.member.pod_uid)) for w in members(seen, status.attempt))
    wrong = [(w, h.ahead_seconds) for w, h in heard if h is not None and abs(h.ahead_seconds) > allowed]
    if wrong:
        told = "; ".join(
            f"{describe_worker(w.member.worker, w.member.node)} is about {_coarse(ahead)}" for w, ahead in wrong[:4]
        )
        words = (
            f"{told}. Deadlines are read by the operator's clock; beyond {LIFETIME_SECONDS} s its orders are refused. Set up time synchronisation on these "
            "nodes, or on the operator's"
        )
        yield _Now(CLOCKS, "False", CLOCKS_DIFFER, words)
    elif before is not None:
        yield _Now(CLOCKS, "True", "Agree", "the clocks of all nodes agree with the operator's")


def _coarse(ahead_seconds: float) -> str:
    """In words that stay the same while the clocks do."""
    step = 5 if abs(ahead_seconds) < 120 else 60
    return f"{round(abs(ahead_seconds) / step) * step} s {'ahead' if ahead_seconds > 0 else 'behind'}"


def _on_nodes(seen: Observed, status: TrainingJobStatus) -> Iterator[_Now]:
    """Not a fault, and not safe either: whoever can bring the pods back to these nodes should know."""
    found = status.unfinished
    if found is not None:
        reason = "Unfinished" if found.whole else "Incomplete"
        yield _Now(ON_NODES, "True", reason, unfinished.describe(seen, status, found))
    elif any(c.type == ON_NODES for c in status.conditions):
        newest = status.last_checkpoint
        yield _Now(ON_NODES, "False", "Decided", f"{newest.name} at step {newest.step}" if newest else "no checkpoint")


def _flush(seen: Observed, status: TrainingJobStatus) -> Iterator[_Now]:
    """Said from the first round on: what would be lost at the first notice had better be known before it."""
    if not seen.spec_error:
        found = feasibility.verdict(seen, status)
        yield _Now(FLUSH_FITS, found.status, found.reason, found.message)


def _steps(seen: Observed, status: TrainingJobStatus) -> Iterator[_Now]:
    """What hangs, while it does: in time to look, and until the next attempt has taken a step."""
    # Of the attempt that was read: in the round that ends it, the next one may have begun already.
    reports = (w.report for w in members(seen, seen.status.attempt) if w.report is not None)
    hang = next((r.hang for r in reports if r.hang is not None), None)
    before = next((c for c in status.conditions if c.type == STEPS), None)
    if hang is not None:
        saved = f". {hang.saved}" if hang.saved else ""
        done = "the ranks are started again" if hang.restarts else "nothing has been ended yet (spec.hangs)"
        stacks = "; ".join(f"rank {s.rank}: {_first_frames(s.stack)}" for s in hang.stacks[:2] if s.stack)
        where = f" Where they are: {stacks}." if stacks else ""
        words = (
            f"no step has been passed for {round(hang.idle_seconds / 10) * 10} s after step {hang.boundary}. {hang.why}{saved}; {done}.{where} "
            f"All stacks: kubectl logs -n {seen.job.namespace} {_pods_of(status, hang.workers)}"
        )
        yield _Now(STEPS, "False", failures.HUNG if hang.restarts else NO_STEP, words)
    elif (
        before is not None
        and before.status == "False"
        and (status.attempt is None or status.attempt.first_step_at is None)
    ):
        yield _Now(STEPS, "False", before.reason, before.message)
    elif before is not None:
        yield _Now(STEPS, "True", "Pass", "steps are passed")


def _first_frames(stack: str) -> str:
    frames = [line.strip() for line in stack.splitlines() if line.strip().startswith("File ")]
    return " < ".join(frames[:4])[:600]


def _pods_of(status: TrainingJobStatus, workers: tuple[int, ...]) -> str:
    found = status.attempt.members if status.attempt is not None else ()
    return next((m.pod for m in found if m.worker in workers), found[0].pod if found else "")


_PARTS = {
    "data": ("waiting for a batch", "look at where it reads its data from"),
    "busy": ("computing", "look for other load on that machine, and for throttling"),
    "update": ("updating parameters", "look for other load on that machine, and for throttling"),
    "step": ("from step to step", "look at that machine"),
}


def _pace(status: TrainingJobStatus) -> Iterator[_Now]:
    """Where every rank waits for every other, one slow machine costs as many machines as there are."""
    slow = status.straggler
    if slow is not None and slow.lasting:
        what, remedy = _PARTS.get(slow.part, (slow.part, "look at that machine"))
        words = (
            f"rank {slow.rank} ({describe_worker(slow.worker, slow.node)}) holds the others up: {slow.percent} % more than their median goes into "
            f"{what}, since {slow.since:%H:%M} UTC; {remedy}. Draining its node gives the worker another machine"
        )
        yield _Now(PACE, "False", STRAGGLER, words)
    elif any(c.type == PACE for c in status.conditions):
        yield _Now(PACE, "True", "Even", "no rank holds the others up")


def _intact(status: TrainingJobStatus) -> Iterator[_Now]:
    """What a scrub has found and nobody has mended."""
    if bad := [c for c in status.checkpoints if c.damaged]:
        named = "; ".join(f"{c.name} at step {c.step}: {c.damaged[:300]}" for c in bad[-4:])
        whole = [c for c in status.checkpoints if not c.damaged]
        newest = (
            f"{whole[-1].name} at step {whole[-1].step} is the newest that is whole, and is kept"
            if whole
            else "no other is left"
        )
        words = f"{len(bad)} checkpoints are damaged in the store, the newest: {named}. {newest}; mend them with `holdfast scrub --local-dir`"
        yield _Now(STORED, "False", DAMAGED, words)
    elif any(c.type == STORED for c in status.conditions):
        yield _Now(STORED, "True", "Whole", "no damage in the store is known")


def _retention(seen: Observed, status: TrainingJobStatus, now: datetime) -> Iterator[_Now]:
    """Rules that ask for more than they can have cost nothing but what they say: training goes on."""
    if words := retention.unmet(seen, status, now):
        yield _Now(RETENTION, "False", "Contradiction", words)
    elif any(c.type == RETENTION for c in status.conditions):
        yield _Now(RETENTION, "True", "Met", "spec.checkpoint.keep is kept to")


def _way_back(seen: Observed, status: TrainingJobStatus, newest: CheckpointStatus) -> str:
    """What the next start continues, and what a person can do about it."""
    back = unsound.goes_back_to(seen, status)
    if back is None or unsound.grade_of(seen, status, back) >= unsound.grade_of(seen, status, newest):
        if back is not None and back.name == newest.name and unsound.grade_of(seen, status, newest) is Grade.SOUND:
            return "that is accepted (spec.validation), and the next start continues it"
        return "no better checkpoint is left to go back to"
    return (
        f"{back.name} at step {back.step} is kept, and the next start continues it; to go back now set spec.validation.onUnsound: RollBack; "
        f"to go on from {newest.name} add it to spec.validation.trusted"
    )


def _what_is_not(checkpoint: CheckpointStatus) -> str:
    named = ", ".join(checkpoint.not_finite) or "trained state"
    return f"checkpoint {checkpoint.name} at step {checkpoint.step} holds NaN or infinite values in {named}"


def _library_not_used(seen: Observed, status: TrainingJobStatus) -> str:
    """What an agent says whose script never called the library; it says so also of a script that has ended well."""
    blocked = (w.report.blocked for w in members(seen, status.attempt) if w.report is not None)
    return next((b.message for b in blocked if b is not None and b.reason is BlockedReason.LIBRARY_NOT_USED), "")


def _succeeded(seen: Observed, status: TrainingJobStatus) -> _Now:
    match status.phase:
        case Phase.SUCCEEDED:
            told = (w.report.exit_detail for w in members(seen, status.attempt) if w.report is not None)
            missing = next((words for words in told if words), "")
            if missing:
                return _Now(
                    "Succeeded", "True", UNSAVED, f"all workers have finished, but not everything is kept: {missing}"
                )
            return _Now("Succeeded", "True", "Finished", "all workers have finished")
        case Phase.FAILED:
            return _Now("Succeeded", "False", "Failed", "see the condition Stalled")
        case _:
            return _Now("Succeeded", "Unknown", "NotFinished")
