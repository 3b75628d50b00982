"""Pods that go and leave their newest state on their nodes, and the pods that come to those nodes afterwards (E6). Real agents."""

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


def node_of(pod: Pod) -> LocalTier:
    return LocalTier(pod.folder / "local", "ns", "job", pod.gang.job_uid)


def as_if_steps_were_long(pods: list[Pod]) -> None:
    """And the store were not slow: so that it is worth to wait for it on a machine of any speed (E6)."""
    for pod in pods:
        node = node_of(pod)
        for left in node.left():
            assert left.pending is not None
            node.write_pending(dataclasses.replace(left.pending, step_seconds=10.0, store_seconds=1.0))


def saved_once(g: Gang) -> int:
    """A checkpoint long before anybody has to go; its boundary."""
    g.wait_for_boundary(5)
    g.checkpoint("first")
    g.wait_for_request("first")
    ((_, boundary, _),) = g.commits()
    return boundary


def left_on_nodes(g: Gang, cause: Cause = Cause.EVICTION, *, saves_first: bool = False) -> list[Pod]:
    """Everybody has gone, and has left what the ranks held on the nodes."""
    for worker in range(g.workers):
        new_pod(g, worker, memory=believing_in_a_slow_store())
    g.begin()
    if saves_first:
        saved_once(g)
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


def began(g: Gang) -> str:
    """How the ranks of the newest attempt have begun, all of them alike: `fresh` or `restored N`."""
    ranks = g.workers * g.processes

    def found() -> list[str]:
        words = (line.split(maxsplit=2) for line in g.lines())
        return [what for attempt, _, what in words if attempt == str(g.attempt) and not what.startswith("finished")]

    eventually(lambda: len(found()) >= ranks, "all ranks begin; " + "".join(p.words() for p in g.pods.values()))
    assert not [line for line in g.lines() if "TORN" in line]
    (how,) = set(found())
    return how
