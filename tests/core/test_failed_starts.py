"""C4: a start that fails for an unknown reason suspends at most one checkpoint, which is reinstated if the next older one fails in the same way."""

from typing import Any

from job_worlds import JobWorld, a_job, claim, condition, of_type

from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import AgentPhase, Blocked, BlockedReason, Stage
from holdfast_operator.core import retention
from holdfast_operator.core.actions import EmitEvent, SendAttempt


def a_job_with_checkpoints(*refs: str, **spec: Any) -> JobWorld:
    budgets = {"failures": {"max": 100, "backoffSeconds": 0}}
    return a_job(budgets=budgets, **spec).with_pods().with_checkpoints(*refs)


def start_fails(w: JobWorld, number: int, parent: str, *, given: bool = True) -> list[str]:
    """Attempt `number` claims `parent`, hands it to its ranks, and fails before a step. Returns the reasons of the events."""
    w.attempt(number, accepted_at=w.now, may_claim_at=w.now)
    w.all_report(AgentPhase.RESTORING, boundary=0, stages={Stage.LIBRARY_READY.value: w.now} if given else {})
    w.reports(0, AgentPhase.RESTORING, claim=claim(number, parent, 20)).settled()
    w.after(1).reports(1, AgentPhase.FAILED, exit_detail="CUDA error").reports(0, AgentPhase.RESTORING)
    decision = w.round()
    return [a.reason for a in decision.actions if isinstance(a, EmitEvent)]


def excluded(w: JobWorld) -> tuple[CheckpointRef, ...]:
    return retention.restore_order(w.seen(), w.status).excluded


def test_one_failed_start_suspends_nothing() -> None:
    w = a_job_with_checkpoints("1/1", "1/2")
    start_fails(w, 2, "1/2")
    assert excluded(w) == ()


def test_the_second_failed_start_from_it_leaves_it_out_of_the_next_and_quarantines_nothing() -> None:
    w = a_job_with_checkpoints("1/1", "1/2")
    start_fails(w, 2, "1/2")
    assert "CheckpointSuspended" in start_fails(w, 3, "1/2")
    assert excluded(w) == (CheckpointRef(1, 2),)
    assert w.status.quarantined == ()
    assert "left out of the next start: 1/2" in condition(w.status, "CheckpointUsable").message


def test_below_the_horizon_it_is_left_out_as_well() -> None:
    w = a_job_with_checkpoints("1/1", "1/2").with_status(horizon="1/7")
    start_fails(w, 2, "1/2")
    start_fails(w, 3, "1/2")
    assert retention.restore_order(w.seen(), w.status).retained == (CheckpointRef(1, 1),)


def test_it_is_reinstated_when_the_older_one_fails_too_and_then_nothing_is_suspended_any_more() -> None:
    w = a_job_with_checkpoints("1/1", "1/2")
    start_fails(w, 2, "1/2")
    start_fails(w, 3, "1/2")
    assert "CheckpointReinstated" in start_fails(w, 4, "1/1")
    assert excluded(w) == ()
    for number in (5, 6, 7):
        start_fails(w, number, "1/2")
        assert excluded(w) == ()


def test_when_the_older_one_starts_the_resume_says_what_was_passed_over() -> None:
    w = a_job_with_checkpoints("1/1", "1/2")
    start_fails(w, 2, "1/2")
    start_fails(w, 3, "1/2")
    w.attempt(4, accepted_at=w.now, may_claim_at=w.now)
    stages = {Stage.LIBRARY_READY.value: w.now, Stage.FIRST_STEP.value: w.now}
    w.all_report(AgentPhase.TRAINING, boundary=11, stages=stages)
    w.reports(0, AgentPhase.TRAINING, claim=claim(4, "1/1", 10), boundary=11, stages=stages).settled()
    assert w.status.suspicion is None
    assert w.status.preemptions[-1].fell_back == ("1/2: suspended after 2 failed starts from it",)
    assert w.status.quarantined == ()


def test_it_is_reinstated_when_no_older_one_can_be_used_at_all() -> None:
    """Else the job would stand there for ever, with a whole checkpoint that nobody may use."""
    w = a_job_with_checkpoints("1/1", "1/2")
    start_fails(w, 2, "1/2")
    start_fails(w, 3, "1/2")
    w.attempt(4, accepted_at=w.now, may_claim_at=w.now)
    none = Blocked(BlockedReason.NO_USABLE_CHECKPOINT, "1/1: chunk 3 does not verify")
    decision = w.all_report(AgentPhase.STARTING).reports(0, AgentPhase.BLOCKED, blocked=none).settled()
    assert excluded(w) == ()
    assert of_type(decision, SendAttempt)[-1].order.restore.excluded == ()
    assert "CheckpointReinstated" in {a.reason for a in of_type(decision, EmitEvent)}


def test_the_only_checkpoint_is_never_suspended() -> None:
    w = a_job_with_checkpoints("1/2")
    for number in (2, 3, 4):
        start_fails(w, number, "1/2")
    assert excluded(w) == ()


def test_a_script_that_crashes_before_it_was_given_any_state_says_nothing_about_the_checkpoint() -> None:
    w = a_job_with_checkpoints("1/1", "1/2")
    for number in (2, 3, 4):
        start_fails(w, number, "1/2", given=False)
    assert w.status.suspicion is None


def test_a_first_step_ends_the_count() -> None:
    w = a_job_with_checkpoints("1/1", "1/2")
    start_fails(w, 2, "1/2")
    w.training(number=3, parent="1/2", parent_step=20).settled()
    assert w.status.suspicion is None


def test_a_preempted_start_says_nothing_about_the_checkpoint() -> None:
    w = a_job_with_checkpoints("1/1", "1/2")
    for number in (2, 3):
        w.attempt(number, accepted_at=w.now, may_claim_at=w.now)
        w.all_report(AgentPhase.RESTORING, boundary=0, stages={Stage.LIBRARY_READY.value: w.now})
        w.reports(0, AgentPhase.RESTORING, claim=claim(number, "1/2", 20)).settled()
        w.change_pod(1, number - 1, phase="Failed", reason="Evicted").settled()
        w.with_pod(1, number, "n2")
    assert w.status.suspicion is None
