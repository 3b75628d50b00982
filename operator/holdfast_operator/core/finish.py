"""How a job ends: all workers finished, or a budget spent, or nothing can be gained by trying again."""

from dataclasses import dataclass
from datetime import datetime

from holdfast_api.messages import AgentPhase, Cause, Exit
from holdfast_api.soundness import Grade
from holdfast_operator.core import circles, elastic, failures, interruptions, unsound
from holdfast_operator.core.membership import MemberSeen, exit_of, members
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import PreemptionStatus, TrainingJobStatus


@dataclass(frozen=True, slots=True)
class Verdict:
    """The job is Failed for this reason."""

    reason: str
    message: str


def has_finished(seen: Observed, status: TrainingJobStatus) -> bool:
    """Every member's ranks have called `finish()` and ended well."""
    whos = members(seen, status.attempt)
    return bool(whos) and all(_finished(w) for w in whos)


def count_end(
    seen: Observed, before: TrainingJobStatus, status: TrainingJobStatus, now: datetime
) -> tuple[TrainingJobStatus, Verdict | None]:
    """When an attempt has just ended, counts it against its budget, sets the back-off, and says if the job is thereby over."""
    entry = interruptions.current(status)
    was = interruptions.current(before)
    if entry is None or entry.ended_at is None or (was is not None and was.ended_at is not None):
        return status, None
    if entry.source == interruptions.SUPERSEDED_SOURCE:
        return _go_above(seen, status), None
    status = _with_training(status, entry.ended_at)
    if entry.cause in (Cause.ROLLBACK.value, Cause.RESIZE.value):
        # Neither the machines' fault nor a crash. How often it may happen: status.rollBack counts, and elastic.py waits.
        return status, None
    progressed = _has_progressed(seen, status)
    status = circles.count(status, entry.cause, progressed=progressed)
    if entry.cause in failures.CAUSES:
        failure = failures.find(status, members(seen, status.attempt), now)
        status, verdict = _count(seen, status, failure, now, progressed=progressed)
    else:
        status, verdict = _count_preemption(seen, status, now, progressed=progressed)
    if verdict is None and (words := circles.too_many(status, seen.spec.budgets, describe(entry))):
        verdict = Verdict(circles.REASON, words)
    return status, verdict


def count_start_failure(
    seen: Observed, status: TrainingJobStatus, now: datetime
) -> tuple[TrainingJobStatus, Verdict | None]:
    """Counts a pod that failed before it could take part, and sets the back-off. A back-off that is set says that it has been counted."""
    if status.retry_at is not None or not interruptions.is_over(status) or elastic.can_do_without(seen, status):
        return status, None
    failure = failures.of_start(seen, status, now)
    return (status, None) if failure is None else _count(seen, status, failure, now, progressed=False)


def _count_preemption(
    seen: Observed, status: TrainingJobStatus, now: datetime, *, progressed: bool
) -> tuple[TrainingJobStatus, Verdict | None]:
    counts = status.counts.model_copy(update={"preemptions": status.counts.preemptions + 1})
    if progressed:
        counts = counts.model_copy(update={"failures_in_a_row": 0})
    budget = seen.spec.budgets.preemptions
    retry_at = circles.retry_at(counts, budget, now)
    verdict = None
    if budget.max is not None and counts.preemptions > budget.max:
        verdict = Verdict(
            "PreemptionBudgetSpent",
            f"preempted {counts.preemptions} times, spec.budgets.preemptions.max is {budget.max}: raise it, or use machines that stay",
        )
    return status.model_copy(update={"counts": counts, "retry_at": retry_at}), verdict


def _has_progressed(seen: Observed, status: TrainingJobStatus) -> bool:
    """The attempt has made a durable checkpoint. A run that saves NaN and then stops itself goes round in circles: what no start will use is no progress
    (C4)."""
    assert status.attempt is not None
    own = (c for c in status.checkpoints if c.name.startswith(f"{status.attempt.number}/"))
    return any(unsound.grade_of(seen, status, c) is Grade.SOUND for c in own)


def _count(
    seen: Observed, status: TrainingJobStatus, failure: failures.Failure | None, now: datetime, *, progressed: bool
) -> tuple[TrainingJobStatus, Verdict | None]:
    counts = failures.counted(status.counts, progressed=progressed)
    status = status.model_copy(update={"counts": counts, "retry_at": failures.retry_at(counts, seen.spec.budgets, now)})
    message = failure.message if failure else "a worker failed"
    if failure is not None and failure.final:
        return status, Verdict(failure.reason, message)
    limit = seen.spec.budgets.failures.max
    if counts.failures_in_a_row >= max(limit, 1):
        text = (
            f"{counts.failures_in_a_row} failures in a row without a new durable checkpoint (spec.budgets.failures.max is {limit}). "
            f"The last: {message}"
        )
        return status, Verdict(failure.reason if failure else "FailureBudgetSpent", text)
    return status, None


def _go_above(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """Another life of this attempt, or a later one, has claimed: go on above the newest claim, count no failure (A4)."""
    assert status.attempt is not None
    newest = interruptions.superseded_by(members(seen, status.attempt), status.attempt.number)
    return status.model_copy(update={"attempts_used": max(status.attempts_used, newest)})


def _with_training(status: TrainingJobStatus, ended_at: datetime) -> TrainingJobStatus:
    """What the attempt has trained, for the rate of interruptions."""
    began = status.attempt.first_step_at if status.attempt is not None else None
    if began is None or ended_at <= began:
        return status
    trained = status.counts.trained_seconds + round((ended_at - began).total_seconds())
    return status.model_copy(update={"counts": status.counts.model_copy(update={"trained_seconds": trained})})


def _finished(who: MemberSeen) -> bool:
    if exit_of(who) is Exit.FINISHED:
        return True
    # Finished but not ended yet: its last words are still to come, unless pod or node have gone meanwhile.
    gone = who.pod is None or who.pod.phase == "Succeeded" or who.node is None or not who.node.ready
    return gone and who.report is not None and who.report.phase is AgentPhase.FINISHED


def describe(entry: PreemptionStatus) -> str:
    """An interruption in one sentence, for events and conditions."""
    if entry.cause == Cause.RESIZE.value:
        return "the job is to go on with more workers"
    workers = ", ".join(str(w) for w in entry.workers[:8]) or "unknown"
    where = f" on {', '.join(entry.nodes[:4])}" if entry.nodes else ""
    by = f" ({entry.source})" if entry.source else ""
    until = f", deadline {entry.deadline:%H:%M:%S} UTC" if entry.deadline else ""
    return f"{entry.cause}{by}: worker {workers}{where}{until}"
