"""A metadata stand-in and a web session to it, for each test."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_notifier.kube import Access
from holdfast_notifier.web import Web
from tests.notifier.stand_ins import ApiServer, Imds, MetadataServer, ScheduledEvents

T0 = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def seconds(n: float) -> timedelta:
    return timedelta(seconds=n)


def clock(now: datetime = T0) -> Callable[[], datetime]:
    return lambda: now


@pytest.fixture
async def imds() -> AsyncIterator[Imds]:
    server = Imds()
    async with server.running():
        yield server


@pytest.fixture
async def metadata_server() -> AsyncIterator[MetadataServer]:
    server = MetadataServer()
    async with server.running():
        yield server


@pytest.fixture
async def scheduled_events() -> AsyncIterator[ScheduledEvents]:
    server = ScheduledEvents()
    async with server.running():
        yield server


@pytest.fixture
async def api_server() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    async with server.running():
        yield server


@pytest.fixture
def access(api_server: ApiServer, tmp_path: Path) -> Access:
    token = tmp_path / "token"
    token.write_text(api_server.token + "\n")
    return Access(api_server.url, token)


def web(url: str, timeout_seconds: float = 30.0) -> Web:
    return Web(url, timeout_seconds)
