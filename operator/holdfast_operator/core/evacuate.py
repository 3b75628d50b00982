"""While an attempt is being evacuated: tell the agents, and take down a pod whose agent does not answer (design, section 6; F2)."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from holdfast_api.messages import Cause, Notice, NoticeOrder
from holdfast_operator.core import deadlines
from holdfast_operator.core.actions import DeletePod, SendNotice
from holdfast_operator.core.membership import MemberSeen, members
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import NoticeStatus, TrainingJobStatus

ANSWER_WITHIN = timedelta(seconds=10)
"""How long an agent may leave an acting, irrevocable notice unanswered; less if the deadline is near."""


def orders(seen: Observed, status: TrainingJobStatus) -> Iterator[SendNotice]:
    """Every notice of the attempt to every member that does not show them all yet: each agent merges for itself (F1)."""
    attempt = status.attempt
    if attempt is None or not status.notices:
        return
    order = NoticeOrder(
        job_uid=seen.job.uid, attempt=attempt.number, notices=tuple(as_notice(n) for n in status.notices)
    )
    for who in members(seen, attempt):
        if who.address is not None and not _knows(who, order):
            yield SendNotice(who.address, order)


def unanswered(seen: Observed, status: TrainingJobStatus, now: datetime) -> Iterator[DeletePod]:
    """Graceful deletes: the kubelet turns each into SIGTERM. Never for what may be revoked, or only prepares (F2)."""
    for who in members(seen, status.attempt):
        if who.pod is None or who.pod.deleting or who.pod.ended:
            continue
        due = silence_ends(seen, status, who)
        if due is not None and now >= due:
            why = "its agent does not answer the notice that its node goes; SIGTERM by the kubelet is the other way to tell it"
            yield DeletePod(who.pod.name, who.pod.uid, why)


def silence_ends(seen: Observed, status: TrainingJobStatus, who: MemberSeen) -> datetime | None:
    """When a silent member's pod is taken down; None if it has answered or nothing irrevocable stands against it."""
    found = [n for n in status.notices if n.worker == who.member.worker and _irrevocable(n)]
    if not found:
        return None
    noticed_at = min(n.noticed_at for n in found)
    if who.last_heard is not None and who.last_heard > noticed_at:
        return None
    deadline = deadlines.earliest(found, deadlines.Limits.of(seen))
    # An operator that has just started gives the agent the same time to answer.
    return max(noticed_at, seen.watching_since) + min(ANSWER_WITHIN, (deadline - noticed_at) / 3)


def as_notice(notice: NoticeStatus) -> Notice:
    return Notice(
        source=notice.source,
        cause=Cause(notice.cause),
        worker=notice.worker,
        node=notice.node,
        noticed_at=notice.noticed_at,
        deadline=notice.deadline,
        acting=notice.acting,
        revocable=notice.revocable,
        withdrawn=notice.withdrawn,
        detail=notice.detail,
    )


def _irrevocable(notice: NoticeStatus) -> bool:
    return notice.acting and not notice.withdrawn and not notice.revocable


def _knows(who: MemberSeen, order: NoticeOrder) -> bool:
    known = {_essence(n) for n in who.report.notices} if who.report else set()
    return all(_essence(n) in known for n in order.notices)


def _essence(notice: Notice) -> tuple[int, str, bool, bool, datetime | None]:
    return notice.worker, notice.source, notice.acting, notice.withdrawn, notice.deadline
