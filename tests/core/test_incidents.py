"""Nodes and zones that new pods keep away from for a while, because workers were lost there (core/incidents.py)."""

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import job_worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from job_worlds import JobWorld, a_job, checkpoint, condition, of_type
from simulated_cluster import SimulatedCluster

from holdfast_api import names
from holdfast_api.messages import AgentPhase
from holdfast_operator.core import actions as act
from holdfast_operator.core import phases
from holdfast_operator.core.actions import CreatePod, DeletePod, EmitEvent
from holdfast_operator.core.observed import PodSeen
from holdfast_operator.crd.v1alpha1 import PartStatus, Phase, Place, ShunStatus, UnfinishedStatus

ZONE = "topology.kubernetes.io/zone"
PATIENT = {"failures": {"max": 1000, "backoffSeconds": 0}}


def running(workers: int = 2, zones: str = "aab", **spec: Any) -> JobWorld:
    """Worker w on node n<w>, in the zones that `zones` names letter by letter."""
    w = a_job(workers=workers, budgets=PATIENT, **spec)
    for name, zone in zip(sorted(w.nodes), zones, strict=False):
        w.change_node(name, labels={ZONE: zone})
    return w.with_pods().training()


def lost(w: JobWorld, *workers: int, reason: str = "Evicted") -> JobWorld:
    for worker in workers:
        w.change_pod(worker, phase="Failed", reason=reason)
    w.settled()
    return w


def avoided(w: JobWorld) -> set[tuple[str, str]]:
    return {(a.kind.value, a.name) for a in w.status.avoiding}


def shuns(w: JobWorld) -> set[ShunStatus | None]:
    """Of the pods that are to be made now."""
    return {a.shun for a in of_type(w.settled(), CreatePod)}


def test_a_node_that_died_is_kept_away_from_for_the_set_time_and_then_no_more() -> None:
    w = lost(running(), 1)
    assert avoided(w) == {("Node", "n1")}
    (plan,) = [p for p in w.status.workers if p.serial == 2]
    assert plan.shun == ShunStatus(nodes=("n1",))
    (entry,) = w.status.avoiding
    assert entry.until == w.now + timedelta(seconds=1800)
    w.with_pods(serial=3).training(number=2)
    w.after(1799).settled()
    assert avoided(w)
    assert w.round().wake_at == w.now + timedelta(seconds=1)
    w.after(1).settled()
    assert (w.status.avoiding, w.status.incidents) == ((), ())


def test_a_pod_that_gave_way_to_a_higher_priority_blames_no_place() -> None:
    w = lost(running(), 1, reason="Preempting")
    assert w.status.preemptions[-1].cause == "priority"
    assert not w.status.incidents


def test_a_pod_that_somebody_deleted_blames_no_place() -> None:
    w = running().deleted_pod(1)
    w.settled()
    w.after(31).without_pod(1).settled()
    assert w.status.preemptions[-1].ended_at is not None
    assert not w.status.incidents


def test_several_nodes_of_a_zone_within_the_time_are_the_zone() -> None:
    w = lost(running(3, "aabb"), 0, 1)
    assert avoided(w) == {("Node", "n0"), ("Node", "n1"), ("Zone", "a")}
    assert {p.shun.zones for p in w.status.workers if p.shun} == {("a",)}


def test_a_zone_is_told_with_its_reason_once() -> None:
    w = running(3, "aabb")
    for worker in (0, 1):
        w.change_pod(worker, phase="Failed", reason="Evicted")
    told = told_of(w)
    assert len(told) == 3
    assert "new pods keep away from zone a until 12:30:00 UTC: 2 nodes of it went (node-pressure)" in told
    assert not told_of(w.after(5))


def test_one_node_of_a_zone_however_often_is_not_the_zone() -> None:
    w = lost(running(3, "aabb"), 1)
    w.with_pods(serial=3).training(number=2).after(1)
    lost_again = w.change_pod(1, 3, phase="Failed", reason="Evicted")
    lost_again.settled()
    assert avoided(w) == {("Node", "n1")}


def test_nodes_that_went_long_after_each_other_are_not_the_zone() -> None:
    w = lost(running(3, "aabb"), 0)
    w.with_pods(serial=3).training(number=2).after(1801)
    w.change_pod(1, 3, phase="Failed", reason="Evicted").settled()
    assert avoided(w) == {("Node", "n1")}


def test_spot_nodes_that_are_taken_back_are_the_zones_and_not_their_own() -> None:
    """They are gone for good; what comes next under their names is another machine."""
    w = running(3, "aabb")
    for node in ("n0", "n1"):
        w.tainted(node, "aws-node-termination-handler/spot-itn")
    w.settled()
    assert not w.status.avoiding, "nothing has happened yet: zones.py reads what is announced"
    w.after(121).settled()
    assert avoided(w) == {("Zone", "a")}


def test_a_zone_is_remembered_when_node_and_pod_are_gone() -> None:
    w = running(3, "aabb")
    w.settled()
    for worker in (0, 1):
        w.without_pod(worker).without_node(f"n{worker}")
        w.heard.pop(f"uid-{worker}-1")
    w.watching_since = w.now
    w.after(60).settled()
    assert ("Zone", "a") in avoided(w)


def test_a_gang_that_is_together_stays_together() -> None:
    w = lost(running(3, "aaaa"), 0, 1)
    assert ("Zone", "a") in avoided(w)
    assert {p.shun.zones for p in w.status.workers if p.shun} == {()}


def told_of(w: JobWorld) -> list[str]:
    return [a.message for a in of_type(w.settled(), EmitEvent) if a.reason == "PlaceQuarantined"]


def crashed(w: JobWorld, number: int, **fields: Any) -> JobWorld:
    w.training(number=number)
    w.reports(1, AgentPhase.FAILED, exit_detail="CUDA error: uncorrectable ECC error", **fields)
    w.after(1).reports(0, AgentPhase.TRAINING)
    w.settled()
    return w


def test_code_that_crashes_once_on_a_node_is_started_again_there() -> None:
    w = crashed(running(), 1)
    assert not w.status.avoiding
    assert w.status.attempt is not None
    assert [m.node for m in w.status.attempt.members] == ["n0", "n1"]


def test_code_that_crashes_again_and_again_on_one_node_is_started_elsewhere() -> None:
    w = running()
    crashed(w, 1)
    w.training(number=2).reports(1, AgentPhase.FAILED, exit_detail="CUDA error").after(1).reports(
        0, AgentPhase.TRAINING
    )
    decision = w.settled()
    assert avoided(w) == {("Node", "n1")}
    assert {(a.worker, a.shun) for a in of_type(decision, CreatePod)} == {(1, ShunStatus(nodes=("n1",)))}
    assert not [a for a in of_type(decision, DeletePod) if a.uid == "uid-0-1"], "the other keeps its pod and arena"
    assert "crashed there 2 times" in w.status.avoiding[0].reason


def test_code_that_makes_progress_before_it_crashes_stays_where_it_is_however_often() -> None:
    w = running()
    for number in (1, 2, 3):
        w.training(number=number)
        w.reports(0, AgentPhase.TRAINING, checkpoints=(checkpoint(f"{number}/1", 50 * number),))
        w.reports(1, AgentPhase.FAILED, exit_detail="ValueError").after(1).reports(0, AgentPhase.TRAINING)
        assert not of_type(w.settled(), CreatePod)
    assert not w.status.incidents


def test_it_is_not_moved_from_where_its_newest_state_lies_and_nowhere_else() -> None:
    """E6: data first."""
    w = running()
    crashed(w, 1)
    left = UnfinishedStatus(
        checkpoint="2/9", step=500, parts=(PartStatus(worker=1, node="n1"),), whole=True, since=w.now
    )
    w.training(number=2).with_status(unfinished=left)
    w.status = w.status.model_copy(update={"attempt": w.status.attempt.model_copy(update={"claimed_at": w.now})})  # type: ignore[union-attr]
    w.reports(1, AgentPhase.FAILED, exit_detail="CUDA error").after(1).reports(0, AgentPhase.TRAINING)
    assert not of_type(w.settled(), CreatePod)


def test_failures_that_no_machine_causes_blame_none() -> None:
    w = running()
    for number in (1, 2):
        w.training(number=number).change_pod(1, restarted_after="OOMKilled")
        w.reports(1, AgentPhase.WAITING, attempt=0, joined=number).settled()
    assert w.status.preemptions[-1].source == "OutOfMemory"
    assert not w.status.incidents


def test_a_worker_may_go_where_its_part_of_the_newest_state_lies_also_if_it_was_lost_there() -> None:
    """E6: data first."""
    w = running()
    part = PartStatus(worker=1, node="n1")
    left = UnfinishedStatus(checkpoint="1/9", step=500, parts=(part,), whole=False, since=w.now)
    lost(w.with_status(unfinished=left), 0, 1)
    found = {p.worker: p.shun.nodes for p in w.status.workers if p.shun}
    assert found == {0: ("n0", "n1"), 1: ("n0",)}


def test_a_copy_of_the_newest_checkpoint_is_no_reason_to_go_back_where_a_worker_was_lost() -> None:
    storage = {"storage": {"uri": "s3://b/p"}, "local": {"hostPath": {"path": "/mnt/nvme"}}}
    w = lost(running(checkpoint=storage), 1)
    assert [(p.shun, p.prefer_nodes) for p in w.status.workers if p.serial == 2] == [(ShunStatus(nodes=("n1",)), ())]


def test_it_can_be_turned_off() -> None:
    w = lost(running(placement={"quarantine": {"seconds": 0}}), 1)
    assert (w.status.incidents, w.status.avoiding) == ((), ())


def required() -> dict[str, Any]:
    return {"quarantine": {"mode": "Require"}}


def test_a_pod_that_must_keep_away_and_finds_no_node_for_a_minute_only_had_better() -> None:
    w = lost(running(placement=required()), 1)
    (plan,) = [p for p in w.status.workers if p.serial == 2]
    assert plan.shun == ShunStatus(nodes=("n1",), required=True)
    w.with_pod(1, 2, "", unschedulable="0/3 nodes")
    w.with_status(
        workers=tuple(plan.model_copy(update={"pod_uid": "uid-1-2"}) if p.serial == 2 else p for p in w.status.workers)
    )
    w.settled()
    assert w.after(58).round().wake_at == w.now + timedelta(seconds=2)
    assert not shuns(w.after(1))
    assert condition(w.status, "Ready").reason == "Unschedulable"
    assert shuns(w.after(1)) == {ShunStatus(nodes=("n1",), required=False)}


# ---- whole lives


class Zoned(SimulatedCluster):
    """Nodes in zones a, b and c; the scheduler keeps to what a pod must keep away from."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.shuns: dict[str, ShunStatus] = {}
        self.bring_all()

    def bring_all(self) -> None:
        for i, name in enumerate(sorted(self.nodes)):
            if name in self.dead_nodes or self.nodes[name].taints:
                self.bring_node(name)
            self.nodes[name] = replace(self.nodes[name], labels={ZONE: "abc"[i % 3]})

    def _create(self, action: act.CreatePod) -> None:
        super()._create(action)
        name = names.pod_name(self.job.name, self.job.uid, action.worker, action.serial)
        uid = next(u for u, p in self.pods.items() if p.name == name)
        self.shuns[uid] = action.shun or ShunStatus()

    def _schedule(self, uid: str, pod: PodSeen) -> None:
        everywhere, shun = self.nodes, self.shuns[uid]
        if shun.required:
            self.nodes = {
                n: node
                for n, node in everywhere.items()
                if n not in shun.nodes and node.labels.get(ZONE) not in shun.zones
            }
        super()._schedule(uid, pod)
        self.nodes = everywhere


def losing(cluster: Zoned, rng: random.Random) -> Iterator[None]:
    """Every few moments a machine dies, or all of them; they come back at once and are mistrusted."""
    for _ in range(6):
        for _ in range(rng.randint(1, 120)):
            yield
        nodes = sorted(cluster.nodes)
        for name in nodes if rng.random() < 0.3 else [rng.choice(nodes)]:
            cluster.power_off(name)
        for _ in range(60):
            yield
        cluster.bring_all()
    while True:
        yield


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    workers=st.integers(1, 3),
    nodes=st.integers(1, 5),
    mode=st.sampled_from(["Prefer", "Require"]),
)
def test_a_job_is_never_left_without_a_place_to_go(seed: int, workers: int, nodes: int, mode: str) -> None:
    placement = {"quarantine": {"mode": mode, "seconds": 3600}}
    spec = job_worlds.spec(workers=workers, budgets=PATIENT, placement=placement)
    cluster = Zoned(spec, nodes=nodes, steps=120, seed=seed)
    acting = losing(cluster, random.Random(seed + 1))
    end = cluster.now + timedelta(seconds=2400)
    while cluster.now < end and cluster.status.phase not in phases.TERMINAL:
        cluster.tick()
        next(acting, None)
    assert not cluster.wrong, cluster.wrong
    assert cluster.status.phase is Phase.SUCCEEDED, cluster.status.model_dump_json(indent=1)
    assert len(cluster.status.avoiding) <= 32
    assert {a.kind for a in cluster.status.avoiding} <= {Place.NODE, Place.ZONE}
