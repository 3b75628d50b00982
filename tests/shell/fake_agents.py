"""Agents that answer orders as an agent would, and do as little: they train by being told to. They check every signature as a real one must (H2)."""

import dataclasses
import time
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from holdfast_api import codec, signing
from holdfast_api.messages import (
    AgentPhase,
    AgentReport,
    AttemptOrder,
    Cause,
    CheckpointInfo,
    ClaimInfo,
    NoticeOrder,
    Stage,
)


class FakeAgent:
    """One pod's agent on an address of its own (127.0.0.x), all on one port."""

    def __init__(self, job_uid: str, worker: int, pod_uid: str, master: bytes) -> None:
        self.report = AgentReport(
            job_uid=job_uid,
            worker=worker,
            pod_uid=pod_uid,
            sent_at=datetime.now(UTC),
            sequence=1,
            attempt=0,
            phase=AgentPhase.WAITING,
        )
        self._key = signing.derive_key(master, job_uid, signing.Role.OPERATOR)
        self.orders: list[Any] = []
        self.forged = 0
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        app = web.Application()
        for path, kind in (("/v1/attempt", AttemptOrder), ("/v1/notice", NoticeOrder)):
            app.router.add_post(path, self._handler(kind))
        app.router.add_get("/v1/status", self._status)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def say(self, **changes: Any) -> AgentReport:
        now = datetime.now(UTC)
        self.report = dataclasses.replace(self.report, sent_at=now, sequence=self.report.sequence + 1, **changes)
        return self.report

    def trains(self, boundary: int, *commits: str) -> AgentReport:
        infos = tuple(
            CheckpointInfo(int(c.split("/")[0]), int(c.split("/")[1]), boundary, Cause.SPOT, datetime.now(UTC))
            for c in commits
        )
        stages = {**self.report.stages, Stage.FIRST_STEP.value: datetime.now(UTC)}
        return self.say(phase=AgentPhase.TRAINING, boundary=boundary, stages=stages, checkpoints=infos)

    def seals(self) -> AgentReport:
        now = datetime.now(UTC)
        stages = {**self.report.stages, Stage.QUIESCED.value: now, Stage.SEALED.value: now}
        return self.say(phase=AgentPhase.SEALED, stages=stages)

    def _handler(self, kind: type[Any]) -> Any:
        async def handle(request: web.Request) -> web.Response:
            body = await request.read()
            if not self._is_signed(request, body):
                return web.Response(status=403, text="bad signature")
            order = codec.from_json(kind, body)
            self.orders.append(order)
            self._obey(order)
            return self._answer()

        return handle

    def _obey(self, order: Any) -> None:
        if isinstance(order, AttemptOrder):
            if order.attempt > self.report.attempt:
                self.say(
                    attempt=order.attempt, phase=AgentPhase.STARTING, stages={}, notices=(), claim=None, checkpoints=()
                )
            if order.may_claim and self.report.worker == 0 and self.report.claim is None:
                self.say(claim=ClaimInfo(order.attempt, f"i{order.attempt}", datetime.now(UTC)))
        elif order.attempt == self.report.attempt:
            self.say(notices=order.notices)

    async def _status(self, request: web.Request) -> web.Response:
        if not self._is_signed(request, b""):
            return web.Response(status=403, text="bad signature")
        return self._answer()

    def _answer(self) -> web.Response:
        return web.Response(body=codec.to_json(self.report), content_type="application/json")

    def _is_signed(self, request: web.Request, body: bytes) -> bool:
        attempt = int(request.headers[signing.HEADER_ATTEMPT])
        envelope = signing.Envelope(request.method, request.path, self.report.job_uid, self.report.pod_uid, attempt)
        try:
            signing.verify(self._key, envelope, body, request.headers[signing.HEADER], now=time.time())
        except Exception:
            self.forged += 1
            return False
        return True
