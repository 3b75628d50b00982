"""Orders to agents, signed (H2), and their answers. Level-triggered: an order is repeated while the decision asks for it, but not in every round."""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp

from holdfast_api import codec, signing
from holdfast_api.errors import ContractError
from holdfast_api.messages import AgentReport
from holdfast_operator.core.actions import (
    PodAddress,
    Send,
    SendAttempt,
    SendCheckpoint,
    SendCollect,
    SendEnd,
    SendNotice,
)
from holdfast_operator.shell.reportbook import ReportBook

log = logging.getLogger("holdfast.agents")
TIMEOUT_SECONDS = 2.0
AGAIN_SECONDS = 10.0
"""An order that was taken in is repeated after this time if the agent's report still does not show it."""
MAX_ANSWER_BYTES = 1 << 20
PATHS: dict[type, str] = {
    SendAttempt: "/v1/attempt",
    SendNotice: "/v1/notice",
    SendCheckpoint: "/v1/checkpoint",
    SendCollect: "/v1/collect",
    SendEnd: "/v1/end",
}


@dataclass(slots=True)
class _Sent:
    digest: bytes
    next_at: float
    failures: int = 0


@dataclass(slots=True)
class AgentClient:
    """`changed` is called with the job's uid when an answer says something new; `failed` for each order that did not arrive."""

    master: bytes
    book: ReportBook
    changed: Callable[[str], None]
    failed: Callable[[], None]
    port: int
    _session: aiohttp.ClientSession | None = None
    _sent: dict[tuple[str, str], _Sent] = field(default_factory=dict)
    _keys: dict[str, bytes] = field(default_factory=dict)

    async def open(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS, connect=1.0)
        connector = aiohttp.TCPConnector(limit=200, ttl_dns_cache=None, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def deliver(self, send: Send) -> float | None:
        """One order to one agent, unless it has it already. Returns when to try again (seconds from now), None if it arrived."""
        path = PATHS[type(send)]
        body = codec.to_json(send.order)
        key = (send.pod.uid, path)
        digest = hashlib.sha256(body).digest()
        before = self._sent.get(key)
        now = time.monotonic()
        if before is not None and before.digest == digest and now < before.next_at:
            return before.next_at - now if before.failures else None
        if await self._call("POST", path, send.order.job_uid, send.order.attempt, send.pod, body):
            self._sent[key] = _Sent(digest, time.monotonic() + AGAIN_SECONDS)
            return None
        failures = before.failures + 1 if before is not None and before.digest == digest else 1
        wait = min(5.0, 0.25 * 2.0 ** min(failures - 1, 5))
        self._sent[key] = _Sent(digest, time.monotonic() + wait, failures)
        self.failed()
        if failures in (1, 8):  # while a container starts, nobody listens yet
            log.info("agent %s has not taken in %s yet", send.pod.name, path)
        return wait

    async def ask(self, job_uid: str, attempt: int, pod: PodAddress) -> bool:
        """GET /v1/status: whether the agent answered. Its report goes into the book."""
        return await self._call("GET", "/v1/status", job_uid, attempt, pod, b"")

    def forget(self, pod_uids: set[str]) -> None:
        for key in [k for k in self._sent if k[0] in pod_uids]:
            del self._sent[key]

    async def _call(self, method: str, path: str, job_uid: str, attempt: int, pod: PodAddress, body: bytes) -> bool:
        assert self._session is not None
        envelope = signing.Envelope(method, path, job_uid, pod.uid, attempt)
        signature = signing.sign(self._key(job_uid), envelope, body, now=time.time(), nonce=secrets.token_bytes(16))
        headers = {
            signing.HEADER: signature,
            signing.HEADER_ATTEMPT: str(attempt),
            signing.HEADER_ROUND: "0",
            "Content-Type": "application/json",
        }
        host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
        try:
            async with self._session.request(
                method, f"http://{host}:{self.port}{path}", data=body, headers=headers, allow_redirects=False
            ) as response:
                answer = await response.content.read(MAX_ANSWER_BYTES)
                return self._take_in(response.status, answer, job_uid, pod)
        except (TimeoutError, aiohttp.ClientError, OSError) as e:
            log.debug("agent %s does not answer %s: %s", pod.name, path, type(e).__name__)
            return False

    def _take_in(self, status: int, answer: bytes, job_uid: str, pod: PodAddress) -> bool:
        """200 and 409 carry the agent's report (409: it refuses the order, its report says why)."""
        if status not in (200, 202, 409):
            log.warning("agent %s answers %d: %s", pod.name, status, answer[:200].decode(errors="replace"))
            return False
        try:
            report = codec.from_json(AgentReport, answer)
        except ContractError as e:
            log.warning("agent %s answers what is no report: %s", pod.name, e)
            return False
        if (report.job_uid, report.pod_uid) != (job_uid, pod.uid):
            log.warning("agent %s answers for another pod or job", pod.name)
            return False
        if self.book.add(report, datetime.now(UTC)):
            self.changed(job_uid)
        return True

    def _key(self, job_uid: str) -> bytes:
        if job_uid not in self._keys:
            self._keys[job_uid] = signing.derive_key(self.master, job_uid, signing.Role.OPERATOR)
        return self._keys[job_uid]
