"""A worker goes, in all the ways workers go; the job resumes where it stood, and what it learns is what it would have learned."""

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
STEPS = "60"
ENV = {"STEPS": STEPS, "SLEEP": "0.1"}


def exact_after(job: Any, lab: Any) -> dict[str, Any]:
    """The job ends well and its losses and weights are those of an uninterrupted run of the same seed."""
    status: dict[str, Any] = job.wait_succeeded()
    ours = job.run()
    reference = lab.start("reference", env={"STEPS": STEPS, "SLEEP": "0"})
    reference.wait_succeeded()
    theirs = reference.run()
    assert ours.digest == theirs.digest
    assert not ours.contradictions
    assert {s: v for s, v in theirs.losses.items() if s in ours.losses} == ours.losses
    return status


def last(status: dict[str, Any]) -> dict[str, Any]:
    preemption: dict[str, Any] = status["preemptions"][-1]
    assert sum(p["milliseconds"] for p in preemption["phases"]) == preemption["totalMilliseconds"], json.dumps(
        preemption
    )
    return preemption


def test_a_spot_notice_and_a_power_cut_lose_no_step(lab: Any) -> None:
    job = lab.start(env=ENV)
    job.wait_step(15)
    node = job.node_of(1)
    lab.kube.run("taint", "node", node, "aws-node-termination-handler/spot-itn=test:NoSchedule")
    job.wait("sealed and resumed", lambda s: s.get("preemptions") and s["preemptions"][-1].get("resumedAt"))
    lab.cluster.node(node).off()
    status = exact_after(job, lab)
    assert last(status)["cause"] == "spot"
    assert last(status)["stepsLost"] == 0
    assert last(status)["resumedStep"] % 10 != 0 or last(status)["resumedStep"] >= 15


def test_the_lead_can_be_the_one_that_goes(lab: Any) -> None:
    job = lab.start(env=ENV)
    job.wait_step(15)
    lab.kube.run("taint", "node", job.node_of(0), "cloud.google.com/impending-node-termination=:NoSchedule")
    status = exact_after(job, lab)
    assert last(status)["stepsLost"] == 0


def test_a_deleted_pod_saves_on_sigterm_and_is_replaced(lab: Any) -> None:
    job = lab.start(env=ENV)
    job.wait_step(15)
    victim = next(p for p in job.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == "1")
    lab.kube.run("delete", "pod", victim["metadata"]["name"], "-n", lab.namespace, "--wait=false")
    status = exact_after(job, lab)
    assert last(status)["stepsLost"] == 0


def test_kubectl_drain_moves_the_job(lab: Any) -> None:
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
    status = exact_after(job, lab)
    assert last(status)["stepsLost"] == 0
    assert all(p["spec"]["nodeName"] != node for p in job.pods() if p["status"]["phase"] == "Succeeded")


def test_a_power_cut_without_notice_resumes_from_the_last_commit(lab: Any) -> None:
    job = lab.start(env=ENV)
    job.wait("a periodic checkpoint", lambda s: s.get("lastCheckpoint", {}).get("step", 0) >= 10)
    lab.cluster.node(job.node_of(1)).off()
    status = exact_after(job, lab)
    assert last(status)["cause"] in ("node-lost", "unknown")
    assert last(status)["resumedStep"] % 10 == 0


def test_an_agent_that_is_killed_is_restarted_in_place_and_the_job_goes_on(lab: Any) -> None:
    """G1, fault scenario 6: PID 1 of the trainer dies; pod, node and image stay, and the ranks start as a new attempt."""
    job = lab.start(env=ENV)
    job.wait("a periodic checkpoint", lambda s: s.get("lastCheckpoint", {}).get("step", 0) >= 10)
    (victim,) = [p for p in job.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == "1"]
    lab.cluster.node(job.node_of(1)).run("pkill", "-KILL", "-f", "holdfast-agent run")
    status = exact_after(job, lab)
    assert (last(status)["cause"], last(status)["source"]) == ("failure", "AgentRestarted")
    (after,) = [p for p in job.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == "1"]
    assert after["metadata"]["uid"] == victim["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 1


def test_an_operator_killed_in_the_middle_of_it_finishes_it(lab: Any) -> None:
    job = lab.start(env=ENV)
    job.wait_step(15)
    lab.kube.run("taint", "node", job.node_of(1), "aws-node-termination-handler/spot-itn=test:NoSchedule")
    lab.kube.run(
        "delete", "pod", "-n", "holdfast-system", "-l", "app.kubernetes.io/name=holdfast", "--grace-period=0", "--force"
    )
    status = exact_after(job, lab)
    assert status["counts"]["preemptions"] == 1
    assert last(status)["stepsLost"] == 0


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
