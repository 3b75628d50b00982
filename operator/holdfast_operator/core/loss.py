"""Workers that went without a notice: what was lost, and why as far as anyone can tell (platform facts 1.9, 1.10)."""

from dataclasses import dataclass
from datetime import datetime

from holdfast_api.messages import AgentPhase, Cause, Exit
from holdfast_operator.core.membership import MemberSeen, exit_of, exit_with, is_lost, silent_from
from holdfast_operator.core.observed import Observed, PodSeen

_REASONS: dict[str, Cause] = {
    "Evicted": Cause.NODE_PRESSURE,
    "NodeShutdown": Cause.NODE_SHUTDOWN,
    "Terminated": Cause.NODE_SHUTDOWN,
    "Shutdown": Cause.NODE_SHUTDOWN,
    "NodeLost": Cause.NODE_LOST,
    "Preempting": Cause.PRIORITY,
    "NodeAffinity": Cause.NODE_LOST,
}
"""`status.reason` of a pod that the kubelet or a controller ended."""


@dataclass(frozen=True, slots=True)
class Loss:
    worker: int
    node: str
    cause: Cause
    at: datetime
    detail: str


def losses(seen: Observed, whos: tuple[MemberSeen, ...], now: datetime, *, accepted: bool) -> tuple[Loss, ...]:
    """Members that are gone through no fault of the training code, worker by worker. `accepted`: all of them have had the attempt."""
    found = (_loss(seen, who, now) if accepted else _ended_before(who, now) or _loss(seen, who, now) for who in whos)
    return tuple(x for x in found if x is not None)


def _ended_before(who: MemberSeen, now: datetime) -> Loss | None:
    """Its pod ended well, in the attempt before: what its exit code says is of that one, and this one waits for it in vain."""
    if who.report is not None or who.pod is None or not who.pod.ended or exit_with(who.pod) is not Exit.FINISHED:
        return None
    return _as_loss(who, Cause.UNKNOWN, min(who.pod.finished_at or now, now), "its pod had ended before it took part")


def _loss(seen: Observed, who: MemberSeen, now: datetime) -> Loss | None:
    how = exit_of(who)
    if how in (Exit.FINISHED, Exit.TRAINER_FAILED, Exit.CONFIGURATION_WRONG, Exit.SUPERSEDED):
        return None
    if who.pod is not None and who.pod.ended:
        return _terminated(who, who.pod, how, now)
    if how is not None:
        return _as_loss(who, Cause.SIGTERM, now, f"the agent ended: {how.value}")
    if is_lost(seen, who, now):
        return _vanished(who, silent_from(who) or now)
    if who.report is not None and who.report.phase is AgentPhase.SEALED:
        # It stands still for a notice that nobody else knows, or that was withdrawn too late: only a new attempt sets it going again.
        return _as_loss(who, Cause.SIGTERM, now, "the agent has sealed its attempt")
    return None


def _terminated(who: MemberSeen, pod: PodSeen, how: Exit | None, now: datetime) -> Loss | None:
    at = min(pod.finished_at or now, now)
    if pod.reason in _REASONS:
        return _as_loss(who, _REASONS[pod.reason], at, f"pod {pod.reason}: {pod.message}")
    if how is not None:  # preempted: it said so by its exit code
        return _as_loss(who, Cause.SIGTERM, at, f"the agent ended: {how.value}")
    if who.node is None:
        return _as_loss(who, Cause.NODE_LOST, at, f"node {who.member.node} is gone")
    return None  # an exit code that is nobody's: failures.py


def _vanished(who: MemberSeen, at: datetime) -> Loss:
    if who.node is None:
        return _as_loss(who, Cause.NODE_LOST, at, f"node {who.member.node} is gone")
    if who.pod is None and who.node.ready:
        return _as_loss(who, Cause.DELETION, at, "the pod was removed without notice")
    if who.pod is None:  # by force: nobody could ask the machine to end it
        return _as_loss(who, Cause.NODE_LOST, at, f"node {who.member.node} is not Ready and the pod was removed")
    return _as_loss(who, Cause.NODE_LOST, at, f"node {who.member.node} is not Ready and the agent is not heard of")


def _as_loss(who: MemberSeen, cause: Cause, at: datetime, detail: str) -> Loss:
    return Loss(who.member.worker, who.member.node, cause, at, detail)
