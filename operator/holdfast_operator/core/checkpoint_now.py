"""A manual checkpoint: the annotation `holdfast.dev/checkpoint-now` with a new value asks for one."""

import hashlib

from holdfast_api import names
from holdfast_api.messages import Cause, CheckpointOrder
from holdfast_operator.core.actions import SendCheckpoint
from holdfast_operator.core.membership import members
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import TrainingJobStatus

MAX_LENGTH = 64


def wanted(seen: Observed) -> str:
    """The request as status can remember it; empty if nobody asks."""
    value = seen.job.annotations.get(names.ANNOTATION_CHECKPOINT_NOW, "")
    return value if len(value) <= MAX_LENGTH else hashlib.sha256(value.encode()).hexdigest()


def update(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """Remembers the request once an agent says that it has ended."""
    request = wanted(seen)
    if not request or request == status.checkpoint_request:
        return status
    done = any(w.report is not None and request in w.report.done_requests for w in members(seen, status.attempt))
    return status.model_copy(update={"checkpoint_request": request}) if done else status


def order(seen: Observed, status: TrainingJobStatus) -> tuple[SendCheckpoint, ...]:
    """To the lead, until it is done. Call it only while the attempt runs undisturbed."""
    request = wanted(seen)
    if not request or request == status.checkpoint_request or status.attempt is None:
        return ()
    lead = members(seen, status.attempt)[0]
    if lead.address is None:
        return ()
    message = CheckpointOrder(
        job_uid=seen.job.uid, attempt=status.attempt.number, request_id=request, cause=Cause.MANUAL
    )
    return (SendCheckpoint(lead.address, message),)
