"""From the first sign that an attempt will end to its end: one entry per interrupted attempt (status.preemptions), and when the attempt is over (A3).

An entry without `ended_at` is an evacuation in progress; one without `resumed_at` is not yet recovered from. Several attempts may be lost before
one takes a step: each has its entry, and the first step closes them all (I9: every one is reported).
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from holdfast_api import sources
from holdfast_api.messages import AgentPhase, Cause, Exit, Stage
from holdfast_operator.core import blame, deadlines, failures, loss, merge, unsound
from holdfast_operator.core.membership import MemberSeen, boundary_of, exit_of, has_ended, members
from holdfast_operator.core.notices import CLOCKS_DIFFER_SECONDS
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import PreemptionStatus, TrainingJobStatus

MAX_ENTRIES = 10
SUPERSEDED_SOURCE = "store:greater-claim"
_NAMELESS = (Cause.SIGTERM.value, Cause.UNKNOWN.value)
_SEALING = {c.value for c in Cause} - {Cause.PERIODIC.value, Cause.MANUAL.value, Cause.FINAL.value}


def current(status: TrainingJobStatus) -> PreemptionStatus | None:
    """The entry of the current attempt, if it is ending or has ended."""
    if status.attempt is None:
        return None
    number = status.attempt.number
    return next((p for p in reversed(status.preemptions) if p.attempt == number and p.resumed_at is None), None)


def unrecovered(status: TrainingJobStatus) -> tuple[PreemptionStatus, ...]:
    return tuple(p for p in status.preemptions if p.resumed_at is None)


def is_over(status: TrainingJobStatus) -> bool:
    """The current attempt has ended, or there is none: the next one may be planned, and may claim (A3)."""
    entry = current(status)
    return status.attempt is None or (entry is not None and entry.ended_at is not None)


def update(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Opens, extends, withdraws and ends the entry of the current attempt. What ended an attempt once stays so; only its name may still be found."""
    if status.attempt is None:
        return status
    if is_over(status):
        return _named(seen, status)
    whos = members(seen, status.attempt)
    entry = _from_notices(seen, status, whos) or _from_superseded(status, whos, now)
    entry = entry or _from_losses(seen, status, whos, now) or _from_failure(seen, status, whos, now)
    if entry is None and (wrong := unsound.rolls_back(seen, status)) is not None:
        return unsound.rolled_back(seen, _with(status, _back_from(status, wrong.name, whos, now)))
    if entry is None:
        return _without_current(status)  # every notice was withdrawn in time: training goes on
    return _with(status, _ended(seen, status, entry, whos, now))


def _named(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """An attempt that a bare signal has ended is over before the sender has written down why, as a kubelet that evicts: the stronger source names the cause
    (F1) as long as no other attempt has begun."""
    entry = current(status)
    if entry is None or entry.cause not in _NAMELESS or entry.source == SUPERSEDED_SOURCE:
        return status
    merged = merge.merge((n for n in status.notices if n.worker in entry.workers), deadlines.Limits.of(seen))
    if merged is None or sources.strength(merged.source) >= sources.strength(entry.source):
        return status
    return _with(status, entry.model_copy(update={"cause": merged.cause, "source": merged.source}))


def superseded_by(whos: Iterable[MemberSeen], attempt: int) -> int:
    """Greatest claim that an agent has met, if it is greater than ours (A4, A5); 0 if none is."""
    greatest = max((w.report.superseded_by for w in whos if w.report is not None), default=0)
    return greatest if greatest > attempt else 0


def _from_notices(seen: Observed, status: TrainingJobStatus, whos: tuple[MemberSeen, ...]) -> PreemptionStatus | None:
    merged = merge.merge(status.notices, deadlines.Limits.of(seen))
    if merged is None:
        return None
    resize = merged.source == sources.RESIZE  # the weakest: nothing else stands
    return _entry(status, whos).model_copy(
        update={
            "cause": Cause.RESIZE.value if resize else merged.cause,
            "source": merged.source,
            "workers": tuple(w for w in merged.workers if w != sources.NOBODY),
            "nodes": merged.nodes,
            "noticed_at": _earlier(merged.noticed_at, whos),
            "deadline": merged.deadline,
        }
    )


def _from_superseded(status: TrainingJobStatus, whos: tuple[MemberSeen, ...], now: datetime) -> PreemptionStatus | None:
    assert status.attempt is not None
    gone = [w for w in whos if exit_of(w) is Exit.SUPERSEDED]
    if not gone and not superseded_by(whos, status.attempt.number):
        return None
    entry = _entry(status, whos)
    return entry.model_copy(
        update={
            "cause": Cause.UNKNOWN.value,
            "source": SUPERSEDED_SOURCE,
            "workers": tuple(w.member.worker for w in gone),
            "noticed_at": _first_seen(status, now),
            "ended_at": now,
        }
    )


def _from_losses(
    seen: Observed, status: TrainingJobStatus, whos: tuple[MemberSeen, ...], now: datetime
) -> PreemptionStatus | None:
    accepted = status.attempt is not None and status.attempt.accepted_at is not None
    lost = loss.losses(seen, whos, now, accepted=accepted)
    if not lost:
        return None
    first = min(lost, key=lambda x: (x.at, x.worker))
    return _entry(status, whos).model_copy(
        update={
            "cause": first.cause.value,
            "source": "",
            "workers": tuple(x.worker for x in lost),
            "nodes": tuple(sorted({x.node for x in lost if x.node})),
            "noticed_at": _earlier(first.at, whos),
            "ended_at": now,
        }
    )


def _earlier(noticed_at: datetime, whos: tuple[MemberSeen, ...]) -> datetime:
    """An agent that stands still for an evacuation was told of it before its ranks came to a stand, whenever this operator hears of it: one that was away
    must not shorten the measured time to resume (I9)."""
    return min((noticed_at, *(at for w in whos if (at := _stood_still_at(w)) is not None)))


def _stood_still_at(who: MemberSeen) -> datetime | None:
    """By our clock."""
    if who.report is None or who.report.phase is not AgentPhase.SEALED:
        return None
    found = [who.report.stages[s.value] for s in (Stage.NOTICED, Stage.QUIESCED) if s.value in who.report.stages]
    if not found:
        return None
    return min(found) - timedelta(seconds=who.ahead_seconds if abs(who.ahead_seconds) > CLOCKS_DIFFER_SECONDS else 0.0)


def _from_failure(
    seen: Observed, status: TrainingJobStatus, whos: tuple[MemberSeen, ...], now: datetime
) -> PreemptionStatus | None:
    failure = failures.find(status, whos, now)
    if failure is None or blame.awaited(seen, failure, whos, now):
        return None
    return _entry(status, whos).model_copy(
        update={
            "cause": failure.cause.value,
            "source": failure.reason,
            "workers": (failure.worker, *failure.others),
            "nodes": (failure.node,) if failure.node else (),
            "noticed_at": failure.at,
            "ended_at": now,
        }
    )


def _back_from(
    status: TrainingJobStatus, checkpoint: str, whos: tuple[MemberSeen, ...], now: datetime
) -> PreemptionStatus:
    """The pods stay: their agents take the next attempt over, and refuse everything of this one from then on (A2)."""
    return _entry(status, whos).model_copy(
        update={
            "cause": Cause.ROLLBACK.value,
            "source": f"checkpoint:{checkpoint}",
            "workers": tuple(w.member.worker for w in whos),
            "noticed_at": now,
            "ended_at": now,
        }
    )


def _ended(
    seen: Observed, status: TrainingJobStatus, entry: PreemptionStatus, whos: tuple[MemberSeen, ...], now: datetime
) -> PreemptionStatus:
    """With the moments of the evacuation, and `ended_at` once the attempt is sealed, past its deadline or lost (A3)."""
    stages = [w.report.stages for w in whos if w.report is not None]
    quiesced = max((s[Stage.QUIESCED.value] for s in stages if Stage.QUIESCED.value in s), default=None)
    sealed = max((s[Stage.SEALED.value] for s in stages if Stage.SEALED.value in s), default=None)
    entry = entry.model_copy(
        update={"quiesced_at": quiesced or entry.quiesced_at, "sealed_at": sealed or entry.sealed_at}
    )
    if entry.ended_at is None and _is_over(seen, status, entry, whos, now):
        entry = entry.model_copy(update={"ended_at": now})
    return entry


def _is_over(
    seen: Observed, status: TrainingJobStatus, entry: PreemptionStatus, whos: tuple[MemberSeen, ...], now: datetime
) -> bool:
    assert status.attempt is not None
    if status.attempt.may_claim_at is None:
        return True  # never allowed to claim, so it can commit nothing (A6)
    if all(has_ended(seen, w, now) for w in whos) or any(_sealed_with_a_commit(w, entry) for w in whos):
        return True
    return entry.deadline is not None and now >= entry.deadline


def _sealed_with_a_commit(who: MemberSeen, entry: PreemptionStatus) -> bool:
    """It stands still and knows of the commit that was made for this: no need to wait until every other has said so."""
    return (
        who.report is not None
        and who.report.phase is AgentPhase.SEALED
        and any(c.cause.value in _SEALING and c.committed_at >= entry.noticed_at for c in who.report.checkpoints)
    )


def _entry(status: TrainingJobStatus, whos: tuple[MemberSeen, ...]) -> PreemptionStatus:
    found = current(status)
    step = boundary_of(whos)
    if found is not None:
        return found.model_copy(update={"step_at_notice": max(found.step_at_notice, step)})
    assert status.attempt is not None
    parent_step = status.attempt.parent_step
    return PreemptionStatus(
        attempt=status.attempt.number,
        cause=Cause.UNKNOWN.value,
        noticed_at=status.attempt.created_at,
        step_at_notice=max(step, parent_step, status.step if status.attempt.first_step_at else 0),
    )


def _first_seen(status: TrainingJobStatus, now: datetime) -> datetime:
    found = current(status)
    return found.noticed_at if found else now


def _with(status: TrainingJobStatus, entry: PreemptionStatus) -> TrainingJobStatus:
    others = tuple(p for p in status.preemptions if not (p.attempt == entry.attempt and p.resumed_at is None))
    entries = _bounded((*others, entry))
    return status if entries == status.preemptions else status.model_copy(update={"preemptions": entries})


def _bounded(entries: tuple[PreemptionStatus, ...]) -> tuple[PreemptionStatus, ...]:
    """What is recovered from goes first: an open entry's time to resume is still to be measured (I9)."""
    surplus = len(entries) - MAX_ENTRIES
    for entry in entries:
        if surplus > 0 and entry.resumed_at is not None:
            entries, surplus = tuple(e for e in entries if e is not entry), surplus - 1
    return entries[-MAX_ENTRIES:]


def _without_current(status: TrainingJobStatus) -> TrainingJobStatus:
    entry = current(status)
    if entry is None:
        return status
    return status.model_copy(update={"preemptions": tuple(p for p in status.preemptions if p is not entry)})
