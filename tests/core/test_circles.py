"""Attempts in a row of which nothing durable is left, whatever ended them (core/circles.py)."""

from typing import Any

import pytest
from job_worlds import JobWorld, a_job, checkpoint, condition

from holdfast_api.messages import AgentPhase
from holdfast_operator.crd.v1alpha1 import Phase

PATIENT = {"failures": {"max": 1000, "backoffSeconds": 0}}


def start(w: JobWorld, number: int, *saved: str) -> None:
    """Attempt `number` takes a first step, in new pods, and commits `saved`."""
    w.with_pods(serial=w.status.serials_used + 1).training(number=number, parent="fresh")
    if saved:
        w.reports(0, AgentPhase.TRAINING, checkpoints=tuple(checkpoint(name, 50) for name in saved))
        w.settled()


def preempted(w: JobWorld, number: int, *saved: str) -> float:
    """So it is and then loses a worker without a word. Returns the seconds until the next may start."""
    start(w, number, *saved)
    w.change_pod(1, w.status.serials_used, phase="Failed", reason="Evicted").settled()
    return (w.status.retry_at - w.now).total_seconds() if w.status.retry_at else 0.0


def crashed(w: JobWorld, number: int) -> None:
    start(w, number)
    w.reports(1, AgentPhase.FAILED, exit_detail="boom").settled()


def a_patient_job(**budgets: Any) -> JobWorld:
    return a_job(budgets={**PATIENT, **budgets})


def test_preempted_attempts_without_progress_follow_each_other_ever_more_slowly() -> None:
    w = a_patient_job()
    waits = [preempted(w, number) for number in range(1, 12)]
    assert waits == [0, 0, 0, 10, 20, 40, 80, 160, 300, 300, 300]
    assert condition(w.status, "Ready").reason == "BackingOff"
    w.with_pods(serial=w.status.serials_used + 1).after(299).settled()
    assert w.status.attempts_used == 11
    w.after(1).settled()
    assert w.status.attempts_used == 12


def test_a_durable_checkpoint_makes_the_next_preemption_free_again() -> None:
    w = a_patient_job()
    assert [preempted(w, n) for n in range(1, 5)] == [0, 0, 0, 10]
    assert preempted(w, 5, "5/1") == 0
    assert w.status.counts.fruitless_in_a_row == 0
    assert [preempted(w, n) for n in range(6, 10)] == [0, 0, 0, 10]


@pytest.mark.parametrize("seconds", [0, 7])
def test_how_slowly_is_set_in_the_budget(seconds: int) -> None:
    w = a_patient_job(preemptions={"backoffSeconds": seconds})
    assert [preempted(w, n) for n in range(1, 6)] == [0, 0, 0, seconds, 2 * seconds]


def test_a_job_that_makes_no_progress_over_the_set_number_of_attempts_stops_with_what_to_do() -> None:
    w = a_patient_job(noProgress={"max": 4})
    for number in (1, 2, 3):
        preempted(w, number)
        assert w.status.phase is not Phase.FAILED
    preempted(w, 4)
    assert w.status.phase is Phase.FAILED
    stalled = condition(w.status, "Stalled")
    assert (stalled.status, stalled.reason) == ("True", "NoProgress")
    for words in ("4 attempts in a row", "spec.budgets.noProgress.max is 4", "node-pressure", "spec.checkpoint.every"):
        assert words in stalled.message


def test_failures_and_preemptions_count_together_and_progress_starts_the_row_anew() -> None:
    w = a_patient_job(noProgress={"max": 3})
    preempted(w, 1)
    crashed(w, 2)
    preempted(w, 3, "3/1")
    crashed(w, 4)
    preempted(w, 5)
    assert w.status.phase is not Phase.FAILED
    crashed(w, 6)
    assert (w.status.phase, condition(w.status, "Stalled").reason) == (Phase.FAILED, "NoProgress")


def test_the_limit_is_20_unless_it_is_taken_away() -> None:
    for budget, ends in (({}, True), ({"noProgress": {"max": 0}}, False)):
        w = a_patient_job(**budget)
        for number in range(1, 21):
            assert w.status.phase is not Phase.FAILED
            preempted(w, number)
        assert (w.status.phase is Phase.FAILED) is ends


@pytest.mark.parametrize(
    ("reason", "begun", "counted"),
    [("Preempting", False, 0), ("Preempting", True, 4), ("Evicted", False, 4)],
)
def test_what_somebody_ended_before_its_first_step_had_nothing_to_leave(reason: str, begun: bool, counted: int) -> None:
    """A queue may do that as often as it likes; a node that runs out of memory at every start is a circle."""
    w = a_patient_job()
    for number in range(1, 5):
        w.with_pods(serial=w.status.serials_used + 1)
        if begun:
            w.training(number=number)
        else:
            w.attempt(number, accepted_at=w.now, may_claim_at=w.now)
        w.all_report(AgentPhase.TRAINING if begun else AgentPhase.STARTING)
        w.change_pod(1, w.status.serials_used, phase="Failed", reason=reason).settled()
    assert w.status.counts.preemptions == 4
    assert w.status.counts.fruitless_in_a_row == counted


def test_a_checkpoint_that_no_start_would_use_is_no_progress() -> None:
    """C4."""
    w = a_patient_job()
    for number in range(1, 4):
        preempted(w, number)
    start(w, 4, "4/1")
    bad = w.status.checkpoints[-1].model_copy(update={"finite": False, "not_finite": ("w",)})
    w.with_status(checkpoints=(bad,), last_checkpoint=bad)
    w.change_pod(1, w.status.serials_used, phase="Failed", reason="Evicted").settled()
    assert w.status.counts.fruitless_in_a_row == 4
    assert w.status.retry_at is not None
