"""Whole lives of jobs where somebody does not let the second pod in (F5): quota, webhook, queue, no room, a scheduler that preempts, notices that come and go.

Beside what must always hold (simulated_cluster.py): every job ends, no two attempts are told or claim at once, nothing is left behind, and nobody is stormed.
"""

import random
from collections.abc import Callable, Iterator

import job_worlds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_cluster import Doors, SimulatedCluster, simulate
from test_simulated_jobs_end import node_of, wait_step, well

from holdfast_api.messages import AgentPhase

Script = Iterator[None]
WITHDRAWABLE = "ToBeDeletedByClusterAutoscaler"
STAYS = "cloud.google.com/maintenance-window-started"
"""Nobody takes the pods away, and nobody takes it back."""


def ended(cluster: SimulatedCluster) -> SimulatedCluster:
    """It has ended well, and after a while nothing of it lives."""
    well(cluster)
    for _ in range(120):
        cluster.tick()
    left = [
        p.name for p in cluster.pods.values() if not p.terminal and not p.deleting
    ]  # a dead node's kubelet ends nothing
    assert not left, "nothing is left behind"
    return cluster


def notice_under(doors: Doors, key: str = STAYS) -> Callable[[SimulatedCluster, random.Random], Script]:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        cluster.doors = doors
        yield from wait_step(cluster, 20)
        cluster.announce(node_of(cluster, 1), key)
        while True:
            yield

    return script


@pytest.mark.parametrize(
    "doors",
    [Doors(quota=2), Doors(queue=2), Doors(gates=2)],
    ids=["a quota", "a queue that deletes", "a queue that holds"],
)
def test_where_there_is_room_for_one_of_the_two_the_old_pod_saves_and_then_gives_way(doors: Doors) -> None:
    cluster = ended(simulate(job_worlds.spec(), seed=1, faults=0, script=notice_under(doors), steps=120))
    (entry,) = cluster.status.preemptions
    assert entry.steps_lost == 0
    assert entry.sealed_at is not None
    assert cluster.decided_attempts == [1, 2]


def test_a_quota_refuses_no_more_than_a_few_times_and_the_pod_comes_soon_after_the_old_one_is_gone() -> None:
    cluster = ended(simulate(job_worlds.spec(), seed=1, faults=0, script=notice_under(Doors(quota=2)), steps=120))
    assert len(cluster.tries) <= 6
    (made,) = [at for at, worker, serial in cluster.created if (worker, serial) == (1, 2)]
    (entry,) = cluster.status.preemptions
    assert entry.ended_at is not None
    assert (made - entry.ended_at).total_seconds() < 5


def test_a_webhook_that_denies_everything_for_a_minute_costs_that_minute() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        yield from wait_step(cluster, 20)
        cluster.doors = Doors(webhook=True)
        cluster.power_off(node_of(cluster, 1))
        for _ in range(240):
            yield
        cluster.doors = Doors()
        while True:
            yield

    ended(simulate(job_worlds.spec(), seed=1, faults=0, script=script))


def test_the_room_of_an_evicted_pod_is_taken_by_its_replacement() -> None:
    """Nowhere else is room: the replacement waits for the node, which is well."""

    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        cluster.doors = Doors(room=1)
        yield from wait_step(cluster, 20)
        cluster.preempt("uid-1-1")
        while True:
            yield

    cluster = ended(simulate(job_worlds.spec(), seed=1, faults=0, script=script, nodes=2))
    assert {p.node for p in cluster.pods.values()} == {"n0", "n1"}
    assert cluster.status.preemptions[-1].steps_lost == 0


def test_a_replacement_goes_to_another_zone_where_nobody_stays_in_the_one_whose_machines_are_taken() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        cluster.in_zones(2)
        yield from wait_step(cluster, 20)
        cluster.announce(node_of(cluster, 0))
        while True:
            yield

    cluster = ended(simulate(job_worlds.spec(workers=1), seed=1, faults=0, script=script))
    assert cluster.status.workers[0].avoid_zones == ("z0",)


def test_a_notice_that_comes_and_goes_makes_fewer_and_fewer_replacements() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        yield from wait_step(cluster, 20)
        node = node_of(cluster, 1)
        for _ in range(40):
            cluster.announce(node, WITHDRAWABLE)
            for _ in range(2):
                yield
            cluster.withdraw(node)
            for _ in range(4):
                yield
        while True:
            yield

    cluster = ended(simulate(job_worlds.spec(), seed=3, faults=0, script=script, steps=400))
    assert len(cluster.created) <= 2 + 6
    assert cluster.decided_attempts == [1]


def test_one_workers_notice_is_withdrawn_while_the_others_stands_and_it_keeps_its_pod() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        yield from wait_step(cluster, 20)
        cluster.doors = Doors(quota=2)  # nobody is replaced yet
        nodes = [node_of(cluster, w) for w in (0, 1)]
        for node in nodes:
            cluster.announce(node, WITHDRAWABLE)
        for _ in range(2):
            yield
        cluster.withdraw(nodes[1])
        while True:
            yield

    cluster = ended(simulate(job_worlds.spec(), seed=3, faults=0, script=script))
    assert cluster.status.attempt is not None
    assert [m.serial for m in cluster.status.attempt.members] == [2, 1]


def test_a_job_that_succeeds_while_its_replacement_waits_leaves_nobody_waiting() -> None:
    def script(cluster: SimulatedCluster, rng: random.Random) -> Script:
        yield from wait_step(cluster, 57)
        for worker in (0, 1):
            cluster.agents[f"uid-{worker}-1"].mute = True  # they hear nothing of it, and finish
        cluster.announce(node_of(cluster, 1))
        while True:
            yield

    cluster = ended(simulate(job_worlds.spec(), seed=3, faults=0, script=script))
    assert len(cluster.created) == 3


DOORS = ("quota", "webhook", "queue", "gates", "room", "none")


def _doors(kind: str, workers: int, rng: random.Random) -> Doors:
    match kind:
        case "quota":
            return Doors(quota=rng.randint(workers, workers + 1))
        case "webhook":
            return Doors(webhook=True)
        case "queue":
            return Doors(queue=rng.randint(workers, workers + 1))
        case "gates":
            return Doors(gates=rng.randint(workers, workers + 1))
        case "room":
            return Doors(room=1)
        case _:
            return Doors()


def refused_and_disturbed(cluster: SimulatedCluster, rng: random.Random) -> Script:
    """Disturbances of random kinds at random moments, each while others let nobody in, or not as many as there were to be; doors change meanwhile."""
    cluster.in_zones(rng.randint(1, 3))
    workers = cluster.spec.workers
    for _ in range(4):
        for _ in range(rng.randint(1, 100)):
            yield
        cluster.doors = _doors(rng.choice(DOORS), workers, rng)
        on = sorted({p.node for p in cluster.pods.values() if p.node and not p.terminal})
        node = rng.choice(on or sorted(cluster.nodes))
        uids = sorted(u for u, p in cluster.pods.items() if not p.terminal)
        match rng.choice(["stays", "spot", "withdrawn", "flapping", "preempt", "preempt replacement", "off"]):
            case "stays":
                cluster.announce(node, STAYS)
            case "spot":
                cluster.announce(node)
                for _ in range(rng.randint(1, 60)):
                    yield
                cluster.power_off(node)
            case "withdrawn":
                cluster.announce(node, WITHDRAWABLE)
                for _ in range(rng.randint(1, 60)):
                    yield
                cluster.withdraw(node)
            case "flapping":
                for _ in range(10):
                    cluster.announce(node, WITHDRAWABLE)
                    for _ in range(rng.randint(1, 8)):
                        yield
                    cluster.withdraw(node)
                    for _ in range(rng.randint(1, 8)):
                        yield
            case "preempt":
                cluster.preempt(rng.choice(uids or [""]))
            case "preempt replacement":
                cluster.announce(node, STAYS)
                yield from _until_attacked(cluster, rng)
            case "off":
                cluster.power_off(node)
        for _ in range(rng.randint(20, 160)):
            yield
        if rng.random() < 0.5:
            cluster.doors = Doors()
        for name in sorted(cluster.nodes):
            if (name in cluster.dead_nodes or cluster.nodes[name].taints) and rng.random() < 0.8:
                cluster.bring_node(name)
    cluster.doors = Doors(quota=workers) if rng.random() < 0.3 else Doors()
    for name in sorted(cluster.nodes):
        cluster.bring_node(name)
    while True:
        yield


def _until_attacked(cluster: SimulatedCluster, rng: random.Random) -> Script:
    """Whoever is to replace a member is preempted, or its node announced to go: before it is a member, or while it claims."""
    for _ in range(rng.randint(1, 3)):
        for _ in range(rng.randint(1, 24)):
            yield
        attempt = cluster.status.attempt
        training = {
            m.pod_uid for m in (attempt.members if attempt else ())
            if (a := cluster.agents.get(m.pod_uid)) is not None and a.phase is AgentPhase.TRAINING
        }  # fmt: skip
        others = sorted(u for u, p in cluster.pods.items() if u not in training and not p.terminal)
        if others:
            uid = rng.choice(others)
            if rng.random() < 0.5 or not cluster.pods[uid].node:
                cluster.preempt(uid)
            else:
                cluster.announce(cluster.pods[uid].node, STAYS)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), faults=st.sampled_from([0.0, 0.05, 0.2]), workers=st.integers(1, 3))
def test_whoever_is_refused_and_however_it_is_disturbed_the_job_ends(seed: int, faults: float, workers: int) -> None:
    spec = job_worlds.spec(workers=workers, budgets={"failures": {"max": 1000, "backoffSeconds": 0}})
    ended(
        simulate(spec, seed=seed, faults=faults, script=refused_and_disturbed, nodes=workers + 3, steps=300, limit=1800)
    )
