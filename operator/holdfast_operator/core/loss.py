"""Workers that went without a notice: what was lost, and why as far as anyone can tell (platform facts 1.9, 1.10)."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

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


WORD_WITHIN = timedelta(seconds=20)
"""How long an operator that has just started, or come back, listens for every worker before it takes one that stands still for the one that goes."""


@dataclass(frozen=True, slots=True)
class Loss:
    worker: int
    node: str
    cause: Cause
    at: datetime
    detail: str
    stands_still: bool = False
    """Its agent is there and has sealed, for this worker's sake or another's."""


def losses(seen: Observed, whos: tuple[MemberSeen, ...], now: datetime, *, accepted: bool) -> tuple[Loss, ...]:
    """Members that are gone through no fault of the training code, worker by worker. `accepted`: all of them have had the attempt."""
    found = (_loss(seen, who, now) if accepted else _ended_before(who, now) or _loss(seen, who, now) for who in whos)
    lost = tuple(x for x in found if x is not None)
    gone = tuple(x for x in lost if not x.stands_still)
    if gone or now >= word_by(seen) or not any(_may_be_gone(w) for w in whos):
        return gone or lost
    return ()  # who has gone, or is about to, is one of those that nothing was heard of yet


def word_by(seen: Observed) -> datetime:
    return seen.watching_since + WORD_WITHIN


def _may_be_gone(who: MemberSeen) -> bool:
    """Its pod looks alive, and this operator has never heard its agent: what has become of it is still on its way."""
    return who.last_heard is None and who.pod is not None and not who.pod.ended


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
        return replace(_as_loss(who, Cause.SIGTERM, now, "the agent has sealed its attempt"), stands_still=True)
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
