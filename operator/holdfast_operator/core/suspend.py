"""`spec.suspend`: a checkpoint first, then no pods; taken back, a new attempt goes on from there (Job semantics, design section 5)."""

from datetime import datetime, timedelta

from holdfast_api.messages import AgentPhase, Cause, CheckpointOrder
from holdfast_operator.core.actions import Action, DeletePod, SendCheckpoint
from holdfast_operator.core.membership import MemberSeen, has_ended, members
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import TrainingJobStatus

CONDITION = "Suspended"
CHECKPOINT_WITHIN = timedelta(seconds=600)
"""How long the checkpoint may take before the pods go anyway: their agents then still have the pod's grace."""


def began(status: TrainingJobStatus, now: datetime) -> datetime:
    """When the wish was first seen: the condition's transition is the memory of it."""
    return next((c.last_transition_time for c in status.conditions if c.type == CONDITION and c.status == "True"), now)


def step(
    seen: Observed, status: TrainingJobStatus, now: datetime, *, since: datetime, why: str = "the job is suspended"
) -> tuple[TrainingJobStatus, tuple[Action, ...], datetime | None]:
    """What a job that is to stand still needs: orders while it saves, deletes when it has, nothing once no pod is left."""
    deadline = since + CHECKPOINT_WITHIN
    if _is_saving(seen, status, now) and now < deadline:
        return status, _orders(seen, status, deadline), deadline
    left = [p for p in seen.pods if not p.terminal and not (p.deleting and p.gates)]
    if not left:
        return _stopped(status), tuple(DeletePod(p.name, p.uid, why) for p in seen.pods if not p.deleting), None
    return status, tuple(DeletePod(p.name, p.uid, why) for p in left if not p.deleting), None


def request_id(seen: Observed, status: TrainingJobStatus) -> str:
    number = status.attempt.number if status.attempt else 0
    return f"suspend-{number}-{seen.job.generation}"


def _is_saving(seen: Observed, status: TrainingJobStatus, now: datetime) -> bool:
    """There is something to save and somebody who can: an attempt that has taken a step and whose members have not all ended."""
    attempt = status.attempt
    if attempt is None or attempt.first_step_at is None:
        return False
    whos = members(seen, attempt)
    if any(_has_done(seen, status, w) for w in whos) or any(has_ended(seen, w, now) for w in whos):
        return False
    return any(w.address is not None for w in whos)


def _has_done(seen: Observed, status: TrainingJobStatus, who: MemberSeen) -> bool:
    report = who.report
    return report is not None and (
        request_id(seen, status) in report.done_requests or report.phase in (AgentPhase.SEALED, AgentPhase.FINISHED)
    )


def _orders(seen: Observed, status: TrainingJobStatus, deadline: datetime) -> tuple[Action, ...]:
    assert status.attempt is not None
    order = CheckpointOrder(
        job_uid=seen.job.uid,
        attempt=status.attempt.number,
        request_id=request_id(seen, status),
        cause=Cause.SUSPEND,
        then_stop=True,
        deadline=deadline,
    )
    lead = members(seen, status.attempt)[0]
    return (SendCheckpoint(lead.address, order),) if lead.address is not None else ()


def _stopped(status: TrainingJobStatus) -> TrainingJobStatus:
    """Nothing runs. An interruption that was not recovered from is not measured across a pause that a person wanted."""
    return status.model_copy(
        update={
            "attempt": None,
            "workers": (),
            "notices": (),
            "retry_at": None,
            "preemptions": tuple(p for p in status.preemptions if p.resumed_at is not None),
        }
    )
