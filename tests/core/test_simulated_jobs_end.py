"""Whole lives of jobs in a simulated cluster, with the faults of the list: whatever happens, in whatever order, the job goes on where it stood."""

import random
from collections.abc import Callable, Iterator

import job_worlds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_cluster import SimulatedCluster, simulate

from holdfast_operator.crd.v1alpha1 import OnUnsound, Phase

Script = Iterator[None]


def quiet(cluster: SimulatedCluster, rng: random.Random) -> Script:
    while True:
        yield


def wait_step(cluster: SimulatedCluster, step: int) -> Script:
    while cluster.status.step < step:
        yield


def node_of(cluster: SimulatedCluster, worker: int) -> str:
    assert cluster.status.attempt is not None
    return cluster.status.attempt.members[worker].node


def well(cluster: SimulatedCluster) -> SimulatedCluster:
    assert not cluster.wrong, cluster.wrong
    assert cluster.status.phase is Phase.SUCCEEDED, cluster.status.model_dump_json(indent=1)
    assert cluster.decided_attempts == sorted(set(cluster.decided_attempts))
    boundaries = [cluster.store.claims[n].parent_boundary for n in sorted(cluster.store.claims)]
    assert boundaries == sorted(boundaries), "the committed step went back"
    assert len(cluster.resumed) == len(set(cluster.resumed)), "a time to resume was measured twice"
    return cluster


def test_an_undisturbed_job_takes_one_attempt() -> None:
    cluster = well(simulate(job_worlds.spec(), seed=0, faults=0, script=quiet))
    assert cluster.decided_attempts == [1]
    assert not cluster.status.preemptions


def test_a_spot_notice_loses_no_step() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        yield from wait_step(cluster, 20)
        node = node_of(cluster, 1)
        cluster.announce(node)
        for _ in range(40):
            yield
        cluster.power_off(node)

    cluster = well(simulate(job_worlds.spec(), seed=1, faults=0, script=script))
    (entry,) = cluster.status.preemptions
    assert (entry.cause, entry.steps_lost) == ("spot", 0)
    assert entry.sealed_at is not None
    assert cluster.status.counts.preemptions == 1
    assert cluster.decided_attempts == [1, 2]


def test_a_power_cut_resumes_from_the_last_commit() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        yield from wait_step(cluster, 20)
        cluster.power_off(node_of(cluster, 0))

    cluster = well(simulate(job_worlds.spec(), seed=2, faults=0, script=script))
    entry = cluster.status.preemptions[-1]
    assert (entry.cause, entry.resumed_step) == ("node-lost", 16)
    assert entry.steps_lost == entry.step_at_notice - 16


def test_a_withdrawn_notice_lets_training_go_on_in_the_same_attempt() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        yield from wait_step(cluster, 20)
        node = node_of(cluster, 1)
        cluster.announce(node, "ToBeDeletedByClusterAutoscaler")
        yield
        cluster.withdraw(node)

    cluster = well(simulate(job_worlds.spec(), seed=3, faults=0, script=script))
    assert cluster.decided_attempts == [1]
    assert cluster.status.counts.preemptions == 0
    assert not cluster.status.preemptions


def test_a_deleted_pod_is_replaced_and_the_survivor_stays() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        yield from wait_step(cluster, 20)
        cluster.delete_pod("uid-1-1")

    cluster = well(simulate(job_worlds.spec(), seed=4, faults=0, script=script))
    assert cluster.status.attempt is not None
    assert [m.pod_uid for m in cluster.status.attempt.members] == ["uid-0-1", "uid-1-2"]
    assert cluster.status.preemptions[-1].steps_lost == 0


def test_a_crash_is_counted_as_failure_and_restarted_in_place() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        yield from wait_step(cluster, 20)
        cluster.crash("uid-1-1")

    cluster = well(simulate(job_worlds.spec(), seed=5, faults=0, script=script))
    assert (cluster.status.counts.failures, cluster.status.counts.preemptions) == (1, 0)
    assert cluster.status.attempt is not None
    assert {m.serial for m in cluster.status.attempt.members} == {1}


def test_an_agent_that_does_not_answer_is_told_by_sigterm() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        yield from wait_step(cluster, 20)
        cluster.agents["uid-1-1"].mute = True
        cluster.announce(node_of(cluster, 1))

    cluster = well(simulate(job_worlds.spec(), seed=6, faults=0, script=script))
    assert cluster.status.preemptions[-1].cause == "spot"


def flipped_at(step: int, then: str = "") -> Callable[[SimulatedCluster, random.Random], Script]:
    """A bit flips in the first attempt at this step (J4); then, perhaps, the person sets another policy."""

    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        cluster.store.flipped[1] = step
        if then:
            while cluster.status.phase is not Phase.QUEUED or cluster.pods:
                yield
            policy = cluster.spec.validation.model_copy(update={"on_unsound": OnUnsound(then)})
            cluster.spec = cluster.spec.model_copy(update={"validation": policy})
        while True:
            yield

    return script


def test_a_flipped_bit_is_gone_back_from_at_once_and_the_job_ends_sound() -> None:
    spec = job_worlds.spec(validation={"onUnsound": "RollBack"})
    cluster = well(simulate(spec, seed=7, faults=0, script=flipped_at(20)))
    (entry,) = cluster.status.preemptions
    assert (entry.cause, entry.resumed_step) == ("rollback", 16)
    assert (cluster.status.counts.preemptions, cluster.status.counts.failures) == (0, 0)
    assert cluster.status.attempt is not None
    assert {m.serial for m in cluster.status.attempt.members} == {1}, "no pod was replaced"
    assert cluster.status.last_checkpoint is not None
    assert not cluster.status.last_checkpoint.suspect


def test_a_flipped_bit_that_nothing_is_done_about_at_once_costs_what_came_after_it_at_the_next_start() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        cluster.store.flipped[1] = 20
        yield from wait_step(cluster, 40)
        cluster.power_off(node_of(cluster, 0))

    cluster = well(simulate(job_worlds.spec(), seed=8, faults=0, script=script))
    entry = cluster.status.preemptions[-1]
    assert (entry.cause, entry.resumed_step) == ("node-lost", 16)


@pytest.mark.parametrize("seed", range(4))
def test_a_job_that_stops_at_a_flipped_bit_goes_on_sound_once_a_person_has_decided(seed: int) -> None:
    spec = job_worlds.spec(validation={"onUnsound": "Stop"})
    cluster = well(simulate(spec, seed=seed, faults=0.05, script=flipped_at(20, then="Continue")))
    assert cluster.status.stop is None
    assert cluster.status.last_checkpoint is not None
    assert not cluster.status.last_checkpoint.suspect


def disturbed(cluster: SimulatedCluster, rng: random.Random) -> Script:
    """Four disturbances at random moments, of random kinds; a node that dies comes back later."""
    for _ in range(4):
        for _ in range(rng.randint(1, 120)):
            yield
        nodes = [n for n in sorted(cluster.nodes) if n not in cluster.dead_nodes and not cluster.nodes[n].taints]
        uids = sorted(u for u, p in cluster.pods.items() if not p.terminal)
        node, uid = rng.choice(nodes or sorted(cluster.nodes)), rng.choice(uids or [""])
        match rng.choice(["notice", "withdrawn", "off", "delete", "notice-off", "two"]):
            case "notice":
                cluster.announce(node)
            case "withdrawn":
                cluster.announce(node, "ToBeDeletedByClusterAutoscaler")
                for _ in range(rng.randint(1, 20)):
                    yield
                cluster.withdraw(node)
            case "off":
                cluster.power_off(node)
            case "delete":
                cluster.delete_pod(uid)
            case "notice-off":
                cluster.announce(node)
                for _ in range(rng.randint(0, 12)):
                    yield
                cluster.power_off(node)
            case "two":
                cluster.announce(node)
                cluster.delete_pod(uid)
        for _ in range(80):
            yield
        for name in sorted(cluster.nodes):
            if name in cluster.dead_nodes or cluster.nodes[name].taints:
                cluster.bring_node(name)
    while True:
        yield


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), faults=st.sampled_from([0.0, 0.05, 0.2]), workers=st.integers(1, 3))
def test_any_mixture_of_disturbances_ends_in_success(seed: int, faults: float, workers: int) -> None:
    spec = job_worlds.spec(workers=workers, budgets={"failures": {"max": 1000, "backoffSeconds": 0}})
    well(simulate(spec, seed=seed, faults=faults, script=disturbed, nodes=workers + 2, steps=250))


@pytest.mark.parametrize("seed", range(6))
def test_suspend_at_any_moment_stops_everything_and_loses_nothing(seed: int) -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        for _ in range(rng.randint(1, 80)):
            yield
        cluster.spec = cluster.spec.model_copy(update={"suspend": True})
        while cluster.status.phase is not Phase.QUEUED or cluster.pods:
            yield
        cluster.spec = cluster.spec.model_copy(update={"suspend": False})
        while True:
            yield

    cluster = well(simulate(job_worlds.spec(), seed=seed, faults=0.05, script=script))
    assert cluster.status.counts.failures == 0
