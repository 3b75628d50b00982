"""An attempt from plan to claim: written before it is told, told before it may claim, never a number or a name twice (A1-A4)."""

from typing import Any

from job_worlds import UID, JobWorld, a_job, checkpoint, claim, of_type

from holdfast_api import names
from holdfast_api.messages import AgentPhase, Exit, Stage
from holdfast_operator.core.actions import CreatePod, DeletePod, EnsureChildren, SendAttempt
from holdfast_operator.crd.v1alpha1 import Phase

SPOT = "aws-node-termination-handler/spot-itn"


def fresh(**spec: Any) -> JobWorld:
    return a_job(**spec)


def test_serials_are_written_first_and_pods_are_created_in_the_next_round() -> None:
    w = fresh()
    first = w.round()
    assert [(x.worker, x.serial) for x in w.status.workers] == [(0, 1), (1, 1)]
    assert not of_type(first, CreatePod)
    assert [(a.worker, a.serial) for a in of_type(w.round(), CreatePod)] == [(0, 1), (1, 1)]


def test_service_secret_and_policy_come_before_the_first_pod() -> None:
    w = fresh()
    w.children_exist = False
    w.round()
    actions = w.round().actions
    assert isinstance(actions[0], EnsureChildren)
    assert isinstance(actions[1], CreatePod)


def test_the_attempt_is_recorded_when_all_pods_have_an_address_and_told_in_the_next_round() -> None:
    w = fresh().with_pod(0, 1, "n0").with_pod(1, 1, "n1", ip="")
    w.round()
    assert w.status.attempt is None
    first = w.change_pod(1, ip="10.0.1.1").round()
    assert w.status.attempt is not None
    assert w.status.attempt.number == 1
    assert not of_type(first, SendAttempt)
    told = of_type(w.round(), SendAttempt)
    assert [m.address for m in told[0].order.members] == ["10.0.0.1", "10.0.1.1"]
    assert not told[0].order.may_claim


def test_leave_to_claim_waits_for_every_member() -> None:
    w = fresh().with_pods().attempt()
    w.reports(0, AgentPhase.STARTING).settled()
    assert w.status.attempt is not None
    assert w.status.attempt.may_claim_at is None
    decision = w.reports(1, AgentPhase.STARTING).settled()
    assert w.status.attempt.may_claim_at == w.now
    assert all(a.order.may_claim for a in of_type(decision, SendAttempt)[-2:])


def test_orders_end_with_the_claim() -> None:
    w = fresh().with_pods().attempt(may_claim_at=None)
    w.all_report(AgentPhase.STARTING).settled()
    w.reports(0, AgentPhase.RESTORING, claim=claim(1)).settled()
    assert w.status.attempt is not None
    assert (w.status.attempt.parent, w.status.attempt.incarnation) == ("fresh", "incarnation-1")
    assert not of_type(w.round(), SendAttempt)


def test_no_next_attempt_while_the_old_one_can_still_commit() -> None:
    w = fresh().with_pods().training().tainted("n1", SPOT)
    w.settled()
    w.with_pod(1, 2, "n2").all_report(AgentPhase.EVACUATING).after(30).all_report(AgentPhase.EVACUATING).settled()
    assert w.status.attempt is not None
    assert w.status.attempt.number == 1
    w.all_report(AgentPhase.SEALED).settled()
    assert w.status.attempt.number == 2
    assert [m.pod_uid for m in w.status.attempt.members] == ["uid-0-1", "uid-1-2"]


def test_the_doomed_pod_goes_only_when_the_next_attempt_stands_without_it() -> None:
    w = fresh().with_pods().training().tainted("n1", SPOT)
    before = w.settled()
    w.with_pod(1, 2, "n2").all_report(AgentPhase.SEALED)
    after = w.settled()
    assert not of_type(before, DeletePod)
    assert [a.uid for a in of_type(after, DeletePod)] == ["uid-1-1"]


def test_a_second_loss_while_recovering_goes_to_the_next_number_and_closes_with_both_measured() -> None:
    w = fresh().with_pods().training().tainted("n1", SPOT)
    w.settled()
    w.with_pod(1, 2, "n2").all_report(AgentPhase.SEALED).settled()
    w.after(2).tainted("n2", SPOT).settled()
    assert [p.attempt for p in w.status.preemptions] == [1, 2]
    w.nodes["n3"] = w.nodes["n0"]
    w.with_pod(1, 3, "n3").settled()
    assert w.status.attempt is not None
    assert w.status.attempt.number == 3
    w.after(3).all_report(AgentPhase.STARTING).settled()
    done = {Stage.FIRST_STEP.value: w.now}
    w.reports(0, AgentPhase.TRAINING, claim=claim(3), boundary=41, stages=done)
    w.reports(1, AgentPhase.TRAINING, boundary=41, stages=done).settled()
    assert w.status.phase is Phase.RUNNING
    assert all(p.resumed_at is not None for p in w.status.preemptions)
    assert w.status.counts.preemptions == 2


def test_a_greater_claim_is_gone_above_and_counts_nothing() -> None:
    w = fresh().with_pods().attempt()
    w.all_report(AgentPhase.STARTING).settled()
    w.reports(0, AgentPhase.FAILED, exit=Exit.SUPERSEDED, superseded_by=7).settled()
    assert w.status.attempts_used == 7
    assert (w.status.counts.failures, w.status.counts.preemptions) == (0, 0)
    assert w.with_pod(0, 2, "n0").settled().status.attempt is not None
    assert w.status.attempts_used == 8


def test_another_life_of_an_agent_is_a_new_attempt_in_the_same_pod() -> None:
    w = fresh().with_pods().training()
    w.reports(1, AgentPhase.WAITING, attempt=0).after(0).settled()
    assert w.status.retry_at is not None
    w.after(11).settled()
    assert w.status.attempt is not None
    assert (w.status.attempt.number, w.status.counts.failures) == (2, 1)
    assert [m.pod_uid for m in w.status.attempt.members] == ["uid-0-1", "uid-1-1"]


def test_new_pods_keep_away_from_doomed_nodes() -> None:
    w = fresh().with_pods().training().tainted("n1", SPOT).tainted("n2", SPOT)
    (created,) = of_type(w.settled(), CreatePod)
    assert created.avoid_nodes == ("n1", "n2")


def test_a_pod_that_avoids_a_node_for_nothing_is_planned_anew() -> None:
    w = fresh().with_pods().training().tainted("n1", SPOT)
    w.settled()
    w.with_pod(1, 2).all_report(AgentPhase.SEALED).settled()
    entry = w.status.workers[-1].model_copy(update={"avoid_nodes": ("n1",)})
    w.with_status(workers=(*w.status.workers[:-1], entry)).change_pod(1, 2, unschedulable="no node fits")
    w.without_pod(1).change_node("n1", taints=()).after(6).settled()
    assert [(x.serial, x.avoid_nodes) for x in w.status.workers if x.worker == 1][-1] == (3, ())


def test_names_of_pods_hold_the_jobs_uid_worker_and_serial() -> None:
    assert names.pod_name("job", UID, 1, 12) == "job-0a1b2c3d-1-12"


def test_commits_of_superseded_attempts_are_still_heard_of() -> None:
    w = fresh().with_pods().training(number=2)
    w.reports(0, AgentPhase.TRAINING, checkpoints=(checkpoint("2/1", 50),)).settled()
    assert [c.name for c in w.status.checkpoints] == ["2/1"]
