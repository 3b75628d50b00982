"""A worker goes, in all the ways workers go; the job resumes where it stood, and what it learns is what it would have learned."""

from datetime import datetime
from typing import Any

import pytest

from tests.cluster.outcome import STEPS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
ENV = {"STEPS": STEPS, "SLEEP": "0.1"}


def seconds_left(entry: dict[str, Any]) -> float:
    """From the notice to the deadline that the job goes by."""
    return (moment(entry["deadline"]) - moment(entry["noticedAt"])).total_seconds()


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_spot_notice_and_a_power_cut_lose_no_step(lab: Any, outcome: Any) -> None:
    job = lab.start(env=ENV)
    job.wait_step(15)
    node = job.node_of(1)
    lab.kube.run("taint", "node", node, "aws-node-termination-handler/spot-itn=test:NoSchedule")
    job.wait("sealed and resumed", lambda s: s.get("preemptions") and s["preemptions"][-1].get("resumedAt"))
    outcome.note()
    lab.cluster.node(node).off()
    entry = outcome.of(job)
    assert (entry["cause"], entry["workers"], entry["stepsLost"]) == ("spot", [1], 0)
    assert seconds_left(entry) == pytest.approx(120, abs=1)
    assert entry["resumedStep"] >= 15


def test_the_lead_can_be_the_one_that_goes(lab: Any, outcome: Any) -> None:
    job = lab.start(env=ENV)
    job.wait_step(15)
    lab.kube.run("taint", "node", job.node_of(0), "cloud.google.com/impending-node-termination=:NoSchedule")
    entry = outcome.of(job)
    assert (entry["cause"], entry["workers"], entry["stepsLost"]) == ("spot", [0], 0)
    assert seconds_left(entry) == pytest.approx(15, abs=1)


def test_a_deleted_pod_saves_on_sigterm_and_is_replaced(lab: Any, outcome: Any) -> None:
    job = lab.start(env=ENV)
    job.wait_step(15)
    name = job.pod_of(1)["metadata"]["name"]
    lab.kube.run("delete", "pod", name, "-n", lab.namespace, "--wait=false")
    killed_at = lab.kube.get("pod", name, namespace=lab.namespace)["metadata"]["deletionTimestamp"]
    entry = outcome.of(job)
    assert (entry["cause"], entry["workers"], entry["stepsLost"]) == ("deletion", [1], 0)
    assert moment(entry["deadline"]) == moment(killed_at)


def test_kubectl_drain_moves_the_job(lab: Any, outcome: Any) -> None:
    job = lab.start(env=ENV)
    job.wait_step(15)
    node = job.node_of(1)
    lab.kube.run(
        "drain",
        node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        f"--pod-selector=holdfast.dev/job={job.name}",
        timeout=120,
    )
    entry = outcome.of(job)
    assert (entry["cause"], entry["workers"], entry["stepsLost"]) == ("drain", [1], 0)
    assert all(p["spec"]["nodeName"] != node for p in job.pods() if p["status"]["phase"] == "Succeeded")


def test_a_power_cut_without_notice_resumes_from_the_last_commit(lab: Any, outcome: Any) -> None:
    job = lab.start(env=ENV)
    job.wait("a periodic checkpoint", lambda s: s.get("lastCheckpoint", {}).get("step", 0) >= 10)
    lab.cluster.node(job.node_of(1)).off()
    entry = outcome.of(job)
    assert (entry["cause"], entry["workers"]) == ("node-lost", [1])
    assert entry["resumedStep"] % 10 == 0
    assert entry["stepsLost"] <= 10


def test_an_agent_that_is_killed_is_restarted_in_place_and_the_job_goes_on(lab: Any, outcome: Any) -> None:
    """G1, fault scenario 6: PID 1 of the trainer dies; pod, node and image stay, and the ranks start as a new attempt."""
    job = lab.start(env=ENV)
    job.wait("a periodic checkpoint", lambda s: s.get("lastCheckpoint", {}).get("step", 0) >= 10)
    (victim,) = [p for p in job.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == "1"]
    lab.cluster.node(job.node_of(1)).run("pkill", "-KILL", "-f", "holdfast-agent run")
    entry = outcome.of(job)
    assert (entry["cause"], entry["source"]) == ("failure", "AgentRestarted")
    (after,) = [p for p in job.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == "1"]
    assert after["metadata"]["uid"] == victim["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 1


def test_an_operator_killed_in_the_middle_of_it_finishes_it(lab: Any, outcome: Any) -> None:
    job = lab.start(env=ENV)
    job.wait_step(15)
    lab.kube.run("taint", "node", job.node_of(1), "aws-node-termination-handler/spot-itn=test:NoSchedule")
    lab.kube.run(
        "delete", "pod", "-n", "holdfast-system", "-l", "app.kubernetes.io/name=holdfast", "--grace-period=0", "--force"
    )
    entry = outcome.of(job)
    assert (entry["cause"], entry["stepsLost"]) == ("spot", 0)
    assert job.status()["counts"]["preemptions"] == 1


def test_a_cordon_saves_and_goes_on(lab: Any) -> None:
    job = lab.start(env=ENV, every={"steps": 1000})
    job.wait_step(10)
    attempt = job.status()["attempt"]["number"]
    lab.kube.run("cordon", job.node_of(1))
    status = job.wait(
        "a checkpoint because of the cordon", lambda s: s.get("lastCheckpoint", {}).get("cause") == "cordon", 60
    )
    assert status["attempt"]["number"] == attempt
    job.wait_succeeded()
    assert not job.status().get("preemptions")
