"""C4, J4: what was found in a checkpoint decides what becomes of the attempt, as the job's policy says, and a person can say otherwise."""

from dataclasses import replace
from typing import Any

from job_worlds import T0, JobWorld, a_job, claim, condition, of_type

from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import AgentPhase, Cause, CheckpointInfo, Rejection, Stage
from holdfast_operator.core import retention
from holdfast_operator.core.actions import DeletePod, EmitEvent, SendAttempt, SendCheckpoint
from holdfast_operator.crd.v1alpha1 import OnUnsound, Phase, ResumeFrom, Suspect, Validation

ODD = "rank 1 is not like ranks 0, 2, in model.w"


def info(name: str, *, finite: bool | None = True, suspect: str = "") -> CheckpointInfo:
    attempt, save = (int(x) for x in name.split("/"))
    return CheckpointInfo(attempt, save, 10 * save, Cause.PERIODIC, T0, finite=finite, suspect=suspect)


def training(policy: str = "Continue", **validation: Any) -> JobWorld:
    w = a_job(validation={"onUnsound": policy, **validation}).with_pods().training(parent="fresh")
    return saves(w, info("1/1"), info("1/2"))


def saves(w: JobWorld, *infos: CheckpointInfo) -> JobWorld:
    for each in infos:
        w.after(10).reports(0, AgentPhase.TRAINING, boundary=each.boundary, checkpoints=(each,)).settled()
    return w


def again(w: JobWorld, number: int, parent: str = "1/2", boundary: int = 20) -> JobWorld:
    """The next attempt, in the same pods, takes a step."""
    stages = {Stage.FIRST_STEP.value: w.now}
    w.all_report(AgentPhase.STARTING, boundary=0, stages={}).settled()
    w.all_report(AgentPhase.TRAINING, boundary=boundary + 1, stages=stages)
    w.reports(0, AgentPhase.TRAINING, boundary=boundary + 1, stages=stages, claim=claim(number, parent, boundary))
    w.settled()
    return w


def test_by_default_it_trains_on_and_the_next_start_goes_back() -> None:
    w = saves(training(), info("1/3", suspect=ODD))
    assert (w.status.phase, w.status.stop, w.status.preemptions) == (Phase.RUNNING, None, ())
    assert [c.name for c in w.status.checkpoints] == ["1/1", "1/2", "1/3"], "it is kept"
    assert condition(w.status, "CheckpointUsable").message.startswith("1/2 at step 20")
    found = condition(w.status, "ReplicasAgree")
    assert "1/2 at step 20 is kept, and the next start continues it" in found.message
    assert "onUnsound: RollBack" in found.message
    assert "spec.validation.trusted" in found.message


def test_a_job_that_rolls_back_starts_the_next_attempt_in_the_same_pods_and_counts_no_preemption() -> None:
    w = training("RollBack")
    decision = (
        w.after(10).reports(0, AgentPhase.TRAINING, boundary=30, checkpoints=(info("1/3", suspect=ODD),)).settled()
    )
    assert w.status.attempt is not None
    assert w.status.attempt.number == 2
    assert {m.serial for m in w.status.attempt.members} == {1}
    (entry,) = w.status.preemptions
    assert (entry.cause, entry.source, entry.workers) == ("rollback", "checkpoint:1/3", (0, 1))
    assert (w.status.counts.preemptions, w.status.counts.failures) == (0, 0)
    assert not of_type(decision, DeletePod)
    assert {a.order.attempt for a in of_type(decision, SendAttempt)} == {2}
    assert "Interrupted" in {e.reason for e in of_type(decision, EmitEvent)}
    again(w, 2)
    assert w.status.phase is Phase.RUNNING
    assert (w.status.preemptions[-1].resumed_from, w.status.preemptions[-1].steps_lost) == ("1/2", 20)


def test_nan_is_gone_back_from_like_copies_that_differ() -> None:
    w = saves(training("RollBack"), info("1/3", finite=False))
    assert w.status.preemptions[-1].cause == "rollback"


def test_going_back_to_the_same_checkpoint_ends_after_three_times_and_a_person_is_asked() -> None:
    w = training("RollBack")
    for number in (1, 2, 3):
        saves(w, info(f"{number}/3", suspect=ODD))
        assert (w.status.attempt is not None and w.status.attempt.number) == number + 1
        again(w, number + 1)
    saves(w, info("4/3", suspect=ODD))
    assert w.status.attempt is not None
    assert w.status.attempt.number == 4
    assert w.status.stop is not None
    found = condition(w.status, "Stalled")
    assert (found.status, found.reason) == ("True", "CheckpointUnsound")
    assert "after going back to 1/2 3 times" in found.message


def test_a_newer_sound_checkpoint_starts_the_count_anew() -> None:
    w = training("RollBack")
    for number in (1, 2, 3):
        saves(w, info(f"{number}/3", suspect=ODD))
        again(w, number + 1)
    saves(w, info("4/1"), info("4/2", suspect=ODD))
    assert w.status.stop is None
    assert w.status.roll_back is not None
    assert (w.status.roll_back.to, w.status.roll_back.times) == ("4/1", 1)


def test_nobody_goes_back_where_there_is_nothing_sound_to_go_back_to() -> None:
    w = a_job(validation={"onUnsound": "RollBack"}).with_pods().training(parent="fresh")
    saves(w, info("1/1", suspect=ODD), info("1/2", suspect=ODD))
    assert (w.status.preemptions, w.status.stop, w.status.phase) == ((), None, Phase.RUNNING)
    assert "nothing sound is left" in condition(w.status, "CheckpointUsable").message


def test_an_evacuation_is_not_disturbed() -> None:
    w = training("RollBack").tainted("n1", "aws-node-termination-handler/spot-itn")
    w.settled()
    saves(w, info("1/3", suspect=ODD))
    assert [p.cause for p in w.status.preemptions] == ["spot"]
    w = training("Stop").tainted("n1", "aws-node-termination-handler/spot-itn")
    w.settled()
    saves(w, info("1/3", suspect=ODD))
    assert w.status.stop is None


def stopped() -> JobWorld:
    """It has made its last checkpoint, and no pod is left."""
    w = training("Stop")
    decision = (
        w.after(10).reports(0, AgentPhase.TRAINING, boundary=30, checkpoints=(info("1/3", suspect=ODD),)).settled()
    )
    (order,) = of_type(decision, SendCheckpoint)[-1:]
    assert order.order.then_stop
    last = (info("1/3", suspect=ODD), info("1/4", suspect=ODD))
    w.all_report(AgentPhase.SEALED, checkpoints=last, done_requests=(order.order.request_id,))
    assert {a.uid for a in of_type(w.settled(), DeletePod)} == {"uid-0-1", "uid-1-1"}
    w.without_pod(0).without_pod(1).settled()
    return w


def test_a_job_that_stops_makes_a_last_checkpoint_and_says_what_can_be_done() -> None:
    w = stopped()
    assert (w.status.phase, w.status.attempt) == (Phase.QUEUED, None)
    found = condition(w.status, "Stalled")
    assert (found.status, found.reason) == ("True", "CheckpointUnsound")
    for words in (
        ODD,
        "1/2 at step 20",
        "onUnsound: Continue",
        "spec.validation.trusted",
        "spec.resumeFrom.checkpoint",
    ):
        assert words in found.message
    w.after(3600).settled()
    assert w.status.attempt is None, "nothing happens without a person"


def test_each_way_out_of_a_stop_is_a_way_out() -> None:
    for change in (
        {"validation": Validation(on_unsound=OnUnsound.CONTINUE)},
        {"validation": Validation(on_unsound=OnUnsound.STOP, suspect=Suspect.ACCEPT)},
        {"validation": Validation(on_unsound=OnUnsound.STOP, trusted=("1/3",))},
        {"resume_from": ResumeFrom(checkpoint="1/1")},
    ):
        w = stopped()
        w.with_spec(**change).settled()
        assert w.status.stop is None
        assert {x.serial for x in w.status.workers} == {2}, change


def test_a_last_checkpoint_that_never_comes_does_not_keep_the_pods_for_ever() -> None:
    w = saves(training("Stop"), info("1/3", suspect=ODD))
    assert not of_type(w.after(500).round(), DeletePod)
    assert of_type(w.after(101).round(), DeletePod)


def test_accepted_or_trusted_findings_change_nothing_but_what_is_said() -> None:
    for validation in ({"suspect": "Accept"}, {"trusted": ["1/3"]}):
        for policy in ("RollBack", "Stop"):
            w = saves(training(policy, **validation), info("1/3", suspect=ODD))
            assert (w.status.preemptions, w.status.stop) == ((), None)
            assert condition(w.status, "CheckpointUsable").message.startswith("1/3 at step 30")
            assert condition(w.status, "ReplicasAgree").status == "False"
            assert "the next start continues it" in condition(w.status, "ReplicasAgree").message


def test_the_restore_order_says_what_is_trusted_and_accepted_and_what_is_trusted_is_not_given_up() -> None:
    w = saves(training(trusted=["1/1"], suspect="Accept"), *(info(f"1/{n}") for n in range(3, 9)))
    assert [c.name for c in w.status.checkpoints] == ["1/1", "1/6", "1/7", "1/8"]
    order = retention.restore_order(w.seen(), w.status)
    assert (order.trusted, order.accept_suspect) == ((CheckpointRef(1, 1),), True)
    assert CheckpointRef(1, 1) in order.retained


# ---- damage in the store


def test_what_a_scrub_has_found_is_told_and_pushes_out_nothing_that_is_whole() -> None:
    w = saves(training("Stop"), info("1/3"))
    w.reports(0, AgentPhase.TRAINING, damaged={"1/2": "chunk 3", "1/3": "chunk 3"}).settled()
    decision_reasons = {c.type: c.reason for c in w.status.conditions}
    assert decision_reasons["StoredIntact"] == "DamagedInStore"
    said = condition(w.status, "StoredIntact").message
    assert "1/3 at step 30: chunk 3" in said
    assert "1/1 at step 10 is the newest that is whole" in said
    assert w.status.stop is None, "it says nothing about the state that trains"
    assert condition(w.status, "CheckpointUsable").message.startswith("1/1 at step 10")
    damaged = {"1/2": "chunk 3", "1/3": "chunk 3"}
    for number in range(4, 9):
        each = replace(info(f"1/{number}"), boundary=10 * number)
        damaged[f"1/{number}"] = "chunk 3"
        w.after(10).reports(
            0, AgentPhase.TRAINING, boundary=each.boundary, checkpoints=(each,), damaged=damaged
        ).settled()
    assert [c.name for c in w.status.checkpoints] == ["1/1", "1/7", "1/8"]
    w.after(10).reports(0, AgentPhase.TRAINING, damaged={}).settled()
    assert condition(w.status, "StoredIntact").status == "True"
    assert condition(w.status, "CheckpointUsable").message.startswith("1/8 at step 80")


def test_a_lead_that_has_not_looked_yet_takes_no_finding_back() -> None:
    w = training()
    w.reports(0, AgentPhase.TRAINING, damaged={"1/2": "chunk 3"}).settled()
    w.reports(0, AgentPhase.TRAINING, damaged=None).settled()
    assert [c.damaged for c in w.status.checkpoints] == ["", "chunk 3"]


# ---- quarantine


BAD = Rejection(1, 2, "chunk 3 does not verify", True, T0)


def quarantined() -> JobWorld:
    """Attempt 2 has refused 1/2 and trains on from 1/1."""
    w = training().tainted("n1", "aws-node-termination-handler/spot-itn")
    w.settled()
    w.with_pod(1, 2, "n2").after(3).all_report(AgentPhase.SEALED, boundary=20, stages={}).settled()
    w.all_report(AgentPhase.STARTING, boundary=0, stages={}).reports(
        0, AgentPhase.STARTING, rejections=(BAD,)
    ).settled()
    return w


def test_a_quarantined_checkpoint_is_told_with_its_reason_and_the_way_out() -> None:
    w = quarantined()
    (entry,) = w.status.quarantine
    assert (entry.checkpoint, entry.reason, entry.by_attempt, entry.at) == ("1/2", BAD.reason, 2, T0)
    said = condition(w.status, "CheckpointUsable").message
    assert "1/2 (chunk 3 does not verify)" in said
    assert "spec.validation.trusted" in said


def test_a_person_lifts_a_quarantine_once_and_old_refusals_do_not_bring_it_back() -> None:
    w = quarantined()
    w.with_spec(validation=Validation(trusted=("1/2",)))
    decision = w.settled()
    assert (w.status.quarantined, w.status.quarantine) == ((), ())
    assert "QuarantineLifted" in {e.reason for e in of_type(decision, EmitEvent)}
    order = of_type(decision, SendAttempt)[-1].order.restore
    assert (order.excluded, order.trusted) == ((), (CheckpointRef(1, 2),))
    w.after(5).reports(0, AgentPhase.STARTING, rejections=(BAD,)).settled()
    assert w.status.quarantined == (), "the attempt that had refused it before still says so"


def test_what_is_refused_again_after_that_is_quarantined_again_until_it_is_named_anew() -> None:
    w = quarantined().with_spec(validation=Validation(trusted=("1/2",)))
    w.settled()
    w.training(number=3, parent="1/1").reports(0, AgentPhase.TRAINING, rejections=(BAD,)).settled()
    assert w.status.quarantined == ("1/2",)
    order = retention.restore_order(w.seen(), w.status)
    assert (order.excluded, order.trusted) == ((CheckpointRef(1, 2),), ())
    w.with_spec(validation=Validation()).settled()
    assert w.status.quarantined == ("1/2",), "to name it no more changes nothing"
    w.with_spec(validation=Validation(trusted=("1/2",))).settled()
    assert w.status.quarantined == ()


def test_a_lifted_one_below_the_horizon_may_be_used_and_is_no_stray() -> None:
    w = quarantined().with_status(horizon="1/7").with_spec(validation=Validation(trusted=("1/2",)))
    w.settled()
    assert CheckpointRef(1, 2) in retention.restore_order(w.seen(), w.status).retained
    w.training(number=3, parent="1/1").reports(0, AgentPhase.TRAINING, stray=(CheckpointRef(1, 2),)).settled()
    assert w.status.expiring == ()
    w.reports(0, AgentPhase.TRAINING, restored=replace(info("1/2"), boundary=20)).settled()
    assert "1/2" in [c.name for c in w.status.checkpoints]


def test_what_is_being_given_up_stays_if_a_person_names_it() -> None:
    """The store may keep it because everything newer is damaged: then it is all there is."""
    w = training().with_status(expiring=("1/1",), checkpoints=())
    w.with_spec(validation=Validation(trusted=("1/1",))).settled()
    assert w.status.expiring == ()
    assert retention.restore_order(w.seen(), w.status).excluded == ()


def test_a_deleted_one_does_not_come_back_because_it_is_trusted() -> None:
    w = training().with_status(horizon="1/2", checkpoints=(), last_checkpoint=None)
    w.with_spec(validation=Validation(trusted=("1/2",)))
    w.reports(0, AgentPhase.TRAINING, checkpoints=(info("1/2"),), expired=(CheckpointRef(1, 2),)).settled()
    assert w.status.checkpoints == ()
