"""What a job needs next: `decide(seen, now)`. Pure, total and level-triggered: same world and time, same answer; any event may be lost, repeated or
reordered (design.md, section 5).

Each round first takes over what was seen (pods, reports, notices, ends of attempts), then does what the phase asks for. Orders are given only for what
the status that was *read* says; what this round decides is written first and acted on in the next (A1, A2).
"""

from datetime import datetime
from typing import assert_never

from holdfast_api import names
from holdfast_operator.core import (
    attempts,
    checkpoint_now,
    clean_up,
    conditions,
    earlier,
    elastic,
    evacuate,
    events,
    failures,
    feasibility,
    finish,
    giving_way,
    incidents,
    interruptions,
    notices,
    phases,
    progress,
    queueing,
    renew,
    replace,
    resume,
    retention,
    stragglers,
    suspend,
    suspicion,
    trouble,
    unfinished,
    unsound,
    wake,
)
from holdfast_operator.core.actions import Action, CheckTemplate, Decision
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import Phase, TrainingJobStatus

Step = tuple[TrainingJobStatus, tuple[Action, ...]]


def decide(seen: Observed, now: datetime) -> Decision:
    """`now` is UTC. Never raises for any `seen` that the shell can make."""
    if seen.job.annotations.get(names.ANNOTATION_PAUSED) == "paused":
        return Decision(seen.status)
    if seen.job.deleting:
        return Decision(seen.status, queueing.release(seen.pods))
    if seen.spec_error:
        return _finished_round(seen, seen.status, (), None, now)
    if seen.status.phase in phases.TERMINAL:
        actions, wake_at = clean_up.actions(seen, now)
        actions = (*actions, *queueing.release(seen.pods))
        return Decision(conditions.observed(seen.status, seen.job.generation), actions, wake_at)
    status = stragglers.update(seen, progress.adopt(seen, seen.status, now), now)
    if finish.has_finished(seen, status):
        return _finished_round(seen, _close(seen, status, Phase.SUCCEEDED, now), (), None, now)
    if seen.spec.suspend:
        return _while_still(seen, status, now, since=suspend.began(seen.status, now), why="the job is suspended")
    if interruptions.current(status) is None or status.stop is not None:
        status = unsound.update(seen, status, now)
    if status.stop is not None:
        return _while_still(seen, status, now, since=status.stop.since, why=f"stopped: {status.stop.checkpoint}")
    status = renew.drop_unclaimed(seen, status, now)
    status = notices.update(seen, status, now)
    status = elastic.take_back(seen, status, now)
    status = interruptions.update(seen, status, now)
    status = unfinished.update(seen, status, now)
    status = suspicion.update(seen, seen.status, status)
    status, verdict = finish.count_end(seen, seen.status, status, now)
    status = incidents.update(seen, seen.status, status, now)
    if verdict is None:
        status, verdict = finish.count_start_failure(seen, status, now)
    if verdict is not None:
        return _finished_round(seen, status.model_copy(update={"phase": Phase.FAILED}), (), verdict, now)
    status = resume.update(seen, earlier.complete(seen, status), now)
    status, actions = _by_phase(seen, status, now)
    return _finished_round(seen, status.model_copy(update={"phase": phases.current(status)}), actions, None, now)


def _by_phase(seen: Observed, status: TrainingJobStatus, now: datetime) -> Step:
    phase = phases.current(status)
    match phase:
        case Phase.STARTING | Phase.RECOVERING | Phase.QUEUED:
            return _while_no_step(seen, status, now)
        case Phase.RUNNING:
            return _while_running(seen, status, now)
        case Phase.EVACUATING:
            return _while_evacuating(seen, status, now)
        case Phase.SUCCEEDED | Phase.FAILED:
            return status, ()
        case unreachable:
            assert_never(unreachable)


def _while_no_step(seen: Observed, status: TrainingJobStatus, now: datetime) -> Step:
    """Starting or recovering: pods for every worker, then the attempt, then the claim, then wait for the first step."""
    if interruptions.is_over(status):
        if status.retry_at is None or now >= status.retry_at:
            status = replace.plan(seen, status, now).model_copy(update={"retry_at": None})
            status = attempts.start_next(seen, status, now)
    else:
        if interruptions.current(status) is None:
            status = replace.take_back(status, now)
        status = attempts.allow_claim(seen, status, now)
    actions = (
        *giving_way.orders(seen, status),
        *attempts.create_pods(seen, status),
        *attempts.orders(seen, status),
        *evacuate.orders(seen, status),
        *attempts.delete_obsolete(seen, status),
    )
    return status, actions


def _while_running(seen: Observed, status: TrainingJobStatus, now: datetime) -> Step:
    status = replace.take_back(status, now)
    status = elastic.look_out(seen, status, now)
    status = elastic.ask(seen, status, now)
    status = checkpoint_now.update(seen, status)
    status = retention.update(seen, status, now)
    actions = (
        *attempts.create_pods(seen, status),
        *evacuate.orders(seen, status),
        *checkpoint_now.order(seen, status),
        *retention.orders(seen, status),
        *attempts.delete_obsolete(seen, status),
    )
    return status, actions


def _while_evacuating(seen: Observed, status: TrainingJobStatus, now: datetime) -> Step:
    """Agents save; the replacement is made meanwhile, away from the doomed node (F5). One that fails is counted when the attempt is over."""
    if failures.of_start(seen, status, now) is None:
        status = replace.plan(seen, status, now)
    actions = (
        *evacuate.orders(seen, status),
        *attempts.orders(seen, status),
        *evacuate.unanswered(seen, status, now),
        *attempts.create_pods(seen, status),
        *attempts.delete_obsolete(seen, status),
    )
    return status, actions


def _while_still(seen: Observed, status: TrainingJobStatus, now: datetime, *, since: datetime, why: str) -> Decision:
    """Suspended, or stopped until a person has decided."""
    status = unfinished.update(seen, status, now)
    status, actions, wake_at = suspend.step(seen, status, now, since=since, why=why)
    phase = Phase.QUEUED if status.attempt is None and not status.workers else phases.current(status)
    decision = _finished_round(seen, status.model_copy(update={"phase": phase}), actions, None, now)
    return Decision(decision.status, decision.actions, wake.earliest(now, wake_at, decision.wake_at))


def _close(seen: Observed, status: TrainingJobStatus, phase: Phase, now: datetime) -> TrainingJobStatus:
    """A job that finishes in its first steps after an interruption still reports its time to resume (I9)."""
    return resume.update(seen, status, now).model_copy(update={"phase": phase})


def _finished_round(
    seen: Observed,
    status: TrainingJobStatus,
    actions: tuple[Action, ...],
    verdict: finish.Verdict | None,
    now: datetime,
) -> Decision:
    status = status.model_copy(update={"observed_generation": seen.job.generation})
    if status.phase not in phases.TERMINAL and not seen.spec_error:
        status = feasibility.update(seen, status)
    found = trouble.find(seen, status, now) if status.phase not in phases.TERMINAL else None
    status = conditions.update(seen, status, found, verdict, now)
    told = events.between(seen.status, status)
    checks = () if seen.template_checked or status.phase in phases.TERMINAL or seen.spec_error else (CheckTemplate(),)
    released = queueing.release(seen.pods)
    return Decision(status, (*actions, *released, *checks, *told), wake.next_look(seen, status, now))
