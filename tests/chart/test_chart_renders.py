"""The chart in every way that it can be installed, rendered by the real helm program."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.cluster  # for the tools that `make test` builds; no cluster is touched

TOP = Path(__file__).resolve().parents[2]
CHART = TOP / "charts/holdfast"

MONITORS = (
    "metrics.serviceMonitor.enabled=true",
    "metrics.podMonitor.enabled=true",
    "metrics.prometheusRule.enabled=true",
)
MODES: dict[str, tuple[str, ...]] = {
    "as it comes": (),
    "one namespace": ("watchNamespace=team-a",),
    "switched off": ("replicas=0",),
    "without the definition": ("crds.enabled=false",),
    "definition goes with the release": ("crds.keep=false",),
    "with everything of Prometheus": MONITORS,
    "roles made by someone else": ("rbac.create=false", "rbac.aggregate=false", "serviceAccount.create=false", "serviceAccount.name=mine"),
    "with the notifier": ("notifier.enabled=true",),
    "with the notifier in every way": (
        "notifier.enabled=true", "notifier.hostNetwork=true", "notifier.azure.acknowledge=true", "notifier.dryRun=true", "notifier.podLabels.a=b",
        "notifier.podAnnotations.a=b", "notifier.priorityClassName=system-node-critical", "notifier.nodeSelector.spot=yes", "imagePullSecrets[0]=pull",
        "notifier.affinity.nodeAffinity.a=b", "notifier.extraArgs[0]=--log-level=DEBUG", "commonLabels.team=x", "metrics.podMonitor.enabled=true",
    ),
    "with announcements of one's own": (
        "notices.signals[0].kind=taint", "notices.signals[0].name=example.com/going", "notices.signals[0].cause=spot", "notices.nodeEvents=true",
        "notices.nodeClaims=true", "notices.nodeShutdownSeconds=30",
    ),
    "with Kueue": ("queueing.kueue=true",),
    "with Kueue, in one namespace": ("queueing.kueue=true", "watchNamespace=team-a"),
    "by digest": ("image.digest=sha256:" + "a" * 64,),
    "everything set": (
        "nodeSelector.pool=system", "tolerations[0].key=a", "priorityClassName=high", "imagePullSecrets[0]=pull", "commonLabels.team=x",
        "podLabels.a=b", "podAnnotations.a=b", "extraArgs[0]=--verbose", "extraEnv[0].name=A", "serviceAccount.annotations.a=b",
        "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.a=b", "topologySpreadConstraints[0].maxSkew=1", "affinity.nodeAffinity.a=b",
    ),
}  # fmt: skip


def one(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    return found


def kinds(objects: list[dict[str, Any]]) -> set[str]:
    return {found["kind"] for found in objects}


@pytest.mark.parametrize("mode", MODES)
def test_renders_objects_with_names_labels_and_a_namespace(render: Any, mode: str) -> None:
    objects = render(*MODES[mode])
    assert len({(o["kind"], o["metadata"]["name"], o["metadata"].get("namespace")) for o in objects}) == len(objects)
    clusterwide = {
        "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    }  # fmt: skip
    for found in objects:
        assert found["apiVersion"], found
        assert found["metadata"]["labels"]["app.kubernetes.io/name"] == "holdfast"
        assert ("namespace" in found["metadata"]) == (found["kind"] not in clusterwide), found["kind"]


@pytest.mark.parametrize("mode", MODES)
def test_lint_has_nothing_to_say(helm: Callable[..., str], mode: str) -> None:
    settings = [word for value in MODES[mode] for word in ("--set", value)]
    said = helm("lint", "--strict", str(CHART), *settings)
    assert "0 chart(s) failed" in said


def test_no_secret_is_rendered(render: Any) -> None:
    """The operator makes the master key itself (H2); a key in a release would be readable in the release."""
    for values in MODES.values():
        assert "Secret" not in kinds(render(*values))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("imag.tag=x", "additional properties 'imag' not allowed"),
        ("image.tagg=x", "additional properties 'tagg' not allowed"),
        ("metrics.podMonitor.on=true", "additional properties 'on' not allowed"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("image.digest=latest", "/image/digest"),
        ("replicas=some", "/replicas"),
        ("notifier.cloud=moon", "/notifier/cloud"),
        ("notifier.on=true", "additional properties 'on' not allowed"),
        ("notices.signals[0].kind=node", "/notices/signals/0"),
        ("notices.nodeShutdownSeconds=soon", "/notices/nodeShutdownSeconds"),
        ("replicas=2", "/replicas"),
        ("watchNamespace=Team_A", "/watchNamespace"),
        ("serviceAccount.create=false", "serviceAccount.name is needed where serviceAccount.create is false"),
    ],
)
def test_a_wrong_value_is_refused_by_name(render: Any, refused: type[Exception], value: str, words: str) -> None:
    with pytest.raises(refused, match="holdfast") as problem:
        render(value)
    assert words in str(problem.value)


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(part: dict[str, Any], given: dict[str, Any], path: str) -> None:
        assert part["additionalProperties"] is False, path
        unset = {"global", "claims"}  # may be set, have no default
        assert set(part["properties"]) - unset == set(given), path
        for name, value in given.items():
            if "properties" in part["properties"][name]:
                compare(part["properties"][name], value, f"{path}.{name}")

    compare(schema, values, "values")


def test_the_definition_is_the_one_in_crds_and_stays_when_the_release_goes(render: Any) -> None:
    plain = yaml.safe_load((TOP / "crds/trainingjobs.yaml").read_text())
    rendered = one(render(), "CustomResourceDefinition")
    assert rendered["spec"] == plain["spec"]
    assert rendered["metadata"]["name"] == plain["metadata"]["name"]
    assert rendered["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in one(render("crds.keep=false"), "CustomResourceDefinition")["metadata"]
    assert "CustomResourceDefinition" not in kinds(render("crds.enabled=false"))


def test_the_image_is_what_the_values_say(render: Any) -> None:
    def image(*values: str) -> str:
        container = one(render(*values), "Deployment")["spec"]["template"]["spec"]["containers"][0]
        assert container["imagePullPolicy"] == "IfNotPresent"
        return str(container["image"])

    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert image("image.repository=r/o") == f"r/o:{version}"
    assert image("image.repository=r/o", "image.tag=dev") == "r/o:dev"
    assert image("image.repository=r/o", "image.digest=sha256:" + "b" * 64) == "r/o@sha256:" + "b" * 64


def test_the_versions_are_those_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    line = next(line for line in (TOP / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    assert f'version = "{chart["version"]}"' == line
    assert chart["version"] == chart["appVersion"]


def test_the_service_leads_to_ports_that_the_pod_has(render: Any) -> None:
    objects = render()
    pod = one(objects, "Deployment")["spec"]["template"]
    service = one(objects, "Service")["spec"]
    names = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert {port["targetPort"] for port in service["ports"]} <= set(names)
    assert all(port["port"] == names[port["targetPort"]] for port in service["ports"])


def test_the_operator_is_started_elsewhere_soon_after_its_node_is_lost(render: Any) -> None:
    tolerations = one(render("tolerations[0].key=spot"), "Deployment")["spec"]["template"]["spec"]["tolerations"]
    seconds = {t["key"]: t.get("tolerationSeconds") for t in tolerations}
    assert seconds == {"node.kubernetes.io/not-ready": 15, "node.kubernetes.io/unreachable": 15, "spot": None}


def test_monitors_only_where_asked_for(render: Any) -> None:
    monitors = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
    assert not kinds(render()) & monitors
    assert monitors <= kinds(render(*MONITORS))


def test_notes_name_the_next_three_commands(helm: Callable[..., str]) -> None:
    """helm renders NOTES.txt only for an install; the client-side dry run touches no cluster."""
    said = helm(
        "install", "holdfast", str(CHART), "--namespace", "hs", "--dry-run=client", "--set", "watchNamespace=team-a"
    )
    notes = said[said.index("NOTES:") :]
    assert [line[:2] for line in notes.splitlines() if line[:2] in ("1.", "2.", "3.")] == ["1.", "2.", "3."]
    assert "kubectl --namespace hs rollout status deployment/holdfast" in notes
    assert "kubectl --namespace team-a apply -f job.yaml" in notes
