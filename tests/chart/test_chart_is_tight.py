"""What the operator may do and how it runs: rendered, and asked of a real API server."""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hack.demo.kube import Kube, KubectlFailed
from holdfast_api import names
from holdfast_operator.shell import keys
from holdfast_operator.shell.permissions import OPTIONAL, PERMISSIONS
from holdfast_operator.shell.settings import parse

pytestmark = pytest.mark.cluster

MODES = {"every namespace": (), "one namespace": ("watchNamespace=team-a",)}


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] in kinds]


def operator_roles(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The roles that are bound to the operator, not those for people."""
    bound = {binding["roleRef"]["name"] for binding in of_kind(objects, "RoleBinding", "ClusterRoleBinding")}
    return [role for role in of_kind(objects, "Role", "ClusterRole") if role["metadata"]["name"] in bound]


def grants(roles: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of every rule."""
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("mode", MODES)
def test_the_operator_has_no_permission_that_reaches_further_than_its_work(render: Any, mode: str) -> None:
    """S8."""
    granted = grants(operator_roles(render(*MODES[mode])))
    assert granted
    for group, resource, verb in granted:
        assert "*" not in (group, resource, verb)
        assert verb not in ("escalate", "bind", "impersonate", "deletecollection", "approve", "sign")
        assert resource not in (
            "pods/exec",
            "pods/attach",
            "pods/portforward",
            "pods/log",
            "nodes/proxy",
            "serviceaccounts/token",
        )
        assert group != "rbac.authorization.k8s.io"
        if resource == "secrets":
            assert verb in ("create", "get")
        if resource == "nodes":
            assert verb in ("list", "watch")


def test_the_roles_grant_what_the_operator_uses_and_nothing_else(render: Any) -> None:
    """S8. The list stands beside the code that makes the calls."""
    used: dict[str, set[tuple[str, str, str]]] = {"cluster": set(), "own-namespace": set()}
    for group, resource, verbs, scope in PERMISSIONS:
        used[scope] |= {(group, resource, verb) for verb in verbs}
    for mode in MODES:
        roles = operator_roles(render(*MODES[mode]))
        own = [role for role in roles if role["metadata"].get("namespace") == "holdfast-system"]
        assert grants([role for role in roles if role not in own]) == used["cluster"]
        assert grants(own) == used["own-namespace"]


@pytest.mark.parametrize("value", OPTIONAL)
def test_what_is_only_wanted_by_some_is_granted_only_to_them(render: Any, value: str) -> None:
    """S8."""
    before, after = (operator_roles(render(*values)) for values in ((), (f"{value}=true",)))
    more = grants(after) - grants(before)
    wanted = {(group, resource, verb) for group, resource, verbs, _ in OPTIONAL[value] for verb in verbs}
    assert more == wanted
    (scope,) = {scope for *_, scope in OPTIONAL[value]}
    new = [role for role in after if grants([role]) & more]
    assert {role["metadata"].get("namespace", "cluster") for role in new} == {scope}


def test_the_operator_understands_what_the_cluster_owner_says_of_announcements(render: Any) -> None:
    row = (
        "kind=condition",
        "name=GpuFailing",
        "value=it's ecc",
        "cause=maintenance",
        "acting=false",
        "deadlineSeconds=30",
    )
    values = [f"notices.signals[0].{part}" for part in row]
    objects = render(*values, "notices.nodeShutdownSeconds=45", "notices.nodeEvents=true", "notices.nodeClaims=true")
    container = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
    found = parse(container["args"], {})
    (own,) = found.signal_rules.own
    assert (own.kind, own.name, own.value, own.acting, own.deadline.otherwise_seconds) == (
        "condition", "GpuFailing", "it's ecc", False, 30,
    )  # fmt: skip
    assert (found.signal_rules.node_shutdown_seconds, found.node_events, found.node_claims) == (45, True, True)


def test_the_one_secret_that_is_read_is_granted_by_its_name(render: Any) -> None:
    for mode in MODES.values():
        rules = [
            rule for role in operator_roles(render(*mode)) for rule in role["rules"] if "secrets" in rule["resources"]
        ]
        readable = [rule for rule in rules if rule["verbs"] != ["create"]]
        assert [(rule["verbs"], rule["resourceNames"]) for rule in readable] == [(["get"], [keys.NAME])]


@pytest.mark.parametrize("mode", MODES)
def test_the_operator_understands_what_the_chart_tells_it(render: Any, mode: str) -> None:
    objects = render(*MODES[mode])
    container = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
    fields = {"metadata.namespace": "holdfast-system", "metadata.name": "holdfast-0"}
    environment = {entry["name"]: fields[entry["valueFrom"]["fieldRef"]["fieldPath"]] for entry in container["env"]}
    settings = parse(container["args"], environment)
    assert (settings.namespace, settings.identity) == ("holdfast-system", "holdfast-0")
    assert settings.watch_namespace == ("team-a" if MODES[mode] else "")
    service = of_kind(objects, "Service")[0]["metadata"]
    assert settings.report_url == f"http://{service['name']}.{service['namespace']}.svc.cluster.local:8470"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"report": settings.report_port, "metrics": settings.metrics_port, "health": settings.health_port}


def test_with_one_namespace_only_what_has_none_is_granted_cluster_wide(render: Any) -> None:
    objects = render(*MODES["one namespace"])
    roles = operator_roles(objects)
    wide = grants([role for role in roles if role["kind"] == "ClusterRole"])
    assert {resource for _, resource, _ in wide} == {"nodes", "tokenreviews"}
    narrow = {role["metadata"]["namespace"] for role in roles if role["kind"] == "Role"}
    assert narrow == {"team-a", "holdfast-system"}
    assert grants(roles) == grants(operator_roles(render()))
    arguments = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--watch-namespace=team-a" in arguments


def test_people_may_not_write_a_status(render: Any) -> None:
    people = [
        role for role in of_kind(render(), "ClusterRole") if "aggregate" in json.dumps(role["metadata"]["labels"])
    ]
    assert len(people) == 2
    for role in people:
        status = [rule for rule in role["rules"] if "trainingjobs/status" in rule["resources"]]
        assert [rule["verbs"] for rule in status] == [["get"]]


def test_the_network_policy_opens_exactly_the_ports_of_the_operator(render: Any) -> None:
    """S15."""
    objects = render()
    policy = of_kind(objects, "NetworkPolicy")[0]["spec"]
    pod = of_kind(objects, "Deployment")[0]["spec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert opened == set(ports)
    known = (names.OPERATOR_REPORT_PORT, names.OPERATOR_METRICS_PORT, names.OPERATOR_HEALTH_PORT)
    assert sorted(ports.values()) == sorted(known)


def test_the_operator_runs_without_any_privilege(render: Any) -> None:
    """S14."""
    spec = of_kind(render(), "Deployment")[0]["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert {"requests", "limits"} <= set(container["resources"])
    assert {probe["httpGet"]["port"] for key, probe in container.items() if key.endswith("Probe")} == {"health"}
    assert [volume for volume in spec["volumes"] if "emptyDir" not in volume] == []
    assert "secret" not in json.dumps(spec).lower()


# ---- asked of a real API server


@pytest.fixture(scope="module")
def kube(toolchain: Path) -> Kube:
    if "KUBECONFIG" not in os.environ:
        pytest.fail("KUBECONFIG is not set: run `make test`, which brings a cluster up and sets it")
    return Kube(toolchain / "kubectl", Path(os.environ["KUBECONFIG"]))


@pytest.fixture(scope="module")
def release(kube: Kube, render: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Account and roles of a release of its own, in a namespace that enforces the restricted level; nothing runs."""
    name = f"chart-{uuid.uuid4().hex[:8]}"
    objects = render("crds.enabled=false", f"fullnameOverride={name}", release=name, namespace=name)
    kube.run("create", "namespace", name)
    kube.run("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    made = of_kind(objects, "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
    kube.apply(*made)
    yield name, objects
    for found in of_kind(made, "ClusterRole", "ClusterRoleBinding"):
        kube.run("delete", found["kind"].lower(), found["metadata"]["name"])
    kube.run("delete", "namespace", name, "--wait=false")


def test_a_real_api_server_takes_every_object(kube: Kube, release: tuple[str, list[dict[str, Any]]]) -> None:
    _, objects = release
    everything = {"apiVersion": "v1", "kind": "List", "items": objects}
    kube.run("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(everything))


def test_the_pod_passes_the_restricted_level_as_it_is_enforced(
    kube: Kube, release: tuple[str, list[dict[str, Any]]]
) -> None:
    """S13."""
    name, objects = release
    template = of_kind(objects, "Deployment")[0]["spec"]["template"]
    meta = {**template["metadata"], "name": "operator", "namespace": name}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
    kube.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
    del pod["spec"]["containers"][0]["securityContext"]
    with pytest.raises(KubectlFailed, match="violates PodSecurity"):
        kube.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))


MAY = [
    ("create", "", "pods", "default"),
    ("watch", "", "pods", "default"),
    ("watch", "", "nodes", ""),
    ("update", "holdfast.dev", "trainingjobs/status", "default"),
    ("create", "authentication.k8s.io", "tokenreviews", ""),
    ("create", "coordination.k8s.io", "leases", "own"),
    ("create", "", "secrets", "own"),
]
MAY_NOT = [
    ("list", "", "secrets", "default"),
    ("watch", "", "secrets", "default"),
    ("get", "", "secrets", "default"),
    ("list", "", "secrets", "own"),
    ("get", "", "secrets", "own"),
    ("create", "", "pods/exec", "default"),
    ("get", "", "pods/log", "default"),
    ("get", "", "nodes/proxy", ""),
    ("patch", "", "nodes", ""),
    ("delete", "", "nodes", ""),
    ("create", "", "serviceaccounts/token", "default"),
    ("create", "rbac.authorization.k8s.io", "rolebindings", "default"),
    ("impersonate", "", "users", ""),
    ("create", "apps", "deployments", "own"),
    ("delete", "holdfast.dev", "trainingjobs", "default"),
    ("create", "holdfast.dev", "trainingjobs", "default"),
    ("create", "coordination.k8s.io", "leases", "default"),
]
ASKED = [(*question, True) for question in MAY] + [(*question, False) for question in MAY_NOT]


@pytest.mark.parametrize(("verb", "group", "resource", "where", "allowed"), ASKED)
def test_a_real_api_server_answers_what_the_operator_may(
    kube: Kube,
    release: tuple[str, list[dict[str, Any]]],
    verb: str,
    group: str,
    resource: str,
    where: str,
    allowed: bool,
) -> None:
    """S8."""
    name, _ = release
    kind, _, subresource = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": kind, "subresource": subresource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{name}:{name}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{name}", "system:authenticated"],
            "resourceAttributes": {**attributes, "namespace": name if where == "own" else where},
        },
    }
    answer = json.loads(kube.run("create", "-o", "json", "-f", "-", stdin=json.dumps(review)))
    assert answer["status"]["allowed"] is allowed, answer["status"]
