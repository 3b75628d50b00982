"""The loops of the notifier: look, publish what has changed, and, where that is switched on, tell the cloud that nothing of ours is left here.

Level-triggered: what is published is what stands, whatever was lost between. An answer that cannot be had withdraws nothing. A publication is tried until it is
taken, for a notice that nobody hears of is none.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from holdfast_api.node_notices import NodeNotice
from holdfast_notifier import condition, standing
from holdfast_notifier.errors import ApiServerError, MetadataError
from holdfast_notifier.kube import Kube
from holdfast_notifier.metrics import Metrics
from holdfast_notifier.standing import Found

log = logging.getLogger("holdfast.notifier")
RETRY_SECONDS = (0.25, 5.0)
"""Between two tries to publish: the first, and what it grows to."""
UNHEARD_SECONDS = 150.0
"""Without an answer of the metadata service for so long, the notifier is not ready. Google's holds a call for a minute."""
DOUBTFUL_SKEW_SECONDS = 2.0
"""Times are exact to a second in the API server's answers: less than this is no difference."""
ACKNOWLEDGE_SECONDS = 1.0


class Cloud(Protocol):
    """One file per cloud."""

    @property
    def name(self) -> str: ...
    async def look(self, clock: Callable[[], datetime]) -> tuple[Found, ...]:
        """Everything that is announced. May wait for a change. Raises MetadataError."""

    async def acknowledge(self, sources: frozenset[str]) -> None:
        """What stands by these sources may begin before its time. Raises MetadataError."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Watcher:
    """One machine's. `run` returns only by cancellation."""

    def __init__(
        self,
        cloud: Cloud,
        kube: Kube | None,
        metrics: Metrics,
        *,
        poll_seconds: float,
        acknowledge: bool = False,
        dry_run: bool = False,
    ) -> None:
        """`kube` None: what would be published is only logged."""
        self._cloud, self._kube, self._metrics = cloud, kube, metrics
        self._poll_seconds, self._acknowledging, self._dry_run = poll_seconds, acknowledge, dry_run
        self._standing: tuple[NodeNotice, ...] = ()
        self._condition: dict[str, Any] | None = None
        self._looked = False
        self._changed = asyncio.Event()
        self._published = False
        self._answered_at: float | None = None
        self._acknowledged: frozenset[str] = frozenset()

    @property
    def ready(self) -> bool:
        """The cloud answers, and what it says is published."""
        heard = (
            self._answered_at is not None
            and time.monotonic() - self._answered_at < UNHEARD_SECONDS + self._poll_seconds
        )
        return heard and self._published

    def went_on(self, node: dict[str, Any]) -> None:
        """The node as it is at the start: what an earlier process has published goes on with its times, until the cloud says otherwise."""
        self._condition = condition.of(node)
        self._standing = condition.read(self._condition)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look())
            group.create_task(self._publish())
            if self._acknowledging and self._kube is not None:
                group.create_task(self._acknowledge(self._kube))

    async def _look(self) -> None:
        while True:
            began = time.monotonic()
            try:
                found = await self._cloud.look(self._now)
            except MetadataError as e:
                self._metrics.looks.labels("failed").inc()
                log.warning("the metadata service: %s", e)
            else:
                self._metrics.looks.labels("answered").inc()
                self._metrics.last_look.set_to_current_time()
                self._answered_at = time.monotonic()
                self._take(found)
            # A call that waited for a change is followed by the next one at once; one that came back at once is not.
            await asyncio.sleep(max(0.0, self._poll_seconds - (time.monotonic() - began)))

    def _now(self) -> datetime:
        """By the API server's clock where this machine's differs from it: what is published is read by others."""
        skew = self._kube.skew_seconds if self._kube is not None else 0.0
        self._metrics.skew.set(skew)
        return utc_now() - timedelta(seconds=skew if abs(skew) > DOUBTFUL_SKEW_SECONDS else 0.0)

    def _take(self, found: tuple[Found, ...]) -> None:
        now_standing = standing.after(self._standing, found)
        if self._looked and now_standing == self._standing:
            return
        for n in now_standing:
            if n not in self._standing:
                log.warning("announced: %s", describe(n))
        for n in self._standing:
            if all(n.source != m.source for m in now_standing):
                log.warning("no longer announced: %s", describe(n))
        self._standing, self._looked, self._published = now_standing, True, False
        self._metrics.stand(now_standing)
        self._changed.set()

    async def _publish(self) -> None:
        wait = RETRY_SECONDS[0]
        while True:
            await self._changed.wait()
            self._changed.clear()
            told = self._standing
            wanted = condition.make(told, self._condition, self._now())
            try:
                await self._send(wanted)
            except ApiServerError as e:
                self._metrics.publishes.labels("failed").inc()
                log.warning("the condition is not published yet: %s", e)
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_SECONDS[1])
                self._changed.set()
                continue
            wait = RETRY_SECONDS[0]
            self._metrics.publishes.labels("taken").inc()
            self._published = told == self._standing

    async def _send(self, wanted: dict[str, Any]) -> None:
        if self._dry_run or self._kube is None:
            log.info("dry run: %s %s: %s", wanted["type"], wanted["status"], wanted["message"])
        if self._kube is not None:
            found = condition.of(await self._kube.publish(wanted, dry_run=self._dry_run))
            self._condition = self._condition if self._dry_run else found

    async def _acknowledge(self, kube: Kube) -> None:
        """Once the pods of training jobs that were here at a notice have ended, the event that takes the machine need not be waited for."""
        were_here: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(ACKNOWLEDGE_SECONDS)
            open_events = frozenset(n.source for n in self._standing if n.acting and n.revocable) - self._acknowledged
            if not open_events:
                were_here = frozenset()
                continue
            try:
                here = await _live_pods(kube)
                were_here |= here
                if were_here and not here:
                    log.warning("nothing of ours runs here any more: acknowledging %s", ", ".join(sorted(open_events)))
                    if not self._dry_run:
                        await self._cloud.acknowledge(open_events)
                    self._acknowledged |= open_events
                    self._metrics.acknowledged.inc(len(open_events))
            except (ApiServerError, MetadataError) as e:
                log.warning("acknowledging: %s", e)


async def _live_pods(kube: Kube) -> frozenset[str]:
    pods = await kube.jobs_pods_here()
    live = [p for p in pods if (p.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
    return frozenset(str((p.get("metadata") or {}).get("uid", "")) for p in live)


def describe(n: NodeNotice) -> str:
    until = f", deadline {n.deadline:%H:%M:%S} UTC" if n.deadline is not None else ""
    kind = "acting" if n.acting else "preparing"
    return f"{n.cause.value} ({n.source}), {kind}{until}: {n.detail}"
