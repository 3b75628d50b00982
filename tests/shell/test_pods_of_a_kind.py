"""The pod of a kind of capacity: what the template says and what the kind says must both hold (core/pods.py)."""

import hashlib
import json
from typing import Any

from test_pod_manifest import CONTEXT, JOB

from holdfast_operator.core.pods import made_from, worker_pod
from holdfast_operator.crd.v1alpha1 import ShunStatus, TrainingJobSpec

CONTAINER = {"name": "trainer", "image": "i", "command": ["python", "train.py"]}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
SPOT = {"name": "spot", "preset": "Spot", "afterSeconds": 60}
ON_DEMAND = {"name": "on-demand", "preset": "OnDemand"}
OWN = {
    "name": "own",
    "nodeSelector": {"pool": "b"},
    "tolerations": [{"key": "dedicated", "value": "nlp", "effect": "NoSchedule"}, {"operator": "Exists"}],
}


def spec(*kinds: dict[str, Any], **pod: Any) -> TrainingJobSpec:
    return TrainingJobSpec.model_validate({
        "checkpoint": {"storage": {"uri": "s3://b/p"}},
        "placement": {"capacity": {"kinds": list(kinds)}} if kinds else None,
        "template": {"spec": {"containers": [CONTAINER], **pod}},
    })  # fmt: skip


def pod(kind: str, job_spec: TrainingJobSpec, avoid: tuple[str, ...] = ()) -> dict[str, Any]:
    return dict(worker_pod(JOB, job_spec, 0, 1, avoid, CONTEXT, capacity_kind=kind)["spec"])


def terms(made: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = made["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    return found


def test_spot_is_any_of_the_labels_and_their_taints_are_tolerated() -> None:
    made = pod("spot", spec(SPOT))
    keys = [[(e["key"], e["operator"]) for e in t["matchExpressions"]] for t in terms(made)]
    assert keys[0] == [("karpenter.sh/capacity-type", "In")], "Karpenter takes the first that it knows"
    assert [len(k) for k in keys] == [1] * 6
    tolerated = {(t["key"], t.get("value")) for t in made["tolerations"] if t.get("effect") == "NoSchedule"}
    assert tolerated == {
        ("cloud.google.com/gke-spot", "true"),
        ("cloud.google.com/gke-preemptible", "true"),
        ("kubernetes.azure.com/scalesetpriority", "spot"),
    }


def test_on_demand_is_none_of_the_labels_and_tolerates_nothing_more() -> None:
    made = pod("on-demand", spec(ON_DEMAND))
    (term,) = terms(made)
    assert {e["operator"] for e in term["matchExpressions"]} == {"NotIn"}
    assert len(term["matchExpressions"]) == 6
    assert {t["effect"] for t in made["tolerations"]} == {"NoExecute"}


def test_what_the_template_requires_of_nodes_holds_in_every_alternative_and_so_do_nodes_to_avoid() -> None:
    zones = [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": [z]}]} for z in ("a", "b")
    ]  # two alternatives
    affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": zones}}}
    made = terms(pod("spot", spec(SPOT, affinity=affinity), ("n1",)))
    assert len(made) == 12
    for term in made:
        assert next(e["key"] for e in term["matchExpressions"]) == "zone"
        assert len(term["matchExpressions"]) == 2
        assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]


def test_a_kind_of_ones_own_adds_its_labels_and_tolerations() -> None:
    made = pod("own", spec(OWN, nodeSelector={"gpu": "h200", "pool": "a"}, tolerations=[{"key": "x"}]))
    assert made["nodeSelector"] == {"gpu": "h200", "pool": "b"}
    assert [t for t in made["tolerations"] if t.get("effect") != "NoExecute"] == [
        {"key": "x"},
        {"key": "dedicated", "value": "nlp", "effect": "NoSchedule"},
        {"operator": "Exists"},
    ]
    assert "nodeAffinity" not in made["affinity"]


def test_the_digest_of_a_job_that_says_nothing_of_placement_is_what_it_was() -> None:
    """Else an operator that learns of placement would make pods anew that nobody has changed."""
    parts = spec().model_dump(
        mode="json", include={"template", "checkpoint", "notices"}, exclude={"checkpoint": {"keep"}}
    )
    assert made_from(spec()) == hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    assert made_from(spec(SPOT)) != made_from(spec()) != made_from(spec(ON_DEMAND))


def keeping_away(shun: ShunStatus, **fields: Any) -> dict[str, Any]:
    made = worker_pod(JOB, spec(**fields), 0, 1, (), CONTEXT, shun=shun)["spec"]
    return dict(made["affinity"].get("nodeAffinity", {}))


AWAY = [{"key": "metadata.name", "operator": "NotIn", "values": [n]} for n in ("n1", "n2")]
ELSEWHERE = [{"key": "topology.kubernetes.io/zone", "operator": "NotIn", "values": ["a", "b"]}]


def test_a_pod_that_had_better_keep_away_prefers_every_other_place() -> None:
    (preferred,) = keeping_away(ShunStatus(nodes=("n1", "n2"), zones=("a", "b"))).values()
    assert preferred == [
        {"weight": 100, "preference": {"matchFields": AWAY}},
        {"weight": 100, "preference": {"matchExpressions": ELSEWHERE}},
    ]


def test_a_pod_that_must_keep_away_does_so_in_every_alternative_that_the_template_allows() -> None:
    pools = [{"matchExpressions": [{"key": "pool", "operator": "In", "values": [p]}]} for p in ("x", "y")]
    affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": pools}}}
    shun = ShunStatus(nodes=("n1", "n2"), zones=("a", "b"), required=True)
    for given, own in ((affinity, pools), ({}, [{}])):
        (required,) = keeping_away(shun, affinity=given).values()
        assert required["nodeSelectorTerms"] == [
            {"matchFields": AWAY, "matchExpressions": [*t.get("matchExpressions", []), *ELSEWHERE]} for t in own
        ]


def test_a_pod_that_keeps_away_from_nothing_says_nothing() -> None:
    assert keeping_away(ShunStatus()) == {}
