"""From the metadata service to the Node's condition, with an API server that is away, refuses, or has another clock."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web as server

from holdfast_api.messages import Cause
from holdfast_api.node_notices import MAX_MESSAGE_BYTES, MAX_NOTICES, NodeNotice
from holdfast_notifier import condition, standing, watching
from holdfast_notifier.aws import REBALANCE, SPOT, Aws
from holdfast_notifier.azure import Azure
from holdfast_notifier.kube import Access, Kube
from holdfast_notifier.metrics import Metrics
from holdfast_notifier.standing import Found
from holdfast_notifier.watching import Watcher
from tests.notifier.conftest import T0, seconds, web
from tests.notifier.stand_ins import ApiServer, Imds, ScheduledEvents, eventually

TERMINATE = '{"action": "terminate", "time": "2026-03-01T12:02:00Z"}'


@contextlib.asynccontextmanager
async def watching_aws(imds: Imds, access: Access, **changes: Any) -> AsyncIterator[Watcher]:
    async with web(imds.url) as session, Kube(access, "n1") as kube:
        watcher = Watcher(Aws(session, ahead_seconds=300), kube, Metrics(), poll_seconds=0.02, **changes)
        watcher.went_on(await kube.node())
        async with running(watcher):
            yield watcher


@contextlib.asynccontextmanager
async def running(watcher: Watcher) -> AsyncIterator[None]:
    task = asyncio.create_task(watcher.run())
    try:
        yield
    finally:
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_machine_that_is_well_says_so_once(imds: Imds, api_server: ApiServer, access: Access) -> None:
    async with watching_aws(imds, access) as watcher:
        await eventually(lambda: watcher.ready)
        looks = len(imds.calls)
        await eventually(lambda: len(imds.calls) > looks + 20)
    found = api_server.condition()
    assert found is not None
    assert (found["status"], found["reason"]) == ("False", "NothingAnnounced")
    assert api_server.writes == 1, "no write while nothing changes"


async def test_a_notice_is_published_with_its_deadline_and_withdrawn_when_it_is_taken_back(
    imds: Imds, api_server: ApiServer, access: Access
) -> None:
    async with watching_aws(imds, access) as watcher:
        await eventually(lambda: watcher.ready)
        imds.said[SPOT] = TERMINATE
        await eventually(lambda: api_server.announced())
        found = api_server.condition()
        assert found is not None
        assert (found["status"], found["reason"]) == ("True", "Spot")
        (n,) = api_server.announced()
        assert (n["cause"], n["deadline"], n["acting"], n["revocable"]) == (
            "spot",
            "2026-03-01T12:02:00.000000Z",
            True,
            False,
        )
        del imds.said[SPOT]
        await eventually(lambda: not api_server.announced())
        found = api_server.condition()
        assert found is not None
        assert found["status"] == "False"
    kinds = [c["type"] for c in api_server.node["status"]["conditions"]]
    assert sorted(kinds) == ["HoldfastDisruption", "Ready"], "the conditions of others stay"


async def test_an_answer_that_cannot_be_had_withdraws_nothing(
    imds: Imds, api_server: ApiServer, access: Access
) -> None:
    async with watching_aws(imds, access):
        imds.said[SPOT] = TERMINATE
        await eventually(lambda: api_server.announced())
        imds.fault = lambda r: server.Response(status=500)
        asked = len(imds.calls)
        await eventually(lambda: len(imds.calls) > asked + 20)
        assert len(api_server.announced()) == 1


@pytest.mark.parametrize("status", [401, 403, 409, 429, 500, 503])
async def test_a_notice_is_published_when_the_api_server_takes_it_at_last(
    imds: Imds, api_server: ApiServer, access: Access, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RETRY_SECONDS", (0.01, 0.02))
    async with watching_aws(imds, access) as watcher:
        await eventually(lambda: watcher.ready)
        api_server.fault = lambda r: server.json_response({"message": "not now"}, status=status)
        imds.said[SPOT] = TERMINATE
        refused = len(api_server.calls)
        await eventually(lambda: len(api_server.calls) > refused + 3)
        assert not watcher.ready
        api_server.fault = None
        await eventually(lambda: api_server.announced())
        await eventually(lambda: watcher.ready)


async def test_what_is_published_after_a_failure_is_what_stands_then(
    imds: Imds, api_server: ApiServer, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what stood when it was tried first."""
    monkeypatch.setattr(watching, "RETRY_SECONDS", (0.01, 0.02))
    async with watching_aws(imds, access) as watcher:
        await eventually(lambda: watcher.ready)
        api_server.fault = lambda r: server.Response(status=503)
        imds.said[REBALANCE] = "{}"
        refused = len(api_server.calls)
        await eventually(lambda: len(api_server.calls) > refused + 2)
        imds.said[SPOT] = TERMINATE
        del imds.said[REBALANCE]
        looked = len(imds.calls)
        await eventually(lambda: len(imds.calls) > looked + 10)
        api_server.fault = None
        await eventually(lambda: api_server.announced())
        assert [n["source"] for n in api_server.announced()] == ["aws/spot-instance-action"]


async def test_a_notifier_that_is_restarted_goes_on_with_the_times_of_the_one_before(
    imds: Imds, api_server: ApiServer, access: Access
) -> None:
    imds.said[SPOT] = '{"action": "stop", "time": "soon"}'
    async with watching_aws(imds, access):
        await eventually(lambda: api_server.announced())
    before, changed = api_server.announced(), api_server.condition()
    assert changed is not None
    changed["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    async with watching_aws(imds, access) as watcher:
        await eventually(lambda: watcher.ready)
    assert api_server.announced() == before, "neither the time of the notice nor a counted deadline moves"
    found = api_server.condition()
    assert found is not None
    assert found["lastTransitionTime"] == "2026-01-01T00:00:00Z", "its status has not changed"


async def test_a_restarted_notifier_withdraws_what_is_no_longer_announced(
    imds: Imds, api_server: ApiServer, access: Access
) -> None:
    imds.said[SPOT] = TERMINATE
    async with watching_aws(imds, access):
        await eventually(lambda: api_server.announced())
    assert api_server.announced(), "ending takes nothing back: the machine may be shutting down"
    del imds.said[SPOT]
    async with watching_aws(imds, access):
        await eventually(lambda: not api_server.announced())


async def test_a_dry_run_asks_and_changes_nothing(
    imds: Imds, api_server: ApiServer, access: Access, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    imds.said[SPOT] = TERMINATE
    async with watching_aws(imds, access, dry_run=True) as watcher:
        await eventually(lambda: watcher.ready)
    assert (api_server.writes, api_server.condition()) == (0, None)
    assert "dry run: HoldfastDisruption True" in caplog.text


async def test_times_are_by_the_api_servers_clock_where_this_machines_is_wrong(
    imds: Imds, api_server: ApiServer, access: Access
) -> None:
    """What is counted from the look is read by others, who wait by their clocks."""
    there = datetime.now(UTC) - timedelta(hours=1)
    api_server.date = format_datetime(there, usegmt=True)
    imds.said[SPOT] = '{"action": "stop", "time": "soon"}'
    async with watching_aws(imds, access) as watcher:
        await eventually(lambda: api_server.announced())
        assert watcher._kube is not None
        assert abs(watcher._kube.skew_seconds - 3600) < 60
    noticed = datetime.fromisoformat(api_server.announced()[0]["noticed_at"])
    assert abs((noticed - there).total_seconds()) < 60


# ---- acknowledging


async def test_an_event_is_acknowledged_when_the_pods_that_were_here_have_ended_and_not_before(
    scheduled_events: ScheduledEvents, api_server: ApiServer, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "ACKNOWLEDGE_SECONDS", 0.01)
    pod = {"metadata": {"uid": "p"}, "status": {"phase": "Running"}}
    api_server.pods = [pod]
    scheduled_events.announce("Preempt", at="Sun, 01 Mar 2099 12:00:30 GMT", event_id="A")
    async with web(scheduled_events.url) as session, Kube(access, "n1") as kube:
        watcher = Watcher(Azure(session), kube, Metrics(), poll_seconds=0.02, acknowledge=True)
        async with running(watcher):
            listed = "GET /api/v1/pods"
            await eventually(lambda: api_server.calls.count(listed) > 5)
            assert scheduled_events.started == []
            pod["status"] = {"phase": "Failed"}
            await eventually(lambda: scheduled_events.started)
            asked = len(scheduled_events.calls)
            await eventually(lambda: len(scheduled_events.calls) > asked + 10)
    assert scheduled_events.started == ["A"], "once"


async def test_where_no_pod_of_ours_was_nothing_is_acknowledged(
    scheduled_events: ScheduledEvents, api_server: ApiServer, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine may be somebody else's until its last second."""
    monkeypatch.setattr(watching, "ACKNOWLEDGE_SECONDS", 0.01)
    scheduled_events.announce("Preempt", at="Sun, 01 Mar 2099 12:00:30 GMT")
    async with web(scheduled_events.url) as session, Kube(access, "n1") as kube:
        async with running(Watcher(Azure(session), kube, Metrics(), poll_seconds=0.02, acknowledge=True)):
            await eventually(lambda: api_server.calls.count("GET /api/v1/pods") > 10)
    assert scheduled_events.started == []


async def test_nothing_is_acknowledged_unless_that_is_switched_on(
    scheduled_events: ScheduledEvents, api_server: ApiServer, access: Access
) -> None:
    scheduled_events.announce("Preempt", at="Sun, 01 Mar 2099 12:00:30 GMT")
    async with web(scheduled_events.url) as session, Kube(access, "n1") as kube:
        async with running(Watcher(Azure(session), kube, Metrics(), poll_seconds=0.02)):
            await eventually(lambda: api_server.announced())
    assert "GET /api/v1/pods" not in api_server.calls


# ---- pure parts


def notice(source: str = "a", at: float = 0, deadline: float | None = None, acting: bool = True) -> NodeNotice:
    return NodeNotice(
        source, Cause.SPOT, T0 + seconds(at), None if deadline is None else T0 + seconds(deadline), acting
    )


def test_a_counted_deadline_stays_and_a_named_one_may_move() -> None:
    before = (notice(deadline=30),)
    assert standing.after(before, [Found(notice(at=10, deadline=40), counted=True)]) == before
    assert standing.after(before, [Found(notice(at=10, deadline=20), counted=True)]) == (notice(deadline=20),)
    assert standing.after(before, [Found(notice(at=10, deadline=40))]) == (notice(deadline=40),)


def test_what_is_not_found_any_more_is_gone_and_the_most_urgent_stands_first() -> None:
    found = [
        Found(notice("c", acting=False)),
        Found(notice("b")),
        Found(notice("a", deadline=9)),
        Found(notice("d", deadline=5)),
    ]
    assert [n.source for n in standing.after((notice("x"),), found)] == ["d", "a", "b", "c"]
    many = [Found(notice(f"{i:03}")) for i in range(100)]
    assert len(standing.after((), many)) == MAX_NOTICES


def test_the_condition_says_what_stands_and_can_be_read_back() -> None:
    made = condition.make([notice("a", deadline=9), notice("b", acting=False)], None, T0)
    assert (made["status"], made["reason"], made["lastTransitionTime"]) == ("True", "Spot", "2026-03-01T12:00:00Z")
    assert condition.read(made) == (notice("a", deadline=9), notice("b", acting=False))
    again = condition.make([], made, T0 + seconds(5))
    assert (again["status"], again["lastTransitionTime"]) == ("False", "2026-03-01T12:00:05Z")
    assert condition.read(again) == ()
    assert condition.read({**made, "message": "what another program wrote"}) == ()


def test_a_long_message_is_cut_to_what_counts() -> None:
    long = [NodeNotice(str(i), Cause.SPOT, T0, detail="é" * 2000) for i in range(MAX_NOTICES)]
    made = condition.make(long, None, T0)
    assert len(made["message"].encode()) <= MAX_MESSAGE_BYTES
    assert [n.source for n in condition.read(made)] == [str(i) for i in range(MAX_NOTICES)]
