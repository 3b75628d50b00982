"""What agents of earlier attempts said last, as the next lead found it in the store (H4): a deleted pod's own last words are gone within a second, and the
operator may have been away. It completes the measures of interruptions that are not recovered from yet, and decides nothing.
"""

from datetime import datetime

from holdfast_api.messages import EarlierReport, Stage
from holdfast_operator.core.membership import members, report_of
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import PreemptionStatus, TrainingJobStatus


def complete(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """Moments and steps that nobody had heard of. What is known already stays."""
    told = [e for w in members(seen, status.attempt) if w.report is not None for e in w.report.earlier]
    found = [e for e in told if not _heard_more(seen, e)]
    if not found:
        return status
    entries = tuple(_completed(p, [e for e in found if e.attempt == p.attempt]) for p in status.preemptions)
    return status if entries == status.preemptions else status.model_copy(update={"preemptions": entries})


def _completed(entry: PreemptionStatus, told: list[EarlierReport]) -> PreemptionStatus:
    if entry.resumed_at is not None or not told:
        return entry
    return entry.model_copy(
        update={
            "quiesced_at": entry.quiesced_at or _last(told, Stage.QUIESCED),
            "sealed_at": entry.sealed_at or _last(told, Stage.SEALED),
            "step_at_notice": max(entry.step_at_notice, *(e.boundary for e in told)),
        }
    )


def _heard_more(seen: Observed, told: EarlierReport) -> bool:
    """The agent itself has said more since, directly."""
    report = report_of(seen, told.pod_uid)
    return report is not None and report.attempt == told.attempt and report.sequence >= told.sequence


def _last(told: list[EarlierReport], stage: Stage) -> datetime | None:
    return max((e.stages[stage.value] for e in told if stage.value in e.stages), default=None)
