"""Who may report what (H1): a token for our audience, bound to a pod of a job, speaking for itself."""

import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from fake_apiserver import FakeApiServer

from holdfast_api import codec, names
from holdfast_api.messages import AgentPhase, AgentReport
from holdfast_operator.core.observed import PodSeen
from holdfast_operator.shell.kube import Kube
from holdfast_operator.shell.reportbook import ReportBook
from holdfast_operator.shell.reports import ReportServer
from holdfast_operator.shell.tokens import Tokens

NOW = datetime(2026, 3, 1, tzinfo=UTC)
REPORT = AgentReport(
    job_uid="job-uid", worker=1, pod_uid="pod-uid", sent_at=NOW, sequence=5, attempt=1, phase=AgentPhase.TRAINING
)
POD = PodSeen("small-1", "pod-uid", worker=1, serial=1, created_at=NOW)


class Desk:
    def __init__(self, client: TestClient[Any, Any], api: FakeApiServer, book: ReportBook, told: list[str]) -> None:
        self.client, self.api, self.book, self.told = client, api, book, told

    async def post(self, body: bytes, token: str | None = "good") -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.client.post("/v1/reports", data=body, headers=headers) as response:
            return response.status


def bound(
    namespace: str = "team", pod: str = "small-1", uid: str = "pod-uid", audience: str = names.TOKEN_AUDIENCE
) -> dict[str, Any]:
    extra = {"authentication.kubernetes.io/pod-name": [pod], "authentication.kubernetes.io/pod-uid": [uid]}
    return {"audience": audience, "user": {"username": f"system:serviceaccount:{namespace}:default", "extra": extra}}


@pytest.fixture
async def desk(api: FakeApiServer, kube: Kube) -> AsyncIterator[Desk]:
    book, told = ReportBook(), []
    known = {"pod-uid": ("team", "job-uid", POD)}
    server = ReportServer(Tokens(kube), book, known.get, told.append)
    api.tokens = {
        "good": bound(),
        "stranger": bound(pod="other", uid="other-uid"),
        "other-namespace": bound(namespace="elsewhere"),
        "other-audience": bound(audience="somebody-else"),
        "unbound": {"audience": names.TOKEN_AUDIENCE, "user": {"username": "system:serviceaccount:team:default"}},
        "person": {"audience": names.TOKEN_AUDIENCE, "user": {"username": "alice"}},
    }
    async with TestClient(TestServer(server.app())) as client:
        yield Desk(client, api, book, told)


async def test_a_pods_own_report_is_taken_in_and_its_job_woken(desk: Desk) -> None:
    assert await desk.post(codec.to_json(REPORT)) == 204
    assert desk.book.of({"pod-uid"})["pod-uid"].report == REPORT
    assert desk.told == ["job-uid"]


@pytest.mark.parametrize("token", [None, "", "forged", "other-audience", "unbound", "person", "x" * 7_000])
async def test_without_a_token_for_us_bound_to_a_pod_it_is_401(desk: Desk, token: str | None) -> None:
    assert await desk.post(codec.to_json(REPORT), token) == 401


@pytest.mark.parametrize("token", ["stranger", "other-namespace"])
async def test_another_pods_token_is_403(desk: Desk, token: str) -> None:
    assert await desk.post(codec.to_json(REPORT), token) == 403
    assert not desk.told


@pytest.mark.parametrize("lie", [{"worker": 0}, {"job_uid": "another-job"}, {"pod_uid": "other-uid"}])
async def test_a_pod_that_speaks_for_another_worker_job_or_pod_is_403(desk: Desk, lie: dict[str, Any]) -> None:
    assert await desk.post(codec.to_json(dataclasses.replace(REPORT, **lie))) == 403
    assert desk.book.of({"pod-uid", "other-uid"}) == {}


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"schema": 2}', b"[" * 100_000])
async def test_what_is_no_report_is_400(desk: Desk, body: bytes) -> None:
    assert await desk.post(body) == 400


async def test_a_body_beyond_the_bound_is_413(desk: Desk) -> None:
    assert await desk.post(b" " * (2 << 20)) == 413


async def test_when_the_server_cannot_be_asked_the_agent_is_told_to_come_again(desk: Desk) -> None:
    desk.api.refuse = lambda method, path: (500, "InternalError", "x") if "tokenreviews" in path else None
    assert await desk.post(codec.to_json(REPORT)) == 503


async def test_a_token_is_reviewed_once_for_many_reports(desk: Desk) -> None:
    for sequence in range(6, 16):
        await desk.post(codec.to_json(dataclasses.replace(REPORT, sequence=sequence)))
    assert sum(r[2] == "tokenreviews" for r in desk.api.requests) == 1


async def test_an_older_report_does_not_replace_a_newer_one_and_wakes_nobody(desk: Desk) -> None:
    await desk.post(codec.to_json(REPORT))
    await desk.post(codec.to_json(dataclasses.replace(REPORT, sequence=4, boundary=99)))
    await desk.post(codec.to_json(REPORT))
    assert desk.book.of({"pod-uid"})["pod-uid"].report == REPORT
    assert desk.told == ["job-uid"]


async def test_a_report_of_progress_alone_is_kept_and_wakes_nobody(desk: Desk) -> None:
    await desk.post(codec.to_json(REPORT))
    await desk.post(codec.to_json(dataclasses.replace(REPORT, sequence=6, boundary=99)))
    assert desk.book.of({"pod-uid"})["pod-uid"].report.boundary == 99
    await desk.post(codec.to_json(dataclasses.replace(REPORT, sequence=7, phase=AgentPhase.SEALED)))
    assert desk.told == ["job-uid", "job-uid"]


async def test_only_this_one_path_and_method_exists(desk: Desk) -> None:
    for method, path in (("GET", "/v1/reports"), ("POST", "/"), ("POST", "/v1/notice")):
        async with desk.client.request(method, path) as response:
            assert response.status in (404, 405)


def test_of_several_reports_the_one_that_travelled_fastest_shows_how_clocks_differ() -> None:
    book = ReportBook()
    for number, delay in enumerate((9.0, 0.1, 30.0), 1):
        sent = NOW + timedelta(seconds=100 * number)
        arrived = sent - timedelta(seconds=60) + timedelta(seconds=delay)  # the agent's clock is a minute ahead
        book.add(dataclasses.replace(REPORT, sent_at=sent, sequence=number), arrived)
    assert book.of({"pod-uid"})["pod-uid"].ahead_seconds == pytest.approx(59.9)
