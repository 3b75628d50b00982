"""Reports to an operator that is away or refuses (H1, H4): the newest one is repeated until it is taken, and nothing waits for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from holdfast_agent import reports
from holdfast_agent.metrics import Metrics
from holdfast_agent.record import Record
from holdfast_agent.reports import Reporter, pause_after
from holdfast_api import codec
from holdfast_api.messages import AgentReport


@dataclass
class Operator:
    """Takes reports as the operator's server does. `answers` are its status codes in order, then 204."""

    answers: list[int] = field(default_factory=list)
    taken: list[AgentReport] = field(default_factory=list)
    refused: list[AgentReport] = field(default_factory=list)
    url: str = ""
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        report = codec.from_json(AgentReport, await request.read())
        status = self.answers.pop(0) if self.answers else 204
        (self.taken if status == 204 else self.refused).append(report)
        self.came.set()
        return web.Response(status=status)

    async def until_taken(self) -> None:
        async with asyncio.timeout(60):
            while not self.taken:
                await self.came.wait()
                self.came.clear()


@contextlib.asynccontextmanager
async def an_operator(*answers: int) -> AsyncIterator[Operator]:
    operator = Operator([*answers])
    app = web.Application()
    app.router.add_post("/v1/reports", operator.take)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    operator.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield operator
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def reporting(record: Record, url: str, folder: Path) -> AsyncIterator[Reporter]:
    async with aiohttp.ClientSession() as session:
        reporter = Reporter(
            record.report,
            session,
            operator_url=url,
            token_path=folder / "token",
            termination_path=None,
            metrics=Metrics(0),
        )
        record.on_change = reporter.changed
        yield reporter


@pytest.mark.parametrize("answer", [401, 403, 500, 503])
async def test_a_report_that_was_not_taken_is_repeated_although_nothing_changes(tmp_path, monkeypatch, answer):
    monkeypatch.setattr(reports, "AT_LEAST_EVERY_SECONDS", 10.0**6)
    record = Record("uid", 0, "pod")
    async with an_operator(answer, answer, answer) as operator, reporting(record, operator.url, tmp_path) as reporter:
        running = asyncio.ensure_future(reporter.run())
        record.begin(3)
        await operator.until_taken()
        running.cancel()
    assert [r.attempt for r in operator.refused] == [3, 3, 3]
    assert [r.attempt for r in operator.taken] == [3]
    sequences = [r.sequence for r in operator.refused + operator.taken]
    assert sequences == sorted(set(sequences))


async def test_the_last_report_is_repeated_while_there_is_time(tmp_path):
    record = Record("uid", 0, "pod")
    async with an_operator(503, 503) as operator, reporting(record, operator.url, tmp_path) as reporter:
        await reporter.finish(60)
    assert len(operator.taken) == 1


async def test_an_operator_that_is_gone_does_not_keep_the_agent(tmp_path):
    record = Record("uid", 0, "pod")
    async with an_operator() as operator:
        url = operator.url
    async with reporting(record, url, tmp_path) as reporter:
        await reporter.finish(0.3)


def test_pauses_between_repetitions_grow_to_a_bound():
    assert [pause_after(n) for n in (1, 2, 3, 4, 5, 6, 7, 1000)] == [0.25, 0.5, 1, 2, 4, 5, 5, 5]
    assert pause_after(0) == reports.AT_LEAST_EVERY_SECONDS
