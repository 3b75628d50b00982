"""A crash of training code is the job's own failure only if no other worker has vanished meanwhile (core/blame.py)."""

from typing import Any

from job_worlds import JobWorld, a_job, condition, seconds

from holdfast_api.messages import AgentPhase, Exit, Stage
from holdfast_operator.crd.v1alpha1 import Phase


def a_crash_beside_a_silent_worker(**spec: Any) -> JobWorld:
    """Worker 0's ranks crashed, worker 1 was heard of last three seconds before."""
    w = a_job(**spec).with_pods().training(step=40).after(3)
    return w.reports(0, AgentPhase.FAILED, exit_detail="Connection closed by peer", stages={Stage.FAILED.value: w.now})


def test_while_another_worker_is_silent_nobody_is_blamed_and_a_condition_says_who_is_waited_for() -> None:
    w = a_crash_beside_a_silent_worker()
    decision = w.settled()
    assert (w.status.preemptions, w.status.counts.failures) == ((), 0)
    assert decision.wake_at is not None
    assert condition(w.status, "Ready").reason == "WorkerSilent"
    assert "worker 1 on node n1" in condition(w.status, "Ready").message


def test_a_machine_that_turns_out_to_be_gone_is_a_preemption_and_costs_no_failure() -> None:
    w = a_crash_beside_a_silent_worker()
    w.settled()
    w.after(5).reports(
        0, AgentPhase.FAILED, exit=Exit.TRAINER_FAILED, exit_detail="Connection closed by peer"
    ).settled()
    assert w.status.preemptions == ()
    w.after(30).change_node("n1", ready=False, ready_since=w.now).settled()
    w.after(5).settled()
    assert [(p.cause, p.workers) for p in w.status.preemptions] == [("node-lost", (1,))]
    assert (w.status.counts.preemptions, w.status.counts.failures, w.status.retry_at) == (1, 0, None)


def test_a_word_from_the_other_worker_after_the_crash_makes_it_a_failure() -> None:
    w = a_crash_beside_a_silent_worker()
    w.settled()
    w.after(1).reports(1, AgentPhase.TRAINING).settled()
    assert [(p.cause, p.workers) for p in w.status.preemptions] == [("failure", (0,))]
    assert w.status.counts.failures == 1


def test_it_is_a_failure_when_the_silence_lasts_longer_than_a_lost_machine_goes_undetected() -> None:
    w = a_crash_beside_a_silent_worker()
    w.settled()
    due = w.after(64).settled().wake_at
    assert w.status.counts.failures == 0
    w.after(1).settled()
    assert w.now == due
    assert (w.status.counts.failures, w.status.phase) == (1, Phase.RECOVERING)


def test_repeated_reports_of_the_crash_do_not_move_its_moment() -> None:
    w = a_crash_beside_a_silent_worker()
    w.settled()
    w.after(1).reports(1, AgentPhase.TRAINING)
    w.after(1).reports(0, AgentPhase.FAILED, exit_detail="Connection closed by peer").settled()
    assert w.status.counts.failures == 1


def test_an_agent_that_was_killed_is_the_cause_and_not_the_crash_of_its_peers() -> None:
    w = a_crash_beside_a_silent_worker()
    w.settled()
    w.after(1).reports(1, AgentPhase.WAITING, attempt=0, joined=1).settled()
    assert (w.status.preemptions[-1].source, w.status.preemptions[-1].workers) == ("AgentRestarted", (1,))


def test_a_clock_that_is_ahead_does_not_put_the_verdict_off() -> None:
    w = a_job().with_pods().training(step=40).after(3)
    ahead = {Stage.FAILED.value: w.now + seconds(600)}
    w.reports(0, AgentPhase.FAILED, exit_detail="x", stages=ahead).settled()
    w.after(1).reports(1, AgentPhase.TRAINING).settled()
    assert w.status.counts.failures == 1


def test_the_words_of_the_first_crash_are_the_ones_that_are_told() -> None:
    """Worker 1's script fails; worker 0's ranks crash a moment later because their peer is gone."""
    w = a_job().with_pods().training(step=40).after(3)
    w.reports(1, AgentPhase.FAILED, exit_detail="ValueError: no such column", stages={Stage.FAILED.value: w.now})
    w.after(0.5)
    w.reports(
        0, AgentPhase.FAILED, exit_detail="Connection closed by peer", stages={Stage.FAILED.value: w.now}
    ).settled()
    assert w.status.preemptions[-1].workers == (1,)
    assert "no such column" in condition(w.status, "Reconciling").message


def test_a_node_that_is_gone_at_once_is_not_waited_for_longer_than_any_other_loss() -> None:
    w = a_crash_beside_a_silent_worker()
    w.without_node("n1").settled()
    w.after(5).settled()
    assert w.status.preemptions[-1].cause == "node-lost"
    assert w.status.preemptions[-1].noticed_at <= w.now - seconds(5)
