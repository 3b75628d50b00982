"""What ends an attempt without notice, whose fault it was, and what it costs: preemptions and failures have budgets of their own."""

from dataclasses import replace
from typing import Any

import pytest
from job_worlds import JobWorld, a_job, checkpoint, condition, of_type, seconds

from holdfast_api import names
from holdfast_api.messages import AgentPhase, Blocked, BlockedReason, Exit, LocalTrouble
from holdfast_operator.core.actions import CreatePod, DeletePod, EmitEvent, SendEnd
from holdfast_operator.crd.v1alpha1 import Phase, PreemptionStatus


def running(**spec: Any) -> JobWorld:
    return a_job(**spec).with_pods().training()


def test_a_node_that_is_not_ready_while_its_agent_is_heard_of_is_no_loss() -> None:
    w = running().after(20).change_node("n1", ready=False, ready_since=running().now).all_report(AgentPhase.TRAINING)
    w.round()
    assert w.status.phase is Phase.RUNNING


def test_a_silent_worker_on_a_node_that_is_not_ready_is_lost_after_the_set_time() -> None:
    w = running()
    w.after(60).change_node("n1", ready=False, ready_since=w.now)
    w.reports(0, AgentPhase.TRAINING)
    assert w.round().wake_at == w.now + seconds(5)
    assert w.status.phase is Phase.RUNNING
    w.after(5).round()
    entry = w.status.preemptions[-1]
    assert (w.status.phase, entry.cause, entry.workers, entry.nodes) == (Phase.RECOVERING, "node-lost", (1,), ("n1",))
    assert w.status.counts.preemptions == 1


def test_a_new_operator_does_not_take_its_own_ignorance_for_silence() -> None:
    w = running().after(600)
    w.heard.clear()
    w.watching_since = w.now
    w.change_node("n1", ready=False, ready_since=w.now - seconds(500)).round()
    assert w.status.phase is Phase.RUNNING


def test_a_pod_that_vanishes_is_lost_once_nothing_has_been_heard_for_the_set_time() -> None:
    w = running().after(2).without_pod(1)
    assert w.round().status.phase is Phase.RUNNING
    assert w.after(4).round().status.preemptions[-1].cause == "deletion"


def test_a_pod_that_is_removed_by_force_from_a_node_that_is_not_ready_went_with_the_node() -> None:
    """What people and the pod garbage collector do about a machine that does not answer is no reason of its own."""
    w = running().after(20).change_node("n1", ready=False, ready_since=running().now).without_pod(1)
    assert w.after(6).round().status.preemptions[-1].cause == "node-lost"


@pytest.mark.parametrize(
    ("reason", "cause"), [("Evicted", "node-pressure"), ("Terminated", "node-shutdown"), ("NodeLost", "node-lost")]
)
def test_what_the_kubelet_ended_is_a_preemption(reason: str, cause: str) -> None:
    w = running().change_pod(1, phase="Failed", reason=reason, message="because")
    w.round()
    assert w.status.preemptions[-1].cause == cause
    assert w.status.counts.failures == 0


@pytest.mark.parametrize("how", [Exit.PREEMPTED_SEALED, Exit.PREEMPTED_NOTHING_NEW])
def test_an_agent_that_was_told_to_go_by_somebody_else_is_a_preemption(how: Exit) -> None:
    w = running().reports(1, AgentPhase.SEALED, exit=how)
    w.round()
    assert (w.status.preemptions[-1].cause, w.status.counts.failures) == ("sigterm", 0)


EVICTED = {"disruption": "TerminationByKubelet", "disruption_message": "The node was low on resource: memory."}


def test_an_eviction_names_the_signal_that_its_kubelet_sent_before() -> None:
    """The agent has sealed and ended before the kubelet has written down what it did (F1)."""
    w = running().reports(1, AgentPhase.SEALED, exit=Exit.PREEMPTED_SEALED)
    w.round()
    assert w.status.preemptions[-1].cause == "sigterm"
    w.after(1).change_pod(1, phase="Failed", reason="Evicted", **EVICTED).round()
    (entry,) = w.status.preemptions
    assert (entry.cause, entry.source) == ("node-pressure", "pod:DisruptionTarget/TerminationByKubelet")
    assert w.status.counts.preemptions == 1


def test_what_is_announced_after_a_crash_is_not_its_name() -> None:
    w = running().reports(1, AgentPhase.FAILED, exit_detail="boom")
    w.round()
    w.after(1).change_pod(1, **EVICTED).round()
    assert [p.cause for p in w.status.preemptions] == ["failure"]


def test_what_is_announced_about_another_worker_is_not_its_name() -> None:
    w = running().reports(1, AgentPhase.SEALED, exit=Exit.PREEMPTED_SEALED)
    w.round()
    w.after(1).change_pod(0, **EVICTED).round()
    assert [p.cause for p in w.status.preemptions] == ["sigterm"]


def come_back() -> JobWorld:
    """The operator, after both agents have sealed for worker 1, which has ended; the API does not show that yet (fault scenario 35)."""
    w = running().after(60)
    w.heard.clear()
    w.watching_since = w.now
    return w.after(1).reports(0, AgentPhase.SEALED)


def test_an_operator_that_comes_back_listens_for_every_worker_before_it_blames_one_that_stands_still() -> None:
    w = come_back()
    assert w.round().wake_at == w.watching_since + seconds(20)
    assert not w.status.preemptions
    w.after(3).change_pod(1, phase="Failed", exit_code=names.EXIT_CODES[Exit.PREEMPTED_SEALED]).round()
    (entry,) = w.status.preemptions
    assert (entry.cause, entry.workers, entry.nodes) == ("sigterm", (1,), ("n1",))


def test_who_stands_still_for_nobody_is_replaced_in_the_end() -> None:
    w = come_back()
    w.round()
    w.after(19).round()
    (entry,) = w.status.preemptions
    assert (entry.cause, entry.workers) == ("sigterm", (0,))


def test_a_crashed_script_is_a_failure_with_back_off_that_doubles_and_the_words_it_died_with() -> None:
    w = running()
    waits = []
    for number in (1, 2):
        w.reports(number % 2, AgentPhase.FAILED, exit_detail="ValueError: no such column").settled()
        assert w.status.retry_at is not None
        waits.append((w.status.retry_at - w.now).total_seconds())
        assert "no such column" in condition(w.status, "Reconciling").message
        w.after(waits[-1]).settled()
        if number == 2:  # elsewhere: it may be the machine (incidents.py)
            w.with_pod(1, 2, "n2").settled()
        assert w.status.attempt is not None
        assert w.status.attempt.number == number + 1
        w.training(number=number + 1, step=40)
    assert waits == [10, 20]


def test_the_back_off_of_failures_ends_at_five_minutes() -> None:
    w = running(budgets={"failures": {"max": 100}})
    waits = []
    for number in range(1, 9):
        w.reports(0, AgentPhase.FAILED, exit_detail="boom").settled()
        assert w.status.retry_at is not None
        waits.append((w.status.retry_at - w.now).total_seconds())
        assert w.after(waits[-1] - 1).round().wake_at == w.status.retry_at
        w.with_pods(serial=w.status.serials_used + 1).training(number=number + 1).with_status(retry_at=None)
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]


def test_failures_in_a_row_without_a_new_checkpoint_end_the_job() -> None:
    w = running(budgets={"failures": {"max": 2, "backoffSeconds": 0}})
    for number in (1, 2):
        w.reports(1, AgentPhase.FAILED, exit_detail="boom").settled()
        if number == 1:
            w.training(number=2)
    assert w.status.phase is Phase.FAILED
    stalled = condition(w.status, "Stalled")
    assert (stalled.status, stalled.reason) == ("True", "TrainerFailed")
    assert "boom" in stalled.message
    assert "spec.budgets.failures.max" in stalled.message
    assert w.after(60).round().status.conditions == w.status.conditions, "what ended the job stays to be read"


def test_a_durable_checkpoint_starts_the_row_of_failures_anew() -> None:
    w = running(budgets={"failures": {"max": 2, "backoffSeconds": 0}})
    w.reports(1, AgentPhase.FAILED).settled()
    w.training(number=2).reports(0, AgentPhase.TRAINING, checkpoints=(checkpoint("2/1", 50),))
    w.reports(1, AgentPhase.FAILED).settled()
    assert w.status.phase is not Phase.FAILED
    assert (w.status.counts.failures, w.status.counts.failures_in_a_row) == (2, 1)


def test_a_durable_checkpoint_of_an_attempt_that_was_preempted_starts_the_row_anew_too() -> None:
    w = running(budgets={"failures": {"max": 2, "backoffSeconds": 0}})
    w.reports(1, AgentPhase.FAILED).settled()
    w.training(number=2).reports(0, AgentPhase.TRAINING, checkpoints=(checkpoint("2/1", 50),))
    w.reports(1, AgentPhase.SEALED, exit=Exit.PREEMPTED_SEALED).settled()
    assert (w.status.counts.preemptions, w.status.counts.failures_in_a_row) == (1, 0)


def test_a_preemption_without_progress_leaves_the_row_as_it_is() -> None:
    w = running(budgets={"failures": {"max": 2, "backoffSeconds": 0}})
    w.reports(1, AgentPhase.FAILED).settled()
    w.training(number=2).reports(1, AgentPhase.SEALED, exit=Exit.PREEMPTED_SEALED).settled()
    assert w.status.counts.failures_in_a_row == 1


def serials(w: JobWorld) -> list[int]:
    """Of the pods that are, or will be, workers."""
    newest = {e.worker: e.serial for e in sorted(w.status.workers, key=lambda e: e.serial)}
    return [newest[k] for k in sorted(newest)]


def test_crashed_ranks_start_again_in_the_pods_that_are_there() -> None:
    w = running(budgets={"failures": {"backoffSeconds": 0}})
    w.all_report(AgentPhase.FAILED).settled()
    assert w.status.attempt is not None
    assert w.status.attempt.number == 2
    assert serials(w) == [1, 1]


def test_a_worker_that_ends_attempt_after_attempt_gets_another_pod_and_the_others_stay() -> None:
    w = running(budgets={"failures": {"backoffSeconds": 0, "max": 10}})
    w.reports(1, AgentPhase.FAILED).settled()
    w.training(number=2).reports(1, AgentPhase.FAILED).settled()
    assert serials(w) == [1, 2]


@pytest.mark.parametrize("why", ["another worker", "progress between"])
def test_a_worker_keeps_its_pod_unless_the_same_one_fails_again_and_again(why: str) -> None:
    w = running(budgets={"failures": {"backoffSeconds": 0, "max": 10}})
    w.reports(1, AgentPhase.FAILED).settled()
    w.training(number=2)
    if why == "progress between":
        w.reports(0, AgentPhase.TRAINING, checkpoints=(checkpoint("2/1", 50),))
    w.reports(0 if why == "another worker" else 1, AgentPhase.FAILED).settled()
    assert serials(w) == [1, 1]


def test_after_a_failure_pods_are_made_anew_from_a_spec_that_has_been_corrected() -> None:
    """A running container keeps its image: started in place, the ranks would never see the correction."""
    w = running(budgets={"failures": {"backoffSeconds": 30}})
    made = tuple(e.model_copy(update={"made_from": "of the spec as it was"}) for e in w.status.workers)
    w.with_status(workers=made).reports(1, AgentPhase.FAILED).settled()
    w.after(30).settled()
    assert serials(w) == [2, 2]


def test_an_agent_that_waits_for_an_attempt_which_never_comes_is_told_to_end_and_its_pod_stays_for_its_log() -> None:
    w = running(budgets={"failures": {"max": 1}})
    decision = w.reports(1, AgentPhase.FAILED, exit_detail="boom").settled()
    assert w.status.phase is Phase.FAILED
    assert [a.pod.uid for a in of_type(decision, SendEnd)] == ["uid-1-1"]
    assert {a.uid for a in of_type(decision, DeletePod)} == {"uid-0-1"}
    assert decision.wake_at == w.now + seconds(30)
    late = w.after(30).decided()
    assert {a.uid for a in of_type(late, DeletePod)} == {"uid-0-1", "uid-1-1"}, "one that does not end is stopped"


def test_a_checkpoint_that_is_not_finite_is_no_progress() -> None:
    """A script that stops itself at NaN, after it was saved, would be restarted for ever."""
    w = running(budgets={"failures": {"max": 2, "backoffSeconds": 0}})
    w.reports(1, AgentPhase.FAILED).settled()
    wrong = replace(checkpoint("2/1", 50), finite=False, not_finite=("model.w",))
    w.training(number=2).reports(0, AgentPhase.TRAINING, checkpoints=(wrong,))
    w.reports(1, AgentPhase.FAILED).settled()
    assert w.status.phase is Phase.FAILED
    assert w.status.counts.failures_in_a_row == 2


def test_preemptions_do_not_spend_the_failure_budget_and_have_their_own() -> None:
    w = running(budgets={"preemptions": {"max": 0}})
    w.change_pod(1, phase="Failed", reason="Evicted").round()
    assert (w.status.phase, w.status.counts.failures) == (Phase.FAILED, 0)
    assert condition(w.status, "Stalled").reason == "PreemptionBudgetSpent"


def test_a_wrong_configuration_ends_the_job_at_once() -> None:
    w = running().reports(0, AgentPhase.FAILED, exit=Exit.CONFIGURATION_WRONG, exit_detail="chunk size").settled()
    assert w.status.phase is Phase.FAILED
    assert "chunk size" in condition(w.status, "Stalled").message


def test_an_out_of_memory_kill_names_the_limit_to_raise() -> None:
    w = running(budgets={"failures": {"max": 1}}).change_pod(1, phase="Failed", exit_code=137, exit_reason="OOMKilled")
    w.settled()
    assert "resources.limits.memory" in condition(w.status, "Stalled").message


def test_an_image_without_the_agent_names_the_line_to_add_and_does_not_storm_the_cluster() -> None:
    w = a_job().with_pods(
        phase="Failed", exit_code=128, exit_reason="StartError", exit_message="exec: not found", ip=""
    )
    first = w.settled()
    assert not of_type(first, CreatePod)
    assert (w.status.counts.failures, w.status.counts.failures_in_a_row) == (1, 1)
    assert "pip install 'holdfast[agent]'" in condition(w.status, "Stalled").message
    assert not of_type(w.after(9).settled(), CreatePod)
    assert len(of_type(w.after(2).settled(), CreatePod)) == 2
    assert w.status.counts.failures == 1


def test_one_failing_worker_fails_its_attempt_once_however_many_follow() -> None:
    w = running().reports(0, AgentPhase.FAILED).reports(1, AgentPhase.FAILED)
    w.settled()
    assert w.status.counts.failures == 1


def test_all_finished_is_success_and_nothing_is_deleted() -> None:
    w = running().all_report(AgentPhase.FINISHED, exit=Exit.FINISHED)
    for worker in (0, 1):
        w.change_pod(worker, phase="Succeeded", exit_code=0)
    decision = w.settled()
    assert w.status.phase is Phase.SUCCEEDED
    assert condition(w.status, "Ready").status == "True"
    assert not [a for a in decision.actions if type(a).__name__ == "DeletePod"]
    assert not w.after(100).round().actions


def test_a_finished_worker_waits_for_the_others() -> None:
    w = running().reports(1, AgentPhase.FINISHED, exit=Exit.FINISHED).change_pod(1, phase="Succeeded", exit_code=0)
    assert w.settled().status.phase is Phase.RUNNING


def test_a_trainer_that_died_beside_a_container_that_runs_on_is_a_failure() -> None:
    """The pod's phase stays Running then (G3: the trainer is one container of several)."""
    w = running().change_pod(1, exit_code=139, exit_reason="Error")
    w.settled()
    assert (w.status.preemptions[-1].cause, w.status.counts.failures) == ("failure", 1)


def test_a_finished_job_does_not_keep_the_machines_of_containers_that_never_end() -> None:
    w = running().all_report(AgentPhase.FINISHED, exit=Exit.FINISHED)
    for worker in (0, 1):
        w.change_pod(worker, exit_code=0, finished_at=w.now)
    w.settled()
    assert w.status.phase is Phase.SUCCEEDED
    assert not of_type(w.round(), DeletePod), "they may end by themselves"
    assert {a.uid for a in of_type(w.after(30).round(), DeletePod)} == {"uid-0-1", "uid-1-1"}


def test_an_agent_that_was_killed_before_all_had_accepted_is_found_out() -> None:
    """It refuses the attempt that an earlier life has joined (A1), so nobody may wait for it."""
    w = a_job().with_pods().attempt(1)
    w.reports(0, AgentPhase.WAITING, attempt=0, joined=1)
    w.settled()
    assert (w.status.preemptions[-1].cause, w.status.counts.failures) == ("failure", 1)


def test_an_out_of_memory_kill_that_was_restarted_in_place_names_the_limit_too() -> None:
    w = running(budgets={"failures": {"max": 1}}).change_pod(1, restarted_after="OOMKilled")
    w.reports(1, AgentPhase.WAITING, attempt=0, joined=1).settled()
    assert condition(w.status, "Stalled").reason == "OutOfMemory"


def test_saves_that_fail_are_a_condition_and_an_event_while_training_goes_on() -> None:
    w = running().with_checkpoints("1/1")
    why = Blocked(BlockedReason.STORAGE_DENIED, "s3://b/p: Denied: 403; check the Secret")
    events = of_type(w.reports(1, AgentPhase.TRAINING, saving=why).settled(), EmitEvent)
    found = condition(w.status, "StorageReady")
    assert (found.status, found.reason) == ("False", "SavesFail")
    assert "check the Secret" in found.message
    assert "1/1 at step 10" in found.message
    assert [e.warning for e in events if e.reason == "SavesFail"] == [True]
    assert condition(w.status, "Ready").status == "True"
    w.reports(1, AgentPhase.TRAINING, saving=None).settled()
    assert condition(w.status, "StorageReady").status == "True"


def test_a_full_disk_of_a_node_is_a_condition_and_an_event_and_nothing_else_changes() -> None:
    """Fault scenario 12."""
    w = running().with_checkpoints("1/1")
    assert "LocalStorageReady" not in [c.type for c in w.status.conditions]
    why = LocalTrouble("LocalStorageFull", "/var/lib/holdfast takes no image; give the volume room")
    events = of_type(w.reports(1, AgentPhase.TRAINING, local=why).settled(), EmitEvent)
    found = condition(w.status, "LocalStorageReady")
    assert (found.status, found.reason) == ("False", "LocalStorageFull")
    assert "give the volume room" in found.message
    assert [e.warning for e in events if e.reason == "LocalStorageFull"] == [True]
    assert condition(w.status, "Ready").status == "True"
    assert condition(w.status, "StorageReady").status == "True"
    w.reports(1, AgentPhase.TRAINING, local=LocalTrouble("no\nword", "x")).settled()
    assert condition(w.status, "LocalStorageReady").reason == "LocalStorageFailed"
    w.reports(1, AgentPhase.TRAINING, local=None).settled()
    assert condition(w.status, "LocalStorageReady").status == "True"


def test_an_interruption_that_is_not_recovered_from_stays_until_it_is_measured() -> None:
    w = running()
    done = tuple(PreemptionStatus(attempt=n, cause="spot", noticed_at=w.now, resumed_at=w.now) for n in range(2, 12))
    lost = PreemptionStatus(attempt=1, cause="spot", noticed_at=w.now, ended_at=w.now)
    assert w.status.attempt is not None
    w.with_status(attempt=w.status.attempt.model_copy(update={"number": 12, "first_step_at": None}), attempts_used=12)
    w.with_status(preemptions=(lost, *done)[:10])
    w.change_pod(1, phase="Failed", reason="Evicted").round()
    assert [p.attempt for p in w.status.preemptions] == [1, 3, 4, 5, 6, 7, 8, 9, 10, 12]


def test_a_pod_that_ended_well_in_the_attempt_before_is_not_waited_for() -> None:
    """Its exit code says nothing about an attempt that it never had."""
    w = a_job().with_pods().attempt(2)
    w.reports(0, AgentPhase.STARTING)
    w.change_pod(1, phase="Succeeded", exit_code=0).settled()
    assert (w.status.preemptions[-1].workers, w.status.counts.failures) == ((1,), 0)


def test_a_job_that_finished_without_its_last_state_says_so_where_a_person_looks() -> None:
    w = running().all_report(AgentPhase.FINISHED, exit=Exit.FINISHED)
    w.reports(
        0, AgentPhase.FINISHED, exit=Exit.FINISHED, exit_detail="the last boundary 44 could not be saved: ranks differ"
    )
    for worker in (0, 1):
        w.change_pod(worker, phase="Succeeded", exit_code=0)
    events = of_type(w.settled(), EmitEvent)
    found = condition(w.status, "Succeeded")
    assert (found.status, found.reason) == ("True", "FinishedUnsaved")
    assert "boundary 44" in found.message
    assert [e.warning for e in events if e.reason == "FinishedUnsaved"] == [True]
