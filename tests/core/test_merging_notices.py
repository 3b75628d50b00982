"""Several notices at once: the earliest deadline counts, the strongest source names the cause (F1), and withdrawals are followed."""

from job_worlds import T0, a_job, of_type, seconds, sigterm

from holdfast_api.messages import AgentPhase, Cause, Stage
from holdfast_operator.core import interruptions
from holdfast_operator.core.actions import CreatePod, DeletePod, SendNotice
from holdfast_operator.crd.v1alpha1 import Phase

SPOT = "aws-node-termination-handler/spot-itn"


def test_a_spot_notice_and_then_a_short_delete_follow_the_shorter_deadline() -> None:
    w = a_job().with_pods().training().tainted("n1", SPOT)
    assert w.round().status.preemptions[-1].deadline == T0 + seconds(120)
    entry = w.after(5).deleted_pod(1, grace=10).round().status.preemptions[-1]
    assert entry.deadline == T0 + seconds(15)
    assert (entry.cause, entry.source) == ("spot", f"taint:{SPOT}")


def test_one_withdrawn_notice_leaves_the_other_nodes_evacuation_alone() -> None:
    w = a_job().with_pods().training().tainted("n0", "ToBeDeletedByClusterAutoscaler").tainted("n1", SPOT)
    assert w.round().status.preemptions[-1].workers == (0, 1)
    entry = w.change_node("n0", taints=()).after(1).round().status.preemptions[-1]
    assert (w.status.phase, entry.workers) == (Phase.EVACUATING, (1,))


def test_all_withdrawn_before_the_seal_means_training_goes_on() -> None:
    w = a_job().with_pods().training().tainted("n1", "ToBeDeletedByClusterAutoscaler")
    w.round()
    assert w.status.phase is Phase.EVACUATING
    decision = w.change_node("n1", taints=()).after(1).settled()
    assert (w.status.phase, w.status.preemptions, w.status.counts.preemptions) == (Phase.RUNNING, (), 0)
    assert all(n.withdrawn for s in of_type(decision, SendNotice) for n in s.order.notices)


def test_the_replacement_of_a_withdrawn_notice_is_thrown_away() -> None:
    w = a_job().with_pods().training().tainted("n1", "ToBeDeletedByClusterAutoscaler")
    w.round()
    assert [(a.worker, a.serial) for a in of_type(w.round(), CreatePod)] == [(1, 2)]
    w.with_pod(1, 2, "n2").change_node("n1", taints=()).after(1)
    assert [a.uid for a in of_type(w.settled(), DeletePod)] == ["uid-1-2"]
    assert w.status.serials_used == 2, "its serial is never used again"


def test_a_sigterm_is_overruled_by_the_deadline_of_the_deletion() -> None:
    w = a_job().with_pods().training()
    w.reports(1, AgentPhase.EVACUATING, notices=(sigterm(1, T0, within=15),)).deleted_pod(1, grace=30)
    entry = w.round().status.preemptions[-1]
    assert (entry.deadline, entry.cause) == (T0 + seconds(30), Cause.DELETION.value)


def test_a_notice_without_deadline_gets_the_configured_one() -> None:
    w = a_job(notices={"defaultDeadlineSeconds": 77}).with_pods().training()
    w.change_pod(1, disruption="EvictionByEvictionAPI")
    assert w.round().status.preemptions[-1].deadline == T0 + seconds(77)


def test_preparing_notices_alone_interrupt_nothing_and_delete_nothing() -> None:
    w = a_job().with_pods().training().change_node("n1", unschedulable=True)
    decision = w.tainted("n1", "aws-node-termination-handler/rebalance-recommendation").settled()
    assert w.status.phase is Phase.RUNNING
    assert not of_type(decision, DeletePod)
    assert not of_type(decision, CreatePod)
    assert interruptions.current(w.status) is None


def test_an_acting_irrevocable_notice_that_is_not_answered_ends_in_a_graceful_delete() -> None:
    w = a_job().with_pods().training().after(60).tainted("n1", SPOT)
    assert not of_type(w.round(), DeletePod)
    assert [a.uid for a in of_type(w.after(11).round(), DeletePod)] == ["uid-1-1"]


def test_a_revocable_notice_never_deletes_a_pod() -> None:
    w = a_job().with_pods().training().after(60).tainted("n1", "ToBeDeletedByClusterAutoscaler")
    w.round()
    assert not of_type(w.after(60).round(), DeletePod)


def test_a_new_operator_gives_a_silent_agent_time_to_answer_first() -> None:
    w = a_job().with_pods().training().after(60).tainted("n1", SPOT)
    w.round()
    w.after(30).heard.clear()
    w.watching_since = w.now
    assert not of_type(w.round(), DeletePod)
    assert of_type(w.after(11).round(), DeletePod)


def test_an_attempt_is_over_when_its_deadline_has_passed_and_not_before() -> None:
    w = a_job().with_pods().training().tainted("n1", SPOT)
    w.round()
    w.after(119).all_report(AgentPhase.EVACUATING).round()
    assert w.status.phase is Phase.EVACUATING
    w.after(1).round()
    assert w.status.preemptions[-1].ended_at == T0 + seconds(120)
    assert w.status.preemptions[-1].sealed_at is None


def test_the_moments_of_the_evacuation_are_kept_for_later() -> None:
    w = a_job().with_pods().training().tainted("n1", SPOT)
    w.round()
    stages = {Stage.QUIESCED.value: T0 + seconds(1), Stage.SEALED.value: T0 + seconds(3)}
    w.after(4).all_report(AgentPhase.SEALED, stages=stages).round()
    entry = w.status.preemptions[-1]
    assert (entry.quiesced_at, entry.sealed_at, entry.ended_at) == (T0 + seconds(1), T0 + seconds(3), w.now)
    assert w.status.phase is Phase.RECOVERING


def test_an_operator_that_was_away_counts_from_when_the_agents_stood_still() -> None:
    """I9: it finds a taint whose time nobody knows, and ranks that stopped for it long ago."""
    w = a_job().with_pods().training().tainted("n1", SPOT)
    stages = {Stage.QUIESCED.value: T0 + seconds(1), Stage.SEALED.value: T0 + seconds(3)}
    w.after(40).without_pod(1).reports(0, AgentPhase.SEALED, stages=stages).round()
    entry = w.status.preemptions[-1]
    assert (entry.cause, entry.noticed_at) == ("spot", T0 + seconds(1))


def test_a_loss_that_is_found_late_counts_from_when_the_others_stood_still() -> None:
    w = a_job().with_pods().training()
    w.watching_since = T0 + seconds(30)
    w.heard.clear()
    w.after(40).without_pod(1).reports(0, AgentPhase.SEALED, stages={Stage.QUIESCED.value: T0 + seconds(1)}).round()
    assert w.status.preemptions[-1].noticed_at == T0 + seconds(1)
