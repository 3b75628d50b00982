"""The whole operator, told by everything beside taints that a node is to go: the notifier's condition, the owner's own rows, Events, Karpenter's NodeClaims."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_apiserver import KINDS, FakeApiServer
from test_operator_end_to_end import Stage, eventually, to_running

from holdfast_api.messages import Cause, NoticeOrder
from holdfast_api.node_notices import NodeNotice
from holdfast_notifier import condition
from holdfast_operator.core import custom_signals
from holdfast_operator.core.signal_table import SignalRules

KINDS["nodeclaims"] = ("karpenter.sh/v1", "NodeClaim")
ROW = '[{"kind": "taint", "name": "example.com/going", "cause": "maintenance", "deadlineSeconds": 77}]'


@pytest.fixture
async def stage(api: FakeApiServer, kubeconfig: Path) -> AsyncIterator[Stage]:
    found = Stage(api)
    rules = SignalRules(custom_signals.parse(ROW))
    found.told = {"signal_rules": rules, "node_events": True, "node_claims": True}
    await found.start_operator()
    yield found
    await found.close()


def publish(stage: Stage, *notices: NodeNotice) -> None:
    """As the notifier does: its own condition, the others as they are."""

    def change(item: dict[str, Any]) -> None:
        others = [c for c in item["status"]["conditions"] if c["type"] == "Ready"]
        item["status"]["conditions"] = [*others, condition.make(notices, None, datetime.now(UTC))]

    stage.api.change("nodes", "n1", "", change)


async def test_the_clouds_deadline_goes_from_the_condition_to_every_agent_and_back_again(stage: Stage) -> None:
    agents = await to_running(stage)
    deadline = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=100)
    spot = NodeNotice("azure/A", Cause.SPOT, datetime.now(UTC), deadline, True, True, "Preempt Scheduled")
    publish(stage, spot)
    for agent in agents:
        orders = await eventually(
            "the notice", lambda agent=agent: [o for o in agent.orders if isinstance(o, NoticeOrder)]
        )
        (n,) = orders[-1].notices
        assert (n.source, n.cause, n.worker, n.deadline) == ("notifier:azure/A", Cause.SPOT, 1, deadline)
    assert stage.status()["phase"] == "Evacuating"
    publish(stage)
    await eventually("training goes on", lambda: stage.status()["phase"] == "Running")
    for agent in agents:
        await eventually(
            "the withdrawal",
            lambda agent=agent: [o for o in agent.orders if isinstance(o, NoticeOrder)][-1].notices[0].withdrawn,
        )


async def announced(stage: Stage, source: str) -> dict[str, Any]:
    def look() -> Any:
        return next((n for n in stage.status().get("notices") or [] if n["source"] == source), None)

    found: dict[str, Any] = await eventually(source, look)
    return found


async def test_a_taint_of_the_owners_own_is_a_notice(stage: Stage) -> None:
    await to_running(stage)
    stage.api.change(
        "nodes", "n1", "", lambda o: o["spec"].update(taints=[{"key": "example.com/going", "effect": "NoSchedule"}])
    )
    found = await announced(stage, "taint:example.com/going")
    left = datetime.fromisoformat(found["deadline"]) - datetime.fromisoformat(found["noticedAt"])
    assert (found["cause"], left) == ("maintenance", timedelta(seconds=77))


async def test_an_event_about_the_node_is_a_notice(stage: Stage) -> None:
    await to_running(stage)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    event = {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Node", "name": "n1"},
        "reason": "SpotInterrupted",
        "lastTimestamp": now,
    }
    stage.api.put("events", event, "default")
    found = await announced(stage, "event:SpotInterrupted")
    assert (found["cause"], found["confidence"]) == ("spot", "Certain")


async def test_a_claim_that_ends_its_node_is_a_notice(stage: Stage) -> None:
    await to_running(stage)
    until = (datetime.now(UTC) + timedelta(seconds=300)).strftime("%Y-%m-%dT%H:%M:%SZ")
    key = "karpenter.sh/nodeclaim-termination-timestamp"
    stage.api.put("nodeclaims", {"metadata": {"name": "c", "annotations": {key: until}}, "status": {"nodeName": "n1"}})
    found = await announced(stage, f"annotation:{key}")
    assert datetime.fromisoformat(found["deadline"]) == datetime.fromisoformat(until)
