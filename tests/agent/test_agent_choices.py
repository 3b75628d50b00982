"""Each choice of the planner reached by real agents, over a store whose speed is set by a proxy before a real S3 server."""

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from proxy import Proxy
from s3_server import BUCKET, binary_or_outcome, running

from holdfast_agent.estimate import Average, Estimates
from holdfast_agent.experience import FILE
from holdfast_api import codec
from holdfast_api.messages import Exit, PlanReport
from holdfast_api.names import EXIT_CODES
from tests.agent.conftest import Gang, Pod, eventually, free_port

pytestmark = pytest.mark.s3
CHUNK = 4096
"""Small, so that several requests at once end in time over a link this slow."""
STATE = 300_000
"""Bytes that a rank of the fake trainer holds; a third of them changes with every boundary."""
ON_THE_WIRE = 420_000
"""With the heads of a request for each chunk."""


@pytest.fixture
def slow(gang, tmp_path):
    """slow(bytes_per_second, **fields): a gang whose store takes in so much, and the proxy that sees to it."""
    made = []
    with running(binary_or_outcome(), tmp_path / "s3") as server:

        def make(bytes_per_second: float, **fields) -> tuple[Gang, Proxy]:
            proxy = Proxy(server.endpoint)
            proxy.bytes_per_second = bytes_per_second
            made.append(proxy)
            usual = {
                "workers": 1,
                "storage": server.config("jobs", endpoint=proxy.endpoint),
                "bucket_dir": server.data / BUCKET / "jobs",
                "environ": server.environ,
            }
            config = {"chunk_bytes": CHUNK} | fields.pop("config", {})
            return gang(**(usual | fields), config=config), proxy

        yield make
        for proxy in made:
            proxy.close()


def knows(average: Average, value: float) -> Average:
    """As if it had been measured often and had hardly varied."""
    for _ in range(60):
        average = average.seen(value, time.time())
    return average


def start(g: Gang, estimates: Estimates) -> Pod:
    """The first worker, in a pod whose container has been restarted: it finds what was measured before."""
    memory = g.root / "p0-1" / "memory"
    memory.mkdir(parents=True)
    (memory / FILE).write_bytes(codec.to_json(estimates))
    pod = Pod(g, 0, 1, g.root / "p0-1", free_port())
    g.pods[0] = pod
    g.all_pods.append(pod)
    return pod.start()


def last_plan(pod: Pod) -> PlanReport:
    plans = pod.last_report().plans
    assert plans, pod.words()
    return plans[-1]


def chunk_puts(proxy: Proxy) -> list[bytes]:
    return [head for head in proxy.requests("PUT") if b"/chunks/" in head]


def knowing(speed: float) -> Estimates:
    usual = Estimates()
    return dataclasses.replace(usual, hurried=knows(usual.hurried, speed), request=knows(usual.request, 0.05))


def test_with_time_for_both_the_live_state_goes_to_node_and_store(slow):
    g, _ = slow(1_000_000)
    pod = start(g, knowing(200_000))
    g.begin()
    g.wait_for_boundary(3)
    g.notice(0, seconds=60)
    eventually(lambda: "sealed" in pod.report().stages, f"it is sealed; {pod.words()}")
    pod.kill(signal.SIGTERM)
    assert pod.wait() == EXIT_CODES[Exit.PREEMPTED_SEALED], pod.words()
    found = last_plan(pod)
    assert (found.choice, found.outcome) == ("live", "committed")
    assert found.slack_seconds > 0
    ((_, boundary, cause),) = g.commits()
    assert (boundary, cause) == (found.boundary, "spot")
    (record,) = [json.loads(p.read_text()) for p in g.bucket.glob("ns/job-*/checkpoints/*/*/commit.json")]
    assert {"flush", "planned", "slack"} <= record["timings"].keys()


def test_where_the_node_would_make_it_late_the_live_state_goes_to_the_store_only(slow):
    """It is expected to need 18 of the 19 seconds that there are: with the node beside it, it would be late."""
    g, _ = slow(1_000_000)
    pod = start(g, knowing(STATE / 17.5))
    g.begin()
    g.wait_for_boundary(3)
    g.notice(0, seconds=20)
    eventually(lambda: "sealed" in pod.report().stages, f"it is sealed; {pod.words()}")
    (found, *_) = pod.report().plans
    assert (found.choice, found.outcome) == ("store-only", "committed"), found
    assert "local-durable" not in pod.report().stages
    assert g.commits()


def test_where_the_ranks_do_not_come_the_last_clean_slot_is_written(slow):
    """A save of it is under way already, to a slow store: it is not begun anew."""
    g, proxy = slow(ON_THE_WIRE / 5, config={"sigterm_floor_seconds": 15}, trainer=("1000", "--step-seconds", "0.05"))
    g.start().begin()
    pod = g.pods[0]
    eventually(lambda: chunk_puts(proxy), "the periodic save of boundary 10 is under way")
    rank = int(Path(f"/proc/{pod.process.pid}/task/{pod.process.pid}/children").read_text().split()[0])
    os.kill(rank, signal.SIGSTOP)
    pod.kill(signal.SIGTERM)
    assert pod.wait() == EXIT_CODES[Exit.PREEMPTED_SEALED], pod.words()
    found = last_plan(pod)
    assert (found.choice, found.outcome, found.boundary) == ("clean-slot", "committed", 10)
    assert g.commits() == [("1/1", 10, "periodic")]


def test_where_nothing_fits_nothing_is_begun(slow):
    """What is left is less than the store would need at the best speed it has ever had."""
    g, proxy = slow(1_000_000, config={"sigterm_floor_seconds": 6})
    pod = start(g, knowing(20_000))
    g.begin()
    g.wait_for_boundary(3)
    pod.kill(signal.SIGTERM)
    assert pod.wait() == EXIT_CODES[Exit.PREEMPTED_NOTHING_NEW], pod.words()
    found = last_plan(pod)
    assert (found.choice, found.outcome) == ("nothing-new", "nothing")
    assert all(o.slack_seconds < 0 for o in found.options if o.boundary), found
    assert chunk_puts(proxy) == []
    assert g.commits() == []


def test_a_flush_that_runs_gets_the_time_that_the_operator_tells(slow):
    """Five seconds are assumed at SIGTERM, and the store needs ten. Then the pod's grace is told."""
    g, _ = slow(ON_THE_WIRE / 10, config={"sigterm_floor_seconds": 5, "grace_seconds": 60, "every_steps": 100_000})
    g.start().begin()
    pod = g.pods[0]
    g.wait_for_boundary(3)
    pod.kill(signal.SIGTERM)
    eventually(lambda: pod.report().plans, "the plan is made")
    g.notice(0, source="pod:deletionTimestamp", seconds=60)
    assert pod.wait() == EXIT_CODES[Exit.PREEMPTED_SEALED], pod.words()
    assert [c[0] for c in g.commits()] == ["1/1"], pod.words()


@pytest.mark.parametrize("budget", [15, 30])
def test_a_state_of_60_percent_of_the_budget_is_sealed(slow, budget):
    g, _ = slow(
        ON_THE_WIRE / (0.6 * budget),
        config={"sigterm_floor_seconds": budget, "every_steps": 100_000},
        trainer=("100000", "--step-seconds", "0.5"),
    )
    g.start().begin()
    pod = g.pods[0]
    g.wait_for_boundary(4)
    at = pod.report().boundary
    pod.kill(signal.SIGTERM)
    assert pod.wait(budget + 10) == EXIT_CODES[Exit.PREEMPTED_SEALED], pod.words()
    ((_, boundary, _),) = g.commits()
    assert boundary >= at
