"""The cluster itself under test, before anything of Holdfast runs on it: plain pods, and what happens to machines.

Reuses the cluster that HOLDFAST_CLUSTER_STATE names, else brings the default one up. Each test makes its own objects and
leaves every node on, connected and without taints.
"""

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hack.cluster import api
from hack.cluster.artefacts.base_image import REFERENCE
from hack.cluster.namespaces import NamespaceCluster

#: Says when it starts and when SIGTERM comes, then takes 1.5 s to end.
ENDS_SLOWLY = """
import signal, sys, time
def ends(*_):
    print("SIGTERM", flush=True)
    time.sleep(1.5)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, ends)
print("up", flush=True)
while True:
    time.sleep(1)
"""

GONE_QUICKLY = [
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}
    for key in ("unreachable", "not-ready")
]


def wait_until(test: Callable[[], Any], limit_seconds: float = 60.0) -> tuple[float, Any]:
    """How long it took until the test gave something true, and what."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < limit_seconds:
        try:
            found = test()
        except subprocess.CalledProcessError:
            found = None
        if found:
            return waited, found
        time.sleep(0.2)
    raise AssertionError(f"not within {limit_seconds} s")


class World:
    """One test's namespace on the cluster, and kubectl in it."""

    def __init__(self, cluster: NamespaceCluster) -> None:
        self.cluster = cluster
        self.namespace = f"infra-{uuid.uuid4().hex[:6]}"

    def kubectl(self, *argv: str, feed: str | None = None) -> str:
        """Raises CalledProcessError, with kubectl's words in its `stderr`."""
        command = [str(self.cluster.bin / "kubectl"), f"--kubeconfig={self.cluster.kubeconfig}", "-n", self.namespace]
        done = subprocess.run([*command, *argv], input=feed, capture_output=True, text=True, timeout=90, check=True)
        return done.stdout

    def get(self, *argv: str) -> Any:
        return json.loads(self.kubectl("get", *argv, "-o", "json"))

    def create(self, *items: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", feed=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))

    def pod(
        self,
        name: str,
        code: str = "import time; time.sleep(3600)",
        *,
        node: str = "n1",
        wait: bool = True,
        labels: dict[str, str] | None = None,
        container: dict[str, Any] | None = None,
        **spec: Any,
    ) -> None:
        """A pod that runs Python code on a node."""
        python = {"name": "c", "image": REFERENCE, "imagePullPolicy": "Never", "command": ["python3", "-u", "-c", code]}
        body = {"nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 10}
        self.create({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {**body, "containers": [{**python, **(container or {})}], **spec},
        })  # fmt: skip
        if wait:
            self.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")

    def is_gone(self, pod: str) -> bool:
        return not self.kubectl("get", "pod", pod, "--ignore-not-found", "-o", "name").strip()

    def marked_for_deletion(self, pod: str) -> Any:
        found = self.get("pod", pod)
        return found if found["metadata"].get("deletionTimestamp") else None

    def node_condition(self, node: str, kind: str) -> str:
        conditions = self.get("node", node)["status"]["conditions"]
        return next(str(condition["status"]) for condition in conditions if condition["type"] == kind)

    def node_is_whole(self, node: str) -> bool:
        untainted = not self.get("node", node)["spec"].get("taints")
        return untainted and self.node_condition(node, "Ready") == "True"


def disruption(pod: Any) -> str | None:
    """The reason of the pod's DisruptionTarget condition."""
    conditions = pod["status"].get("conditions", [])
    return next((condition["reason"] for condition in conditions if condition["type"] == "DisruptionTarget"), None)


@pytest.fixture(scope="session")
def cluster() -> NamespaceCluster:
    found = api.ensure_cluster(nodes=2, grace=12)
    if not isinstance(found, NamespaceCluster):
        pytest.skip("the machines of this kind of cluster cannot be switched off")
    return found


@pytest.fixture
def world(cluster: NamespaceCluster) -> Iterator[World]:
    made = World(cluster)
    made.kubectl("create", "namespace", made.namespace)
    wait_until(lambda: made.get("serviceaccount", "default"))
    yield made
    for name in cluster.node_names:
        cluster.node(name).on()
        cluster.node(name).mend()
        for service in ("containerd", "kubelet", "kube-proxy"):
            cluster.node(name).start(service)
        for taint in made.get("node", name)["spec"].get("taints", []):
            if taint.get("value") == "infra-test":
                made.kubectl("taint", "node", name, f"{taint['key']}-")
    made.kubectl("delete", "namespace", made.namespace, "--wait=false")
    for name in cluster.node_names:
        wait_until(lambda name=name: made.node_is_whole(name))  # type: ignore[misc]


@pytest.fixture
def until() -> Callable[..., tuple[float, Any]]:
    return wait_until


@pytest.fixture
def ends_slowly() -> str:
    return ENDS_SLOWLY


@pytest.fixture
def gone_quickly() -> list[dict[str, Any]]:
    return GONE_QUICKLY


@pytest.fixture
def disruption_reason() -> Callable[[Any], str | None]:
    return disruption
