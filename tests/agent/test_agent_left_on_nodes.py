"""E6 with real agents: a state that lies on the nodes alone when everybody has gone is resumed from, bit by bit, by those who return there."""

import dataclasses
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from holdfast_agent.estimate import Average, Estimates
from holdfast_agent.experience import FILE
from holdfast_api import codec
from holdfast_api.messages import Cause, Exit, Notice, NoticeOrder
from holdfast_api.names import EXIT_CODES
from holdfast_store.local import LocalTier
from tests.agent.conftest import Gang, Pod, eventually, free_port

SLOW_STEPS = ("1000", "--step-seconds", "0.1")
BOUNDARY = 40


def knows(average: Average, value: float) -> Average:
    """As if it had been measured often and had hardly varied."""
    for _ in range(60):
        average = average.seen(value, time.time())
    return average


def believing_in_a_slow_store() -> bytes:
    """It would need ten minutes; the node a moment."""
    usual = Estimates()
    slow = dataclasses.replace(usual, hurried=knows(usual.hurried, 500.0), node=knows(usual.node, 100e6))
    return codec.to_json(slow)


def a_gang(gang, **fields) -> Gang:
    config = {"every_steps": 100_000, "local_volume": "node"} | fields.pop("config", {})
    return gang(**({"workers": 2, "trainer": SLOW_STEPS} | fields), config=config)


def new_pod(g: Gang, worker: int, *, on_node_of: Pod | None = None, memory: bytes = b"") -> Pod:
    serial = sum(p.worker == worker for p in g.all_pods) + 1
    pod = Pod(g, worker, serial, g.root / f"p{worker}-{serial}", free_port())
    (pod.folder / "memory").mkdir(parents=True)
    if memory:
        (pod.folder / "memory" / FILE).write_bytes(memory)
    if on_node_of is not None:
        (pod.folder / "local").symlink_to((on_node_of.folder / "local").resolve())
    g.pods[worker] = pod
    g.all_pods.append(pod)
    return pod.start()


def evicted(g: Gang, seconds: float, cause: Cause = Cause.EVICTION) -> None:
    at = datetime.now(UTC)
    notices = tuple(
        Notice("pod:DisruptionTarget", cause, w, "node", at, at + timedelta(seconds=seconds), True) for w in g.pods
    )
    for pod in g.pods.values():
        pod.order("/v1/notice", NoticeOrder(g.job_uid, g.attempt, notices))


def as_if_steps_were_long(pods: list[Pod]) -> None:
    """So that it is worth to wait for it on a machine of any speed (E6)."""
    for pod in pods:
        node = LocalTier(pod.folder / "local", "ns", "job", pod.gang.job_uid)
        for left in node.left():
            assert left.pending is not None
            node.write_pending(dataclasses.replace(left.pending, step_seconds=10.0))


def left_on_nodes(g: Gang, cause: Cause = Cause.EVICTION) -> list[Pod]:
    """Everybody has gone, and has left what the ranks held on the nodes."""
    for worker in range(g.workers):
        new_pod(g, worker, memory=believing_in_a_slow_store())
    g.begin()
    g.wait_for_boundary(BOUNDARY)
    evicted(g, 20, cause)
    pods = [g.pods[w] for w in sorted(g.pods)]
    for pod in pods:
        eventually(lambda p=pod: "sealed" in p.report().stages, f"the evacuation is over; {pod.words()}")
        pod.kill(signal.SIGTERM)
    for pod in pods:
        assert pod.wait() == EXIT_CODES[Exit.PREEMPTED_NOTHING_NEW], pod.words()
    as_if_steps_were_long(pods)
    return pods


def pending_files(pod: Pod) -> list[Path]:
    return sorted((pod.folder / "local").rglob("pending-*.json"))


def test_who_returns_to_the_nodes_resumes_from_what_lies_there(gang):
    g = a_gang(gang)
    before = left_on_nodes(g)
    (plan,) = [p for pod in before for p in pod.last_report().plans]
    assert (plan.choice, plan.outcome) == ("node-only", "on-node"), plan
    assert plan.boundary >= BOUNDARY
    assert g.commits() == [], "it is no checkpoint"
    for pod in before:
        last = pod.last_report()
        assert (last.on_node_boundary, str(last.on_node)) == (plan.boundary, "1/1")
        assert "returns to its node" in last.exit_detail
        assert len(pending_files(pod)) == 1
    for pod in before:
        new_pod(g, pod.worker, on_node_of=pod)
    g.begin()
    for rank in range(g.workers):
        eventually(
            lambda r=rank: f"2 {r} restored {plan.boundary}" in g.lines(), f"rank {rank}; {g.pods[rank].words()}"
        )
    assert g.commits() == [("1/1", plan.boundary, "eviction")]
    g.wait_for_boundary(plan.boundary + 3)
    eventually(
        lambda: {c.state for pod in g.pods.values() for c in pod.report().unfinished} == {"committed"},
        "everybody knows that it is a checkpoint",
    )
    eventually(lambda: not [f for pod in before for f in pending_files(pod)], "nothing waits any more")
    assert g.pods[0].report().fetched_from.get("local"), "and the node has it: nothing was read from the store again"


def test_workers_that_have_changed_places_finish_each_others_parts(gang):
    g = a_gang(gang)
    before = left_on_nodes(g)
    for pod in before:
        new_pod(g, 1 - pod.worker, on_node_of=pod)
    g.begin()
    for rank in range(g.workers):
        eventually(lambda r=rank: any(line.startswith(f"2 {r} restored") for line in g.lines()), g.pods[rank].words())
    assert len(g.commits()) == 1


def test_where_one_does_not_return_nobody_waits_and_nothing_is_made_of_it(gang):
    g = a_gang(gang)
    before = left_on_nodes(g)
    new_pod(g, 0, on_node_of=before[0])
    new_pod(g, 1)
    g.begin()
    for rank in range(g.workers):
        eventually(lambda r=rank: f"2 {r} fresh" in g.lines(), f"rank {rank}; {g.pods[rank].words()}")
    assert g.commits() == []
    assert "the claim waits" not in g.pods[0].words()


def test_a_survivor_in_its_place_finishes_its_own_part(gang):
    """Worker 0 keeps its pod: its ranks restart in place, and its agent has what it had written."""
    g = a_gang(gang)
    for worker in range(2):
        new_pod(g, worker, memory=believing_in_a_slow_store())
    g.begin()
    g.wait_for_boundary(BOUNDARY)
    evicted(g, 20)
    gone = g.pods[1]
    eventually(lambda: "sealed" in gone.report().stages, gone.words())
    gone.kill(signal.SIGTERM)
    gone.wait()
    boundary = g.pods[0].report().on_node_boundary
    assert boundary >= BOUNDARY
    as_if_steps_were_long([g.pods[0], gone])
    new_pod(g, 1, on_node_of=gone)
    g.begin()
    for rank in range(2):
        eventually(lambda r=rank: f"2 {r} restored {boundary}" in g.lines(), f"rank {rank}; {g.pods[rank].words()}")


def test_where_the_machine_goes_nothing_is_left_on_it(gang):
    """F4: nobody returns there."""
    g = a_gang(gang)
    before = left_on_nodes(g, Cause.SPOT)
    plans = [p for pod in before for p in pod.last_report().plans]
    assert plans
    assert all(p.choice != "node-only" and p.outcome != "on-node" for p in plans)
    assert [f for pod in before for f in pending_files(pod)] == []
