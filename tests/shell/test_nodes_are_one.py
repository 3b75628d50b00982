"""What is told of a node elsewhere (Events, Karpenter's NodeClaims) stands on the node that a decision sees, and only where the operator was told to look."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from fake_apiserver import KINDS, FakeApiServer

from holdfast_operator.core import signals
from holdfast_operator.core.signal_table import SignalRules
from holdfast_operator.shell import nodes
from holdfast_operator.shell.kube import Kube
from holdfast_operator.shell.nodes import EVENT_LASTS, Nodes

KINDS["nodeclaims"] = ("karpenter.sh/v1", "NodeClaim")
KEY = "karpenter.sh/nodeclaim-termination-timestamp"


@contextlib.asynccontextmanager
async def reading(kube: Kube, *, events: bool = True, claims: bool = True) -> AsyncIterator[tuple[Nodes, list[str]]]:
    told: list[str] = []
    found = Nodes(kube, told.append, SignalRules(), events=events, claims=claims)
    tasks = [asyncio.create_task(c.run()) for c in found.caches()]
    try:
        await asyncio.gather(*(asyncio.wait_for(c.synced.wait(), 10) for c in found.caches()))
        yield found, told
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(test: Callable[[], Any], within: float = 15) -> None:
    end = time.monotonic() + within
    while not test():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)


def node(name: str = "n1") -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}


def event(reason: str, *, of: str = "n1", name: str = "e1", at: datetime | None = None) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "involvedObject": {"kind": "Node", "name": of, "uid": of},
        "reason": reason,
        "message": "Spot interruption warning was triggered",
        "lastTimestamp": (at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "type": "Warning",
    }


def sources(found: Nodes, name: str = "n1") -> set[str]:
    return {s.source for s in signals.node_signals(found.seen()[name])}


async def test_an_event_about_a_node_stands_on_it_for_a_while(kube: Kube, api: FakeApiServer) -> None:
    api.put("nodes", node())
    async with reading(kube) as (found, told):
        api.put("events", event("SpotInterrupted"), "default")
        await until(lambda: sources(found) == {"event:SpotInterrupted"})
        assert told[-1] == "n1"
        assert found.seen(datetime.now(UTC) + EVENT_LASTS + timedelta(seconds=2))["n1"].events == ()
        api.remove("events", "e1", "default")
        await until(lambda: sources(found) == set())


async def test_events_that_announce_nothing_are_not_kept(kube: Kube, api: FakeApiServer) -> None:
    api.put("nodes", node())
    async with reading(kube) as (found, _):
        api.put("events", event("NodeHasSufficientMemory"), "default")
        api.put("events", event("SpotInterrupted", name="e2", of="n9"), "default")
        api.put("events", event("SpotInterrupted", name="e3"), "default")
        await until(lambda: sources(found))
        assert len(found.seen()["n1"].events) == 1
        assert "n9" not in found.seen()


async def test_a_claim_says_by_when_its_node_ends(kube: Kube, api: FakeApiServer) -> None:
    api.put("nodes", node())
    api.put("nodeclaims", {"metadata": {"name": "c"}, "status": {"nodeName": "n1", "conditions": []}})
    async with reading(kube) as (found, told):
        assert sources(found) == set()
        api.change("nodeclaims", "c", "", lambda o: o["metadata"].update(annotations={KEY: "2026-03-01T12:05:00Z"}))
        await until(lambda: sources(found) == {f"annotation:{KEY}"})
        (signal,) = signals.node_signals(found.seen()["n1"])
        deadline = signal.deadline(datetime.now(UTC))
        assert deadline is not None
        assert (deadline.at, deadline.said) == (datetime(2026, 3, 1, 12, 5, tzinfo=UTC), True)
        assert told[-1] == "n1"
        api.remove("nodeclaims", "c")
        await until(lambda: sources(found) == set())


async def test_a_claim_whose_instance_is_being_ended(kube: Kube, api: FakeApiServer) -> None:
    api.put("nodes", node())
    condition = {"type": "InstanceTerminating", "status": "True", "reason": "InstanceTerminating"}
    api.put("nodeclaims", {"metadata": {"name": "c"}, "status": {"nodeName": "n1", "conditions": [condition]}})
    async with reading(kube) as (found, _):
        await until(lambda: sources(found) == {"condition:InstanceTerminating"})


async def test_where_it_was_not_told_to_look_it_asks_for_nodes_alone(kube: Kube, api: FakeApiServer) -> None:
    api.put("nodes", node())
    api.put("events", event("SpotInterrupted"), "default")
    async with reading(kube, events=False, claims=False) as (found, _):
        assert sources(found) == set()
    assert {resource for _, _, resource, _ in api.requests} == {"nodes"}


async def test_nodes_of_which_nothing_is_told_are_passed_on_as_they_are(kube: Kube, api: FakeApiServer) -> None:
    api.put("nodes", node())
    async with reading(kube) as (found, _):
        assert found.seen() is found.seen()


def test_what_an_object_lacks_is_absent() -> None:
    assert nodes.event({"metadata": {"name": "e"}}, {"A"}) is None
    assert nodes.event({"metadata": {}, "involvedObject": {"name": "n"}, "reason": "A"}, {"A"}) is not None
    assert nodes.claim({"metadata": {"name": "c"}}) is None
