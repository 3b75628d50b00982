"""Who the workers are: planned pods and members of the attempt, each joined with what was seen of pod, node and agent. Reads only."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast_api import names
from holdfast_api.messages import AgentPhase, AgentReport, Exit
from holdfast_operator.core.actions import PodAddress
from holdfast_operator.core.observed import NodeSeen, Observed, PodSeen
from holdfast_operator.crd.v1alpha1 import AttemptStatus, MemberStatus, TrainingJobStatus, WorkerStatus

_ENDED_PHASES = (AgentPhase.SEALED, AgentPhase.FINISHED, AgentPhase.FAILED)


@dataclass(frozen=True, slots=True)
class MemberSeen:
    """A member of the attempt and what is known of it."""

    member: MemberStatus
    pod: PodSeen | None
    """None: the pod object is gone."""
    node: NodeSeen | None
    latest: AgentReport | None
    """Newest report of the pod, of whichever attempt."""
    report: AgentReport | None
    """The same, if it is of this attempt."""
    heard_at: datetime
    """Silence counts from here: the last word, or when this operator began to listen."""
    last_heard: datetime | None
    """The last word, if there was one."""
    ahead_seconds: float
    """How far its machine's clock is ahead of ours (`Heard`); 0 while nothing was heard."""

    @property
    def address(self) -> PodAddress | None:
        if self.pod is None or not self.pod.ip or self.pod.ended:
            return None
        return PodAddress(self.pod.name, self.pod.uid, self.pod.ip)


def pod_of(seen: Observed, worker: int, serial: int) -> PodSeen | None:
    return next((p for p in seen.pods if (p.worker, p.serial) == (worker, serial)), None)


def pod_by_uid(seen: Observed, uid: str) -> PodSeen | None:
    return next((p for p in seen.pods if p.uid == uid), None) if uid else None


def report_of(seen: Observed, pod_uid: str) -> AgentReport | None:
    """The newest of what was pushed, polled, and left as termination message."""
    heard = seen.heard.get(pod_uid)
    pod = pod_by_uid(seen, pod_uid)
    found = [r for r in (heard.report if heard else None, pod.report if pod else None) if r is not None]
    return max(found, key=lambda r: r.sequence, default=None)


def members(seen: Observed, attempt: AttemptStatus | None) -> tuple[MemberSeen, ...]:
    """In the order of workers."""
    return tuple(_join(seen, attempt, m) for m in attempt.members) if attempt else ()


def _join(seen: Observed, attempt: AttemptStatus, member: MemberStatus) -> MemberSeen:
    pod = pod_by_uid(seen, member.pod_uid)
    latest = report_of(seen, member.pod_uid)
    heard = seen.heard.get(member.pod_uid)
    return MemberSeen(
        member=member,
        pod=pod,
        node=seen.nodes.get(member.node or (pod.node if pod else "")),
        latest=latest,
        report=latest if latest is not None and latest.attempt == attempt.number else None,
        last_heard=heard.at if heard else None,
        ahead_seconds=heard.ahead_seconds if heard else 0.0,
        heard_at=max(heard.at, seen.watching_since) if heard else max(seen.watching_since, attempt.created_at),
    )


def newest_plans(status: TrainingJobStatus) -> dict[int, WorkerStatus]:
    """Worker -> the pod that is, or will be, it: the entry with the greatest serial."""
    return {w.worker: w for w in sorted(status.workers, key=lambda w: w.serial)}


def is_member(status: TrainingJobStatus, pod_uid: str) -> bool:
    return status.attempt is not None and any(m.pod_uid == pod_uid for m in status.attempt.members)


def silent_from(who: MemberSeen) -> datetime | None:
    """Since when a member is gone as far as one can see: no object, or its node not Ready, and nothing heard. None while it is there."""
    if who.pod is None or who.node is None:
        return who.heard_at
    if not who.node.ready:
        return max(who.heard_at, who.node.ready_since or who.heard_at)
    return None


def is_lost(seen: Observed, who: MemberSeen, now: datetime) -> bool:
    """Unheard of for the set time, with its pod or node gone or its node not Ready (A3)."""
    if who.pod is not None and not who.pod.node:
        return False
    since = silent_from(who)
    return since is not None and now - since >= timedelta(seconds=seen.spec.notices.node_lost_seconds)


def has_ended(seen: Observed, who: MemberSeen, now: datetime) -> bool:
    """It trains no more in this attempt: it said so, its pod has terminated, or it is lost."""
    if who.report is not None and (who.report.exit is not None or who.report.phase in _ENDED_PHASES):
        return True
    return (who.pod is not None and who.pod.ended) or is_lost(seen, who, now)


def exit_of(who: MemberSeen) -> Exit | None:
    """How the agent ended: by its report, else by its exit code."""
    if who.report is not None and who.report.exit is not None:
        return who.report.exit
    return exit_with(who.pod) if who.pod is not None else None


def exit_with(pod: PodSeen) -> Exit | None:
    """What the container's exit code means; None while it runs and for a code that is not one of the agent's."""
    return next((e for e, code in names.EXIT_CODES.items() if code == pod.exit_code), None)


def boundary_of(whos: Iterable[MemberSeen]) -> int:
    """Newest boundary that a member is known to have passed in this attempt."""
    return max((w.report.boundary for w in whos if w.report is not None), default=0)


def describe_worker(worker: int, node: str) -> str:
    return f"worker {worker} on node {node}" if node else f"worker {worker}"
