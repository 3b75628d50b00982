"""Events: what has changed between two statuses, in words. A transition that was written once is told once (the write is compare-and-swap)."""

from collections.abc import Iterator

from holdfast_api import sources
from holdfast_api.messages import Cause
from holdfast_operator.core import finish, unfinished
from holdfast_operator.core.actions import EmitEvent
from holdfast_operator.core.conditions import (
    CLOCKS,
    CLOCKS_DIFFER,
    DAMAGED,
    DIFFER,
    FINITE,
    LOCAL,
    NOT_FINITE,
    ON_NODES,
    PACE,
    REPLICAS,
    SAVES_FAIL,
    STEPS,
    STORED,
    STRAGGLER,
    UNSAVED,
)
from holdfast_operator.core.membership import newest_plans
from holdfast_operator.crd.v1alpha1 import (
    Condition,
    NoticeStatus,
    Phase,
    PreemptionStatus,
    SuspicionState,
    TrainingJobStatus,
)

_QUIET_CAUSES = (Cause.PERIODIC.value,)
"""Periodic checkpoints are in status and metrics; an event for each would push out what matters."""


def between(before: TrainingJobStatus, after: TrainingJobStatus) -> tuple[EmitEvent, ...]:
    return (
        *_notices(before, after),
        *_checkpoints(before, after),
        *_suspicion(before, after),
        *_interruptions(before, after),
        *_capacity(before, after),
        *_avoiding(before, after),
        *_attempt(before, after),
        *_resumed(before, after),
        *_phase(before, after),
        *_stalled(before, after),
        *_saves_fail(before, after),
        *_unfinished(before, after),
        *_hangs(before, after),
    )


def _notices(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    known = {(n.worker, n.source): n for n in before.notices}
    for n in after.notices:
        old = known.get((n.worker, n.source))
        where = f"worker {n.worker} on {n.node}" if n.node else f"worker {n.worker}"
        if n.source == sources.RESIZE:
            yield from _resizes(n, old)
        elif n.withdrawn and old is not None and not old.withdrawn:
            yield EmitEvent("NoticeWithdrawn", f"{where}: {n.source} was taken back")
        elif not n.withdrawn and (old is None or old.withdrawn):
            until = f", deadline {n.deadline:%H:%M:%S} UTC" if n.deadline else ""
            kind = "Notice" if n.acting else "EarlyNotice"
            yield EmitEvent(kind, f"{where}: {n.cause} ({n.source}){until}", warning=n.acting)


def _resizes(new: NoticeStatus, old: NoticeStatus | None) -> Iterator[EmitEvent]:
    if new.withdrawn and old is not None and not old.withdrawn:
        yield EmitEvent("ResizeWithdrawn", f"training goes on as it was: {new.detail}")
    elif not new.withdrawn and (old is None or old.withdrawn):
        yield EmitEvent("Resizing", new.detail)


def _checkpoints(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    known = {c.name for c in before.checkpoints}
    for c in after.checkpoints:
        if c.name not in known and c.cause not in _QUIET_CAUSES:
            yield EmitEvent("CheckpointCommitted", f"checkpoint {c.name} at step {c.step} ({c.cause}), {c.bytes} bytes")
    for name in after.quarantined:
        if name not in before.quarantined:
            yield EmitEvent("CheckpointRejected", f"checkpoint {name} is not used any more: {_why(after, name)}", True)
    trusted = {t.checkpoint for t in after.trusted}
    for name in before.quarantined:
        if name not in after.quarantined and name in trusted:
            yield EmitEvent(
                "QuarantineLifted", f"checkpoint {name} may be used again: spec.validation.trusted names it"
            )


def _suspicion(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    new, old = after.suspicion, before.suspicion
    if new is None or (old is not None and old.state is new.state):
        return
    if new.state is SuspicionState.SUSPENDED:
        message = f"checkpoint {new.checkpoint}: {new.failures} starts from it have failed; the next one tries an older checkpoint"
        yield EmitEvent("CheckpointSuspended", message, warning=True)
    elif new.state is SuspicionState.REINSTATED:
        message = f"checkpoint {new.checkpoint} is used again: no start from an older one has succeeded"
        yield EmitEvent("CheckpointReinstated", message)


def _why(status: TrainingJobStatus, name: str) -> str:
    reasons = (q.reason for q in status.quarantine if q.checkpoint == name)
    return next(reasons, "its content does not verify")


def _interruptions(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    known = {p.attempt: p for p in before.preemptions}
    for p in after.preemptions:
        old = known.get(p.attempt)
        if old is None:
            planned = p.cause == Cause.RESIZE.value
            yield EmitEvent("Interrupted", f"attempt {p.attempt}: {finish.describe(p)}", warning=not planned)
        if p.ended_at is not None and (old is None or old.ended_at is None):
            yield EmitEvent("AttemptEnded", f"attempt {p.attempt} {_how_it_ended(p)}")


def _how_it_ended(entry: PreemptionStatus) -> str:
    if entry.sealed_at is not None:
        return f"is sealed at step {entry.step_at_notice}"
    return "is over: its deadline passed, or its workers are gone"


def _capacity(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    """A worker's pod is made for another kind of nodes."""
    known = newest_plans(before)
    for worker, plan in sorted(newest_plans(after).items()):
        old = known.get(worker)
        if old is None or not old.capacity or not plan.capacity or old.capacity == plan.capacity:
            continue
        waited = f": it has found no node of kind {old.capacity}" if old.waiting_since is not None else ""
        message = f"worker {worker}: its next pod is for nodes of kind {plan.capacity}{waited}"
        yield EmitEvent("CapacityChanged", message, warning=bool(waited))


def _avoiding(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    known = {(a.kind, a.name) for a in before.avoiding}
    for a in after.avoiding:
        if (a.kind, a.name) not in known:
            message = (
                f"new pods keep away from {a.kind.value.lower()} {a.name} until {a.until:%H:%M:%S} UTC: {a.reason}"
            )
            yield EmitEvent("PlaceQuarantined", message, warning=True)


def _attempt(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    new, old = after.attempt, before.attempt
    if new is None:
        return
    if old is None or old.number != new.number:
        nodes = ", ".join(f"{m.worker} on {m.node}" for m in new.members[:8])
        yield EmitEvent("AttemptStarted", f"attempt {new.number}: workers {nodes}")
        if old is not None and len(old.members) != len(new.members):
            words = f"attempt {new.number} has {len(new.members)} workers, attempt {old.number} had {len(old.members)}"
            yield EmitEvent("Resized", words)
    if new.claimed_at is not None and (old is None or old.number != new.number or old.claimed_at is None):
        yield EmitEvent("AttemptClaimed", f"attempt {new.number} continues {new.parent} at step {new.parent_step}")


def _resumed(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    for p in newly_resumed(before, after):
        spent = ", ".join(f"{x.name} {x.milliseconds / 1000:.1f}" for x in p.phases)
        message = (
            f"resumed from {p.resumed_from} at step {p.resumed_step} in {p.total_milliseconds / 1000:.1f} s "
            f"({spent}); {p.steps_lost} steps lost"
        )
        yield EmitEvent("Resumed", message)


def newly_resumed(before: TrainingJobStatus, after: TrainingJobStatus) -> tuple[PreemptionStatus, ...]:
    """Entries that this write closes: each is measured once, whatever restarts of the operator lie between (I9)."""
    open_before = {p.attempt for p in before.preemptions if p.resumed_at is not None}
    return tuple(p for p in after.preemptions if p.resumed_at is not None and p.attempt not in open_before)


def _phase(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    if before.phase == after.phase or after.phase is None:
        return
    was = before.phase.value if before.phase else "new"
    yield EmitEvent(after.phase.value, f"{was} -> {after.phase.value}", warning=after.phase is Phase.FAILED)


def _stalled(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    new, old = _ready(after), _ready(before)
    if new is None or (old is not None and old.reason == new.reason):
        return
    stalled = _of_type(after, "Stalled")
    if stalled is not None and (stalled.status == "True" or new.reason in ("Unschedulable", "Refused")):
        yield EmitEvent(new.reason, new.message[:1000], warning=True)


def _saves_fail(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    new, old = _of_type(after, "StorageReady"), _of_type(before, "StorageReady")
    if new is not None and new.reason == SAVES_FAIL and (old is None or old.reason != SAVES_FAIL):
        yield EmitEvent(SAVES_FAIL, new.message[:1000], warning=True)
    local, before_that = _of_type(after, LOCAL), _of_type(before, LOCAL)
    if local is not None and local.status == "False" and (before_that is None or before_that.reason != local.reason):
        yield EmitEvent(local.reason, local.message[:1000], warning=True)
    for kind, reason in (
        (FINITE, NOT_FINITE),
        (REPLICAS, DIFFER),
        (STORED, DAMAGED),
        (CLOCKS, CLOCKS_DIFFER),
        (PACE, STRAGGLER),
    ):
        found, known = _of_type(after, kind), _of_type(before, kind)
        if found is not None and found.status == "False" and (known is None or known.status != "False"):
            yield EmitEvent(reason, found.message[:1000], warning=True)
    ended = _of_type(after, "Succeeded")
    if ended is not None and ended.reason == UNSAVED and before.phase != after.phase:
        yield EmitEvent(UNSAVED, ended.message[:1000], warning=True)


def _unfinished(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    new, old = _of_type(after, ON_NODES), _of_type(before, ON_NODES)
    if new is not None and new.status == "True" and (old is None or old.status != "True"):
        yield EmitEvent(ON_NODES, new.message[:1000], warning=True)
    was = before.unfinished
    if was is None or (after.unfinished is not None and after.unfinished.checkpoint == was.checkpoint):
        return
    if unfinished.became_checkpoint(was, after):
        yield EmitEvent(
            "StateFinished", f"step {was.step}, which lay on nodes only, is in a checkpoint ({was.checkpoint})"
        )
    else:
        nodes = ", ".join(p.node for p in was.parts[:8])
        message = f"step {was.step} lay on {nodes} only and was not finished before the next attempt claimed"
        yield EmitEvent("StateLost", message, warning=True)


def _hangs(before: TrainingJobStatus, after: TrainingJobStatus) -> Iterator[EmitEvent]:
    """The word in time, and the end."""
    new, old = _of_type(after, STEPS), _of_type(before, STEPS)
    if (
        new is not None
        and new.status == "False"
        and (old is None or (old.status, old.reason) != (new.status, new.reason))
    ):
        yield EmitEvent(new.reason, new.message[:1000], warning=True)


def _ready(status: TrainingJobStatus) -> Condition | None:
    return _of_type(status, "Ready")


def _of_type(status: TrainingJobStatus, kind: str) -> Condition | None:
    return next((c for c in status.conditions if c.type == kind), None)
