"""Quarantine (C4): a checkpoint that was refused for what is in it is used no more, its reason is told, and a person can lift it (`spec.validation.trusted`).

Lifting is an act, not a state: a name that is new in the spec takes its checkpoint out once. If an attempt after that refuses it again, it is quarantined again
and stays so until it is named anew. Which refusals are older than the act is told by attempts, not by clocks.
"""

from collections.abc import Iterable

from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import AgentReport, Rejection
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import QuarantineStatus, TrainingJobStatus, TrustedStatus

MAX_QUARANTINED = 256
MAX_REASONS = 64
MAX_ELSEWHERE = 64


def adopt(status: TrainingJobStatus, reports: Iterable[AgentReport]) -> TrainingJobStatus:
    """Only a failure of the checkpoint itself quarantines it (C4). What falls out of the bounded list is excluded by the horizon (D3)."""
    reports = tuple(reports)
    status = _adopt_elsewhere(status, reports)
    refused = {f"{x.attempt}/{x.save}": (r.attempt, x) for r in reports for x in r.rejections if _counts(status, r, x)}
    new = sorted(refused.keys() - set(status.quarantined), key=CheckpointRef.parse)
    if not new:
        return status
    quarantined = (*status.quarantined, *new)
    dropped, quarantined = quarantined[:-MAX_QUARANTINED], quarantined[-MAX_QUARANTINED:]
    at_horizon = (*dropped, *((status.horizon,) if status.horizon else ()))
    horizon = max((CheckpointRef.parse(n) for n in at_horizon), default=None)
    kept = tuple(c for c in status.checkpoints if c.name not in refused)
    return status.model_copy(
        update={
            "quarantined": quarantined,
            "quarantine": (*status.quarantine, *(_reason(name, *refused[name]) for name in new))[-MAX_REASONS:],
            "checkpoints": kept,
            "last_checkpoint": kept[-1] if kept else None,
            "horizon": str(horizon) if horizon else "",
        }
    )


def lift(seen: Observed, status: TrainingJobStatus) -> TrainingJobStatus:
    """Takes out what a person has named since the spec was last looked at. So is what has been given up and lies there still."""
    wanted = seen.spec.validation.trusted
    known = {t.checkpoint: t for t in status.trusted}
    if wanted == tuple(known):
        return status
    new = [name for name in wanted if name not in known]
    after = status.attempts_used
    return status.model_copy(
        update={
            "trusted": tuple(known.get(n) or TrustedStatus(checkpoint=n, after_attempt=after) for n in wanted),
            "quarantined": tuple(n for n in status.quarantined if n not in new),
            "quarantine": tuple(q for q in status.quarantine if q.checkpoint not in new),
            "expiring": tuple(n for n in status.expiring if n not in new),
        }
    )


def trusted(status: TrainingJobStatus) -> frozenset[str]:
    """Names that count as sound: those that a person vouches for and that no start has refused since."""
    return frozenset(t.checkpoint for t in status.trusted) - set(status.quarantined)


def in_words(status: TrainingJobStatus) -> str:
    """The newest few with their reasons and the way out; empty if there is none."""
    if not status.quarantined:
        return ""
    reasons = {q.checkpoint: q.reason for q in status.quarantine}
    named = "; ".join(f"{n} ({reasons[n][:200]})" if n in reasons else n for n in status.quarantined[-4:])
    return f"refused: {named}; to have one tried again name it in spec.validation.trusted"


def _counts(status: TrainingJobStatus, report: AgentReport, rejection: Rejection) -> bool:
    name = f"{rejection.attempt}/{rejection.save}"
    before = next((t.after_attempt for t in status.trusted if t.checkpoint == name), 0)
    return rejection.of_checkpoint and not rejection.job_uid and report.attempt > before


def _reason(name: str, attempt: int, rejection: Rejection) -> QuarantineStatus:
    return QuarantineStatus(checkpoint=name, reason=rejection.reason[:512], at=rejection.at, by_attempt=attempt)


def _adopt_elsewhere(status: TrainingJobStatus, reports: tuple[AgentReport, ...]) -> TrainingJobStatus:
    """Another job's checkpoint that proved bad: kept by its full name, because an own one may have the same number."""
    refused = {
        f"{x.job_uid}:{x.attempt}/{x.save}" for r in reports for x in r.rejections if x.of_checkpoint and x.job_uid
    }
    new = sorted(refused - set(status.quarantined_elsewhere))
    if not new:
        return status
    return status.model_copy(update={"quarantined_elsewhere": (*status.quarantined_elsewhere, *new)[-MAX_ELSEWHERE:]})
