"""What is damaged is not loaded; what cannot be read is not taken for absent; nothing starts from zero silently (C1, C3, A9)."""

from pathlib import Path
from typing import Any

import pytest

from hack.demo.damage import Damager

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
ENV = {"STEPS": "60", "SLEEP": "0.1"}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_emergency_checkpoint_is_refused_and_the_one_before_is_used(lab: Any) -> None:
    job = lab.start(env=ENV)
    job.wait(
        "a periodic checkpoint", lambda s: s.get("lastCheckpoint", {}).get("step", 0) >= 10 and s.get("step", 0) >= 13
    )
    damager = Damager(Path(lab.cluster.s3_data) / lab.bucket.name, job.object()["metadata"]["uid"])
    damager.start()
    lab.kube.run("taint", "node", job.node_of(1), "aws-node-termination-handler/spot-itn=test:NoSchedule")
    status = job.wait("resumed", lambda s: s.get("preemptions") and s["preemptions"][-1].get("resumedAt"), 120)
    damager.stop()
    preemption = status["preemptions"][-1]
    assert damager.saves
    assert all(any(save in text for text in preemption["fellBack"]) for save in damager.saves)
    assert preemption["resumedFrom"] not in damager.saves
    assert any("Rejected" in e for e in job.events())
    job.wait_succeeded()


def test_a_store_whose_every_commit_is_unreadable_stalls_the_job_and_loses_nothing(lab: Any) -> None:
    job = lab.start(env=ENV, spec={"suspend": False})
    job.wait("a checkpoint", lambda s: s.get("lastCheckpoint", {}).get("step", 0) >= 10)
    lab.kube.run("patch", "tj", job.name, "-n", lab.namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    job.wait("suspended", lambda s: s.get("phase") == "Queued", 60)
    commits = sorted(lab.data(job).glob("checkpoints/*/*/commit.json"))
    assert commits
    for commit in commits:
        flip(commit)
    lab.kube.run("patch", "tj", job.name, "-n", lab.namespace, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    condition = job.wait_condition(reason="NoUsableCheckpoint", timeout=60)
    assert condition["type"] == "Stalled"
    assert condition["status"] == "True"
    assert sorted(lab.data(job).glob("checkpoints/*/*/commit.json")) == commits


def test_a_job_applied_again_under_the_same_name_waits_and_says_what_to_add(lab: Any) -> None:
    first = lab.start(env=ENV)
    first.wait("a checkpoint", lambda s: s.get("lastCheckpoint", {}).get("step", 0) >= 10)
    uid = first.object()["metadata"]["uid"]
    lab.kube.run("delete", "tj", first.name, "-n", lab.namespace, "--wait=true", timeout=90)
    again = lab.start(env=ENV)
    condition = again.wait_condition(reason="EarlierJobHasCheckpoints")
    assert uid in condition["message"]
    assert "resumeFrom" in condition["message"]
    assert "fresh" in condition["message"]
    lab.kube.run(
        "patch",
        "tj",
        again.name,
        "-n",
        lab.namespace,
        "--type=merge",
        "-p",
        f'{{"spec":{{"resumeFrom":{{"uid":"{uid}"}}}}}}',
    )
    status = again.wait(
        "it goes on from the earlier job", lambda s: s.get("attempt", {}).get("parentStep", 0) >= 10, 60
    )
    assert uid in status["attempt"]["parent"]
    again.wait_succeeded()


def test_a_manual_checkpoint_is_taken_when_the_annotation_asks(lab: Any) -> None:
    job = lab.start(env=ENV, every={"steps": 1000})
    job.wait_step(8)
    lab.kube.run("annotate", "tj", job.name, "-n", lab.namespace, "holdfast.dev/checkpoint-now=one")
    status = job.wait("a manual checkpoint", lambda s: s.get("lastCheckpoint", {}).get("cause") == "manual", 30)
    assert status["lastCheckpoint"]["step"] >= 8
    job.wait_succeeded()


def test_suspend_saves_first_and_a_resume_goes_on_exactly_there(lab: Any) -> None:
    job = lab.start(env=ENV, every={"steps": 1000})
    job.wait_step(8)
    lab.kube.run("patch", "tj", job.name, "-n", lab.namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    status = job.wait("suspended", lambda s: s.get("phase") == "Queued", 60)
    stood_at = status["lastCheckpoint"]["step"]
    assert status["lastCheckpoint"]["cause"] == "suspend"
    lab.kube.run("patch", "tj", job.name, "-n", lab.namespace, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    status = job.wait_succeeded()
    assert status["attempt"]["parentStep"] == stood_at
