"""Tells the operator, the store and the termination message how the agent stands (H1, H4). No failure here ever stops anything else.

The report itself is made by `record.Record.report`; this module sends it: at most every 200 ms when something changed, at least every 10 s, and while the
operator has not taken the newest one, again after growing pauses: it may have been away for the one report that counts.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from holdfast_agent.metrics import Metrics
from holdfast_api import codec
from holdfast_api.messages import AgentReport, HangReport

log = logging.getLogger(__name__)
AT_MOST_EVERY_SECONDS = 0.2
AT_LEAST_EVERY_SECONDS = 10.0
FIRST_REPEAT_SECONDS = 0.25
LONGEST_REPEAT_SECONDS = 5.0
REQUEST_SECONDS = 5.0
TERMINATION_BYTES = 4096


class Reporter:
    """Runs as one task; `changed` may be called from the event loop's thread at any time."""

    def __init__(
        self,
        make: Callable[[], AgentReport],
        session: aiohttp.ClientSession,
        *,
        operator_url: str,
        token_path: Path,
        termination_path: Path | None,
        metrics: Metrics,
    ) -> None:
        self._make = make
        self._session = session
        self._url = operator_url.rstrip("/") + "/v1/reports" if operator_url else ""
        self._token_path = token_path
        self._termination_path = termination_path
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._running: asyncio.Task[object] | None = None
        self._unheard = 0
        """Reports in a row that the operator has not taken."""
        self._stored: tuple[object, ...] = ()
        self._storing: asyncio.Task[None] | None = None
        self.store: Callable[[AgentReport], Awaitable[None]] | None = None
        """Writes the report below its attempt; set once there is a store."""
        self.taken: Callable[[AgentReport], None] = lambda report: None
        """Told of every report that the operator has taken."""

    def changed(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        self._running = asyncio.current_task()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_after(self._unheard)):
                    await self._wake.wait()
            self._wake.clear()
            await self.send()
            await asyncio.sleep(AT_MOST_EVERY_SECONDS)

    async def send(self) -> None:
        """One report everywhere. Called directly before the agent ends."""
        report = self._make()
        self._terminate(report)
        self._to_store(report)
        await self._to_operator(report)

    async def finish(self, seconds: float) -> None:
        """The last report, also into the store, within `seconds`: nothing comes after it that could make up for it."""
        if self._running is not None:
            self._running.cancel()  # a report on its way would arrive after the last one, or hold it up
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.send()
                if self._storing is not None:
                    await self._storing
                while self._unheard:
                    await asyncio.sleep(pause_after(self._unheard))
                    await self._to_operator(self._make())

    async def _to_operator(self, report: AgentReport) -> None:
        if not self._url:
            return
        try:
            # Read for every call: the kubelet renews it (H1).
            token = self._token_path.read_text().strip() if self._token_path.exists() else ""
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
            async with self._session.post(
                self._url, data=codec.to_json(report), headers=headers, timeout=timeout
            ) as response:
                if response.status >= 300:
                    raise ValueError(f"HTTP {response.status}")
            self._unheard = 0
            self.taken(report)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as e:
            self._unheard += 1
            self._metrics.reports_failed.labels("operator").inc()
            log.debug("the operator did not take a report: %s: %s", type(e).__name__, e)

    def _to_store(self, report: AgentReport) -> None:
        """On a change of stages, commits, claim or end only: a report is an object, and a PUT has its price."""
        essence = (
            report.attempt,
            tuple(report.stages),
            report.checkpoints,
            report.claim,
            report.exit,
            report.blocked,
            report.rejections,
            report.hang,
        )
        if self.store is None or report.attempt == 0 or essence == self._stored:
            return
        if self._storing is not None and not self._storing.done():
            self._wake.set()
            return
        self._stored = essence
        self._storing = asyncio.ensure_future(self._store(report))

    async def _store(self, report: AgentReport) -> None:
        assert self.store is not None
        try:
            await self.store(dataclasses.replace(report, earlier=()))  # those lie in the store already
        except Exception as e:
            self._metrics.reports_failed.labels("store").inc()
            log.debug("the store did not take a report: %s: %s", type(e).__name__, e)

    def _terminate(self, report: AgentReport) -> None:
        if self._termination_path is None:
            return
        try:
            self._termination_path.write_bytes(termination_message(report))
        except OSError as e:
            self._metrics.reports_failed.labels("termination").inc()
            log.debug("the termination message cannot be written: %s", e)


def pause_after(unheard: int) -> float:
    """Seconds until the next report if nothing changes, after so many in a row that the operator has not taken. Pure."""
    if not unheard:
        return AT_LEAST_EVERY_SECONDS
    return float(min(FIRST_REPEAT_SECONDS * 2 ** min(unheard - 1, 10), LONGEST_REPEAT_SECONDS))


def termination_message(report: AgentReport) -> bytes:
    """A report that fits into 4096 bytes: without what others have said, then without what grows, then with the long texts cut."""
    report = dataclasses.replace(report, earlier=())
    data = codec.to_json(report)
    if len(data) <= TERMINATION_BYTES:
        return data
    bare = dataclasses.replace(
        report,
        checkpoints=report.checkpoints[-1:],
        rejections=report.rejections[-1:],
        notices=report.notices[-1:],
        expired=(),
        kept=(),
        stray=(),
        done_requests=(),
        plans=tuple(dataclasses.replace(p, options=()) for p in report.plans[-1:]),
        local=None,
        unfinished=(),
        flush=None,
        pace=(),
    )
    for length in (1024, 256, 32):
        small = dataclasses.replace(
            bare,
            exit_detail=bare.exit_detail[-length:],
            storage_note=bare.storage_note[:length],
            blocked=bare.blocked and dataclasses.replace(bare.blocked, message=bare.blocked.message[:length]),
            checkpoints=tuple(dataclasses.replace(c, metrics={}) for c in bare.checkpoints),
            rejections=tuple(dataclasses.replace(r, reason=r.reason[:length]) for r in bare.rejections),
            notices=tuple(dataclasses.replace(n, detail=n.detail[:length]) for n in bare.notices),
            plans=tuple(dataclasses.replace(p, why=p.why[:length]) for p in bare.plans),
            hang=bare.hang and _short_hang(bare.hang, length),
        )
        data = codec.to_json(small)
        if len(data) <= TERMINATION_BYTES:
            return data
    return codec.to_json(dataclasses.replace(small, checkpoints=(), rejections=(), notices=(), plans=(), hang=None))[
        :TERMINATION_BYTES
    ]


def _short_hang(hang: HangReport, length: int) -> HangReport:
    """The first stack, innermost frames: the log has them all."""
    return dataclasses.replace(
        hang,
        why=hang.why[:length],
        saved=hang.saved[:length],
        culprits=hang.culprits[:8],
        workers=hang.workers[:8],
        stacks=tuple(dataclasses.replace(s, stack=s.stack[:length]) for s in hang.stacks[:1]),
    )
