"""Azure's Scheduled Events: a stand-in that insists on header and version, with events of several machines, their starts, and acknowledgements."""

from typing import Any

import pytest
from aiohttp import web as server

from holdfast_api.messages import Cause
from holdfast_notifier.azure import EVENTS, NAME, Azure
from holdfast_notifier.errors import MetadataError
from tests.notifier.conftest import T0, clock, seconds, web
from tests.notifier.stand_ins import ScheduledEvents

SOON = "Sun, 01 Mar 2026 12:00:30 GMT"


async def looked(scheduled_events: ScheduledEvents, now: Any = T0) -> Any:
    async with web(scheduled_events.url) as session:
        return await Azure(session).look(clock(now))


async def test_no_events(scheduled_events: ScheduledEvents) -> None:
    assert await looked(scheduled_events) == ()
    assert f"GET {NAME}" not in scheduled_events.calls, "the name is asked for when it is needed"


async def test_a_preemption_with_its_time_then_started_then_over(scheduled_events: ScheduledEvents) -> None:
    async with web(scheduled_events.url) as session:
        cloud = Azure(session)
        scheduled_events.announce("Preempt", at=SOON)
        (found,) = await cloud.look(clock())
        n = found.notice
        assert (n.source, n.cause, n.acting, n.revocable) == ("azure/40B7BD88", Cause.SPOT, True, True)
        assert (n.deadline, found.counted) == (T0 + seconds(30), False)
        scheduled_events.start()
        (found,) = await cloud.look(clock(T0 + seconds(29)))
        assert (found.notice.revocable, found.counted) == (False, True)
        scheduled_events.events.clear()
        assert await cloud.look(clock()) == ()
    assert scheduled_events.calls.count(f"GET {NAME}") == 1


@pytest.mark.parametrize(
    ("kind", "cause", "acting"),
    [
        ("Preempt", Cause.SPOT, True),
        ("Terminate", Cause.SCALE_DOWN, True),
        ("Redeploy", Cause.MAINTENANCE, True),
        ("Reboot", Cause.MAINTENANCE, True),
        ("Freeze", Cause.MAINTENANCE, False),
    ],
)
async def test_each_kind_of_event(scheduled_events: ScheduledEvents, kind: str, cause: Cause, acting: bool) -> None:
    scheduled_events.announce(kind, at=SOON)
    (found,) = await looked(scheduled_events)
    assert (found.notice.cause, found.notice.acting) == (cause, acting)
    assert found.notice.deadline == (T0 + seconds(30) if acting else None)


async def test_events_of_other_machines_are_not_ours(scheduled_events: ScheduledEvents) -> None:
    scheduled_events.announce("Preempt", at=SOON, event_id="A", resources=["aks-spot-12345678-vmss_1"])
    scheduled_events.announce(
        "Reboot", at=SOON, event_id="B", resources=["aks-spot-12345678-vmss_1", "AKS-spot-12345678-VMSS_3"]
    )
    assert [f.notice.source for f in await looked(scheduled_events)] == ["azure/B"]


async def test_a_machine_that_cannot_learn_its_name_takes_every_event_for_its_own(
    scheduled_events: ScheduledEvents,
) -> None:
    scheduled_events.name = ""
    scheduled_events.announce("Preempt", at=SOON, resources=["aks-spot-12345678-vmss_1"])
    assert len(await looked(scheduled_events)) == 1


async def test_events_that_are_over_or_of_an_unknown_kind_say_nothing(scheduled_events: ScheduledEvents) -> None:
    scheduled_events.announce("Hover", at=SOON, event_id="A")
    scheduled_events.announce("Preempt", at=SOON, event_id="B")
    scheduled_events.events[1]["EventStatus"] = "Completed"
    scheduled_events.announce("Preempt", at=SOON, event_id="")
    assert await looked(scheduled_events) == ()


async def test_a_time_that_cannot_be_read_leaves_seconds(scheduled_events: ScheduledEvents) -> None:
    scheduled_events.announce("Preempt", at="Sun, 99 Mar 2026 12:00:30 GMT")
    (found,) = await looked(scheduled_events)
    assert (found.notice.deadline, found.counted) == (T0 + seconds(10), True)


@pytest.mark.parametrize("text", ["", "<html>", "[]", "{}", '{"Events": 3}', '{"Events": [3]}'])
async def test_garbage_is_an_error(scheduled_events: ScheduledEvents, text: str) -> None:
    scheduled_events.fault = lambda r: server.Response(text=text)
    with pytest.raises(MetadataError, match=EVENTS):
        await looked(scheduled_events)


async def test_the_service_is_switched_on_by_the_first_question_which_may_fail(
    scheduled_events: ScheduledEvents,
) -> None:
    scheduled_events.fault = lambda r: server.Response(status=503) if len(scheduled_events.calls) == 1 else None
    with pytest.raises(MetadataError, match="503"):
        await looked(scheduled_events)
    assert await looked(scheduled_events) == ()


async def test_acknowledging_starts_exactly_the_events_that_are_named(scheduled_events: ScheduledEvents) -> None:
    scheduled_events.announce("Preempt", at=SOON, event_id="A")
    scheduled_events.announce("Reboot", at=SOON, event_id="B")
    async with web(scheduled_events.url) as session:
        cloud = Azure(session)
        await cloud.acknowledge(frozenset())
        await cloud.acknowledge(frozenset({"azure/A"}))
        assert scheduled_events.started == ["A"]
        with pytest.raises(MetadataError, match="no such event"):
            await cloud.acknowledge(frozenset({"azure/C"}))
