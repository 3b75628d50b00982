"""Pods that were made from a spec that has been corrected since, or that read a Secret which may have been mended: made anew while nothing is at stake.

A running container keeps its image, its command and its environment, so a correction reaches only a new pod. Nothing is at stake before the attempt's
claim: until then it can commit nothing (A6), so it is dropped without being counted, and its number is never used again (A1).
"""

from datetime import datetime, timedelta

from holdfast_api.messages import AgentPhase, BlockedReason
from holdfast_operator.core.membership import newest_plans, report_of
from holdfast_operator.core.observed import Observed
from holdfast_operator.core.pods import made_from
from holdfast_operator.crd.v1alpha1 import TrainingJobStatus, WorkerStatus

SECRET_AGAIN = timedelta(seconds=60)
"""A pod whose credentials are refused for so long is made anew: environment variables of a Secret are read when a container starts. Doubled each time."""
MAX_DOUBLINGS = 4


def drop_unclaimed(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """An attempt that has not claimed ends if one of its pods has to be made anew."""
    attempt = status.attempt
    if attempt is None or attempt.claimed_at is not None:
        return status
    wanted, of = made_from(seen.spec), {m.worker for m in attempt.members}
    if not any(is_stale(seen, w, wanted, now) for w in newest_plans(status).values() if w.worker in of):
        return status
    return status.model_copy(update={"attempt": None})


def is_stale(seen: Observed, entry: WorkerStatus, wanted: str, now: datetime) -> bool:
    """Whether the entry's pod cannot be what the spec asks for now (its digest is `wanted`), or cannot know what a Secret holds now."""
    if entry.made_from not in ("", wanted):
        return True
    until = blocked_until(seen, entry)
    return until is not None and now >= until


def blocked_until(seen: Observed, entry: WorkerStatus) -> datetime | None:
    """When a pod whose credentials are refused is made anew; None if they are not."""
    report = report_of(seen, entry.pod_uid)
    if (
        report is None
        or report.phase is not AgentPhase.BLOCKED
        or report.blocked is None
        or report.blocked_since is None
    ):
        return None
    if report.blocked.reason is not BlockedReason.STORAGE_DENIED:
        return None
    return max(report.blocked_since, entry.since) + SECRET_AGAIN * (1 << min(entry.renewed, MAX_DOUBLINGS))
