"""Chunks on their way to the store: each distinct one of a save once, as many at once as the store takes, none for ever (B4, B6)."""

import threading
import time
from collections.abc import Mapping

from holdfast_agent.errors import SaveGivenUp
from holdfast_agent.lanes import Lane
from holdfast_agent.link import Link
from holdfast_agent.pace import Pace
from holdfast_agent.requests import seconds_for
from holdfast_agent.threads import Stop, persist
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk
from holdfast_store.errors import Unavailable
from holdfast_store.job import JobStore


class Sending:
    """One save's. `send` on the threads of `lane`."""

    def __init__(
        self,
        ref: CheckpointRef,
        base_has: Mapping[str, CheckpointRef],
        store: JobStore,
        stop: Stop,
        link: Link,
        pace: Pace,
        lane: Lane,
    ) -> None:
        self._ref = ref
        self._base_has = base_has
        self._store = store.until(0.0)  # tries once: repeating is `persist`'s, with a longer patience each time
        self._stop = stop
        self._link = link
        self._most = pace.most_requests
        self._lane = lane
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self.bytes_sent = 0
        """Of requests that the store has carried out."""
        self.bytes_stored = 0
        """Of the chunks that lie under this save."""

    def chunk(self, name: str, view: memoryview) -> Chunk:
        """Where a chunk of this content lies, or will when the lane is over: it is sent unless the base has it or it is on its way."""
        if (at := self._base_has.get(name)) is not None:
            return Chunk(name, len(view), at)
        with self._lock:
            first = name not in self._taken
            self._taken.add(name)
        if first:
            # The second one does not wait for the first: if that fails, the whole save fails.
            self._lane.add(lambda: self._send(name, view))
        return Chunk(name, len(view), self._ref)

    def _send(self, name: str, view: memoryview) -> None:
        tried = 0

        def once() -> bool:
            nonlocal tried
            if self._stop.wanted:
                raise SaveGivenUp(self._stop.reason or "the time is up")
            seconds = seconds_for(
                len(view), bytes_per_second=self._link.bytes_per_second, left=self._stop.left, tried=tried
            )
            tried += 1
            began = time.monotonic()
            try:
                new = self._store.put_chunk(self._ref, name, view, seconds=seconds)
            except Unavailable:
                self._lane.resize(self._link.failed(most=self._most))
                raise
            waiting = self._lane.backlog
            self._lane.resize(self._link.went(len(view), time.monotonic() - began, waiting=waiting, most=self._most))
            return new

        new = persist(self._stop, once)
        with self._lock:
            self.bytes_stored += len(view)
            self.bytes_sent += len(view) if new else 0
