"""The phases as data (design.md, section 5) and which one a job is in. docs/operator.md prints this table; a test walks it."""

from dataclasses import dataclass

from holdfast_operator.core import interruptions
from holdfast_operator.core.membership import newest_plans
from holdfast_operator.crd.v1alpha1 import Phase, TrainingJobStatus


@dataclass(frozen=True, slots=True)
class PhaseRow:
    phase: Phase
    entered: str
    leaves: str
    may_follow: tuple[Phase, ...]
    """Phases that may come next."""


_ANY_END = (Phase.SUCCEEDED, Phase.FAILED)

TABLE: tuple[PhaseRow, ...] = (
    PhaseRow(
        Phase.QUEUED,
        "suspended and no pod left, or a pod waits at a scheduling gate and nothing trains",
        "no longer suspended, admitted",
        (Phase.STARTING, Phase.RECOVERING, *_ANY_END),
    ),
    PhaseRow(
        Phase.STARTING,
        "pods of the attempt are wanted",
        "all ranks report a first step",
        (Phase.RUNNING, Phase.EVACUATING, Phase.RECOVERING, Phase.QUEUED, *_ANY_END),
    ),
    PhaseRow(
        Phase.RUNNING,
        "first step of the attempt",
        "notice, loss, failure, suspend, finish",
        (Phase.EVACUATING, Phase.RECOVERING, Phase.QUEUED, *_ANY_END),
    ),
    PhaseRow(
        Phase.EVACUATING,
        "an acting notice concerns a worker",
        "checkpoint sealed, deadline passed, worker lost, or notice withdrawn",
        (Phase.RECOVERING, Phase.RUNNING, Phase.STARTING, Phase.QUEUED, *_ANY_END),
    ),
    PhaseRow(
        Phase.RECOVERING,
        "the attempt is over: sealed, past its deadline, lost or failed",
        "the next attempt takes its first step",
        (Phase.RUNNING, Phase.EVACUATING, Phase.STARTING, Phase.QUEUED, *_ANY_END),
    ),
    PhaseRow(Phase.SUCCEEDED, "all workers finished", "-", ()),
    PhaseRow(Phase.FAILED, "a budget is spent, or trying again cannot help", "-", ()),
)

TERMINAL = (Phase.SUCCEEDED, Phase.FAILED)


def current(status: TrainingJobStatus) -> Phase:
    """Where a job stands that nobody has suspended and that is not at its end. A function of the rest of the status, never a memory of its own."""
    if status.phase in TERMINAL:
        return status.phase
    entry = interruptions.current(status)
    if entry is not None and entry.ended_at is None:
        return Phase.EVACUATING
    if interruptions.is_over(status) and any(w.gates for w in newest_plans(status).values()):
        return Phase.QUEUED
    if interruptions.unrecovered(status):
        return Phase.RECOVERING
    if status.attempt is not None and status.attempt.first_step_at is not None:
        return Phase.RUNNING
    return Phase.STARTING
