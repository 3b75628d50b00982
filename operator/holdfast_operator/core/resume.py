"""Time to resume: from the notice (or, without one, from the loss) to the first new optimizer step, in phases that add up to the whole.

Phases are contiguous. Each ends at a moment that agents report; moments come from several clocks, so they are clamped: never before the phase began,
never after the first step. A moment that nobody reported makes its phase 0 and gives the time to the next one. Milliseconds are cut once, at the
boundaries, so the sum is exact.
"""

from datetime import datetime, timedelta

from holdfast_api.messages import Cause, Stage
from holdfast_operator.core.membership import MemberSeen, members
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import AttemptStatus, PhaseDuration, PreemptionStatus, TrainingJobStatus

PHASES = ("quiesce", "flush", "start", "claim", "fetch", "import", "load", "first-step")
"""quiesce: notice to all ranks stopped at one boundary; flush: until the commit; start: until all agents have accepted the new attempt; claim; fetch: until
every byte is verified in memory; import: what Python, torch, the model and the process group still need after that; load: until every rank holds its
state; first-step."""


def update(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Closes every open entry of earlier attempts once the current attempt has taken its first step."""
    attempt = status.attempt
    if attempt is None or attempt.first_step_at is None:
        return status
    entries = tuple(
        _closed(p, attempt, members(seen, attempt)) if p.resumed_at is None and p.attempt != attempt.number else p
        for p in status.preemptions
    )
    if entries == status.preemptions:
        return status
    last = next(p for p in reversed(entries) if p.resumed_at is not None)
    closed = [after for before, after in zip(status.preemptions, entries, strict=True) if before != after]
    caught = status.counts.caught + sum(p.steps_lost == 0 and p.cause != Cause.RESIZE.value for p in closed)
    return status.model_copy(
        update={
            "preemptions": entries,
            "last_resume_milliseconds": last.total_milliseconds,
            "counts": status.counts.model_copy(update={"caught": caught}),
        }
    )


def durations(start: datetime, ends: tuple[datetime | None, ...], end: datetime) -> tuple[PhaseDuration, ...]:
    """`ends` holds the end of every phase but the last; None where nobody knows it. The result adds up to `end - start`."""
    total = max(_ms(end - start), 0)
    marks = [0]
    for moment in ends:
        reached = marks[-1] if moment is None else min(max(_ms(moment - start), marks[-1]), total)
        marks.append(reached)
    marks.append(total)
    return tuple(PhaseDuration(name=name, milliseconds=marks[i + 1] - marks[i]) for i, name in enumerate(PHASES))


def _closed(entry: PreemptionStatus, attempt: AttemptStatus, whos: tuple[MemberSeen, ...]) -> PreemptionStatus:
    assert attempt.first_step_at is not None
    end = max(attempt.first_step_at, entry.noticed_at)
    ends = (
        entry.quiesced_at,
        entry.sealed_at,
        _last(whos, Stage.ATTEMPT_ACCEPTED) or attempt.accepted_at,
        _last(whos, Stage.CLAIMED) or attempt.claimed_at,
        _last(whos, Stage.FETCHED),
        _last(whos, Stage.LIBRARY_READY),
        _last(whos, Stage.LOADED),
    )
    phases = durations(entry.noticed_at, ends, end)
    from_name, from_step = resumed_from(attempt, whos)
    return entry.model_copy(
        update={
            "resumed_at": end,
            "resumed_from": from_name,
            "resumed_step": from_step,
            "steps_lost": max(0, entry.step_at_notice - from_step),
            "phases": phases,
            "total_milliseconds": sum(p.milliseconds for p in phases),
        }
    )


def resumed_from(attempt: AttemptStatus, whos: tuple[MemberSeen, ...]) -> tuple[str, int]:
    """What the ranks have really loaded: older than what was claimed if that proved damaged while it was fetched (C3)."""
    loaded = [w.report.restored for w in whos if w.report is not None and w.report.restored is not None]
    if not loaded or not attempt.parent_step:
        return attempt.parent, attempt.parent_step
    oldest = min(loaded, key=lambda c: c.boundary)
    if oldest.boundary == attempt.parent_step:
        return attempt.parent, attempt.parent_step
    return f"{oldest.attempt}/{oldest.save}", oldest.boundary


def _last(whos: tuple[MemberSeen, ...], stage: Stage) -> datetime | None:
    """The moment of several workers is that of the last one."""
    found = [w.report.stages[stage.value] for w in whos if w.report is not None and stage.value in w.report.stages]
    return max(found, default=None)


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)
