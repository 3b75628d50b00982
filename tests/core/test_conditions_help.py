"""Each trouble has one reason and a message with field, value and remedy; nothing is told twice; the phases are those of the table."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from job_worlds import T0, JobWorld, a_job, condition, of_type, seconds

from holdfast_api.messages import AgentPhase, Blocked, BlockedReason, Exit
from holdfast_operator.core import phases
from holdfast_operator.core.actions import EmitEvent
from holdfast_operator.core.observed import Refusal, RefusalKind
from holdfast_operator.crd.v1alpha1 import Phase, TrainingJobStatus


def starting() -> JobWorld:
    return a_job(checkpoint={"storage": {"uri": "s3://b/p", "secretName": "training-bucket"}}).with_pods(
        ip="", phase="Pending"
    )


def test_a_missing_secret_is_named_with_the_command_that_makes_it() -> None:
    w = starting().change_pod(
        0, waiting_reason="CreateContainerConfigError", waiting_message='secret "training-bucket" not found'
    )
    w.round()
    found = condition(w.status, "Stalled")
    assert (found.status, found.reason) == ("True", "ContainerConfigError")
    assert "kubectl create secret generic training-bucket -n ns" in found.message


def test_an_image_that_cannot_be_pulled_is_named() -> None:
    w = starting().change_pod(1, waiting_reason="ImagePullBackOff", waiting_message="example/none: not found")
    w.round()
    assert "example/none: not found" in condition(w.status, "Stalled").message


def test_a_worker_without_room_says_what_the_scheduler_says_and_may_pass_by_itself() -> None:
    w = starting().change_pod(1, node="", unschedulable="0/2 nodes are available: 2 Insufficient cpu.")
    w.round()
    assert condition(w.status, "Ready").reason == "Unschedulable"
    assert condition(w.status, "Stalled").status == "False"
    assert "Insufficient cpu" in condition(w.status, "Reconciling").message


@pytest.mark.parametrize("reason", list(BlockedReason))
def test_what_blocks_an_agent_is_said_in_its_words(reason: BlockedReason) -> None:
    w = a_job().with_pods().attempt()
    w.all_report(AgentPhase.STARTING).settled()
    w.reports(0, AgentPhase.BLOCKED, blocked=Blocked(reason, "spec.x is y: do z")).settled()
    found = condition(w.status, "Stalled")
    assert (found.status, found.reason) == ("True", reason.value)
    assert "spec.x is y: do z" in found.message
    if reason.value.startswith("Storage"):
        assert condition(w.status, "StorageReady").status == "False"


def test_a_refused_template_is_stalled_and_a_refused_quota_is_not() -> None:
    w = a_job()
    w.refusals = (Refusal(RefusalKind.INVALID, "pod a", "spec.containers[0].image: Required", T0),)
    w.round()
    assert (condition(w.status, "Stalled").status, condition(w.status, "Stalled").reason) == ("True", "TemplateInvalid")
    w.refusals = (Refusal(RefusalKind.FORBIDDEN, "pod a", "exceeded quota: gpus", T0),)
    w.round()
    assert (condition(w.status, "Stalled").status, condition(w.status, "Ready").reason) == ("False", "Refused")


def test_a_name_that_belongs_to_somebody_else_is_waited_for() -> None:
    w = a_job()
    w.refusals = (Refusal(RefusalKind.TAKEN, "service job-0a1b2c3d", "owned by Deployment x", T0),)
    w.round()
    assert condition(w.status, "Stalled").reason == "NameTaken"


def test_a_script_that_ends_without_the_library_is_told_so_although_it_ended_well() -> None:
    w = a_job().with_pods().training()
    blocked = Blocked(BlockedReason.LIBRARY_NOT_USED, "add the five lines")
    w.all_report(AgentPhase.FINISHED, exit=Exit.FINISHED, blocked=blocked).settled()
    assert w.status.phase is Phase.SUCCEEDED
    assert condition(w.status, "CheckpointUsable").reason == "LibraryNotUsed"
    w.pods.clear()
    w.heard.clear()
    assert condition(w.round().status, "CheckpointUsable").reason == "LibraryNotUsed"


def test_transition_times_change_only_with_the_conditions_status() -> None:
    w = a_job().with_pods().attempt()
    w.round()
    since = condition(w.status, "Ready").last_transition_time
    w.after(30).all_report(AgentPhase.STARTING).settled()
    assert condition(w.status, "Ready").last_transition_time == since
    w.after(30).training().settled()
    assert condition(w.status, "Ready").last_transition_time == w.now


def test_kstatus_sees_a_running_job_as_ready_and_a_starting_one_as_reconciling() -> None:
    w = a_job()
    w.round()
    assert [condition(w.status, t).status for t in ("Ready", "Reconciling", "Stalled")] == ["False", "True", "False"]
    w.with_pods().training().settled()
    assert [condition(w.status, t).status for t in ("Ready", "Reconciling", "Stalled")] == ["True", "False", "False"]
    assert w.status.observed_generation == 1


def test_nothing_changed_means_nothing_is_written_or_told() -> None:
    w = a_job().with_pods().training()
    w.settled()
    again = w.after(7).round()
    assert again.status == w.status
    assert not of_type(again, EmitEvent)


def test_the_phase_table_names_every_phase_once_and_ends_in_two() -> None:
    assert [r.phase for r in phases.TABLE] == list(Phase)
    assert {r.phase for r in phases.TABLE if not r.may_follow} == {Phase.SUCCEEDED, Phase.FAILED}


def test_an_untouched_status_is_starting() -> None:
    assert phases.current(TrainingJobStatus()) is Phase.STARTING


def test_the_next_look_is_the_first_moment_that_changes_something() -> None:
    w = a_job().with_pods().training().after(60).tainted("n1", "aws-node-termination-handler/spot-itn")
    assert w.round().wake_at == w.now + min(seconds(10), timedelta(seconds=2))


def test_the_documentation_prints_the_phase_table_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operator.md").read_text()
    for row in phases.TABLE:
        assert f"| {row.phase.value} | {row.entered} | {row.leaves} |" in page


def test_a_node_whose_clock_is_wrong_is_named_until_it_is_right() -> None:
    w = a_job().with_pods().training()
    uid = "uid-1-1"

    def hears(ahead: float) -> None:
        w.heard[uid] = replace(w.heard[uid], ahead_seconds=ahead)

    hears(4.0)
    assert "ClocksAgree" not in {c.type for c in w.round().status.conditions}
    hears(-62.3)
    told = w.round()
    found = condition(w.status, "ClocksAgree")
    assert (found.status, found.reason) == ("False", "ClocksDiffer")
    assert "worker 1 on node n1 is about 60 s behind" in found.message
    assert "time synchronisation" in found.message
    assert [e.reason for e in of_type(told, EmitEvent)] == ["ClocksDiffer"]
    hears(-61.0)
    assert not of_type(w.round(), EmitEvent)
    assert condition(w.status, "ClocksAgree") == found, "no write for every second"
    hears(-3.0)
    assert w.round() is not None
    assert condition(w.status, "ClocksAgree").status == "False"
    hears(-1.0)
    w.round()
    assert condition(w.status, "ClocksAgree").status == "True"
