"""A running container keeps what it was started with, so a corrected spec or Secret reaches only a new pod (core/renew.py)."""

from typing import Any

import pytest
from job_worlds import TEMPLATE, JobWorld, a_job, claim, condition, of_type, seconds, spec

from holdfast_api.messages import AgentPhase, Blocked, BlockedReason
from holdfast_operator.core.actions import CreatePod, DeletePod
from holdfast_operator.core.pods import made_from

MENDED: dict[str, Any] = {
    "spec": {"containers": [{"name": "trainer", "image": "right", "command": ["python", "t.py"]}]}
}


def corrected(w: JobWorld, **changes: Any) -> JobWorld:
    w.spec = spec(**changes)
    return w


def planned(w: JobWorld) -> JobWorld:
    """The plans of pods that the world made by hand, as the operator would have written them."""
    made = tuple(p.model_copy(update={"made_from": made_from(w.spec)}) for p in w.status.workers)
    return w.with_status(workers=made)


@pytest.mark.parametrize("trouble", [{"waiting_reason": "ImagePullBackOff"}, {"unschedulable": "0/3 nodes"}])
def test_pods_that_cannot_start_are_made_anew_from_the_corrected_template(trouble: dict[str, str]) -> None:
    w = a_job()
    w.with_pod(0, 1, "", **trouble).with_pod(1, 1, "", **trouble)
    w = planned(w).after(30)
    assert not of_type(w.settled(), DeletePod)
    decision = corrected(w, template=MENDED).settled()
    assert {a.uid for a in of_type(decision, DeletePod)} == {"uid-0-1", "uid-1-1"}
    assert {(a.worker, a.serial) for a in of_type(decision, CreatePod)} == {(0, 2), (1, 2)}


def test_an_attempt_that_has_not_claimed_is_dropped_for_it_and_counts_as_nothing() -> None:
    w = planned(a_job().with_pods()).attempt(1)
    w.reports(0, AgentPhase.BLOCKED, blocked=Blocked(BlockedReason.STORAGE_MISCONFIGURED, "no such bucket")).settled()
    assert condition(w.status, "Ready").reason == "StorageMisconfigured"
    right = {"storage": {"uri": "s3://bucket/prefix", "endpoint": "http://right:9000"}}
    decision = corrected(w, checkpoint=right).settled()
    assert len(of_type(decision, CreatePod)) == 2
    assert (w.status.attempt, w.status.preemptions, w.status.counts.preemptions) == (None, (), 0)
    w.with_pod(0, 2, "n0").with_pod(1, 2, "n1").settled()
    assert w.status.attempt is not None
    assert w.status.attempt.number == 2


def test_a_job_that_trains_is_not_disturbed_by_an_edit() -> None:
    w = planned(a_job().with_pods().training())
    decision = corrected(w, template=MENDED).settled()
    assert not of_type(decision, DeletePod)
    assert w.status.attempt is not None


def test_an_attempt_that_has_claimed_is_not_dropped() -> None:
    w = planned(a_job().with_pods()).attempt(1)
    w.all_report(AgentPhase.STARTING).settled()
    w.reports(0, AgentPhase.RESTORING, claim=claim(1)).settled()
    corrected(w, template=MENDED).settled()
    assert w.status.attempt is not None


def test_what_is_kept_and_how_many_failures_are_borne_needs_no_new_pods() -> None:
    one = spec(checkpoint={"storage": {"uri": "s3://b/p"}, "keep": {"last": 2}})
    other = spec(checkpoint={"storage": {"uri": "s3://b/p"}, "keep": {"last": 9}}, budgets={"failures": {"max": 9}})
    assert made_from(one) == made_from(other)
    assert made_from(one) != made_from(spec(checkpoint={"storage": {"uri": "s3://b/p"}}, template=MENDED))


def test_a_pod_whose_credentials_are_refused_is_made_anew_every_minute_since_the_secret_may_have_been_mended() -> None:
    w = planned(a_job().with_pods()).attempt(1).after(3600)
    denied, since = Blocked(BlockedReason.STORAGE_DENIED, "403"), w.now
    w.reports(0, AgentPhase.BLOCKED, blocked=denied, blocked_since=since)
    assert not of_type(w.settled(), CreatePod), "an hour old, refused for the first time"
    w.after(59).reports(0, AgentPhase.BLOCKED, blocked=denied, blocked_since=since)
    decision = w.settled()
    assert not of_type(decision, CreatePod)
    assert decision.wake_at == since + seconds(60)
    decision = w.after(1).settled()
    assert {(a.worker, a.serial) for a in of_type(decision, CreatePod)} == {(0, 2)}
    assert w.status.counts.failures == 0


def test_pods_whose_credentials_stay_refused_are_made_anew_more_and_more_rarely() -> None:
    w = planned(a_job().with_pods()).attempt(1)
    denied, waits = Blocked(BlockedReason.STORAGE_DENIED, "403"), []
    for serial in range(2, 8):
        since = w.now
        while not of_type(w.settled(), CreatePod):
            w.after(30)
            if w.status.attempt is not None:
                w.reports(0, AgentPhase.BLOCKED, blocked=denied, blocked_since=since)
        waits.append((w.now - since).total_seconds() / 60)
        w.without_pod(0, serial - 1).with_pod(0, serial, "n0")
        made = tuple(
            p.model_copy(update={"made_from": made_from(w.spec), "renewed": serial - 1}) for p in w.status.workers
        )
        w.with_status(workers=made).settled()
        w.reports(0, AgentPhase.BLOCKED, blocked=denied, blocked_since=w.now)
    assert waits == [1, 2, 4, 8, 16, 16]


@pytest.mark.parametrize("reason", [BlockedReason.STORAGE_MISCONFIGURED, BlockedReason.STORAGE_UNREACHABLE])
def test_what_no_new_pod_can_mend_makes_none(reason: BlockedReason) -> None:
    w = planned(a_job().with_pods()).attempt(1)
    since = w.now
    w.after(7200).reports(0, AgentPhase.BLOCKED, blocked=Blocked(reason, "x"), blocked_since=since)
    assert not of_type(w.settled(), CreatePod)


def test_an_edit_of_a_running_job_replaces_no_survivor_when_one_worker_goes() -> None:
    w = planned(a_job().with_pods().training())
    corrected(w, template=MENDED).tainted("n1", "aws-node-termination-handler/spot-itn")
    decision = w.settled()
    assert {(a.worker, a.serial) for a in of_type(decision, CreatePod)} == {(1, 2)}


def test_a_pod_that_an_older_operator_planned_is_left_alone() -> None:
    w = a_job().with_pods().attempt(1)
    corrected(w, template=MENDED).settled()
    assert w.status.attempt is not None
    assert TEMPLATE != MENDED
