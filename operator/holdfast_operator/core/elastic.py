"""A job goes on with fewer workers while it cannot have all, and with more once there is room (`spec.elastic`). Pure.

Fewer: when an attempt is over, the next one waits `waitSeconds` for a replacement that no machine has room for (no node, a quota, a queue's gate), then starts
with the greatest number of workers that is allowed and there: those that stayed keep pod and arena (A1, A2). Nobody waits for a worker that the attempt before
did without.

More: pods for the next greater number wait beside the attempt (sizes.py). Once all are there and the attempt has trained for `growAfterSeconds`, a notice
that is about nobody makes every agent save and stand still (E1-E6), and the next attempt has them; no step is done again. The notice is taken back if the pods
go, or if the save does not come about. After an interruption the next attempt has all that are there, at once.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from holdfast_api import sources
from holdfast_api.messages import AgentPhase, Cause
from holdfast_operator.core import interruptions, merge, replace, sizes
from holdfast_operator.core.membership import is_member, members, newest_plans, pod_of, report_of
from holdfast_operator.core.observed import Observed, PodSeen
from holdfast_operator.crd.v1alpha1 import AttemptStatus, Confidence, Elastic, NoticeStatus, TrainingJobStatus

STARTS_WITHIN = timedelta(seconds=600)
"""How long a pod that has a node may take to pull its image and start, before it counts as one that does not come."""
GROWS_WITHIN = timedelta(seconds=300)
"""How long the save before a start with more workers may take, before training goes on as it was."""
DEADLINE = timedelta(hours=1)
"""Of the notice: far behind, because nobody goes. Agents end an evacuation at its deadline, so the notice is taken back long before."""
_UNDER_WAY = ("", "ContainerCreating", "PodInitializing")
_DEFAULTS = Elastic(min_workers=1)


def team(seen: Observed, status: TrainingJobStatus, now: datetime) -> tuple[PodSeen, ...] | None:
    """The pods of the next attempt, in the order of workers; None while it is waited for more."""
    usable = _usable(seen, status)
    size = _greatest(seen, len(usable))
    if not size or (size < _worth_waiting_for(seen, status) and now < waits_until(seen, status, now)):
        return None
    before = {m.worker for m in status.attempt.members} if status.attempt is not None else set()
    chosen = sorted(usable, key=lambda w: (w not in before, w))[:size]
    return tuple(usable[w] for w in sorted(chosen))


def can_do_without(seen: Observed, status: TrainingJobStatus) -> bool:
    """Those that are there may go on by themselves: a replacement that fails at its start is no failure of the job."""
    return (
        seen.spec.elastic is not None
        and status.attempt is not None
        and bool(_greatest(seen, len(_usable(seen, status))))
    )


def waits_until(seen: Observed, status: TrainingJobStatus, now: datetime) -> datetime:
    """How long it is waited for as many workers as before."""
    until = _stands_since(status, now) + timedelta(seconds=_settings(seen).wait_seconds)
    coming = (p for p in _planned(seen, status) if p.node and not p.ip and not p.ended and not p.deleting)
    starts = [(p.scheduled_at or p.created_at) + STARTS_WITHIN for p in coming if p.waiting_reason in _UNDER_WAY]
    return max([until, *starts])


def look_out(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Pods beside an attempt that trains. Its members' are not this file's business."""
    attempt = status.attempt
    if attempt is None:
        return status
    beside = sizes.beside(seen.spec, attempt)
    kept = tuple(w for w in status.workers if w.worker in beside or not sizes.is_beside(attempt, w.worker))
    if len(kept) != len(status.workers):
        status = status.model_copy(update={"workers": kept})
    return replace.plan(seen, status, now, only=sorted(beside)) if beside else status


def ask(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Announces that the job goes on with more workers, where it can and has trained long enough. Call it only while the attempt runs undisturbed."""
    attempt = status.attempt
    size = _could_have(seen, status)
    if attempt is None or not size or now < _may_ask_at(seen, status, attempt):
        return status
    notice = NoticeStatus(
        worker=sources.NOBODY,
        source=sources.RESIZE,
        # The strictest cause that agents of every release know: what is saved must be where new pods on other nodes find it (F4).
        cause=Cause.REBALANCE.value,
        noticed_at=now,
        deadline=now + DEADLINE,
        revocable=True,
        confidence=Confidence.CERTAIN,
        detail=f"{len(attempt.members)} workers train, and there is room for {size}: a checkpoint, then all go on together",
    )
    others = tuple(n for n in status.notices if n.source != sources.RESIZE)
    return status.model_copy(update={"notices": (*others, notice)})


def take_back(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Withdraws it: the pods have gone before anybody stood still, or the save does not come about. Training goes on."""
    notice = _standing(status)
    if notice is None or status.attempt is None or interruptions.is_over(status):
        return status
    sealed = any(w.report is not None and w.report.phase is AgentPhase.SEALED for w in members(seen, status.attempt))
    if now < notice.noticed_at + GROWS_WITHIN and (sealed or _could_have(seen, status)):
        return status
    new = tuple(n.model_copy(update={"withdrawn": True}) if n is notice else n for n in status.notices)
    return status.model_copy(update={"notices": new})


def moments(seen: Observed, status: TrainingJobStatus, now: datetime) -> Iterator[datetime]:
    """When time alone changes one of these decisions."""
    if interruptions.is_over(status):
        yield waits_until(seen, status, now)
    elif status.attempt is not None and sizes.beside(seen.spec, status.attempt):
        yield _may_ask_at(seen, status, status.attempt)
    notice = _standing(status)
    if notice is not None:
        yield notice.noticed_at + GROWS_WITHIN


def in_words(seen: Observed, status: TrainingJobStatus) -> str:
    """What is to be said behind "attempt 3 trains"; empty if all is as the spec has it."""
    here = len(status.attempt.members) if status.attempt is not None else seen.spec.workers
    return "" if here == seen.spec.workers else f" with {here} workers (spec.workers is {seen.spec.workers})"


# ---- inside


def _settings(seen: Observed) -> Elastic:
    """A job from which `elastic` was taken away still grows to what it asks for."""
    return seen.spec.elastic or _DEFAULTS


def _greatest(seen: Observed, there: int) -> int:
    """The greatest number that is allowed and not above `there`; 0: none is."""
    return max((n for n in sizes.allowed(seen.spec) if n <= there), default=0)


def _worth_waiting_for(seen: Observed, status: TrainingJobStatus) -> int:
    """As many as before, and no more than `spec.workers`."""
    workers = seen.spec.workers
    return min(workers, len(status.attempt.members)) if status.attempt is not None else workers


def _usable(seen: Observed, status: TrainingJobStatus) -> dict[int, PodSeen]:
    pods = ((w, replace.usable(seen, status, entry)) for w, entry in newest_plans(status).items())
    return {w: pod for w, pod in pods if pod is not None}


def _planned(seen: Observed, status: TrainingJobStatus) -> Iterator[PodSeen]:
    for worker, entry in newest_plans(status).items():
        pod = pod_of(seen, worker, entry.serial)
        if pod is not None:
            yield pod


def _stands_since(status: TrainingJobStatus, now: datetime) -> datetime:
    """When the attempt before ended; without one, when the first of these pods was planned."""
    entry = interruptions.current(status)
    if entry is not None and entry.ended_at is not None:
        return entry.ended_at
    return min((w.since for w in newest_plans(status).values()), default=now)


def _could_have(seen: Observed, status: TrainingJobStatus) -> int:
    """With how many workers the job could go on now, if that is more than it has, and nothing is announced against anybody; else 0."""
    attempt = status.attempt
    if attempt is None or any(not n.withdrawn and n.source != sources.RESIZE for n in status.notices):
        return 0
    usable = _usable(seen, status)
    there = [w for w, pod in usable.items() if is_member(status, pod.uid) or _waits(seen, pod)]
    size = _greatest(seen, len(there))
    everybody = all(m.worker in there for m in attempt.members)
    return size if everybody and size > len(attempt.members) else 0


def _waits(seen: Observed, pod: PodSeen) -> bool:
    """Its agent has been heard, and nothing keeps it."""
    report = report_of(seen, pod.uid)
    return report is not None and report.exit is None and report.blocked is None


def _may_ask_at(seen: Observed, status: TrainingJobStatus, attempt: AttemptStatus) -> datetime:
    """Not before the attempt has trained for so long, nor so soon after a notice that had to be taken back."""
    asked = [n.noticed_at + GROWS_WITHIN for n in status.notices if n.source == sources.RESIZE]
    began = attempt.first_step_at or attempt.created_at
    return max([began, *asked]) + timedelta(seconds=_settings(seen).grow_after_seconds)


def _standing(status: TrainingJobStatus) -> NoticeStatus | None:
    return next((n for n in merge.standing(status.notices) if n.source == sources.RESIZE), None)
