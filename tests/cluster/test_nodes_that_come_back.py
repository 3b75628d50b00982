"""Machines that are given up and return: what ran there was never told, and nothing that it still does counts (A5, A7)."""

from pathlib import Path
from typing import Any

import pytest

from hack.cluster.errors import Unsupported
from hack.demo.kube import wait_for
from holdfast_api import layout
from tests.cluster.outcome import STEPS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
UNREACHABLE = "node.kubernetes.io/unreachable"


def toleration(seconds: int) -> dict[str, Any]:
    return {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}


def is_unknown(lab: Any, node: str) -> bool:
    conditions = lab.kube.get("node", node)["status"]["conditions"]
    return any(c["type"] == "Ready" and c["status"] == "Unknown" for c in conditions)


def is_ready(lab: Any, node: str) -> bool:
    found = lab.kube.get("node", node)
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in found["status"]["conditions"])
    return ready and not found["spec"].get("taints")


def words_of(lab: Any, pod: dict[str, Any]) -> str:
    """What the agent in a container has said, as the machine has kept it: the API knows nothing of the pod any more."""
    meta = pod["metadata"]
    folder = f"/var/log/pods/{meta['namespace']}_{meta['name']}_{meta['uid']}/trainer"
    return str(lab.cluster.node(pod["spec"]["nodeName"]).run("sh", "-c", f"cat {folder}/*.log"))


def commits_of(data: Path, attempt: int) -> list[Path]:
    found = [(p, layout.parse_checkpoint_key(str(p.relative_to(data)))) for p in data.rglob("commit.json")]
    return [p for p, key in found if key is not None and key[0].attempt == attempt]


def test_a_zombie_is_fenced_and_a_kubelet_that_returns_changes_nothing(lab: Any, outcome: Any) -> None:
    """Fault scenarios 30 and 31. The kubelet of a node dies; all containers there go on.

    `alone` is one worker of two ranks whose pod is deleted by force meanwhile: its container trains on, knowing nothing, beside its successor.
    `pair` is left to Kubernetes, which deletes the pod there after a while; its agents are told over the network and save.
    """
    if not lab.cluster.owns_machines:
        raise Unsupported("the kubelets of a cluster that was there already are not ours to stop")
    (node,) = [n for n in lab.cluster.node_names if n != lab.operator.node()][:1]
    alone = lab.manifest(
        "alone", env={"STEPS": STEPS, "SLEEP": "1"}, every={"steps": 2}, spec={"workers": 1, "processesPerWorker": 2}
    )
    there = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": there}]}
    alone["spec"]["template"]["spec"] |= {"affinity": {"nodeAffinity": preferred}, "tolerations": [toleration(300)]}
    pair = lab.manifest("pair", env={"STEPS": STEPS, "SLEEP": "0.8"})
    pair["spec"]["template"]["spec"]["tolerations"] = [toleration(8)]
    lab.kube.apply(alone, pair)
    alone, pair = lab.job("alone"), lab.job("pair")
    alone.wait("a checkpoint", lambda s: s.get("lastCheckpoint", {}).get("step", 0) >= 2)
    pair.wait_step(3)
    zombie = alone.pod_of(0)
    assert zombie["spec"]["nodeName"] == node
    data = lab.data(alone)

    lab.cluster.node(node).stop("kubelet")
    wait_for("the node is given up", lambda: is_unknown(lab, node), timeout=60)
    assert not alone.status().get("preemptions"), "its agent is heard of: it is not lost"
    step = alone.status()["step"]
    lab.operator.scale(0)  # it would see the pod being deleted, now and then, and tell its agent
    lab.kube.run("delete", "pod", zombie["metadata"]["name"], "-n", lab.namespace, "--grace-period=0", "--force")
    lab.operator.scale(1)
    alone.wait_resumed()
    try:
        wait_for("the zombie ends as superseded", lambda: "ending: superseded" in words_of(lab, zombie), timeout=60)
    except TimeoutError as e:
        raise AssertionError(f"{e}; it has said: {words_of(lab, zombie)[-3000:]}") from e
    claimed_at = (data / layout.claim_key(2)).stat().st_mtime
    late = [c for c in commits_of(data, 1) if c.stat().st_mtime > claimed_at]
    assert late == []
    entry = outcome.only(alone)
    assert (entry["cause"], entry["workers"]) == ("node-lost", [0])
    assert entry["stepsLost"] <= 2
    assert entry["resumedStep"] >= step - 2

    pair.wait_resumed()
    entry = outcome.only(pair)
    assert (entry["cause"], entry["source"]) == ("node-lost", "pod:DisruptionTarget/DeletionByTaintManager")
    assert (entry["nodes"], entry["stepsLost"]) == ([node], 0)
    attempts = {job.name: job.status()["attempt"]["number"] for job in (alone, pair)}

    lab.cluster.node(node).start("kubelet")
    wait_for("the node is back", lambda: is_ready(lab, node), timeout=60)
    outcome.each(alone, pair)
    assert {job.name: job.status()["attempt"]["number"] for job in (alone, pair)} == attempts


def test_a_node_that_is_lost_with_worker_and_operator_and_comes_back(lab: Any, outcome: Any) -> None:
    """Nobody is left who knew of the job but its other worker and the store; the operator starts elsewhere and finds out."""
    job = lab.start(env={"STEPS": STEPS, "SLEEP": "0.1"})
    job.wait("a periodic checkpoint", lambda s: s.get("lastCheckpoint", {}).get("step", 0) >= 10)
    node = lab.operator.node()
    worker = next(w for w in (0, 1) if job.node_of(w) == node)
    lab.cluster.node(node).off()
    job.wait_resumed(180)
    lab.cluster.node(node).on()
    wait_for("the node is back", lambda: is_ready(lab, node), timeout=60)
    entry = outcome.of(job)
    assert (entry["cause"], entry["workers"], entry["nodes"]) == ("node-lost", [worker], [node])
    assert entry["resumedStep"] % 10 == 0
    assert entry["stepsLost"] <= 10
