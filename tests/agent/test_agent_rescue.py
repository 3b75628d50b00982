"""E6, F4: what a doomed worker cannot bring into the store in time goes to a survivor, and from there into the store. Real agents; the parts alone below."""

import dataclasses
import shutil
import signal

from holdfast_agent.estimate import Estimates
from holdfast_agent.experience import FILE
from holdfast_api import codec
from tests.agent.conftest import Gang, Pod, eventually
from tests.agent.returning import as_if_steps_were_long, began, knows, new_pod, saved_once

BOUNDARY = 40


def believing() -> bytes:
    """The store would need ten minutes; the node, and another worker's memory, a moment."""
    usual = Estimates()
    slow = dataclasses.replace(
        usual, hurried=knows(usual.hurried, 500.0), node=knows(usual.node, 100e6), taking=knows(usual.taking, 100e6)
    )
    return codec.to_json(slow)


def believing_in_slow_neighbours() -> bytes:
    """Somebody else had better take it."""
    found = codec.from_json(Estimates, believing())
    return codec.to_json(dataclasses.replace(found, taking=knows(Estimates().taking, 200_000.0)))


def a_gang(gang, workers: int = 2, memories: tuple[bytes, ...] = (), **fields) -> Gang:
    """Every state is a rank's own; directories go with their pods."""
    config = {"every_steps": 100_000} | fields.pop("config", {})
    g = gang(**({"workers": workers, "trainer": ("1000", "--step-seconds", "0.05")} | fields), config=config)
    for worker in range(workers):
        new_pod(g, worker, memory=memories[worker] if memories else believing())
    return g.begin()


def told_to_go(g: Gang, *workers: int, seconds: float = 20.0) -> list[Pod]:
    g.notice(*workers, seconds=seconds)
    gone = [g.pods[w] for w in workers]
    for pod in g.pods.values():
        eventually(lambda p=pod: "sealed" in p.report().stages, f"the evacuation is over; {pod.words()}")
    return gone


def lost(pods: list[Pod]) -> None:
    """With everything on their machines."""
    for pod in pods:
        pod.kill(signal.SIGTERM)
        pod.wait()
        shutil.rmtree(pod.folder / "local")
        shutil.rmtree(pod.folder / "memory", ignore_errors=True)


def test_a_doomed_workers_part_goes_to_a_survivor_and_from_there_into_the_store(gang):
    g = a_gang(gang)
    first = saved_once(g)
    g.wait_for_boundary(BOUNDARY)
    gone = told_to_go(g, 1)
    (plan,) = [p for pod in g.pods.values() for p in pod.report().plans]
    assert (plan.choice, plan.outcome) == ("peer-rescue", "rescued"), plan
    assert [b for _, b, _ in g.commits()] == [first], "it is no checkpoint"
    said = g.pods[0].report()
    assert (said.on_node_boundary, said.holds_of) == (plan.boundary, (1,)), "whose part lies where"
    lost(gone)
    as_if_steps_were_long([g.pods[0]])
    assert g.pods[0].report().bytes_fetched == 0
    new_pod(g, 1)
    g.begin()
    assert began(g) == f"restored {plan.boundary}"
    assert [b for _, b, _ in g.commits()] == [first, plan.boundary]
    eventually(lambda: not list((g.pods[0].folder / "local").rglob("pending-*.json")), "nothing waits any more")
    assert set(g.pods[0].report().fetched_from) == {"arena"}, "the survivor's own state never left its memory"


def test_how_fast_a_neighbours_memory_is_read_is_measured_beside_training_and_then_relied_on(gang):
    """Nothing is believed about it before."""
    usual = Estimates()
    slow = codec.to_json(dataclasses.replace(usual, hurried=knows(usual.hurried, 500.0), node=knows(usual.node, 100e6)))
    g = a_gang(gang, memories=(slow, slow))
    saved_once(g)
    known = [pod.folder / "memory" / FILE for pod in g.pods.values()]
    for path in known:
        eventually(
            lambda p=path: codec.from_json(Estimates, p.read_bytes()).taking.count > 0,
            "it was measured; " + "".join(pod.words() for pod in g.pods.values()),
        )
    g.wait_for_boundary(BOUNDARY)
    told_to_go(g, 1)
    (plan,) = [p for pod in g.pods.values() for p in pod.report().plans]
    assert (plan.choice, plan.outcome) == ("peer-rescue", "rescued"), plan


def test_where_everybody_goes_nobody_takes_anything(gang):
    g = a_gang(gang)
    saved_once(g)
    g.wait_for_boundary(BOUNDARY)
    told_to_go(g, 0, 1, seconds=4.0)
    plans = [p for pod in g.pods.values() for p in pod.report().plans]
    assert plans
    assert all(p.choice != "peer-rescue" for p in plans)


def test_a_notice_that_is_withdrawn_after_the_rescue_lets_training_go_on_and_the_next_commit_drops_the_part(gang):
    """A8."""
    g = a_gang(gang)
    saved_once(g)
    g.wait_for_boundary(BOUNDARY)
    told_to_go(g, 1)
    assert len(list((g.pods[0].folder / "local").rglob("pending-*.json"))) == 2
    g.notice(1, withdrawn=True)
    boundary = g.pods[0].report().boundary
    g.wait_for_boundary(boundary + 5)
    g.checkpoint("after")
    g.wait_for_request("after")
    eventually(lambda: not list((g.pods[0].folder / "local").rglob("pending-*.json")), "nothing waits any more")
    assert len(g.commits()) == 2
