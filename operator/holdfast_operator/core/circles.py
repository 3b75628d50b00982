"""Jobs that go round in circles: attempts in a row of which nothing durable is left, whatever ended them. Pure.

Each may have its own good reason, and none is anybody's fault: machines that are taken away without a word before the first checkpoint is due, a flush that
never fits the notice, a node that runs out of memory at every start. Together they cost machines for nothing, so they follow each other ever more slowly, and
at last the job stops with a reason.
"""

from datetime import datetime, timedelta

from holdfast_api.messages import Cause
from holdfast_operator.crd.v1alpha1 import Budgets, Counts, PreemptionBudget, TrainingJobStatus

REASON = "NoProgress"
AT_ONCE = 3
"""Preempted attempts without progress that are followed at once: a bad hour of a spot market is no circle."""
MAX_BACKOFF_SECONDS = 300


_DECIDED = (Cause.PRIORITY, Cause.EVICTION, Cause.DRAIN, Cause.SCALE_DOWN, Cause.DELETION, Cause.SIGTERM)
"""Somebody wanted it so, a queue or a person."""


def count(status: TrainingJobStatus, cause: str, *, progressed: bool) -> TrainingJobStatus:
    """One attempt more, which `cause` has ended. `progressed`: a durable checkpoint of its own, which a start would use, is left. What somebody ended before
    its first step had nothing to leave: a queue may do that to a job of low priority as often as it likes."""
    begun = status.attempt is not None and status.attempt.first_step_at is not None
    if not begun and cause in [c.value for c in _DECIDED]:
        return status
    row = 0 if progressed else status.counts.fruitless_in_a_row + 1
    return status.model_copy(update={"counts": status.counts.model_copy(update={"fruitless_in_a_row": row})})


def retry_at(counts: Counts, budget: PreemptionBudget, now: datetime) -> datetime | None:
    """When the next attempt after a preempted one may start; None: at once."""
    over = counts.fruitless_in_a_row - AT_ONCE
    if over <= 0 or not budget.backoff_seconds:
        return None
    return now + timedelta(seconds=min(budget.backoff_seconds * 2 ** min(over - 1, 16), MAX_BACKOFF_SECONDS))


def too_many(status: TrainingJobStatus, budgets: Budgets, last: str) -> str:
    """Why the job stops; empty: it goes on. `last` says what ended the last attempt."""
    row, limit = status.counts.fruitless_in_a_row, budgets.no_progress.max
    if not limit or row < limit:
        return ""
    return (
        f"{row} attempts in a row have ended before anything of theirs was durable (spec.budgets.noProgress.max is {limit}). The last: {last}. Save more often "
        "(spec.checkpoint.every), give pods more time to go (terminationGracePeriodSeconds), or use machines that stay longer; a job of this name goes on from "
        "the newest checkpoint with spec.resumeFrom.uid"
    )
