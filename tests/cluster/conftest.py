"""A namespace with a bucket and the installed chart, on the real cluster, for each test; lab.py is what a test does there."""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.cluster.errors import Unsupported
from hack.demo import curves, install, nodes
from hack.demo.kube import Kube, wait_for
from tests.cluster.lab import Lab
from tests.cluster.outcome import STEPS, Outcome

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
    if cluster.owns_machines:
        cluster.start_api()
    found = kube.get("nodes")["items"]
    for call in nodes.repairs(found, before):
        kube.run(*call)
    if cluster.owns_machines:
        for name in cluster.node_names:
            cluster.node(name).on()
            cluster.node(name).mend()
            cluster.node(name).start("kubelet")
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


@contextlib.contextmanager
def own_namespace(kube: Kube, bucket: install.Bucket) -> Iterator[str]:
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    install.prepare_namespace(kube, namespace, bucket, script=Path(__file__).with_name("small_train.py"))
    yield namespace
    kube.run("delete", "namespace", namespace, "--wait=false")
    time.sleep(0.1)


@pytest.fixture
def lab(kube: Kube, cluster: Any, bucket: install.Bucket, installed: None) -> Iterator[Lab]:
    with own_namespace(kube, bucket) as namespace:
        yield Lab(kube, cluster, bucket, namespace)


@pytest.fixture(scope="session")
def reference(kube: Kube, cluster: Any, bucket: install.Bucket, installed: None) -> curves.Run:
    """The small script's run of STEPS steps on two ranks that nothing interrupts. Its seed decides all of it, so it is made once."""
    with own_namespace(kube, bucket) as namespace:
        job = Lab(kube, cluster, bucket, namespace).start("reference", env={"STEPS": STEPS, "SLEEP": "0"})
        assert not job.wait_succeeded().get("preemptions")
        return job.run()


@pytest.fixture
def outcome(lab: Lab, reference: curves.Run) -> Outcome:
    return Outcome(lab, reference)
