"""Compute Engine's metadata: a stand-in that holds calls until something changes, and insists on its header in both directions."""

import asyncio
from typing import Any

import pytest
from aiohttp import web as server

from holdfast_api.messages import Cause
from holdfast_notifier.errors import MetadataError
from holdfast_notifier.gcp import MAINTENANCE, PREEMPTED, Gcp
from holdfast_notifier.web import Web
from tests.notifier.conftest import T0, clock, seconds, web
from tests.notifier.stand_ins import MetadataServer, eventually


def gcp(session: Web, **changes: Any) -> Gcp:
    usual: dict[str, Any] = {
        "wait_seconds": 60,
        "preemption_notice_seconds": 0,
        "maintenance_notice_seconds": 60,
        "node_shutdown_seconds": 0,
    }
    return Gcp(session, **(usual | changes))


async def first(metadata_server: MetadataServer, **changes: Any) -> Any:
    async with web(metadata_server.url) as session:
        return await gcp(session, **changes).look(clock())


async def test_the_first_look_answers_at_once_and_the_next_ones_wait_for_a_change(
    metadata_server: MetadataServer,
) -> None:
    async with web(metadata_server.url) as session:
        cloud = gcp(session)
        assert await cloud.look(clock()) == ()
        waiting = asyncio.create_task(cloud.look(clock()))
        await eventually(lambda: metadata_server.waiting == 2)
        assert not waiting.done()
        await metadata_server.set("preempted", "TRUE")
        (found,) = await waiting
        n = found.notice
        assert (n.source, n.cause, n.acting, n.revocable) == ("gcp/preempted", Cause.SPOT, True, False)
        assert (n.deadline, found.counted) == (T0 + seconds(30), True)
        await eventually(lambda: metadata_server.waiting == 0)


async def test_a_change_between_two_looks_is_not_missed(metadata_server: MetadataServer) -> None:
    async with web(metadata_server.url) as session:
        cloud = gcp(session)
        await cloud.look(clock())
        await metadata_server.set("preempted", "TRUE")
        assert len(await cloud.look(clock())) == 1


async def test_a_wait_without_a_change_ends_by_itself(metadata_server: MetadataServer) -> None:
    async with web(metadata_server.url) as session:
        cloud = gcp(session, wait_seconds=0)
        assert await cloud.look(clock()) == ()
        assert await cloud.look(clock()) == ()


async def test_a_notice_that_is_taken_back(metadata_server: MetadataServer) -> None:
    async with web(metadata_server.url) as session:
        cloud = gcp(session)
        await cloud.look(clock())
        await metadata_server.set("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
        (found,) = await cloud.look(clock())
        assert (found.notice.cause, found.notice.acting, found.notice.deadline) == (
            Cause.MAINTENANCE,
            True,
            T0 + seconds(60),
        )
        assert found.notice.revocable
        await metadata_server.set("maintenance-event", "NONE")
        assert await cloud.look(clock()) == ()


async def test_a_migration_only_prepares(metadata_server: MetadataServer) -> None:
    metadata_server.said[MAINTENANCE] = "MIGRATE_ON_HOST_MAINTENANCE"
    (found,) = await first(metadata_server)
    assert (found.notice.acting, found.notice.deadline) == (False, None)


@pytest.mark.parametrize(
    ("notice", "shutdown", "expected"),
    [(0, 0, 30), (0, 15, 15), (0, 120, 30), (120, 15, 135)],
    ids=[
        "soft-off alone",
        "the kubelet's share",
        "never more than the machine has",
        "with the preview's two minutes before",
    ],
)
async def test_the_deadline_is_whichever_comes_first(
    metadata_server: MetadataServer, notice: int, shutdown: int, expected: int
) -> None:
    metadata_server.said[PREEMPTED] = "TRUE"
    (found,) = await first(metadata_server, preemption_notice_seconds=notice, node_shutdown_seconds=shutdown)
    assert found.notice.deadline == T0 + seconds(expected)


async def test_an_answer_without_the_servers_header_is_nobodys(metadata_server: MetadataServer) -> None:
    """A captive network, or another machine at that address."""
    metadata_server.fault = lambda r: server.Response(text="TRUE")
    with pytest.raises(MetadataError, match="not the metadata server's"):
        await first(metadata_server)


@pytest.mark.parametrize("text", ["", "true", "MAYBE", "<html>"])
async def test_garbage_is_no_preemption_and_an_error(metadata_server: MetadataServer, text: str) -> None:
    metadata_server.said[PREEMPTED] = text
    with pytest.raises(MetadataError, match="neither TRUE nor FALSE"):
        await first(metadata_server)


@pytest.mark.parametrize("status", [404, 500, 503])
async def test_maintenance_that_cannot_be_had_does_not_hide_a_preemption(
    metadata_server: MetadataServer, status: int
) -> None:
    metadata_server.fault = lambda r: server.Response(status=status) if r.path == MAINTENANCE else None
    async with web(metadata_server.url) as session:
        cloud = gcp(session)
        assert await cloud.look(clock()) == ()
        await metadata_server.set("preempted", "TRUE")
        found: Any = ()
        while not found:  # the other key's error ends a wait as well
            found = await cloud.look(clock())
        assert found[0].notice.source == "gcp/preempted"


async def test_an_unknown_kind_of_maintenance_is_said_and_takes_nothing_away(
    metadata_server: MetadataServer, caplog: pytest.LogCaptureFixture
) -> None:
    metadata_server.said[MAINTENANCE] = "BLINK_TWICE"
    assert await first(metadata_server) == ()
    assert "BLINK_TWICE" in caplog.text


async def test_a_server_that_is_away_while_it_holds_a_call_is_an_error_and_asked_again(
    metadata_server: MetadataServer,
) -> None:
    async with web(metadata_server.url) as session:
        cloud = gcp(session)
        await cloud.look(clock())
        metadata_server.fault = lambda r: (
            server.Response(status=503, headers={"Metadata-Flavor": "Google"}) if r.path == PREEMPTED else None
        )
        with pytest.raises(MetadataError, match="503"):
            await cloud.look(clock())
        metadata_server.fault = None
        await metadata_server.set("preempted", "TRUE")
        assert len(await cloud.look(clock())) == 1
