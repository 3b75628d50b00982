"""An attempt from plan to claim: pods, then members in status, then orders for what is read back from status, then the leave to claim (A1-A3)."""

from collections.abc import Iterator
from datetime import datetime

from holdfast_api import layout
from holdfast_api.messages import AttemptOrder, HangLimits, Member
from holdfast_operator.core import elastic, interruptions, notices, queueing, retention, sizes
from holdfast_operator.core.actions import Action, CreatePod, DeletePod, EnsureChildren, SendAttempt
from holdfast_operator.core.membership import MemberSeen, is_member, members, newest_plans, pod_of
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import AttemptStatus, Hangs, MemberStatus, TrainingJobStatus


def create_pods(seen: Observed, status: TrainingJobStatus) -> tuple[Action, ...]:
    """Pods that are planned in the status that was read, and still are (A2: serial first, pod second)."""
    planned = {(w.worker, w.serial) for w in status.workers}
    found: list[Action] = [
        CreatePod(w.worker, w.serial, w.avoid_nodes, w.prefer_nodes, w.queue, w.avoid_zones, w.capacity, w.shun)
        for w in seen.status.workers
        if not w.pod_uid and (w.worker, w.serial) in planned and pod_of(seen, w.worker, w.serial) is None
        if not queueing.must_wait(seen, status, w)
    ]
    if found and not seen.children_exist:
        found.insert(0, EnsureChildren())
    return tuple(found)


def delete_obsolete(seen: Observed, status: TrainingJobStatus) -> tuple[Action, ...]:
    """Pods that are nobody's: not planned, not members. Ended ones stay until the attempt has taken a step, for their logs."""
    planned = {(w.worker, w.serial) for w in (*status.workers, *seen.status.workers)}
    settled = status.attempt is not None and status.attempt.first_step_at is not None
    return tuple(
        DeletePod(p.name, p.uid, "another pod has taken its place")
        for p in seen.pods
        if (p.worker, p.serial) not in planned and not is_member(status, p.uid) and not is_member(seen.status, p.uid)
        if not p.deleting and (settled or not p.terminal)
    )


def start_next(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Records the next attempt once the workers that it is to have (elastic.py) have usable pods (A1, A2). The old attempt must be over."""
    assert interruptions.is_over(status)
    pods = elastic.team(seen, status, now)
    if pods is None:
        return status
    if status.attempts_used >= layout.MAX_NUMBER:
        return status
    number = status.attempts_used + 1
    new = tuple(MemberStatus(worker=p.worker, pod=p.name, pod_uid=p.uid, serial=p.serial, node=p.node) for p in pods)
    before = {m.worker: m.pod_uid for m in status.attempt.members} if status.attempt else {}
    survivors = {m.worker for m in new if before.get(m.worker) == m.pod_uid}
    attempt = AttemptStatus(number=number, members=new, created_at=now)
    uids, newest, beside = {m.pod_uid for m in new}, newest_plans(status), sizes.beside(seen.spec, attempt)
    return status.model_copy(
        update={
            "attempt": attempt,
            "attempts_used": number,
            "workers": tuple(
                w for w in status.workers if w.pod_uid in uids or (w.worker in beside and w is newest[w.worker])
            ),
            "notices": notices.carried_over(status, survivors),
        }
    )


def allow_claim(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """All members have acknowledged, and the attempt before is over: by construction, since it is recorded only then (A3)."""
    attempt = status.attempt
    if attempt is None or attempt.accepted_at is None or attempt.may_claim_at is not None:
        return status
    return status.model_copy(update={"attempt": attempt.model_copy(update={"may_claim_at": now})})


def orders(seen: Observed, status: TrainingJobStatus) -> Iterator[SendAttempt]:
    """To every member that does not know the attempt yet, and to all until the claim is made. Only what the status that was read says (A1)."""
    attempt = seen.status.attempt
    if attempt is None or status.attempt is None or attempt.number != status.attempt.number:
        return
    whos = members(seen, attempt)
    if any(w.address is None for w in whos):
        return  # the address of every member is part of the order; a lost one ends the attempt elsewhere
    order = _order(seen, status, attempt, whos)
    for who in whos:
        told = who.report is not None and (not order.may_claim or status.attempt.claimed_at is not None)
        if not told and who.address is not None:
            yield SendAttempt(who.address, order)


def _order(
    seen: Observed, status: TrainingJobStatus, attempt: AttemptStatus, whos: tuple[MemberSeen, ...]
) -> AttemptOrder:
    return AttemptOrder(
        job_uid=seen.job.uid,
        attempt=attempt.number,
        members=tuple(
            Member(
                worker=w.member.worker,
                pod_name=w.member.pod,
                pod_uid=w.member.pod_uid,
                serial=w.member.serial,
                node=w.pod.node if w.pod else w.member.node,
                address=w.pod.ip if w.pod else "",
            )
            for w in whos
        ),
        processes_per_worker=seen.spec.processes_per_worker,
        may_claim=attempt.may_claim_at is not None,
        restore=retention.restore_order(seen, status),
        interruptions=status.counts.preemptions + status.counts.failures,
        interruptions_caught=status.counts.caught,
        trained_seconds=float(status.counts.trained_seconds),
        global_batch=sizes.global_batch(seen.spec),
        hangs=_limits(seen.spec.hangs),
    )


def _limits(hangs: Hangs) -> HangLimits:
    return HangLimits(
        action=hangs.action.value.lower(),
        factor=hangs.factor,
        step_seconds=hangs.step_seconds,
        data_seconds=hangs.data_seconds,
        evaluation_seconds=hangs.evaluation_seconds,
        start_seconds=hangs.start_seconds,
    )
