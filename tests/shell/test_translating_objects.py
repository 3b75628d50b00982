"""API objects become what decisions read; what is odd in them is absent, never an exception; what cannot be read is never overwritten."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from holdfast_api import codec
from holdfast_api.messages import AgentPhase, AgentReport
from holdfast_operator.shell import translate

LABELS = {"holdfast.dev/worker": "1", "holdfast.dev/serial": "2", "holdfast.dev/job-uid": "u"}


def pod(status: dict[str, Any], **meta: Any) -> Any:
    spec = {"nodeName": "n1", "containers": [{"name": "side"}, {"name": "trainer"}]}
    return translate.pod(
        {"metadata": {"name": "p", "uid": "u", "labels": LABELS, **meta}, "spec": spec, "status": status}
    )


def test_the_trainers_state_is_read_and_not_a_sidecars() -> None:
    found = pod({
        "phase": "Failed",
        "containerStatuses": [
            {"name": "side", "state": {"terminated": {"exitCode": 1}}},
            {"name": "trainer", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-03-01T12:00:00Z"}}},
        ],
    })  # fmt: skip
    assert (found.exit_code, found.exit_reason, found.terminal) == (137, "OOMKilled", True)
    assert found.finished_at is not None


RULES = [{"action": "Restart", "exitCodes": {"operator": "In", "values": [137]}}]


def restartable(phase: str, **state: Any) -> Any:
    spec = {"nodeName": "n1", "containers": [{"name": "trainer", "restartPolicyRules": RULES}]}
    status = {"phase": phase, "containerStatuses": [{"name": "trainer", **state}]}
    return translate.pod({"metadata": {"name": "p", "uid": "u", "labels": LABELS}, "spec": spec, "status": status})


def test_an_end_that_the_kubelet_restarts_in_place_is_no_end_but_its_reason_stays_known() -> None:
    """G1: between the end and the restart the container is shown as terminated."""
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    between = restartable("Running", state=killed)
    assert (between.exit_code, between.ended, between.restarted_after) == (None, False, "OOMKilled")
    after = restartable("Running", state={"running": {}}, lastState=killed)
    assert (after.exit_code, after.ended, after.restarted_after) == (None, False, "OOMKilled")
    assert restartable("Failed", state=killed).exit_code == 137
    assert restartable("Running", state={"terminated": {"exitCode": 70}}).ended, "no rule restarts it"


def test_a_trainer_that_has_ended_is_seen_while_another_container_runs_on() -> None:
    found = pod({
        "phase": "Running",
        "containerStatuses": [
            {"name": "side", "state": {"running": {}}},
            {"name": "trainer", "state": {"terminated": {"exitCode": 139, "reason": "Error"}}},
        ],
    })  # fmt: skip
    assert (found.ended, found.terminal) == (True, False)


def test_a_deleted_pod_has_a_deadline_and_a_disruption_its_reason() -> None:
    conditions = [
        {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}
    ]
    found = pod({"conditions": conditions}, deletionTimestamp="2026-03-01T12:00:30Z", deletionGracePeriodSeconds=30)
    assert (found.deletion_deadline.second, found.deletion_grace_seconds) == (30, 30)
    assert (found.disruption, found.disruption_message) == ("EvictionByEvictionAPI", "drained")


def test_a_condition_that_is_false_is_none() -> None:
    assert pod({"conditions": [{"type": "DisruptionTarget", "status": "False", "reason": "x"}]}).disruption == ""


def test_the_scheduler_is_quoted() -> None:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}]
    assert pod({"conditions": conditions}).unschedulable == "0/2 nodes"


def test_a_termination_message_that_is_a_report_is_read_and_one_that_was_cut_is_not() -> None:
    now = translate.time_of("2026-03-01T12:00:00Z")
    assert now is not None
    report = AgentReport(
        job_uid="j", worker=1, pod_uid="u", sent_at=now, sequence=1, attempt=1, phase=AgentPhase.SEALED
    )
    text = codec.to_json(report).decode()
    for message, expected in ((text, report), (text[:-20], None), ("panic: x", None)):
        state = {"terminated": {"exitCode": 72, "message": message}}
        assert pod({"containerStatuses": [{"name": "trainer", "state": state}]}).report == expected


def test_a_pod_without_our_labels_is_not_ours() -> None:
    assert translate.pod({"metadata": {"name": "p", "uid": "u"}}) is None
    assert (
        translate.pod({"metadata": {"name": "p", "uid": "u", "labels": {**LABELS, "holdfast.dev/worker": "x"}}}) is None
    )


def test_a_nodes_taints_conditions_and_readiness() -> None:
    found = translate.node({
        "metadata": {"name": "n", "uid": "u"},
        "spec": {"unschedulable": True, "taints": [{"key": "k", "effect": "NoExecute", "timeAdded": "2026-03-01T12:00:00Z"}]},
        "status": {"conditions": [{"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-03-01T12:00:00Z"}]},
    })  # fmt: skip
    assert (found.ready, found.unschedulable, found.taints[0].key) == (False, True, "k")
    assert found.ready_since is not None
    assert found.taints[0].added_at is not None


def test_a_status_that_cannot_be_read_is_none_and_names_the_field() -> None:
    meta = {"name": "j", "namespace": "n", "uid": "u"}
    _, spec, status, error = translate.job(
        {"metadata": meta, "spec": {"workers": "many"}, "status": {"attemptsUsed": "x"}}
    )
    assert spec is None
    assert status is None
    assert "spec.workers" in error


@given(message=st.text(max_size=60), time=st.text(max_size=20), reason=st.text(max_size=10))
def test_no_text_in_an_object_is_an_exception(message: str, time: str, reason: str) -> None:
    state = {"terminated": {"exitCode": 1, "message": message, "finishedAt": time, "reason": reason}}
    pod({"containerStatuses": [{"name": "trainer", "state": state}]}, creationTimestamp=time)
