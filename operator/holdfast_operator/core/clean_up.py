"""What is left of a job that has ended: its pods, and the logs in them."""

from datetime import datetime, timedelta

from holdfast_api.messages import AgentPhase, EndOrder
from holdfast_operator.core.actions import Action, DeletePod, PodAddress, SendEnd
from holdfast_operator.core.membership import is_member, report_of
from holdfast_operator.core.observed import Observed, PodSeen
from holdfast_operator.crd.v1alpha1 import Phase

LEFT_OVER = timedelta(seconds=30)
"""How long other containers of a finished trainer's pod may take to end by themselves."""
LAST_WORDS = timedelta(seconds=30)
"""How long an agent whose ranks have failed may take to end when it is told."""


def actions(seen: Observed, now: datetime) -> tuple[tuple[Action, ...], datetime | None]:
    """What to do, and when to look again. A failed job keeps its ended pods for their logs and stops the others. Of a succeeded one only what would never end
    by itself is stopped: another container of a worker, and a replacement that waits to be told of an attempt."""
    if seen.status.phase is not Phase.FAILED:
        why = "the job has succeeded, and a container beside the trainer runs on"
        needless = "the job has succeeded without it"
        return tuple(
            DeletePod(p.name, p.uid, why if p.ended else needless)
            for p in seen.pods
            if not p.terminal and not p.deleting
            if (_left_over(p, now) if p.ended else not is_member(seen.status, p.uid))
        ), None
    until = _failed_at(seen, now) + LAST_WORDS
    found: list[Action] = []
    waits = False
    for pod in seen.pods:
        if pod.terminal or pod.deleting:
            continue
        order = _to_end(seen, pod) if now < until else None
        waits = waits or order is not None
        found.append(order or DeletePod(pod.name, pod.uid, "the job has failed"))
    return tuple(found), until if waits else None


def _to_end(seen: Observed, pod: PodSeen) -> SendEnd | None:
    """For an agent that waits for an attempt which never comes: it ends by itself, with its exit code, and the pod stays with its log."""
    report = report_of(seen, pod.uid)
    if pod.ended or not pod.ip or report is None or report.phase is not AgentPhase.FAILED or report.exit is not None:
        return None
    return SendEnd(PodAddress(pod.name, pod.uid, pod.ip), EndOrder(seen.job.uid, report.attempt))


def _failed_at(seen: Observed, now: datetime) -> datetime:
    """The condition's transition is the memory of it."""
    return next(
        (c.last_transition_time for c in seen.status.conditions if c.type == "Stalled" and c.status == "True"), now
    )


def _left_over(pod: PodSeen, now: datetime) -> bool:
    return pod.finished_at is None or now - pod.finished_at >= LEFT_OVER
