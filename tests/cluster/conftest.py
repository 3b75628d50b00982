"""A namespace with a bucket and the installed chart, on the real cluster, for each test; and a small training job to try things on."""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hack.cluster.errors import Unsupported
from hack.demo import curves, install, nodes
from hack.demo.kube import Kube, wait_for

ON_OUR_IMAGES = {"test_an_image_without_the_agent_says_which_line_to_add"}


@pytest.fixture(scope="session")
def cluster() -> Any:
    """The running cluster (`hack.cluster.cluster.Cluster`)."""
    if "HOLDFAST_CLUSTER_STATE" not in os.environ:
        pytest.fail("HOLDFAST_CLUSTER_STATE is not set: run `make test`, which brings a cluster up and sets it")
    from hack.cluster import api

    return api.ensure_cluster(nodes=2, grace=12, images=True)


@pytest.fixture(scope="session")
def kube(cluster: Any) -> Kube:
    return Kube(cluster.bin / "kubectl", cluster.kubeconfig)


@pytest.fixture(scope="session")
def bucket(cluster: Any) -> install.Bucket:
    s3 = cluster.s3("holdfast-tests")
    return install.Bucket(s3.endpoint, s3.access_key, s3.secret_key, s3.region, s3.bucket)


@pytest.fixture(scope="session")
def installed(kube: Kube, cluster: Any) -> Iterator[None]:
    """The chart of this checkout, installed with the real helm program; taken away again from a cluster that was there and did not have it."""
    helm = cluster.bin / "helm"
    before = install.look(kube, helm)
    install.install_chart(kube, helm, image=cluster.operator_image)
    yield
    if not cluster.is_ours:
        install.remove_chart(kube, helm, before)


@pytest.fixture(scope="session")
def marks(cluster: Any, kube: Kube) -> dict[str, nodes.Marks]:
    """Taints and cordons that belong there (a control plane's, the owner's). Our own machines have none, whatever a test before left."""
    return {} if cluster.owns_machines else nodes.marks(kube.get("nodes")["items"])


@pytest.fixture(autouse=True)
def nodes_are_whole(cluster: Any, kube: Kube, marks: dict[str, nodes.Marks]) -> Iterator[None]:
    """Before and after each test every node is on, connected, untainted and schedulable, whatever a test or a demo before did."""
    mend(cluster, kube, marks)
    yield
    mend(cluster, kube, marks)


def mend(cluster: Any, kube: Kube, before: dict[str, nodes.Marks]) -> None:
    found = kube.get("nodes")["items"]
    for call in nodes.repairs(found, before):
        kube.run(*call)
    if cluster.owns_machines:
        for name in cluster.node_names:
            cluster.node(name).on()
            cluster.node(name).mend()
    wait_for("all nodes Ready again", lambda: nodes.are_as_before(kube.get("nodes")["items"], before), timeout=60)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What another kind of cluster cannot do is a skip that says why. Our own can do all of it, so there it stays an error."""
    everything_is_ours = item.funcargs["cluster"].owns_machines  # type: ignore[attr-defined]
    if item.name in ON_OUR_IMAGES and not everything_is_ours:
        pytest.skip("it runs an image that only the nodes of hack/cluster have")
    try:
        return (yield)
    except Unsupported as e:
        if everything_is_ours:
            raise
        pytest.skip(str(e))


@dataclass
class Job:
    """A TrainingJob in its test's namespace."""

    kube: Kube
    namespace: str
    name: str

    def object(self) -> dict[str, Any]:
        return self.kube.get("trainingjob", self.name, namespace=self.namespace)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.object().get("status", {})
        return found

    def wait(self, what: str, test: Callable[[dict[str, Any]], Any], timeout: float = 90) -> dict[str, Any]:
        """Waits until `test(status)` is true and returns that status; on a time-out the message holds the status."""
        seen: dict[str, Any] = {}

        def look() -> bool:
            nonlocal seen
            seen = self.status()
            return bool(test(seen))

        try:
            wait_for(what, look, timeout=timeout)
        except TimeoutError as e:
            raise AssertionError(f"{e}\n{json.dumps(seen, indent=1)[:6000]}") from None
        return seen

    def wait_step(self, step: int, timeout: float = 90) -> dict[str, Any]:
        return self.wait(f"step {step}", lambda s: s.get("step", 0) >= step, timeout)

    def wait_succeeded(self, timeout: float = 120) -> dict[str, Any]:
        status = self.wait("the job ends", lambda s: s.get("phase") in ("Succeeded", "Failed"), timeout)
        assert status["phase"] == "Succeeded", json.dumps(status, indent=1)[:6000]
        return status

    def wait_condition(self, *, reason: str = "", text: str = "", timeout: float = 30) -> dict[str, Any]:
        """A condition with this reason and text in its message, where a user looks first."""

        def found() -> dict[str, Any] | None:
            for c in self.status().get("conditions", []):
                if (not reason or c["reason"] == reason) and text in c.get("message", ""):
                    return dict(c)
            return None

        try:
            condition: dict[str, Any] = wait_for(f"a condition {reason!r} with {text!r}", found, timeout=timeout)
        except TimeoutError as e:
            raise AssertionError(f"{e}\n{json.dumps(self.status(), indent=1)[:6000]}") from None
        return condition

    def pods(self) -> list[dict[str, Any]]:
        return install.pods_of(self.kube, self.namespace, self.name)

    def node_of(self, worker: int) -> str:
        pods = [p for p in self.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == str(worker)]
        return str(pods[-1]["spec"].get("nodeName", ""))

    def run(self) -> curves.Run:
        """What rank 0 printed, over all pods of worker 0 that are still there."""
        leads = [p for p in self.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == "0"]
        return curves.read_run(*(self.kube.logs(p["metadata"]["name"], self.namespace) for p in leads))

    def events(self) -> list[str]:
        found = self.kube.get("events", namespace=self.namespace)["items"]
        return [f"{e['reason']}: {e['message']}" for e in found if e["involvedObject"]["name"] == self.name]


class Lab:
    """One test's namespace."""

    def __init__(self, kube: Kube, cluster: Any, bucket: install.Bucket, namespace: str) -> None:
        self.kube, self.cluster, self.bucket, self.namespace = kube, cluster, bucket, namespace
        self.uri = f"s3://{bucket.name}/{namespace}"

    def manifest(self, name: str = "small", *, env: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
        """The small training job: 2 workers of 1 rank, a checkpoint every 10 steps."""
        spec = {"processesPerWorker": 1, **changes.pop("spec", {})}
        return install.training_job(
            name, self.namespace, changes.pop("uri", self.uri), torch_path=self.cluster.torch_path_in_pod,
            image=self.cluster.trainer_image, environment=env, spec=spec, **changes,
        )  # fmt: skip

    def start(self, name: str = "small", **changes: Any) -> Job:
        self.kube.apply(self.manifest(name, **changes))
        return self.job(name)

    def job(self, name: str) -> Job:
        """A job that the test has applied by itself."""
        return Job(self.kube, self.namespace, name)

    def data(self, job: Job) -> Path:
        """The job's prefix as files below the S3 server."""
        uid = job.object()["metadata"]["uid"]
        return Path(self.cluster.s3_data) / self.bucket.name / self.namespace / self.namespace / f"{job.name}-{uid}"


@pytest.fixture
def lab(kube: Kube, cluster: Any, bucket: install.Bucket, installed: None) -> Iterator[Lab]:
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    install.prepare_namespace(kube, namespace, bucket, script=Path(__file__).with_name("small_train.py"))
    yield Lab(kube, cluster, bucket, namespace)
    kube.run("delete", "namespace", namespace, "--wait=false")
    time.sleep(0.1)
