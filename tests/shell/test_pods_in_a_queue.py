"""What Kueue reads on our pods, what we read on its, and the one thing that we ask of it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_apiserver import KINDS, FakeApiServer
from test_operator_end_to_end import NS, SPEC, Stage, eventually

from holdfast_operator.core.observed import JobMeta
from holdfast_operator.core.pods import PodContext, worker_pod
from holdfast_operator.crd.v1alpha1 import QueueStatus, TrainingJobSpec
from holdfast_operator.shell import translate

KINDS["workloads"] = ("kueue.x-k8s.io/v1beta2", "Workload")
UID = "0a1b2c3d-0000-4000-8000-000000000001"
GROUP = "small-0a1b2c3d-1"


def made(worker: int, labels: dict[str, str], template: dict[str, Any] | None = None) -> dict[str, Any]:
    job = JobMeta("small", NS, UID, labels=labels)
    spec = TrainingJobSpec.model_validate({**SPEC, **({"template": template} if template else {})})
    avoid = ("n7",) if worker else ()
    queue = QueueStatus(name="gpus", founded=1, size=2)
    return worker_pod(job, spec, worker, 1, avoid, PodContext("http://op"), queue=queue)


def test_pods_of_a_group_name_queue_group_size_and_one_role_although_they_may_go_to_different_nodes() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "high", "team": "nlp"}
    first, second = made(0, labels), made(1, labels)
    for pod in (first, second):
        meta = pod["metadata"]
        assert {k: v for k, v in meta["labels"].items() if "kueue" in k} == {
            "kueue.x-k8s.io/queue-name": "gpus",
            "kueue.x-k8s.io/priority-class": "high",
            "kueue.x-k8s.io/pod-group-name": GROUP,
        }
        assert {k: v for k, v in meta["annotations"].items() if "kueue" in k} == {
            "kueue.x-k8s.io/pod-group-total-count": "2",
            "kueue.x-k8s.io/role-hash": "worker",
            "kueue.x-k8s.io/retriable-in-group": "false",
            "kueue.x-k8s.io/safe-to-forcefully-delete": "true",
        }
    assert first["spec"]["affinity"] != second["spec"]["affinity"]


def test_what_a_template_says_of_groups_gives_way() -> None:
    own = {"labels": {"kueue.x-k8s.io/pod-group-name": "mine", "team": "nlp"}}
    labels = made(0, {}, {**SPEC["template"], "metadata": own})["metadata"]["labels"]  # type: ignore[dict-item]
    assert (labels["kueue.x-k8s.io/pod-group-name"], labels["team"]) == (GROUP, "nlp")


def a_queued_pod(name: str = "small-0a1b2c3d-0-1", **spec: Any) -> dict[str, Any]:
    """As Kueue's webhook leaves it, deleted while it was gated: its finalizer keeps it."""
    labels = {
        "app.kubernetes.io/managed-by": "holdfast",
        "holdfast.dev/job": "small",
        "holdfast.dev/job-uid": UID,
        "holdfast.dev/worker": "0",
        "holdfast.dev/serial": "1",
        "kueue.x-k8s.io/managed": "true",
        "kueue.x-k8s.io/pod-group-name": GROUP,
    }
    meta = {"name": name, "labels": labels, "finalizers": ["kueue.x-k8s.io/managed"]}
    gates = [{"name": "kueue.x-k8s.io/admission"}, {"name": "kueue.x-k8s.io/topology"}]
    condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "gated"}
    status = {"phase": "Pending", "conditions": [condition]}
    return {"metadata": meta, "spec": {"schedulingGates": gates, "containers": [], **spec}, "status": status}


def test_gates_group_and_who_is_in_charge_are_read() -> None:
    item = a_queued_pod()
    item["metadata"] |= {"uid": "u", "namespace": NS}
    pod = translate.pod(item)
    assert pod is not None
    assert pod.gates == ("kueue.x-k8s.io/admission", "kueue.x-k8s.io/topology")
    assert (pod.queue_group, pod.queue_managed, pod.unschedulable) == (GROUP, True, "")


@pytest.fixture
async def stage(api: FakeApiServer, kubeconfig: Path) -> AsyncIterator[Stage]:
    found = Stage(api)
    await found.start_operator()
    yield found
    await found.close()


def given_up(stage: Stage) -> None:
    stage.api.put("workloads", {"metadata": {"name": GROUP}}, NS)
    item = a_queued_pod()
    item["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    stage.api.put("pods", item, NS)


async def test_the_place_in_the_queue_of_a_job_that_was_deleted_there_is_given_back(stage: Stage) -> None:
    await eventually("the operator is up", lambda: ("list", "holdfast.dev", "trainingjobs", "") in stage.api.requests)
    given_up(stage)
    await eventually("the Workload is gone", lambda: stage.api.get("workloads", GROUP, NS) is None)


async def test_so_is_that_of_a_job_that_was_suspended_there(stage: Stage) -> None:
    stage.api.put("trainingjobs", {"metadata": {"name": "small", "uid": UID}, "spec": {**SPEC, "suspend": True}}, NS)
    await eventually("the job is seen", lambda: stage.status().get("phase") == "Queued")
    given_up(stage)
    await eventually("the Workload is gone", lambda: stage.api.get("workloads", GROUP, NS) is None)
    assert stage.status()["phase"] == "Queued"
