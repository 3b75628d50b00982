"""Time to resume adds up and is measured once; retention keeps what must be kept and deletes only when it may (C5, D1, D3, I9)."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from job_worlds import T0, a_job, checkpoint, claim, of_type, seconds

from holdfast_api import names
from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import AgentPhase, Cause, CheckpointInfo, EarlierReport, OfJob, Rejection, Stage
from holdfast_operator.core import events, resume, retention
from holdfast_operator.core.actions import SendAttempt, SendCheckpoint, SendCollect
from holdfast_operator.crd.v1alpha1 import IntervalStatus, Phase, PreemptionStatus, ResumeFrom

SPOT = "aws-node-termination-handler/spot-itn"
moment = st.one_of(st.none(), st.timedeltas(timedelta(seconds=-50), timedelta(seconds=500)).map(lambda d: T0 + d))


@given(ends=st.tuples(*[moment] * (len(resume.PHASES) - 1)), total=st.timedeltas(timedelta(0), timedelta(hours=2)))
def test_phases_are_never_negative_and_add_up_whatever_the_clocks_say(ends: tuple, total: timedelta) -> None:
    found = resume.durations(T0, ends, T0 + total)
    assert [p.name for p in found] == list(resume.PHASES)
    assert all(p.milliseconds >= 0 for p in found)
    assert sum(p.milliseconds for p in found) == total // timedelta(milliseconds=1)


def test_a_time_to_resume_is_split_at_the_moments_that_agents_report() -> None:
    w = a_job().with_pods().training(step=40).tainted("n1", SPOT)
    w.settled()
    old = {Stage.QUIESCED.value: T0 + seconds(1), Stage.SEALED.value: T0 + seconds(3)}
    w.with_pod(1, 2, "n2").after(3).all_report(AgentPhase.SEALED, boundary=41, stages=old).settled()
    new = {s.value: T0 + seconds(t) for s, t in (
        (Stage.ATTEMPT_ACCEPTED, 5), (Stage.CLAIMED, 6), (Stage.FETCHED, 8), (Stage.LIBRARY_READY, 8.25), (Stage.LOADED, 9),
        (Stage.FIRST_STEP, 9.5),
    )}  # fmt: skip
    w.after(7).all_report(AgentPhase.STARTING, stages={}).settled()
    w.reports(0, AgentPhase.TRAINING, boundary=42, stages=new, claim=claim(2, "1/3", 41))
    before = w.status
    w.reports(1, AgentPhase.TRAINING, boundary=42, stages=new).settled()
    entry = w.status.preemptions[-1]
    assert [p.milliseconds for p in entry.phases] == [1000, 2000, 2000, 1000, 2000, 250, 750, 500]
    assert (entry.total_milliseconds, w.status.last_resume_milliseconds) == (9500, 9500)
    assert (entry.resumed_from, entry.resumed_step, entry.steps_lost) == ("1/3", 41, 0)
    assert [p.attempt for p in events.newly_resumed(before, w.status)] == [1]
    assert (w.status.counts.preemptions, w.status.counts.caught) == (1, 1)
    assert not events.newly_resumed(w.status, w.after(50).round().status), "a later write does not measure it again"


def test_the_lead_is_told_how_often_the_job_was_interrupted_and_says_how_often_it_saves() -> None:
    w = a_job().with_pods().training(step=40)
    w.reports(0, AgentPhase.TRAINING, boundary=41, interval_seconds=212, interval_reason="every 212 s").settled()
    assert w.status.interval == IntervalStatus(seconds=212, reason="every 212 s")
    began = w.status.attempt.first_step_at
    w.after(50).tainted("n1", SPOT).settled()
    w.with_pod(1, 2, "n2").after(3).all_report(AgentPhase.SEALED, boundary=41, stages={})
    w.settled()
    trained = w.status.counts.trained_seconds
    assert trained == round((w.status.preemptions[-1].ended_at - began).total_seconds()) > 0
    orders = [a.order for a in w.after(1).settled().actions if isinstance(a, SendAttempt)]
    assert {(o.interruptions, o.interruptions_caught, o.trained_seconds) for o in orders} == {(1, 0, float(trained))}
    assert w.status.interval is not None, "the last one stands until the next lead has chosen"
    assert w.after(30).settled().status.counts.trained_seconds == trained, "an attempt is counted once"


def test_what_is_reported_as_resumed_from_is_what_was_loaded_and_not_what_was_claimed() -> None:
    """The claimed checkpoint proved damaged while it was fetched, so the one before was loaded (C3)."""
    w = a_job().with_pods().training(step=40).tainted("n1", SPOT)
    w.settled()
    w.with_pod(1, 2, "n2").after(3).all_report(AgentPhase.SEALED, boundary=41, stages={}).settled()
    w.after(7).all_report(AgentPhase.STARTING, stages={}).settled()
    older = CheckpointInfo(1, 2, 30, Cause.PERIODIC, T0)
    done = {Stage.FIRST_STEP.value: T0 + seconds(10)}
    w.reports(0, AgentPhase.TRAINING, boundary=31, stages=done, claim=claim(2, "1/3", 41), restored=older)
    w.reports(1, AgentPhase.TRAINING, boundary=31, stages=done, restored=older).settled()
    entry = w.status.preemptions[-1]
    assert (entry.resumed_from, entry.resumed_step) == ("1/2", 30)
    assert (w.status.counts.preemptions, w.status.counts.caught) == (1, 0), "steps were lost"
    assert entry.steps_lost == entry.step_at_notice - 30


def test_without_notice_it_begins_at_the_loss_and_counts_the_steps_done_again() -> None:
    w = a_job().with_pods().training(step=47)
    w.change_pod(1, phase="Failed", reason="Evicted", finished_at=T0 + seconds(2)).after(3).settled()
    w.with_pod(1, 2, "n2").settled()
    w.after(4).all_report(AgentPhase.STARTING, boundary=0, stages={}).settled()
    done = {Stage.FIRST_STEP.value: T0 + seconds(10)}
    w.after(5).reports(0, AgentPhase.TRAINING, boundary=41, stages=done, claim=claim(2, "1/2", 40))
    w.reports(1, AgentPhase.TRAINING, boundary=41, stages=done).settled()
    entry = w.status.preemptions[-1]
    assert (entry.noticed_at, entry.total_milliseconds, entry.steps_lost) == (T0 + seconds(2), 8000, 7)


def test_what_the_lost_agents_said_last_comes_from_the_store_by_the_next_lead() -> None:
    """H4: the operator was away while they saved, and their pods are gone."""
    w = a_job().with_pods().training(step=40)
    w.change_pod(1, phase="Failed", reason="Evicted", finished_at=T0).settled()
    w.with_pod(1, 2, "n2").settled()
    told = tuple(
        EarlierReport(1, n, f"uid-{n}-1", 99, AgentPhase.SEALED, 44 + n, {
            Stage.QUIESCED.value: T0 + seconds(1 + n), Stage.SEALED.value: T0 + seconds(3)})
        for n in (0, 1)
    )  # fmt: skip
    w.after(4).all_report(AgentPhase.STARTING, boundary=0, stages={}).settled()
    done = {Stage.FIRST_STEP.value: T0 + seconds(10)}
    w.reports(0, AgentPhase.TRAINING, boundary=46, stages=done, claim=claim(2, "1/4", 45), earlier=told)
    w.reports(1, AgentPhase.TRAINING, boundary=46, stages=done).settled()
    entry = w.status.preemptions[-1]
    assert [p.milliseconds for p in entry.phases][:2] == [2000, 1000]
    assert (entry.sealed_at, entry.step_at_notice, entry.steps_lost) == (T0 + seconds(3), 45, 0)


def test_the_list_of_preemptions_is_bounded_and_keeps_the_newest() -> None:
    w = a_job().with_pods().training()
    for number in range(1, 14):
        w.change_pod(1, number, phase="Failed", reason="Evicted").after(5).settled()
        w.with_pod(1, number + 1, "n2").settled()
        w.training(number=number + 1).settled()
    assert [p.attempt for p in w.status.preemptions] == list(range(4, 14))
    assert w.status.counts.preemptions == 13


def test_the_newest_ones_and_the_proven_one_are_kept() -> None:
    w = a_job(checkpoint={"storage": {"uri": "s3://b/p"}, "keep": {"last": 2}}).with_pods()
    w.training(number=2, parent="1/2").with_checkpoints("1/1", "1/2", "1/3", "2/1", "2/2")
    w.round()
    assert [c.name for c in w.status.checkpoints] == ["1/2", "2/1", "2/2"]
    assert (w.status.expiring, w.status.horizon) == (("1/1", "1/3"), "1/3")


def test_nothing_is_given_up_or_deleted_between_an_attempts_creation_and_its_claim() -> None:
    w = a_job(checkpoint={"storage": {"uri": "s3://b/p"}, "keep": {"last": 1}}).with_pods().attempt(2)
    w.with_status(expiring=("1/1",)).with_checkpoints("1/2", "1/3")
    decision = w.all_report(AgentPhase.STARTING).settled()
    assert w.status.expiring == ("1/1",)
    assert not of_type(decision, SendCollect)


def test_deletions_are_ordered_from_the_lead_until_it_reports_them() -> None:
    w = a_job().with_pods().training(number=2).with_status(expiring=("1/1", "1/2"), horizon="1/2")
    (order,) = of_type(w.round(), SendCollect)
    assert (order.pod.uid, order.order.expired) == ("uid-0-1", (CheckpointRef(1, 1), CheckpointRef(1, 2)))
    w.reports(0, AgentPhase.TRAINING, expired=(CheckpointRef(1, 1),)).settled()
    assert w.status.expiring == ("1/2",)


def test_what_the_store_keeps_is_asked_for_again_after_everything_else_and_never_forgotten() -> None:
    """A branch or a base refers to it (D2, D5): it stays given up, or it would lie there for ever and nobody would know."""
    names_given_up = tuple(f"1/{n}" for n in range(1, 20))
    w = a_job().with_pods().training(number=2).with_status(expiring=names_given_up, horizon="1/19")
    w.reports(0, AgentPhase.TRAINING, kept=(CheckpointRef(1, 1), CheckpointRef(1, 3)))
    (order,) = of_type(w.settled(), SendCollect)[-1:]
    assert w.status.expiring == names_given_up
    assert order.order.expired[0] == CheckpointRef(1, 2)
    assert CheckpointRef(1, 1) not in order.order.expired
    done = tuple(CheckpointRef(1, n) for n in range(1, 20) if n not in (1, 3))
    w.reports(0, AgentPhase.TRAINING, expired=done, kept=(CheckpointRef(1, 1), CheckpointRef(1, 3)))
    (order,) = of_type(w.settled(), SendCollect)[-1:]
    assert order.order.expired == (CheckpointRef(1, 1), CheckpointRef(1, 3))


def test_what_nobody_uses_and_nobody_knew_of_is_given_up_and_what_is_retained_is_not() -> None:
    """The operator was away while it was committed, or a zombie committed it off the lineage (A7, D3)."""
    w = a_job().with_pods().training(number=3, parent="2/4").with_checkpoints("2/4", "3/1")
    w.with_status(quarantined=("1/6",))
    strays = (CheckpointRef(1, 6), CheckpointRef(1, 7), CheckpointRef(2, 5), CheckpointRef(2, 4))
    w.reports(0, AgentPhase.TRAINING, stray=strays)
    (order,) = of_type(w.settled(), SendCollect)[-1:]
    assert order.order.expired == (CheckpointRef(1, 7), CheckpointRef(2, 5))
    assert w.status.horizon == ""
    w.reports(0, AgentPhase.TRAINING, stray=(), expired=(CheckpointRef(1, 7), CheckpointRef(2, 5))).settled()
    assert w.status.expiring == ()


def test_strays_are_not_given_up_before_the_attempt_has_taken_a_step() -> None:
    w = a_job().with_pods().attempt(2)
    w.all_report(AgentPhase.STARTING).settled()
    w.reports(0, AgentPhase.RESTORING, claim=claim(2, "1/2", 20), stray=(CheckpointRef(1, 7),)).settled()
    assert w.status.expiring == ()


def test_what_was_deleted_does_not_come_back_from_an_old_report() -> None:
    w = a_job().with_pods().training(number=2).with_status(horizon="2/3")
    w.reports(0, AgentPhase.TRAINING, checkpoints=(checkpoint("2/2", 20), checkpoint("2/4", 40))).settled()
    assert [c.name for c in w.status.checkpoints] == ["2/4"]


def test_a_refused_checkpoint_is_quarantined_and_excluded_and_named() -> None:
    w = a_job().with_pods().training().with_checkpoints("1/1", "1/2").tainted("n1", SPOT)
    w.settled()
    w.with_pod(1, 2, "n2").all_report(AgentPhase.SEALED).settled()
    bad = Rejection(1, 2, "chunk 3 does not verify", True, w.now)
    decision = (
        w.all_report(AgentPhase.STARTING, boundary=0).reports(0, AgentPhase.STARTING, rejections=(bad,)).settled()
    )
    assert w.status.quarantined == ("1/2",)
    assert [c.name for c in w.status.checkpoints] == ["1/1"]
    assert w.status.preemptions[-1].fell_back == ("1/2: chunk 3 does not verify",)
    assert of_type(decision, SendAttempt)[-1].order.restore.excluded == (CheckpointRef(1, 2),)
    assert any(e.reason == "CheckpointRejected" for e in decision.actions if hasattr(e, "reason"))


def test_a_refused_checkpoint_of_another_job_is_kept_apart_from_the_own_one_of_the_same_number() -> None:
    w = a_job().with_pods().training().with_checkpoints("1/1", "1/2").tainted("n1", SPOT)
    w.settled()
    w.with_pod(1, 2, "n2").all_report(AgentPhase.SEALED).settled()
    bad = Rejection(1, 2, "chunk 3 does not verify", True, w.now, "11111111-source")
    decision = (
        w.all_report(AgentPhase.STARTING, boundary=0).reports(0, AgentPhase.STARTING, rejections=(bad,)).settled()
    )
    assert (w.status.quarantined, w.status.quarantined_elsewhere) == ((), ("11111111-source:1/2",))
    assert [c.name for c in w.status.checkpoints] == ["1/1", "1/2"]
    order = of_type(decision, SendAttempt)[-1].order.restore
    assert (order.excluded, order.own_only, order.excluded_of) == ((), True, (OfJob("11111111-source", 1, 2),))


def test_a_failed_start_for_another_reason_quarantines_nothing() -> None:
    w = a_job().with_pods().training().with_checkpoints("1/1")
    w.reports(0, AgentPhase.TRAINING, rejections=(Rejection(1, 1, "keys differ", False, w.now),)).settled()
    assert w.status.quarantined == ()


def test_the_restore_order_says_what_is_excluded_and_what_is_kept_below_the_horizon() -> None:
    w = (
        a_job()
        .with_pods()
        .attempt(3)
        .with_checkpoints("1/2", "2/5")
        .with_status(horizon="2/3", quarantined=("1/1", "2/4"), expiring=("2/3",))
    )
    order = retention.restore_order(w.seen(), w.status)
    assert order.horizon == CheckpointRef(2, 3)
    assert order.retained == (CheckpointRef(1, 2),)
    assert order.excluded == (CheckpointRef(2, 4),)


def test_fresh_and_a_pin_count_until_an_attempt_has_claimed_under_them() -> None:
    w = a_job(resumeFrom={"checkpoint": "1/4"}).with_pods().attempt(2)
    assert retention.restore_order(w.seen(), w.status).pinned == CheckpointRef(1, 4)
    w.all_report(AgentPhase.STARTING).settled()
    w.reports(0, AgentPhase.RESTORING, claim=claim(2, "1/4", 40)).settled()
    assert retention.restore_order(w.seen(), w.status).pinned is None
    fresh = a_job(fresh=True).with_pods().attempt(1)
    assert retention.restore_order(fresh.seen(), fresh.status).fresh
    fresh.all_report(AgentPhase.STARTING).settled()
    fresh.reports(0, AgentPhase.RESTORING, claim=claim(1)).settled()
    assert not retention.restore_order(fresh.seen(), fresh.status).fresh


def test_a_pin_says_above_which_attempt_it_stands_so_that_no_lead_carries_it_out_twice() -> None:
    w = a_job().with_pods().training(number=3)
    w.settled()
    w.with_spec(resume_from=ResumeFrom(checkpoint="1/4")).settled()
    order = retention.restore_order(w.seen(), w.status)
    assert (order.pinned, order.pinned_after) == (CheckpointRef(1, 4), 3)
    w.change_pod(1, phase="Failed", reason="Evicted").settled()
    w.with_pod(1, 2, "n2").settled()
    assert w.status.attempts_used == 4
    assert retention.restore_order(w.seen(), w.status).pinned_after == 3


def test_a_pin_that_comes_while_an_attempt_waits_to_claim_counts_for_that_attempt() -> None:
    w = a_job().with_pods().attempt(3)
    w.with_spec(resume_from=ResumeFrom(checkpoint="1/4")).round()
    assert retention.restore_order(w.seen(), w.status).pinned_after == 2


def test_a_claim_that_was_made_before_a_pin_came_does_not_carry_it_out() -> None:
    w = a_job().with_pods().attempt(2)
    w.all_report(AgentPhase.STARTING).settled()
    w.with_spec(resume_from=ResumeFrom(checkpoint="1/4"))
    w.reports(0, AgentPhase.RESTORING, claim=claim(2, "1/6", 60)).settled()
    assert retention.restore_order(w.seen(), w.status).pinned == CheckpointRef(1, 4)


def test_a_claim_that_was_made_before_fresh_came_does_not_carry_it_out() -> None:
    w = a_job().with_pods().attempt(2)
    w.all_report(AgentPhase.STARTING).settled()
    w.with_spec(fresh=True)
    w.reports(0, AgentPhase.RESTORING, claim=claim(2, "1/6", 60)).settled()
    assert retention.restore_order(w.seen(), w.status).fresh


def test_what_an_earlier_jobs_checkpoints_are_called_is_not_taken_for_ours() -> None:
    w = a_job(resumeFrom={"uid": "other-uid"}).with_pods().attempt(1)
    w.all_report(AgentPhase.STARTING).settled()
    theirs = claim(1, "7/3", 90)
    bad = Rejection(7, 4, "bad", True, w.now)
    object.__setattr__(theirs, "parent_job_uid", "other-uid")
    w.reports(0, AgentPhase.RESTORING, claim=theirs, rejections=(bad,), restored=checkpoint("7/3", 90)).settled()
    assert w.status.attempt is not None
    assert w.status.attempt.parent == "other-uid:7/3"
    assert (w.status.quarantined, w.status.checkpoints) == ((), ())


@given(text=st.from_regex(r"[0-9]{1,11}/[0-9]{1,11}", fullmatch=True))
def test_the_schema_admits_a_pin_if_and_only_if_it_is_one(text: str) -> None:
    """What is admitted can be acted on: a job with a bad pin would have to be left alone, its notices too."""
    try:
        ResumeFrom(checkpoint=text)
    except ValueError:
        admitted = False
    else:
        admitted = str(CheckpointRef.parse(text)) == text
    try:
        is_one = str(CheckpointRef.parse(text)) == text
    except ValueError:
        is_one = False
    assert admitted == is_one


def test_an_annotation_asks_for_one_checkpoint_and_is_remembered_when_done() -> None:
    w = a_job().with_pods().training().annotated(names.ANNOTATION_CHECKPOINT_NOW, "one")
    (order,) = of_type(w.round(), SendCheckpoint)
    assert (order.order.request_id, order.order.then_stop) == ("one", False)
    w.reports(0, AgentPhase.TRAINING, done_requests=("one",)).settled()
    assert w.status.checkpoint_request == "one"
    assert not of_type(w.round(), SendCheckpoint)


def test_a_paused_job_is_left_alone() -> None:
    w = a_job().annotated(names.ANNOTATION_PAUSED, "paused")
    assert (w.round().actions, w.status.phase) == ((), None)


def test_a_suspended_job_saves_first_then_goes_and_starts_again_where_it_stood() -> None:
    w = a_job().with_pods().training(step=44)
    w.with_spec(suspend=True)
    (order,) = of_type(w.round(), SendCheckpoint)
    assert (order.order.then_stop, order.pod.uid) == (True, "uid-0-1")
    w.all_report(AgentPhase.SEALED, checkpoints=(checkpoint("1/5", 44),), done_requests=(order.order.request_id,))
    assert {a.uid for a in w.round().actions if hasattr(a, "why")} == {"uid-0-1", "uid-1-1"}
    w.without_pod(0).without_pod(1).settled()
    assert (w.status.phase, w.status.attempt, w.status.counts.preemptions) == (Phase.QUEUED, None, 0)
    assert w.status.last_checkpoint is not None
    assert w.status.last_checkpoint.name == "1/5"
    w.with_spec(suspend=False)
    w.settled()
    assert {x.serial for x in w.status.workers} == {2}


def test_retention_itself_refuses_an_attempt_that_has_not_claimed_or_not_stepped() -> None:
    w = a_job(checkpoint={"storage": {"uri": "s3://b/p"}, "keep": {"last": 1}}).with_pods().attempt(2)
    w.with_checkpoints("1/1", "1/2", "1/3")
    assert retention.update(w.seen(), w.status, w.now) == w.status
    assert w.status.attempt is not None
    claimed = w.status.attempt.model_copy(update={"claimed_at": w.now})
    w.with_status(attempt=claimed, expiring=("1/1",))
    assert retention.update(w.seen(), w.status, w.now) == w.status
    assert retention.collect_order(w.seen(), w.status) is None


def test_what_was_loaded_is_proven_and_not_the_refused_one_that_was_claimed() -> None:
    """After a fall-back the claim still names the damaged checkpoint; the one that was loaded is the one to keep (C5)."""
    w = a_job(checkpoint={"storage": {"uri": "s3://b/p"}, "keep": {"last": 1}}).with_pods()
    w.training(number=2, parent="1/2").with_checkpoints("1/1", "2/1", "2/2", "2/3")
    loaded = PreemptionStatus(attempt=1, cause="spot", noticed_at=T0, resumed_from="1/1", resumed_at=T0)
    w.with_status(quarantined=("1/2",), preemptions=(loaded,)).round()
    assert [c.name for c in w.status.checkpoints] == ["1/1", "2/2", "2/3"], "two are kept at least"
