"""Spot nodes first, others after a while, and back (core/capacity.py, core/presets.py)."""

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import job_worlds
import pytest
from fake_market import Market
from hypothesis import given, settings
from hypothesis import strategies as st
from job_worlds import JobWorld, a_job, condition, of_type

from holdfast_operator.core import phases
from holdfast_operator.core.actions import CreatePod, DeletePod, EmitEvent
from holdfast_operator.core.presets import SPOT
from holdfast_operator.crd.v1alpha1 import Phase

Script = Iterator[None]
KINDS = [
    {"name": "spot", "preset": "Spot", "afterSeconds": 60},
    {"name": "on-demand", "preset": "OnDemand"},
]


def placement(stay: int = 3600) -> dict[str, Any]:
    return {"capacity": {"kinds": KINDS, "minimumStaySeconds": stay}}


def waiting_for_spot() -> JobWorld:
    """Worker 0 has a node; worker 1's pod has found none since now."""
    w = a_job(placement=placement())
    w.settled()
    plans = w.status.workers
    w.with_pod(0, 1, "n0").with_pod(1, 1, "", unschedulable="0/9 nodes are available")
    merged = [p.model_copy(update={"pod_uid": f"uid-{p.worker}-1"}) for p in plans]
    w.with_status(workers=tuple(merged))
    w.settled()
    return w


def made(w: JobWorld) -> set[tuple[int, int, str]]:
    return {(a.worker, a.serial, a.capacity) for a in of_type(w.settled(), CreatePod)}


def test_pods_are_of_the_first_kind() -> None:
    assert made(a_job(placement=placement())) == {(0, 1, "spot"), (1, 1, "spot")}


def test_a_job_that_does_not_say_gets_whatever_there_is() -> None:
    assert made(a_job()) == {(0, 1, ""), (1, 1, "")}


def test_a_pod_that_finds_no_node_for_its_waiting_time_is_made_anew_for_the_next_kind_and_no_other_is() -> None:
    w = waiting_for_spot()
    assert not made(w.after(59))
    assert "(of kind spot until 12:01:00 UTC, then on-demand)" in condition(w.status, "Ready").message
    decision = w.after(1).settled()
    assert {(a.worker, a.serial, a.capacity) for a in of_type(decision, CreatePod)} == {(1, 2, "on-demand")}
    assert {a.uid for a in of_type(decision, DeletePod)} == {"uid-1-1"}
    (event,) = [a for a in of_type(decision, EmitEvent) if a.reason == "CapacityChanged"]
    assert event.warning
    assert "worker 1: its next pod is for nodes of kind on-demand: it has found no node of kind spot" in event.message


def test_the_operator_looks_again_when_the_waiting_time_is_over() -> None:
    w = waiting_for_spot().after(30)
    assert w.round().wake_at == w.now + timedelta(seconds=30)


def test_time_at_a_gate_and_time_before_the_scheduler_has_looked_are_no_waiting_for_nodes() -> None:
    w = waiting_for_spot()
    w.change_pod(1, unschedulable="", gates=("kueue.x-k8s.io/admission",)).settled()
    assert not made(w.after(600))
    w.change_pod(1, unschedulable="", gates=()).settled()
    assert not made(w.after(600))
    w.change_pod(1, unschedulable="0/9 nodes").settled()
    assert not made(w.after(59))
    assert made(w.after(1)) == {(1, 2, "on-demand")}


def test_the_last_kind_is_waited_for_as_long_as_it_takes() -> None:
    w = waiting_for_spot()
    w.after(60).settled()
    w.change_pod(1, node="").without_pod(1).with_status(
        workers=tuple(p.model_copy(update={"pod_uid": f"uid-{p.worker}-{p.serial}"}) for p in w.status.workers)
    )
    plans = w.status.workers
    w.with_pod(1, 2, "", unschedulable="0/9 nodes").with_status(workers=plans)
    assert not made(w.after(86_400))
    assert "(of kind on-demand)" in condition(w.status, "Ready").message


@pytest.mark.parametrize(("seconds", "kind"), [(3599, "on-demand"), (3600, "spot")])
def test_a_preempted_worker_comes_back_to_the_first_kind_only_after_the_minimum_stay(seconds: int, kind: str) -> None:
    w = a_job(placement=placement()).with_pods().training()
    on_demand = [p.model_copy(update={"capacity": "on-demand", "capacity_since": w.now}) for p in w.status.workers]
    w.with_status(workers=tuple(on_demand)).after(seconds)
    w.change_pod(1, phase="Failed", reason="Evicted")
    assert made(w) == {(1, 2, kind)}


def test_a_kind_that_the_spec_does_not_name_any_more_is_the_first_one() -> None:
    w = a_job(placement=placement()).with_pods().training()
    w.with_status(
        workers=tuple(p.model_copy(update={"capacity": "gone", "capacity_since": w.now}) for p in w.status.workers)
    )
    w.change_pod(1, phase="Failed", reason="Evicted")
    assert made(w) == {(1, 2, "spot")}


def test_on_demand_is_everything_that_no_label_of_the_clouds_calls_spot() -> None:
    assert {row.key for row in SPOT} == {
        "karpenter.sh/capacity-type",
        "eks.amazonaws.com/capacityType",
        "cloud.google.com/gke-spot",
        "cloud.google.com/gke-provisioning",
        "cloud.google.com/gke-preemptible",
        "kubernetes.azure.com/scalesetpriority",
    }


# ---- whole lives


def run(
    seed: int, script: Callable[[Market, random.Random], Script], *, stay: int = 3600, workers: int = 2, **options: Any
) -> Market:
    spec = job_worlds.spec(
        workers=workers, placement=placement(stay), budgets={"failures": {"max": 1000, "backoffSeconds": 0}}
    )
    cluster = Market(spec, steps=options.pop("steps", 60), seed=seed, **options)
    acting = script(cluster, random.Random(seed + 1))
    end = cluster.now + timedelta(seconds=3000)
    while cluster.now < end and cluster.status.phase not in phases.TERMINAL:
        cluster.tick()
        next(acting, None)
    assert not cluster.wrong, cluster.wrong
    assert cluster.status.phase is Phase.SUCCEEDED, cluster.status.model_dump_json(indent=1)
    assert not cluster.flaps(timedelta(seconds=stay)), cluster.changes
    boundaries = [cluster.store.claims[n].parent_boundary for n in sorted(cluster.store.claims)]
    assert boundaries == sorted(boundaries), "the committed step went back"
    return cluster


def step(cluster: Market, number: int) -> Script:
    while cluster.status.step < number:
        yield


def test_a_worker_whose_spot_node_goes_and_is_not_followed_by_another_goes_on_on_demand_and_loses_no_step() -> None:
    def script(cluster: Market, rng: random.Random) -> Script:
        yield from step(cluster, 20)
        cluster.take_away("spot")

    cluster = run(1, script)
    assert {(w, old, new) for _, w, old, new in cluster.changes} == {(0, "spot", "on-demand"), (1, "spot", "on-demand")}
    assert [p.steps_lost for p in cluster.status.preemptions] == [0]


def test_one_that_went_on_on_demand_comes_back_at_the_next_preemption_after_the_minimum_stay() -> None:
    def script(cluster: Market, rng: random.Random) -> Script:
        yield from step(cluster, 10)
        cluster.take_away("spot")
        yield from step(cluster, 20)
        cluster.bring("spot")
        for _ in range(140):
            yield
        assert cluster.status.attempt is not None
        assert {m.node[0] for m in cluster.status.attempt.members} == {"d"}, "nothing that runs is moved"
        cluster.announce(cluster.status.attempt.members[1].node)

    cluster = run(2, script, stay=30, steps=300)
    assert cluster.status.attempt is not None
    assert [m.node[0] for m in cluster.status.attempt.members] == ["d", "s"]
    assert [p.steps_lost for p in cluster.status.preemptions] == [0, 0]


def market(cluster: Market, rng: random.Random) -> Script:
    """Spot capacity comes and goes, single nodes are taken back, die or are drained."""
    for _ in range(5):
        for _ in range(rng.randint(1, 200)):
            yield
        names = [n for n in sorted(cluster.nodes) if not cluster.nodes[n].taints and n not in cluster.dead_nodes]
        match rng.choice(["short", "back", "reclaim", "off", "withdrawn"]):
            case "short":
                cluster.take_away("spot")
            case "back":
                cluster.bring("spot")
            case "reclaim" if names:
                cluster.announce(rng.choice(names))
            case "off" if names:
                cluster.power_off(rng.choice(names))
            case "withdrawn" if names:
                node = rng.choice(names)
                cluster.announce(node, "ToBeDeletedByClusterAutoscaler")
                for _ in range(rng.randint(1, 20)):
                    yield
                cluster.withdraw(node)
        for _ in range(60):
            yield
        cluster.bring("on-demand")
    cluster.bring("spot")
    while True:
        yield


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    faults=st.sampled_from([0.0, 0.05]),
    workers=st.integers(1, 3),
    stay=st.sampled_from([0, 60, 600]),
)
def test_however_the_market_goes_the_job_ends_well_without_flapping(
    seed: int, faults: float, workers: int, stay: int
) -> None:
    run(seed, market, faults=faults, workers=workers, stay=stay, steps=250)
