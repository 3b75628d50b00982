"""Kueue's pod groups and scheduling gates (core/queueing.py, core/kueue.py)."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import job_worlds
import pytest
from fake_kueue import QueuedCluster, unfinished
from hypothesis import given, settings
from hypothesis import strategies as st
from job_worlds import JobWorld, a_job, condition, of_type

from holdfast_operator.core import kueue, phases, queueing
from holdfast_operator.core.actions import CreatePod, DeletePod, ReleaseQuota
from holdfast_operator.crd.v1alpha1 import Phase, QueueStatus

Script = Iterator[None]
GATED = {"gates": (kueue.GATE,), "queue_managed": True}


def queued_job(**spec: Any) -> JobWorld:
    w = a_job(**spec)
    w.meta = replace(w.meta, labels={kueue.QUEUE: "gpus"})
    return w


def group_of(w: JobWorld, founded: int = 1) -> str:
    return kueue.group_name(w.meta, QueueStatus(name="gpus", founded=founded, size=2))


def trained_in_queue() -> JobWorld:
    """Two workers of group 1, admitted and training."""
    w = queued_job().with_pods()
    ticket = QueueStatus(name="gpus", founded=1, size=2)
    w.with_status(workers=tuple(p.model_copy(update={"queue": ticket}) for p in w.status.workers))
    for worker in (0, 1):
        w.change_pod(worker, queue_managed=True, queue_group=group_of(w))
    return w.training()


def test_pods_that_start_together_are_one_group() -> None:
    w = queued_job()
    made = of_type(w.settled(), CreatePod)
    assert [a.queue for a in made] == [QueueStatus(name="gpus", founded=1, size=2)] * 2


def test_a_queue_that_the_template_names_counts_and_the_jobs_own_label_counts_before_it() -> None:
    template = {**job_worlds.TEMPLATE, "metadata": {"labels": {kueue.QUEUE: "other"}}}
    assert {a.queue.name for a in of_type(a_job(template=template).settled(), CreatePod)} == {"other"}
    assert {a.queue.name for a in of_type(queued_job(template=template).settled(), CreatePod)} == {"gpus"}


def test_a_job_without_a_queue_has_no_group() -> None:
    assert [a.queue for a in of_type(a_job().settled(), CreatePod)] == [None, None]


def test_a_gated_job_is_queued_not_stalled_and_says_who_holds_it() -> None:
    w = queued_job()
    w.settled()
    w.with_status(workers=tuple(p.model_copy(update={"pod_uid": ""}) for p in w.status.workers))
    for worker in (0, 1):
        queue = w.status.workers[worker].queue
        w.with_pod(worker, 1, "", queue_group=group_of(w), **GATED)
        plan = w.status.workers[-1].model_copy(update={"queue": queue})
        w.with_status(workers=(*w.status.workers[:-1], plan))
    w.after(3600).settled()
    assert w.status.phase is Phase.QUEUED
    assert [condition(w.status, t).status for t in ("Ready", "Reconciling", "Stalled")] == ["False", "True", "False"]
    ready = condition(w.status, "Ready")
    assert ready.reason == "Queued"
    assert "kueue.x-k8s.io/admission: Kueue has not admitted it yet (queue gpus)" in ready.message
    assert {p.gates for p in w.status.workers} == {(kueue.GATE,)}


def test_somebody_elses_gate_is_named_and_nothing_is_made_anew_for_it() -> None:
    w = a_job().with_pod(0, 1, "", gates=("example.com/license",)).with_pod(1, 1, "n1")
    decision = w.after(3600).settled()
    assert not of_type(decision, CreatePod)
    assert not of_type(decision, DeletePod)
    assert w.status.phase is Phase.QUEUED
    message = condition(w.status, "Ready").message
    assert (
        message == "worker 0 waits at the scheduling gate example.com/license: whoever has set it has to take it away"
    )
    w.change_pod(0, gates=()).settled()
    assert w.status.phase is Phase.STARTING


def test_survivors_are_not_taken_down_while_a_replacement_waits_at_a_gate_however_long() -> None:
    w = trained_in_queue()
    w.change_pod(1, phase="Failed", reason="Evicted").settled()
    w.with_pod(1, 2, "", queue_group=group_of(w), **GATED)
    w.with_status(
        workers=tuple(
            p.model_copy(update={"queue": QueueStatus(name="gpus", founded=1, size=2)}) for p in w.status.workers
        )
    )
    decision = w.after(86_400).settled()
    assert not [a for a in of_type(decision, DeletePod) if a.uid == "uid-0-1"]
    assert w.status.phase is Phase.QUEUED
    assert "worker 1 waits at" in condition(w.status, "Ready").message


def test_a_replacement_joins_the_group_and_is_made_when_the_old_pod_counts_no_more() -> None:
    """Kueue deletes what is one too many at once."""
    w = trained_in_queue().tainted("n1", "aws-node-termination-handler/spot-itn")
    assert not of_type(w.settled(), CreatePod)
    assert w.status.phase is Phase.EVACUATING
    w.after(121).settled()
    assert w.status.phase is Phase.RECOVERING
    assert not of_type(w.settled(), CreatePod), "its pod runs still"
    assert "Kueue still counts pod job-0a1b2c3d-1-1" in condition(w.status, "Ready").message
    (made,) = set(of_type(w.change_pod(1, phase="Failed", reason="Terminated").settled(), CreatePod))
    assert (made.worker, made.queue) == (1, QueueStatus(name="gpus", founded=1, size=2))


def test_no_pod_is_made_beside_an_attempt_that_still_saves_also_if_it_were_a_group_of_its_own() -> None:
    """F5: a withdrawn notice would throw it away in the queue."""
    w = queued_job(workers=1).with_pods()
    ticket = QueueStatus(name="gpus", founded=1, size=1)
    w.with_status(workers=tuple(p.model_copy(update={"queue": ticket}) for p in w.status.workers))
    w.change_pod(0, queue_managed=True, queue_group=group_of(w)).training()
    assert not of_type(w.tainted("n0", "aws-node-termination-handler/spot-itn").settled(), CreatePod)
    (made,) = set(of_type(w.after(121).settled(), CreatePod))
    assert made.queue == QueueStatus(name="gpus", founded=2, size=1)


def test_a_pod_at_a_gate_beside_an_attempt_that_trains_leaves_the_job_running() -> None:
    w = trained_in_queue()
    beside = w.status.workers[-1].model_copy(update={"serial": 2, "pod_uid": "", "gates": (kueue.GATE,)})
    assert phases.current(w.status.model_copy(update={"workers": (*w.status.workers, beside)})) is Phase.RUNNING


def test_a_lost_node_whose_pod_kueue_still_counts_is_named_with_the_way_out() -> None:
    w = trained_in_queue()
    w.change_node("n1", ready=False, ready_since=w.now).after(60).change_pod(1, deletion_deadline=w.now)
    w.heard.pop("uid-1-1")
    assert not of_type(w.settled(), CreatePod)
    assert "delete the Node if the machine is gone" in condition(w.status, "Ready").message


def test_pods_of_a_group_of_which_nothing_runs_any_more_are_another_group() -> None:
    w = trained_in_queue()
    for worker in (0, 1):
        w.change_pod(worker, phase="Failed", reason="Evicted")
    made = of_type(w.settled(), CreatePod)
    assert [a.queue for a in made] == [QueueStatus(name="gpus", founded=2, size=2)] * 2


def test_a_replacement_whose_group_ended_while_it_waited_is_made_anew_with_all_others() -> None:
    w = trained_in_queue()
    w.change_pod(1, phase="Failed", reason="Evicted").settled()
    w.with_pod(1, 2, "", queue_group=group_of(w), **GATED)
    w.with_status(
        workers=tuple(
            p.model_copy(update={"queue": QueueStatus(name="gpus", founded=1, size=2)}) for p in w.status.workers
        )
    )
    w.settled()
    made = of_type(w.after(10).change_pod(0, phase="Failed", reason="Evicted").settled(), CreatePod)
    assert [(a.worker, a.queue.founded) for a in made] == [(0, 3), (1, 3)]


def test_pods_that_follow_one_that_ended_well_are_a_group_beside_it() -> None:
    w = trained_in_queue()
    w.change_pod(1, phase="Succeeded", exit_code=0)
    w.attempt(2).settled()
    w.reports(0, job_worlds.AgentPhase.STARTING).settled()
    made = of_type(w.settled(), CreatePod)
    assert not made or made[0].queue == QueueStatus(name="gpus", founded=2, size=1)
    assert [p.queue.founded for p in w.status.workers if p.worker == 1][-1] == 2


def test_pods_that_a_group_has_no_place_for_are_a_group_beside_it() -> None:
    """A job that grows (spec.elastic), which was made smaller when its group was."""
    w = trained_in_queue()
    assert queueing.ticket(w.seen(), w.status, [2], 5) == QueueStatus(name="gpus", founded=5, size=1)
    assert queueing.ticket(w.seen(), w.status, [1], 5) == QueueStatus(name="gpus", founded=1, size=2)


def test_a_job_that_was_given_up_in_the_queue_frees_its_place_there() -> None:
    w = queued_job(suspend=True)
    for worker in (0, 1):
        w.with_pod(worker, 1, "", queue_group=group_of(w), deletion_deadline=w.now, **GATED)
    decision = w.settled()
    assert of_type(decision, ReleaseQuota)
    assert {a.group for a in of_type(decision, ReleaseQuota)} == {group_of(w)}
    assert w.status.phase is Phase.QUEUED
    assert not w.status.workers
    w.change_pod(0, node="n0", gates=())
    assert not of_type(w.settled(), ReleaseQuota), "a pod of the group runs"


@pytest.mark.parametrize("how", ["deleting", "paused", "failed"])
def test_so_does_one_that_is_over_and_not_one_that_is_to_be_left_alone(how: str) -> None:
    w = queued_job()
    for worker in (0, 1):
        w.with_pod(worker, 1, "", queue_group=group_of(w), deletion_deadline=w.now, **GATED)
    match how:
        case "deleting":
            w.meta = replace(w.meta, deleting=True)
        case "paused":
            w.annotated("holdfast.dev/reconcile", "paused")
        case _:
            w.with_status(phase=Phase.FAILED)
    assert of_type(w.decided(), ReleaseQuota) == ([] if how == "paused" else [ReleaseQuota(group_of(w))])


# ---- whole lives


def run(seed: int, script: Callable[[QueuedCluster, random.Random], Script], **options: Any) -> QueuedCluster:
    spec = job_worlds.spec(workers=options.pop("workers", 2), budgets={"failures": {"max": 1000, "backoffSeconds": 0}})
    cluster = QueuedCluster(spec, nodes=5, steps=60, seed=seed, **options)
    acting = script(cluster, random.Random(seed + 1))
    end = cluster.now + timedelta(seconds=1500)
    while cluster.now < end and cluster.status.phase not in phases.TERMINAL:
        cluster.tick()
        next(acting, None)
    assert not cluster.wrong, cluster.wrong
    assert cluster.status.phase is Phase.SUCCEEDED, cluster.status.model_dump_json(indent=1)
    assert cluster.excess == 0, "a pod was one too many for its group"
    assert not unfinished(cluster), "quota is held for a job that is over"
    return cluster


def disturbed(cluster: QueuedCluster, rng: random.Random) -> Script:
    for _ in range(3):
        for _ in range(rng.randint(1, 120)):
            yield
        node, uids = rng.choice(sorted(cluster.nodes)), sorted(u for u, p in cluster.pods.items() if not p.terminal)
        match rng.choice(["evict", "notice", "withdrawn", "delete", "full", "suspend"]):
            case "evict":
                cluster.evict()
            case "notice":
                cluster.announce(node)
            case "withdrawn":
                cluster.announce(node, "ToBeDeletedByClusterAutoscaler")
                for _ in range(rng.randint(1, 20)):
                    yield
                cluster.withdraw(node)
            case "delete":
                cluster.delete_pod(rng.choice(uids or [""]))
            case "full":
                before, cluster.quota = cluster.quota, 0
                cluster.evict()
                for _ in range(rng.randint(1, 200)):
                    yield
                cluster.quota = before
            case "suspend":
                cluster.spec = cluster.spec.model_copy(update={"suspend": True})
                for _ in range(rng.randint(1, 200)):
                    yield
                cluster.spec = cluster.spec.model_copy(update={"suspend": False})
        for _ in range(60):
            yield
        for name in sorted(cluster.nodes):
            if cluster.nodes[name].taints:
                cluster.bring_node(name)
    while True:
        yield


def test_an_eviction_by_kueue_loses_no_step_and_the_job_goes_on_when_it_is_let_in_again() -> None:
    def script(cluster: QueuedCluster, rng: random.Random) -> Script:
        while cluster.status.step < 20:
            yield
        cluster.quota = 0
        cluster.evict()
        for _ in range(200):
            yield
        assert cluster.status.phase is Phase.QUEUED
        cluster.quota = 2

    cluster = run(1, script, quota=2)
    (entry,) = cluster.status.preemptions
    assert (entry.cause, entry.steps_lost) == ("priority", 0)
    assert len(cluster.workloads) == 2


def test_quota_for_the_job_alone_is_enough_to_replace_one_worker() -> None:
    def script(cluster: QueuedCluster, rng: random.Random) -> Script:
        while cluster.status.step < 20:
            yield
        cluster.delete_pod("uid-1-1")

    cluster = run(2, script, quota=2)
    assert len(cluster.workloads) == 1
    assert cluster.status.attempt is not None
    assert [m.pod_uid for m in cluster.status.attempt.members] == ["uid-0-1", "uid-1-2"]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    faults=st.sampled_from([0.0, 0.05]),
    workers=st.integers(1, 3),
    spare=st.integers(0, 1),
)
def test_whatever_happens_in_the_queue_the_job_ends_well_and_leaves_no_quota_behind(
    seed: int, faults: float, workers: int, spare: int
) -> None:
    run(seed, disturbed, faults=faults, workers=workers, quota=workers + spare)


@pytest.mark.parametrize("seed", range(3))
def test_a_job_that_is_suspended_while_it_queues_frees_its_place_there(seed: int) -> None:
    def script(cluster: QueuedCluster, rng: random.Random) -> Script:
        cluster.quota = 0
        for _ in range(rng.randint(1, 30)):
            yield
        cluster.spec = cluster.spec.model_copy(update={"suspend": True})
        for _ in range(60):
            yield
        assert not cluster.workloads
        assert not cluster.pods
        cluster.quota = 2
        cluster.spec = cluster.spec.model_copy(update={"suspend": False})

    run(seed, script, quota=2)
