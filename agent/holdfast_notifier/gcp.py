"""What Compute Engine's metadata server announces: preemption and host maintenance. It holds a call until something changes (`wait_for_change`), so both keys
are watched side by side, and nothing is polled.

An answer counts only with the header `Metadata-Flavor: Google`: anything else on that address is not the metadata server.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from holdfast_api.messages import Cause
from holdfast_api.node_notices import NodeNotice
from holdfast_notifier.errors import MetadataError
from holdfast_notifier.standing import Found
from holdfast_notifier.web import Web

log = logging.getLogger("holdfast.notifier")
BASE = "http://169.254.169.254"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
FLAVOR = {"Metadata-Flavor": "Google"}
SOFT_OFF_SECONDS = 30
"""From the signal that shuts the machine down to the end of its power."""


class Gcp:
    """`look` returns when something has changed, or after `wait_seconds`; the first call at once."""

    name = "gcp"
    paths = (PREEMPTED, MAINTENANCE)

    def __init__(
        self,
        web: Web,
        *,
        wait_seconds: int,
        preemption_notice_seconds: int,
        maintenance_notice_seconds: int,
        node_shutdown_seconds: int,
    ) -> None:
        """`preemption_notice_seconds`: the instance's `preemptionNoticeDuration`, 0 or 120; `node_shutdown_seconds`: what the kubelet leaves ordinary pods of a
        shutdown, 0 if not known."""
        self._web = web
        self._wait_seconds = wait_seconds
        shutdown = min(SOFT_OFF_SECONDS, node_shutdown_seconds or SOFT_OFF_SECONDS)
        self._preempted_after_seconds = preemption_notice_seconds + shutdown
        self._maintained_after_seconds = maintenance_notice_seconds
        self._known: dict[str, tuple[str, str]] = {}
        """Path -> (ETag, value)."""

    async def look(self, clock: Callable[[], datetime]) -> tuple[Found, ...]:
        """Raises MetadataError."""
        if PREEMPTED in self._known:
            await self._wait_for_change()
        else:
            await self._read_maintenance()
            await self._read(PREEMPTED)
        preempted, maintenance = (self._known[path][1] for path in self.paths)
        now = clock()
        return (
            *read_preempted(preempted, now, self._preempted_after_seconds),
            *read_maintenance(maintenance, now, self._maintained_after_seconds),
        )

    async def acknowledge(self, sources: frozenset[str]) -> None:
        """Compute Engine takes no acknowledgements."""

    async def _wait_for_change(self) -> None:
        """Of either key. The other call is given up: the next one names what it knows, and is answered at once if that has changed meanwhile."""
        calls = [asyncio.ensure_future(self._read(PREEMPTED)), asyncio.ensure_future(self._read_maintenance())]
        try:
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            for call in done:
                call.result()
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def _read_maintenance(self) -> None:
        """What it said before stands where it cannot be had: that must not hide a preemption."""
        try:
            await self._read(MAINTENANCE)
        except MetadataError as e:
            log.warning("the metadata server: %s", e)
            self._known.setdefault(MAINTENANCE, ("0", "NONE"))

    async def _read(self, path: str) -> None:
        known = self._known.get(path)
        query: dict[str, str] = {}
        if known is not None:
            query = {"wait_for_change": "true", "timeout_sec": str(self._wait_seconds), "last_etag": known[0]}
        answer = await self._web.call(
            "GET", path, headers=FLAVOR, query=query, patience_seconds=self._wait_seconds if known else 0.0
        )
        if answer.headers.get("metadata-flavor") != "Google":
            raise MetadataError(f"{path}: the answer is not the metadata server's (no header Metadata-Flavor: Google)")
        if answer.status != 200:
            raise MetadataError(f"{path}: HTTP {answer.status}")
        self._known[path] = (answer.headers.get("etag", "0"), answer.text.strip())


def read_preempted(value: str, now: datetime, seconds: int) -> Iterator[Found]:
    if value not in ("TRUE", "FALSE"):
        raise MetadataError(f"{PREEMPTED}: {value[:80]!r} is neither TRUE nor FALSE")
    if value == "TRUE":
        notice = NodeNotice(
            source="gcp/preempted",
            cause=Cause.SPOT,
            noticed_at=now,
            deadline=now + timedelta(seconds=seconds),
            detail=f"preempted; {seconds} s were left when it was noticed",
        )
        yield Found(notice, counted=True)


def read_maintenance(value: str, now: datetime, seconds: int) -> Iterator[Found]:
    """NONE, MIGRATE_ON_HOST_MAINTENANCE (the machine moves while it runs), TERMINATE_ON_HOST_MAINTENANCE."""
    if value == "NONE":
        return
    if value not in ("MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"):
        log.warning("the metadata server: %s is %r, which is not known", MAINTENANCE, value[:80])
        return
    ends = value.startswith("TERMINATE")
    notice = NodeNotice(
        source="gcp/maintenance-event",
        cause=Cause.MAINTENANCE,
        noticed_at=now,
        deadline=now + timedelta(seconds=seconds) if ends else None,
        acting=ends,
        revocable=True,
        detail=value,
    )
    yield Found(notice, counted=ends)
