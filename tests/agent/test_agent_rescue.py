"""E6, F4: what a doomed worker cannot bring into the store in time goes to a survivor, and from there into the store. Real agents; the parts alone below."""

import dataclasses
import shutil
import signal

from holdfast_agent.estimate import Estimates
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


def a_gang(gang, workers: int = 2, **fields) -> Gang:
    """Every state is a rank's own; directories go with their pods."""
    config = {"every_steps": 100_000} | fields.pop("config", {})
    g = gang(**({"workers": workers, "trainer": ("1000", "--step-seconds", "0.05")} | fields), config=config)
    for worker in range(workers):
        new_pod(g, worker, memory=believing())
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
    lost(gone)
    as_if_steps_were_long([g.pods[0]])
    new_pod(g, 1)
    g.begin()
    assert began(g) == f"restored {plan.boundary}"
    assert [b for _, b, _ in g.commits()] == [first, plan.boundary]
