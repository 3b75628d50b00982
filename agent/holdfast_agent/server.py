"""The agent's HTTP server: orders of the operator and messages of peers under /v1 (signed, H2), /metrics and /healthz (open, read-only).

Transport only: checks who speaks and that the body is one of ours, then hands the message to `Desk`.
"""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from aiohttp import web

from holdfast_agent import clock
from holdfast_agent.asking import PATH as CHUNKS
from holdfast_agent.errors import PeerRefused
from holdfast_agent.gatekeeper import Gatekeeper
from holdfast_agent.giving import NotHere, NotYet
from holdfast_agent.metrics import Metrics
from holdfast_agent.peers import LATER, PATHS
from holdfast_api import codec
from holdfast_api.errors import BadSignature, ContractError
from holdfast_api.messages import AgentReport, AttemptOrder, CheckpointOrder, CollectOrder, EndOrder, NoticeOrder
from holdfast_api.signing import Role

log = logging.getLogger(__name__)
PIECE_BYTES = 1 << 20
"""Of a chunk, handed to the socket at once."""
PIECE_SECONDS = 20.0
ORDERS: dict[str, type[Any]] = {
    "/v1/attempt": AttemptOrder,
    "/v1/notice": NoticeOrder,
    "/v1/checkpoint": CheckpointOrder,
    "/v1/collect": CollectOrder,
    "/v1/end": EndOrder,
}


class WrongAttempt(Exception):
    """The message is of an attempt that this agent has not joined, or has left (A2)."""


class Desk(Protocol):
    """Who carries messages out. Called on the event loop's thread."""

    def report(self) -> AgentReport: ...

    async def order(self, message: Any) -> None:
        """Takes an order in; returns before it is carried out. Raises WrongAttempt."""

    async def peer(self, message: Any) -> Any:
        """The answer, None, or LATER. Raises WrongAttempt, PeerRefused."""

    def chunk(self, attempt: int, digest: str) -> AbstractAsyncContextManager[memoryview]:
        """The bytes of a chunk that a member of that attempt asks for. Raises WrongAttempt, NotHere, NotYet."""


class Server:
    """Listens from `start` to `close`; `port` is the real one after `start`."""

    def __init__(self, desk: Desk, gatekeeper: Gatekeeper, metrics: Metrics, job_uid: str) -> None:
        self._desk = desk
        self._gatekeeper = gatekeeper
        self._metrics = metrics
        self._job_uid = job_uid
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        app = web.Application(client_max_size=codec.MAX_MESSAGE_BYTES)
        for path in ORDERS:
            app.router.add_post(path, self._order)
        for path, _ in PATHS.values():
            app.router.add_post(path, self._peer)
        app.router.add_get(CHUNKS + "{digest:[0-9a-f]{64}}", self._chunk)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/metrics", self._metrics_page)
        app.router.add_get("/healthz", _healthz)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host or None, port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _order(self, request: web.Request) -> web.Response:
        try:
            message = await self._read(request, Role.OPERATOR, ORDERS[request.path])
            await self._desk.order(message)
        except _Refused as e:
            return e.response
        except WrongAttempt:
            return self._report(409)
        return self._report(200)

    async def _peer(self, request: web.Request) -> web.Response:
        cls = next(c for c, (path, _) in PATHS.items() if path == request.path)
        try:
            answer = await self._desk.peer(await self._read(request, Role.PEER, cls))
        except _Refused as e:
            return e.response
        except (WrongAttempt, PeerRefused):
            return self._report(409)
        if answer is LATER:
            return web.Response(status=202)
        return web.Response(status=204) if answer is None else _json(200, codec.to_json(answer))

    async def _chunk(self, request: web.Request) -> web.StreamResponse:
        try:
            attempt = self._check(request, Role.PEER, b"")
            async with self._desk.chunk(attempt, request.match_info["digest"]) as view:
                return await _sent(request, view)
        except _Refused as e:
            return e.response
        except WrongAttempt:
            return self._report(409)
        except NotYet:
            return web.Response(status=503)
        except NotHere:
            return web.Response(status=404)

    async def _status(self, request: web.Request) -> web.Response:
        try:
            self._check(request, Role.OPERATOR, b"")
        except _Refused as e:
            return e.response
        return self._report(200)

    async def _read(self, request: web.Request, role: Role, cls: type[Any]) -> Any:
        """The message, once signature, type, job and attempt fit."""
        body = await request.read()
        attempt = self._check(request, role, body)
        try:
            message = codec.from_json(cls, body)
        except ContractError as e:
            raise _Refused(400, str(e)) from e
        if getattr(message, "job_uid", self._job_uid) != self._job_uid:
            raise _Refused(403, "the message is for another job")
        if message.attempt != attempt:
            raise _Refused(403, "the signature is for another attempt than the message")
        return message

    def _check(self, request: web.Request, role: Role, body: bytes) -> int:
        try:
            signed = self._gatekeeper.check(
                role=role,
                method=request.method,
                path=request.path,
                headers=request.headers,
                body=body,
                now=clock.now().timestamp(),
            )
        except BadSignature as e:
            log.warning("%s %s from %s is refused: %s", request.method, request.path, request.remote, e)
            raise _Refused(401, str(e)) from e
        if role is Role.OPERATOR:
            clock.heard_operator(signed.at)
            self._metrics.clock_skew.set(clock.skew_seconds() or 0.0)
        return signed.attempt

    def _report(self, status: int) -> web.Response:
        return _json(status, codec.to_json(self._desk.report()))

    async def _metrics_page(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.response = web.Response(status=status, text=reason + "\n")


async def _sent(request: web.Request, view: memoryview) -> web.StreamResponse:
    """In pieces, each from where it lies: no more than one is in memory twice. Ends a receiver that has stopped to take any."""
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = view.nbytes
    await response.prepare(request)
    for at in range(0, view.nbytes, PIECE_BYTES):
        async with asyncio.timeout(PIECE_SECONDS):
            await response.write(view[at : at + PIECE_BYTES])
    await response.write_eof()
    return response


async def _healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")
