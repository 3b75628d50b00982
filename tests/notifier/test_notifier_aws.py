"""EC2's metadata: a stand-in that insists on session tokens, and everything that it may say or fail to say."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web as server

from holdfast_api.messages import Cause
from holdfast_notifier.aws import LIFECYCLE, MAINTENANCE, REBALANCE, SPOT, Aws
from holdfast_notifier.errors import MetadataError
from tests.notifier.conftest import T0, clock, seconds, web
from tests.notifier.stand_ins import Imds

TERMINATE = '{"action": "terminate", "time": "2026-03-01T12:02:00Z"}'


async def looked(imds: Imds, **changes: Any) -> Any:
    async with web(imds.url, changes.pop("timeout_seconds", 30.0)) as session:
        return await Aws(session, ahead_seconds=changes.pop("ahead_seconds", 300)).look(clock(**changes))


async def test_where_nothing_is_announced_everything_is_404(imds: Imds) -> None:
    assert await looked(imds) == ()
    assert imds.calls.count("PUT /latest/api/token") == 1


async def test_from_404_to_a_spot_notice_and_back(imds: Imds) -> None:
    async with web(imds.url) as session:
        aws = Aws(session, ahead_seconds=300)
        assert await aws.look(clock()) == ()
        imds.said[SPOT] = TERMINATE
        (found,) = await aws.look(clock())
        assert (found.notice.source, found.notice.cause, found.notice.deadline) == (
            "aws/spot-instance-action", Cause.SPOT, T0 + seconds(120),
        )  # fmt: skip
        assert found.notice.acting
        assert not found.notice.revocable
        assert not found.counted
        del imds.said[SPOT]
        assert await aws.look(clock()) == ()
    assert imds.calls.count("PUT /latest/api/token") == 1, "one token serves many questions"


async def test_hibernation_begins_at_once_and_an_action_without_a_time_leaves_two_minutes(imds: Imds) -> None:
    imds.said[SPOT] = '{"action": "hibernate", "time": "2026-03-01T12:02:00Z"}'
    (found,) = await looked(imds)
    assert (found.notice.deadline, found.counted) == (T0, True)
    imds.said[SPOT] = '{"action": "stop", "time": "soon"}'
    (found,) = await looked(imds)
    assert (found.notice.deadline, found.counted) == (T0 + seconds(120), True)


async def test_a_token_that_is_refused_before_its_time_is_renewed(imds: Imds) -> None:
    imds.said[SPOT] = TERMINATE
    async with web(imds.url) as session:
        aws = Aws(session, ahead_seconds=300)
        await aws.look(clock())
        imds.expire()
        assert len(await aws.look(clock())) == 1
    assert imds.calls.count("PUT /latest/api/token") == 2


async def test_a_token_whose_time_is_over_is_not_used_again(imds: Imds) -> None:
    imds.lifetime = "0"
    await looked(imds)
    assert imds.calls.count("PUT /latest/api/token") == 4, "one for each question"
    assert "401" not in imds.calls


async def test_a_service_that_refuses_every_token_is_an_error_and_not_asked_for_ever(imds: Imds) -> None:
    imds.fault = lambda r: None if r.method == "PUT" else server.Response(status=401)
    with pytest.raises(MetadataError, match="401"):
        await looked(imds)
    assert len(imds.calls) <= 4 * 4


async def test_a_token_that_is_none_is_refused(imds: Imds) -> None:
    for text in ("", "two\r\nlines", "x" * 5000, "<html>é"):
        imds.fault = lambda r, text=text: server.Response(text=text) if r.method == "PUT" else None
        with pytest.raises(MetadataError, match="gives no token"):
            await looked(imds)


async def test_a_rebalance_recommendation_prepares(imds: Imds) -> None:
    imds.said[REBALANCE] = '{"noticeTime": "2026-03-01T11:59:00Z"}'
    (found,) = await looked(imds)
    n = found.notice
    assert (n.cause, n.acting, n.revocable, n.noticed_at, n.deadline) == (
        Cause.REBALANCE,
        False,
        True,
        T0 - seconds(60),
        None,
    )


EVENT = {
    "NotBefore": "01 Mar 2026 12:10:00 GMT",
    "NotAfter": "01 Mar 2026 14:00:00 GMT",
    "Code": "system-reboot",
    "Description": "scheduled reboot",
    "EventId": "instance-event-0d59937288b749b32",
    "State": "active",
}


async def test_scheduled_maintenance_prepares_and_acts_when_its_time_is_near(imds: Imds) -> None:
    imds.said[MAINTENANCE] = json.dumps([EVENT])
    (far,) = await looked(imds)
    (near,) = await looked(imds, now=T0 + seconds(301))
    assert (far.notice.acting, near.notice.acting) == (False, True)
    assert far.notice.deadline == near.notice.deadline == T0 + seconds(600)
    assert far.notice.source == near.notice.source == "aws/maintenance/instance-event-0d59937288b749b32"
    assert near.notice.revocable


async def test_maintenance_that_is_over_or_cancelled_or_of_an_unknown_kind_takes_nothing_away(imds: Imds) -> None:
    imds.said[MAINTENANCE] = json.dumps([{**EVENT, "State": "completed"}, {**EVENT, "State": "canceled"}, "x", 1])
    assert await looked(imds) == ()
    imds.said[MAINTENANCE] = json.dumps([{**EVENT, "Code": "of-a-later-year"}])
    (found,) = await looked(imds, now=T0 + seconds(590))
    assert not found.notice.acting
    imds.said[MAINTENANCE] = "[]"
    assert await looked(imds) == ()


async def test_the_group_takes_the_instance_when_its_target_state_is_terminated(imds: Imds) -> None:
    for state in ("InService", "Warmed:Stopped", "Standby"):
        imds.said[LIFECYCLE] = state
        assert await looked(imds) == ()
    imds.said[LIFECYCLE] = "Terminated"
    (found,) = await looked(imds)
    assert (found.notice.cause, found.notice.acting, found.notice.deadline) == (Cause.SCALE_DOWN, True, None)


@pytest.mark.parametrize(
    "text", ["<html>proxy</html>", "[]", "null", '"terminate"', "{", "\x00\xff", "[" * 100_000, "{}", "9" * 5000]
)
async def test_garbage_is_an_error_of_that_answer_alone(imds: Imds, text: str) -> None:
    """What was said before stands, and the other questions are asked all the same."""
    imds.said[REBALANCE] = '{"noticeTime": "2026-03-01T11:59:00Z"}'
    async with web(imds.url) as session:
        aws = Aws(session, ahead_seconds=300)
        imds.said[SPOT] = TERMINATE
        before = await aws.look(clock())
        imds.said[SPOT] = text
        imds.said[LIFECYCLE] = "Terminated"
        found = await aws.look(clock())
    assert [f.notice.source for f in found[:2]] == [f.notice.source for f in before]
    assert found[0] == before[0]
    assert found[2].notice.cause is Cause.SCALE_DOWN


async def test_a_body_without_end_is_not_read_to_its_end(imds: Imds) -> None:
    sent = 0

    async def endless(request: server.Request) -> server.StreamResponse:
        nonlocal sent
        response = server.StreamResponse()
        await response.prepare(request)
        while sent < 1 << 28:
            await response.write(b"x" * (1 << 16))
            sent += 1 << 16
        return response

    imds.fault = lambda r: None if r.method == "PUT" else endless(r)
    with pytest.raises(MetadataError):
        await looked(imds)
    assert sent < 1 << 27


async def test_a_service_that_does_not_answer_is_an_error(imds: Imds) -> None:
    imds.fault = lambda r: asyncio.sleep(3600)
    with pytest.raises(MetadataError, match="TimeoutError"):
        await looked(imds, timeout_seconds=0.05)


async def test_a_service_that_is_not_there_is_an_error() -> None:
    async with web("http://127.0.0.1:9") as session:
        with pytest.raises(MetadataError, match="/latest/api/token"):
            await Aws(session, ahead_seconds=300).look(clock())


async def test_a_redirect_is_not_followed(imds: Imds) -> None:
    """It would lead a token, or a question, wherever somebody wants."""
    elsewhere = Imds()
    elsewhere.said[SPOT] = TERMINATE
    async with elsewhere.running() as url:
        imds.fault = lambda r: server.Response(status=302, headers={"Location": url + r.path})
        with pytest.raises(MetadataError, match="a redirect \\(302\\) is not followed"):
            await looked(imds)
    assert elsewhere.calls == []


async def test_a_proxy_of_the_environment_is_not_asked(imds: Imds, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Imds()
    async with proxy.running() as url:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        imds.said[SPOT] = TERMINATE
        assert len(await looked(imds)) == 1
    assert proxy.calls == []
