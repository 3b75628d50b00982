"""The notifier's DaemonSet: what it may do, how it runs, and that it understands what the chart tells it; the last part asked of a real API server."""

import base64
import json
import os
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.demo.kube import Kube, wait_for
from holdfast_api import names
from holdfast_api.node_notices import CONDITION
from holdfast_notifier import settings

pytestmark = pytest.mark.cluster

ON = "notifier.enabled=true"
NAME = "holdfast-notifier"


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [o for o in objects if o["kind"] in kinds and o["metadata"]["name"].endswith("-notifier")]


def pod_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = of_kind(objects, "DaemonSet")
    template: dict[str, Any] = found["spec"]["template"]
    return template


def told(objects: list[dict[str, Any]]) -> settings.Settings:
    (container,) = pod_of(objects)["spec"]["containers"]
    assert container["command"] == ["holdfast-notifier"]
    assert container["env"] == [{"name": names.ENV_NODE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    return settings.parse(container["args"], {names.ENV_NODE: "n1"})


def test_it_is_off_unless_it_is_asked_for(render: Any) -> None:
    assert of_kind(render(), "DaemonSet", "ServiceAccount", "ClusterRole", "ValidatingAdmissionPolicy") == []


def test_it_may_patch_the_status_of_nodes_and_nothing_else(render: Any) -> None:
    """S8, S9."""
    (role,) = of_kind(render(ON), "ClusterRole")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}]
    (role,) = of_kind(render(ON, "notifier.azure.acknowledge=true"), "ClusterRole")
    assert role["rules"][1:] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    assert of_kind(render(ON), "Role", "RoleBinding", "Secret") == []


def test_it_runs_without_any_privilege(render: Any) -> None:
    """S14."""
    spec = pod_of(render(ON))["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & set(spec)
    assert {"requests", "limits"} <= set(container["resources"])
    assert {probe["httpGet"]["port"] for key, probe in container.items() if key.endswith("Probe")} == {"http"}


def test_the_network_of_the_host_only_where_it_is_asked_for(render: Any) -> None:
    spec = pod_of(render(ON, "notifier.hostNetwork=true"))["spec"]
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert not {"hostPID", "hostIPC", "volumes"} & set(spec)


def test_it_understands_what_the_chart_tells_it(render: Any) -> None:
    usual = told(render(ON))
    assert (usual.node, usual.cloud, usual.poll_seconds, usual.ahead_seconds) == ("n1", "auto", 2.0, 300)
    assert (usual.azure_acknowledge, usual.dry_run, usual.metadata_url) == (False, False, "")
    found = told(
        render(
            ON, "notifier.cloud=gcp", "notifier.pollSeconds=0.5", "notifier.aheadSeconds=60", "notices.nodeShutdownSeconds=90",
            "notifier.gcp.preemptionNoticeSeconds=120", "notifier.gcp.maintenanceNoticeSeconds=3600", "notifier.azure.acknowledge=true",
            "notifier.dryRun=true", "notifier.extraArgs[0]=--log-level=DEBUG",
        )
    )  # fmt: skip
    assert (found.cloud, found.poll_seconds, found.ahead_seconds, found.node_shutdown_seconds) == ("gcp", 0.5, 60, 90)
    assert (found.gcp_preemption_notice_seconds, found.gcp_maintenance_notice_seconds) == (120, 3600)
    assert (found.azure_acknowledge, found.dry_run, found.log_level) == (True, True, "DEBUG")


def test_its_port_is_the_one_that_it_serves_on_and_that_its_policy_opens(render: Any) -> None:
    """S15."""
    objects = render(ON)
    (container,) = pod_of(objects)["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": names.NOTIFIER_PORT}]
    (policy,) = of_kind(objects, "NetworkPolicy")
    assert [p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]] == ["http"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod_of(objects)["metadata"]["labels"].items()


def test_nothing_that_selects_the_operator_selects_its_pods(render: Any) -> None:
    """The operator's Service would send reports to it."""
    objects = render(ON)
    labels = pod_of(objects)["metadata"]["labels"]
    selectors = [o["spec"]["selector"] for o in objects if o["kind"] == "Service"]
    selectors += [o["spec"]["selector"]["matchLabels"] for o in objects if o["kind"] == "Deployment"]
    assert len(selectors) == 2
    assert not [s for s in selectors if s.items() <= labels.items()]
    (daemons,) = of_kind(objects, "DaemonSet")
    operator = next(o for o in objects if o["kind"] == "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert not daemons["spec"]["selector"]["matchLabels"].items() <= operator.items()


def test_it_stays_on_nodes_that_are_tainted_because_they_go(render: Any) -> None:
    assert pod_of(render(ON))["spec"]["tolerations"] == [{"operator": "Exists"}]


# ---- asked of a real API server


@pytest.fixture(scope="module")
def kube(toolchain: Path) -> Kube:
    if "KUBECONFIG" not in os.environ:
        pytest.fail("KUBECONFIG is not set: run `make test`, which brings a cluster up and sets it")
    return Kube(toolchain / "kubectl", Path(os.environ["KUBECONFIG"]))


@pytest.fixture(scope="module")
def release(kube: Kube, render: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Account, role and admission policy of a release of its own; a pod that waits on a node stands for the notifier's, for its token names the node."""
    name = f"chart-{uuid.uuid4().hex[:8]}"
    objects = render("crds.enabled=false", f"fullnameOverride={name}", ON, release=name, namespace=name)
    kube.run("create", "namespace", name)
    kube.run("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    clusterwide = ("ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    made = of_kind(objects, "ServiceAccount", *clusterwide)
    kube.apply(*made)
    yield name, objects
    for found in of_kind(made, *clusterwide):
        kube.run("delete", found["kind"].lower(), found["metadata"]["name"])
    kube.run("delete", "namespace", name, "--wait=false")


def test_a_real_api_server_takes_every_object(kube: Kube, release: tuple[str, list[dict[str, Any]]]) -> None:
    name, objects = release
    everything = {"apiVersion": "v1", "kind": "List", "items": objects}
    kube.run(
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "--force-conflicts",
        "-f",
        "-",
        stdin=json.dumps(everything),
    )
    template = pod_of(objects)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": "n", "namespace": name},
        "spec": template["spec"],
    }
    kube.run(
        "create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod)
    )  # the namespace enforces the restricted level (S13)


def patch(condition: dict[str, Any] | None = None, **status: Any) -> str:
    conditions = [condition] if condition is not None else []
    return json.dumps({"status": {"conditions": conditions, **status}})


OURS = {"type": CONDITION, "status": "False", "reason": "NothingAnnounced", "message": "{}"}


def test_a_token_of_one_node_writes_this_one_condition_of_that_node_and_nothing_else(
    kube: Kube, release: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """S8: what a role cannot say, the admission policy does."""
    name, _ = release
    here, there = [n["metadata"]["name"] for n in kube.get("nodes")["items"]][:2]
    image = "registry.k8s.io/pause:3.10"  # it need not start: a token is bound to the pod and to its node
    container = {
        "name": "c",
        "image": image,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {
        "nodeName": here,
        "serviceAccountName": f"{name}-notifier",
        "containers": [container],
        "securityContext": security,
    }
    kube.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "holder", "namespace": name}, "spec": spec})
    token = kube.run(
        "--namespace",
        name,
        "create",
        "token",
        f"{name}-notifier",
        "--bound-object-kind=Pod",
        "--bound-object-name=holder",
    ).strip()

    config = json.loads(kube.run("config", "view", "--raw", "--flatten", "-o", "json"))
    cluster = config["clusters"][0]["cluster"]
    ca = tmp_path / "ca.crt"
    ca.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    trusted = ssl.create_default_context(cafile=str(ca))

    def write(node: str, body: str, what: str = "/status") -> str:
        """What the server says; empty if it takes it."""
        request = urllib.request.Request(
            f"{cluster['server']}/api/v1/nodes/{node}{what}?dryRun=All",
            data=body.encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/strategic-merge-patch+json"},
            method="PATCH",
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=trusted):
                return ""
        except urllib.error.HTTPError as e:
            return str(json.loads(e.read())["message"])

    wait_for("the role is in force", lambda: write(here, "{}") == "", timeout=30)  # how it reads its node
    wait_for("the policy is in force", lambda: write(there, "{}") != "", timeout=30)
    assert write(here, patch(OURS)) == ""
    assert write(here, patch({**OURS, "status": "True", "message": "x" * 1000})) == ""
    assert "of no other" in write(there, patch(OURS))
    assert "and no other" in write(here, patch({"type": "Ready", "status": "False", "reason": "Lies", "message": ""}))
    another = {"type": "PreemptionScheduled", "status": "True", "reason": "Lies", "message": ""}
    assert "and no other" in write(here, patch(another))
    assert "and nothing else" in write(here, patch(OURS, capacity={"cpu": "1000"}))
    assert "and nothing else" in write(here, json.dumps({"metadata": {"labels": {"a": "b"}}}))
    assert "forbidden" in write(here, json.dumps({"spec": {"unschedulable": True}}), "")
