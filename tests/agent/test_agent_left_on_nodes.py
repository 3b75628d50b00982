"""E6 with real agents: a state that lies on the nodes alone when everybody has gone is resumed from, bit by bit, by those who return there."""

import signal

from holdfast_api.messages import Cause
from tests.agent.conftest import eventually
from tests.agent.returning import (
    BOUNDARY,
    a_gang,
    as_if_steps_were_long,
    believing_in_a_slow_store,
    evicted,
    left_on_nodes,
    new_pod,
    pending_files,
)


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
