"""`spec.suspend` has the semantics of a Job's, with a checkpoint before the pods go (core/suspend.py)."""

from job_worlds import JobWorld, a_job, condition, of_type, seconds

from holdfast_api.messages import AgentPhase, Cause, Exit
from holdfast_operator.core.actions import CreatePod, DeletePod, SendCheckpoint
from holdfast_operator.crd.v1alpha1 import Phase


def suspended(w: JobWorld) -> JobWorld:
    return w.with_spec(suspend=True)


def test_a_job_that_is_made_suspended_has_no_pods_until_it_is_let_go() -> None:
    w = a_job(suspend=True)
    assert not of_type(w.settled(), CreatePod)
    assert w.status.phase is Phase.QUEUED
    assert condition(w.status, "Suspended").status == "True"
    assert [condition(w.status, t).status for t in ("Ready", "Reconciling", "Stalled")] == ["False", "False", "False"]
    assert of_type(w.with_spec(suspend=False).settled(), CreatePod)
    assert condition(w.status, "Suspended").status == "False"


def test_one_that_trains_is_asked_for_a_checkpoint_first_and_told_to_stop_then() -> None:
    w = suspended(a_job().with_pods().training())
    decision = w.settled()
    orders = {a.order for a in of_type(decision, SendCheckpoint)}
    assert {(o.cause, o.then_stop, o.deadline) for o in orders} == {(Cause.SUSPEND, True, w.now + seconds(600))}
    assert not of_type(decision, DeletePod)


def test_pods_go_when_it_is_made_and_nothing_is_counted() -> None:
    w = suspended(a_job().with_pods().training())
    (order,) = {a.order for a in of_type(w.settled(), SendCheckpoint)}
    w.all_report(AgentPhase.SEALED, done_requests=(order.request_id,), exit=Exit.PREEMPTED_SEALED)
    assert {a.uid for a in of_type(w.settled(), DeletePod)} == {"uid-0-1", "uid-1-1"}
    w.pods.clear()
    w.settled()
    assert (w.status.phase, w.status.attempt, w.status.workers) == (Phase.QUEUED, None, ())
    counts = w.status.counts
    assert (counts.preemptions, counts.failures, counts.fruitless_in_a_row) == (0, 0, 0)


def test_a_checkpoint_that_does_not_come_about_keeps_the_machines_for_ten_minutes_and_no_longer() -> None:
    w = suspended(a_job().with_pods().training())
    w.settled()
    assert w.after(599).round().wake_at == w.now + seconds(1)
    assert not of_type(w.settled(), DeletePod)
    assert of_type(w.after(1).settled(), DeletePod), "their agents have the pods' grace to save"


def test_one_that_has_taken_no_step_has_nothing_to_save() -> None:
    w = suspended(a_job().with_pods().attempt(1))
    decision = w.settled()
    assert not of_type(decision, SendCheckpoint)
    assert len({a.uid for a in of_type(decision, DeletePod)}) == 2


def test_one_of_which_a_worker_is_gone_cannot_save_and_does_not_wait_for_it() -> None:
    w = a_job().with_pods().training().change_pod(1, phase="Failed", reason="Evicted")
    decision = suspended(w).settled()
    assert not of_type(decision, SendCheckpoint)
    assert {a.uid for a in of_type(decision, DeletePod)} >= {"uid-0-1"}


def test_taken_back_before_the_pods_have_gone_it_goes_on() -> None:
    w = suspended(a_job().with_pods().training())
    w.settled()
    decision = w.with_spec(suspend=False).settled()
    assert not of_type(decision, DeletePod)
    assert w.status.phase is Phase.RUNNING
