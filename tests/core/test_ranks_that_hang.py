"""What the operator does about ranks that pass no step: told in time, counted as a failure of its own cause, started again in place."""

from typing import Any

import pytest
from job_worlds import T0, JobWorld, a_job, claim, condition, of_type

from holdfast_api.messages import AgentPhase, HangLimits, HangReport, RankStack, Stage
from holdfast_operator.core import suspicion
from holdfast_operator.core.actions import EmitEvent, SendAttempt
from holdfast_operator.crd.v1alpha1 import Hangs, OnHang, Phase

STACK = 'Current thread 0x1 (most recent call first):\n  File "/app/train.py", line 33 in forward\n  File "/app/train.py", line 60 in main'
BACK_OFF = {"failures": {"backoffSeconds": 0}}


def a_hang(*, restarts: bool = True, **fields: Any) -> HangReport:
    values: dict[str, Any] = {
        "at": T0,
        "idle_seconds": 1800.0,
        "boundary": 40,
        "culprits": (1,),
        "workers": (1,),
        "why": "rank 1 (in step, at train.py:33 in forward): not in a collective, where one other wait for it",
        "restarts": restarts,
        "saved": "Boundary 40 was saved before the ranks were ended" if restarts else "",
        "stacks": (RankStack(1, 1, 40, "step", 1800.0, "S", STACK),),
    }
    return HangReport(**(values | fields))


def running(**spec: Any) -> JobWorld:
    return a_job(**({"budgets": BACK_OFF} | spec)).with_pods().training()


def hung(**fields: Any) -> JobWorld:
    return running().reports(0, AgentPhase.FAILED, hang=a_hang(**fields), exit_detail="hung: …")


def test_a_hang_is_a_failure_with_a_cause_of_its_own_and_names_the_worker_that_hangs_not_the_lead_that_tells() -> None:
    w = hung()
    w.settled()
    entry = w.status.preemptions[-1]
    assert (entry.cause, entry.source, entry.workers, entry.nodes) == ("hung", "Hung", (1,), ("n1",))
    assert (w.status.counts.failures, w.status.counts.failures_in_a_row, w.status.counts.preemptions) == (1, 1, 0)


def test_the_ranks_start_again_in_the_same_pods() -> None:
    w = hung()
    w.settled()
    assert w.status.attempt is not None
    assert w.status.attempt.number == 2
    assert [m.pod_uid for m in w.status.attempt.members] == ["uid-0-1", "uid-1-1"]


def test_the_echo_of_a_hang_does_not_change_whose_fault_it_was() -> None:
    """The others crash when the ranks are ended, and may be heard first."""
    w = hung().reports(1, AgentPhase.FAILED, exit_detail="Connection closed by peer")
    w.settled()
    assert (w.status.preemptions[-1].cause, w.status.counts.failures) == ("hung", 1)


def test_hangs_without_progress_spend_the_budget_of_failures_and_the_reason_says_where_it_hangs() -> None:
    w = running(budgets={"failures": {"max": 2, "backoffSeconds": 0}})
    for number in (1, 2):
        w.reports(0, AgentPhase.FAILED, hang=a_hang()).settled()
        if number == 1:
            w.training(number=2)
    stalled = condition(w.status, "Stalled")
    assert (w.status.phase, stalled.reason) == (Phase.FAILED, "Hung")
    assert "train.py:33 in forward" in stalled.message
    assert "Boundary 40 was saved" in stalled.message


def test_a_word_in_time_is_a_condition_and_an_event_with_the_place_and_ends_nothing() -> None:
    w = running().reports(0, AgentPhase.TRAINING, hang=a_hang(restarts=False))
    decision = w.settled()
    found = condition(w.status, "StepsPass")
    assert (found.status, found.reason) == ("False", "NoStep")
    for words in ("1800 s", "train.py:33 in forward", "nothing has been ended", "kubectl logs -n ns job-0a1b2c3d-1-1"):
        assert words in found.message
    assert 'line 33 in forward < File "/app/train.py", line 60 in main' in found.message
    assert [e.reason for e in of_type(decision, EmitEvent)] == ["NoStep"]
    assert w.status.phase is Phase.RUNNING
    assert not w.status.preemptions


def test_the_end_is_told_as_well_and_the_condition_stays_until_a_step_is_passed() -> None:
    w = running().reports(0, AgentPhase.TRAINING, hang=a_hang(restarts=False))
    w.settled()
    told = w.reports(0, AgentPhase.FAILED, hang=a_hang()).settled()
    assert "Hung" in [e.reason for e in of_type(told, EmitEvent)]
    w.all_report(AgentPhase.STARTING, hang=None).settled()
    assert condition(w.status, "StepsPass").status == "False"
    w.training(number=2).settled()
    assert condition(w.status, "StepsPass").status == "True"


def test_a_job_that_never_hung_has_no_such_condition() -> None:
    w = running()
    w.settled()
    assert not [c for c in w.status.conditions if c.type == "StepsPass"]


@pytest.mark.parametrize("action", OnHang)
def test_the_limits_of_the_spec_go_with_the_order(action: OnHang) -> None:
    w = a_job(
        hangs={"action": action.value, "factor": 3, "stepSeconds": 7, "dataSeconds": 8, "startSeconds": 0}
    ).with_pods()
    w.attempt()
    orders = of_type(w.after(1).decided(), SendAttempt)
    assert {o.order.hangs for o in orders} == {HangLimits(action.value.lower(), 3, 7, 8, 7200, 0)}


def test_the_defaults_of_spec_and_wire_are_the_same() -> None:
    """Outside Kubernetes there is no spec."""
    spec, wire = Hangs(), HangLimits()
    assert spec.action.value.lower() == wire.action
    for name in ("factor", "step_seconds", "data_seconds", "evaluation_seconds", "start_seconds"):
        assert getattr(spec, name) == getattr(wire, name)


def test_starts_that_hang_leave_their_checkpoint_out_as_failed_starts_do() -> None:
    """C4: a state that makes the first step hang must not be tried for ever."""
    w = a_job(budgets={"failures": {"max": 100, "backoffSeconds": 0}}).with_pods().with_checkpoints("1/1", "1/2")
    for number in (2, 3):
        w.attempt(number, accepted_at=w.now, may_claim_at=w.now)
        w.all_report(AgentPhase.RESTORING, boundary=0, stages={Stage.LIBRARY_READY.value: w.now})
        w.reports(0, AgentPhase.RESTORING, claim=claim(number, "1/2", 20)).settled()
        w.after(1).reports(0, AgentPhase.FAILED, hang=a_hang()).round()
    assert suspicion.suspended(w.status) == "1/2"
