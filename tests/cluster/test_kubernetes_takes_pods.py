"""Pods that Kubernetes itself takes: the taint manager, the scheduler for somebody more important, the kubelet of a machine that runs out of memory."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from hack.demo.kube import Kube, wait_for
from tests.cluster.outcome import STEPS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
ENV = {"STEPS": STEPS, "SLEEP": "0.1"}
SEAT = "test.holdfast.dev/seat"
TAINT = "test.holdfast.dev/repair"
IMPORTANT = "holdfast-test-important"


def worker_elsewhere(job: Any, lab: Any) -> int:
    """The worker that does not share its node with the operator, which would have to leave as well."""
    operators = lab.operator.node()
    return next(w for w in (1, 0) if job.node_of(w) != operators)


@contextlib.contextmanager
def seats(kube: Kube, counts: dict[str, int]) -> Iterator[None]:
    """So many of a resource on each node, that nothing but the scheduler knows, as a device plugin would announce it."""

    def announce(node: str, count: int | None) -> None:
        places = {p: {SEAT: None if count is None else str(count)} for p in ("capacity", "allocatable")}
        kube.run("patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps({"status": places}))

    for node, count in counts.items():
        announce(node, count)
    try:
        yield
    finally:
        for node in counts:
            announce(node, None)


@contextlib.contextmanager
def important_pods(kube: Kube) -> Iterator[None]:
    name = {"name": IMPORTANT}
    kube.apply({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": name, "value": 1_000_000})
    try:
        yield
    finally:
        kube.run("delete", "priorityclass", IMPORTANT)


def important_pod(lab: Any, node: str) -> dict[str, Any]:
    """It wants the only seat of a node."""
    container = {
        "name": "c", "image": lab.cluster.trainer_image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "600"],
        "resources": {"limits": {SEAT: "1"}},
    }  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "important", "namespace": lab.namespace},
        "spec": {
            "priorityClassName": IMPORTANT, "nodeSelector": {"kubernetes.io/hostname": node}, "containers": [container],
            "tolerations": [{"key": TAINT, "operator": "Exists"}], "terminationGracePeriodSeconds": 0,
        },
    }  # fmt: skip


def test_a_noexecute_taint_and_a_more_important_pod_move_workers_without_losing_a_step(lab: Any, outcome: Any) -> None:
    """Two jobs at once. The node of both is well: it is only not to be theirs any more."""
    seated = lab.manifest("seated", env=ENV)
    seated["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {SEAT: "1"}}
    seated["spec"]["template"]["spec"]["tolerations"] = [{"key": TAINT, "operator": "Exists"}]
    stays = lab.operator.node()
    (leaves,) = [n["metadata"]["name"] for n in lab.kube.get("nodes")["items"] if n["metadata"]["name"] != stays][:1]
    with important_pods(lab.kube), seats(lab.kube, {stays: 2, leaves: 1}):
        lab.kube.apply(seated)
        preempted, tainted = lab.job("seated"), lab.start("tainted", env=ENV)
        preempted.wait_step(15)
        tainted.wait_step(15)
        of_preempted, of_tainted = (next(w for w in (1, 0) if job.node_of(w) == leaves) for job in (preempted, tainted))
        lab.kube.apply(important_pod(lab, leaves))
        lab.kube.run("taint", "node", leaves, f"{TAINT}=:NoExecute")
        preempted.wait_resumed()
        tainted.wait_resumed()
        outcome.each(preempted, tainted)
    by_scheduler, by_taint = outcome.only(preempted), outcome.only(tainted)
    assert (by_scheduler["cause"], by_scheduler["workers"], by_scheduler["stepsLost"]) == (
        "priority",
        [of_preempted],
        0,
    )
    assert by_scheduler["source"] == "pod:DisruptionTarget/PreemptionByScheduler"
    assert (by_taint["cause"], by_taint["workers"], by_taint["stepsLost"]) == ("drain", [of_tainted], 0)
    assert by_taint["source"] == "pod:DisruptionTarget/DeletionByTaintManager"
    assert lab.kube.get("pod", "important", namespace=lab.namespace)["spec"]["nodeName"] == leaves


def test_a_kubelet_that_runs_out_of_memory_evicts_and_no_step_is_lost(lab: Any, outcome: Any) -> None:
    """With a soft threshold: a hard one, for which the kubelet leaves a pod one second, must be more than the machine has left to be crossed on order."""
    job = lab.start(env={"STEPS": STEPS, "SLEEP": "0.8"})
    job.wait_step(3)
    worker = worker_elsewhere(job, lab)
    victim = job.pod_of(worker)
    node = victim["spec"]["nodeName"]
    pressure = {"evictionSoft": {"memory.available": "99%"}, "evictionSoftGracePeriod": {"memory.available": "1s"}}
    with lab.cluster.node(node).kubelet(**pressure, evictionMaxPodGracePeriod=20):
        wait_for("the kubelet evicts the worker", lambda: evicted(lab.kube, victim), timeout=90)
    entry = outcome.of(job)
    # The kubelet writes down why only when the pod has ended; by then the next attempt may have begun, and the signal keeps its name.
    assert entry["cause"] in ("node-pressure", "sigterm")
    assert (entry["workers"], entry["stepsLost"]) == ([worker], 0)
    assert job.node_of(worker) != node


def evicted(kube: Kube, pod: dict[str, Any]) -> bool:
    """Or gone: the operator removes it once another has taken its place."""
    now = kube.find("pod", pod["metadata"]["name"], namespace=pod["metadata"]["namespace"])
    return now is None or now["status"].get("reason") == "Evicted"
