"""What the control plane makes of a machine that loses power, its cable or its kubelet, and of one that comes back."""

import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

#: Heartbeats stop counting after the grace of 12 s; what follows takes a few seconds more.
UNKNOWN_WITHIN_SECONDS = 30


def loses_its_pod(
    world: Any, until: Any, how: Callable[[], None], spec: dict[str, Any], reason: Callable[[Any], str | None]
) -> None:
    """The node goes Unknown, its pod is marked for deletion and yet stays: nobody can say that it ended."""
    world.pod("lost", spec.pop("code"), node="n2", **spec)
    how()
    until(lambda: world.node_condition("n2", "Ready") == "Unknown", UNKNOWN_WITHIN_SECONDS)
    _, pod = until(lambda: world.marked_for_deletion("lost"), UNKNOWN_WITHIN_SECONDS)
    assert reason(pod) == "DeletionByTaintManager"
    time.sleep(3)
    assert world.get("pod", "lost")["status"]["phase"] == "Running"


def comes_back(world: Any, until: Any) -> None:
    until(lambda: world.is_gone("lost"), 40)
    until(lambda: world.node_is_whole("n2"), 30)
    world.pod("after", node="n2")


@pytest.fixture
def spec(ends_slowly: str, gone_quickly: Any) -> dict[str, Any]:
    return {"code": ends_slowly, "tolerations": gone_quickly}


def test_a_power_cut_leaves_the_pod_until_the_out_of_service_taint(
    world: Any, until: Any, spec: Any, disruption_reason: Any
) -> None:
    node = world.cluster.node("n2")
    loses_its_pod(world, until, node.off, spec, disruption_reason)
    world.kubectl("taint", "node", "n2", "node.kubernetes.io/out-of-service=infra-test:NoExecute")
    until(lambda: world.is_gone("lost"), 40)
    world.kubectl("taint", "node", "n2", "node.kubernetes.io/out-of-service-")
    node.on()
    comes_back(world, until)


def test_a_pulled_cable_leaves_the_process_running_until_it_is_mended(
    world: Any, until: Any, spec: Any, disruption_reason: Any
) -> None:
    node = world.cluster.node("n2")
    loses_its_pod(world, until, node.cut, spec, disruption_reason)
    assert "while True" in node.run("pgrep", "-af", "python3 -u -c")
    node.mend()
    comes_back(world, until)


def test_a_dead_kubelet_leaves_the_process_running_until_it_starts_again(
    world: Any, until: Any, spec: Any, disruption_reason: Any
) -> None:
    node = world.cluster.node("n2")
    loses_its_pod(world, until, lambda: node.stop("kubelet"), spec, disruption_reason)
    assert "while True" in node.run("pgrep", "-af", "python3 -u -c")
    node.start("kubelet")
    comes_back(world, until)


def test_after_a_short_power_cut_memory_is_empty_and_the_disk_is_kept(world: Any, until: Any) -> None:
    volumes = [
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "disk", "emptyDir": {}},
        {"name": "local", "hostPath": {"path": "/mnt/local"}},
    ]
    mounts = {"volumeMounts": [{"name": volume["name"], "mountPath": f"/{volume['name']}"} for volume in volumes]}
    world.pod("never", node="n2")
    world.pod("always", node="n2", restartPolicy="Always", volumes=volumes, container=mounts)
    write = "echo x > /memory/x; echo x > /disk/x; echo x > /local/x"
    world.kubectl("exec", "always", "--", "sh", "-c", write)
    node = world.cluster.node("n2")
    node.off()
    node.on()
    until(lambda: world.get("pod", "never")["status"]["phase"] == "Failed", 30)

    def runs_again() -> bool:
        status = world.get("pod", "always")["status"]["containerStatuses"][0]
        return bool(status["ready"] and status["restartCount"] == 1)

    until(runs_again, 30)
    listed = world.kubectl("exec", "always", "--", "sh", "-c", "ls /memory; echo; ls /disk; echo; ls /local")
    assert listed == "\nx\n\nx\n"


def test_containers_outlive_the_kubelet_and_containerd(world: Any, until: Any) -> None:
    world.pod("outlives", node="n2")
    before = world.get("pod", "outlives")["status"]["containerStatuses"][0]["containerID"]
    for service in ("kubelet", "containerd"):
        world.cluster.node("n2").kill(service)
    until(lambda: world.kubectl("exec", "outlives", "--", "echo", "hi") == "hi\n", 30)
    after = world.get("pod", "outlives")["status"]["containerStatuses"][0]
    assert (after["containerID"], after["restartCount"]) == (before, 0)
