"""C4, second half: a start that fails for a reason that is not known to be the checkpoint's own.

Such a failure quarantines nothing. After two failed starts in a row from the same checkpoint it is suspended: left out of the next start, at most one at
a time, and only if there is an older one. If a start from an older one fails as well, or no older one can be used, it is reinstated, and nothing is
suspended any more until an attempt has taken a step. If the older one's start succeeds, the suspended one is off the lineage from then on (A7).
"""

from holdfast_api.messages import BlockedReason, Stage
from holdfast_operator.core import interruptions
from holdfast_operator.core.failures import CAUSES
from holdfast_operator.core.membership import members
from holdfast_operator.core.observed import Observed
from holdfast_operator.core.progress import ref_of, with_fall_backs
from holdfast_operator.core.resume import resumed_from
from holdfast_operator.crd.v1alpha1 import SuspicionState, SuspicionStatus, TrainingJobStatus

FAILED_STARTS = 2
"""In a row, from the same checkpoint: one may be anything."""


def update(seen: Observed, before: TrainingJobStatus, status: TrainingJobStatus) -> TrainingJobStatus:
    """`before` is the status that was read; the end of an attempt counts in the round that records it."""
    if status.attempt is not None and status.attempt.first_step_at is not None:
        return _over(status)
    if suspended(status) and _nothing_else_is_usable(seen, status):
        assert status.suspicion is not None
        found = status.suspicion.model_copy(update={"state": SuspicionState.REINSTATED})
        return status.model_copy(update={"suspicion": found})
    loaded = _failed_start(seen, before, status)
    if not loaded:
        return status
    found = _after_failed_start(status, loaded)
    return status if found == status.suspicion else status.model_copy(update={"suspicion": found})


def suspended(status: TrainingJobStatus) -> str:
    """Name of the checkpoint that the next start leaves out; empty if there is none."""
    found = status.suspicion
    return found.checkpoint if found is not None and found.state is SuspicionState.SUSPENDED else ""


def _over(status: TrainingJobStatus) -> TrainingJobStatus:
    """The first step ends every suspicion; what was passed over on the way to it is told with the resume."""
    name = suspended(status)
    if name:
        assert status.suspicion is not None
        status = with_fall_backs(
            status, (f"{name}: suspended after {status.suspicion.failures} failed starts from it",)
        )
    return status if status.suspicion is None else status.model_copy(update={"suspicion": None})


def _nothing_else_is_usable(seen: Observed, status: TrainingJobStatus) -> bool:
    """The lead has looked: there is no older one. One that starts have failed from is better than none."""
    reports = (w.report for w in members(seen, status.attempt) if w.report is not None)
    return any(r.blocked is not None and r.blocked.reason is BlockedReason.NO_USABLE_CHECKPOINT for r in reports)


def _failed_start(seen: Observed, before: TrainingJobStatus, status: TrainingJobStatus) -> str:
    """The checkpoint of this job that the attempt which has just failed had given to its ranks, before any of them took a step."""
    entry, was = interruptions.current(status), interruptions.current(before)
    if entry is None or entry.ended_at is None or (was is not None and was.ended_at is not None):
        return ""
    attempt = status.attempt
    if attempt is None or entry.cause not in CAUSES or not attempt.parent_step or ":" in attempt.parent:
        return ""
    whos = members(seen, attempt)
    given = any(w.report is not None and Stage.LIBRARY_READY.value in w.report.stages for w in whos)
    return resumed_from(attempt, whos)[0] if given else ""


def _after_failed_start(status: TrainingJobStatus, loaded: str) -> SuspicionStatus:
    found = status.suspicion
    if found is None:
        return SuspicionStatus(checkpoint=loaded, failures=1)
    match found.state:
        case SuspicionState.REINSTATED:
            return found
        case SuspicionState.SUSPENDED:
            return (
                found if loaded == found.checkpoint else found.model_copy(update={"state": SuspicionState.REINSTATED})
            )
        case SuspicionState.WATCHED:
            if loaded != found.checkpoint:
                return SuspicionStatus(checkpoint=loaded, failures=1)
            failures = found.failures + 1
            older = any(ref_of(c.name) < ref_of(loaded) for c in status.checkpoints)
            state = SuspicionState.SUSPENDED if failures >= FAILED_STARTS and older else SuspicionState.WATCHED
            return SuspicionStatus(checkpoint=loaded, failures=failures, state=state)
