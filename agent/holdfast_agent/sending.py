"""Chunks on their way to the store: each distinct one of a save once, as many at once as the store takes, none for ever (B4, B6); what other workers hold as
well by one of them (J4)."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TypeVar

from holdfast_agent import shares
from holdfast_agent.allowance import bytes_to_go
from holdfast_agent.errors import SaveGivenUp
from holdfast_agent.lanes import Lane
from holdfast_agent.link import Link
from holdfast_agent.pace import Pace
from holdfast_agent.progress import Progress
from holdfast_agent.requests import seconds_for
from holdfast_agent.threads import Stop, persist
from holdfast_agent.throttle import Throttle
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk, RankEntry, RankManifest
from holdfast_store.bound import Bound
from holdfast_store.errors import Unavailable
from holdfast_store.job import JobStore
from holdfast_store.records import entry_of

T = TypeVar("T")
MANIFEST_BYTES = 1 << 20
"""About as much as a large one has: how long its request may take."""


class NotSent:
    """A save on the node alone (E6): its chunks get the names under which whoever finishes it will send them, and no request is made."""

    is_held_back = False
    bytes_sent = bytes_stored = 0
    waited_seconds = 0.0

    def __init__(self, ref: CheckpointRef, base_has: Mapping[str, CheckpointRef]) -> None:
        self._ref = ref
        self._base_has = base_has

    def chunk(self, name: str, view: memoryview, workers: tuple[int, ...] = ()) -> Chunk:
        return Chunk(name, len(view), self._base_has.get(name, self._ref))

    def complete(self) -> None:
        """There is nothing to be sent."""

    def hurry(self, pace: Pace) -> None:
        """There is nothing to be sent."""

    def manifest(self, manifest: RankManifest) -> RankEntry:
        return entry_of(manifest)


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
        throttle: Throttle,
        logical_bytes: int,
        progress: Progress,
        *,
        worker: int,
        looking: Executor,
    ) -> None:
        """`logical_bytes`: of all images, as far as the time for them is planned. `worker`: this one's place among the members.
        `looking`: where it is asked what others have stored."""
        self._ref = ref
        self._base_has = base_has
        self._store = store.until(0.0)  # tries once: repeating is `persist`'s, with a longer patience each time
        self._stop = stop
        self._link = link
        self._pace = pace
        self._throttle = throttle
        self._logical = logical_bytes
        self._hashed = self._new = self._gone = 0
        self._lane = lane
        self._progress = progress
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self._scout: str | None = None
        self._worker = worker
        self._arrived = shares.Arrived(lambda: self._store.chunk_sizes(ref), looking)
        self._of_others: list[tuple[str, memoryview]] = []
        self._began = time.monotonic()
        self._others_from: float | None = None
        """When the first chunk of another's came to its turn."""
        self._requests = self._waiting = 0
        self._since = self._began
        self.waited_seconds = 0.0
        """In which nothing was sent and others were waited for: it says nothing about the store."""
        self._waiting_for_speed: dict[Bound, int] = {}
        """Requests that were begun while the speed was not measured, with their sizes."""
        self.bytes_sent = 0
        """Of requests that the store has carried out."""
        self.bytes_stored = 0
        """Of the chunks that lie under this save."""

    def chunk(self, name: str, view: memoryview, workers: tuple[int, ...] = ()) -> Chunk:
        """Where a chunk of this content lies, or will when the lane is over: it is sent unless the base has it or it is on its way. `workers` hold the same,
        if nothing is wrong: one of them sends it, and the others look for it."""
        with self._lock:
            self._hashed += len(view)
        if (at := self._base_has.get(name)) is not None:
            return Chunk(name, len(view), at)
        with self._lock:
            first = name not in self._taken
            self._taken.add(name)
            self._new += len(view) if first else 0
        shared = (
            len(workers) > 1 and self._store.bucket.verifies_uploads
        )  # else what is found would have to be read and compared
        if first and shared and not shares.sends(self._worker, name, workers):
            with self._lock:
                self._of_others.append((name, view))
        elif first:
            # The second one does not wait for the first: if that fails, the whole save fails.
            self._lane.add(lambda: self._send(name, view, shared=shared))
        return Chunk(name, len(view), self._ref)

    def complete(self) -> None:
        """All chunks are known: behind this worker's own those of others are looked for. From the end, where whoever sends them comes last."""
        with self._lock:
            others, self._of_others = self._of_others, []
        for name, view in reversed(others):
            self._lane.add(lambda name=name, view=view: self._send_unless_there(name, view))  # type: ignore[misc]

    def hurry(self, pace: Pace) -> None:
        """The save is an emergency's now."""
        self._pace = pace
        self._lane.resize(self._link.begin(pace))

    @property
    def is_held_back(self) -> bool:
        """By the user's limit, as far as it applies."""
        return self._pace.background and self._throttle.bytes_per_second > 0

    def _to_go(self) -> float:
        with self._lock:
            return bytes_to_go(
                waiting=self._new - self._gone,
                unhashed=max(0, self._logical - self._hashed),
                hashed=self._hashed,
                new=self._new,
            )

    def manifest(self, manifest: RankManifest) -> RankEntry:
        """Once its chunks are there."""
        return self._repeated(MANIFEST_BYTES, True, lambda bound: self._store.create_manifest(manifest, bound=bound))

    def _send_unless_there(self, name: str, view: memoryview) -> None:
        with self._accounted(waiting=1):
            there = self._arrived.has(name, len(view), self._patience, self._stop)
        if there:
            self._is_there(view)
        else:
            self._send(name, view)

    def _is_there(self, view: memoryview) -> None:
        with self._lock:
            self._gone += len(view)

    def _patience(self) -> float:
        """Seconds for which others are still waited for. Whoever is done first helps."""
        now = time.monotonic()
        with self._lock:
            self._others_from = self._others_from or now
            own, waited = self._others_from - self._began, now - self._others_from
        return shares.patience(own, self._stop.left, background=self._pace.background) - waited

    @contextmanager
    def _accounted(self, *, requests: int = 0, waiting: int = 0) -> Iterator[None]:
        """Keeps `waited_seconds`."""
        self._count(requests, waiting)
        try:
            yield
        finally:
            self._count(-requests, -waiting)

    def _count(self, requests: int, waiting: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._waiting and not self._requests:
                self.waited_seconds += now - self._since
            self._since = now
            self._requests += requests
            self._waiting += waiting

    def _send(self, name: str, view: memoryview, *, shared: bool = False) -> None:
        """`shared`: others hold it too, and one who was faster may have sent it meanwhile."""
        with self._lock:
            self._scout = self._scout or name
        slow = time.monotonic() - self._began > shares.LEAST_PATIENCE_SECONDS
        if shared and slow and self._arrived.shows(name, len(view)):
            self._is_there(view)
            return

        def held_back() -> None:
            if self._pace.background:
                self._throttle.wait(len(view), self._stop, self._to_go)

        def once(bound: Bound) -> bool:
            began, stored = time.monotonic(), False
            self._progress.begins(len(view))
            try:
                new = self._store.put_chunk(self._ref, name, view, bound=bound)
                stored = True
            except Unavailable:
                if not self._stop.reason:
                    self._lane.resize(self._link.failed(most=self._pace.most_requests))
                raise
            finally:
                self._progress.ends(len(view), stored=stored)
            # What the limit holds back does not say that more requests would bring more.
            waiting = 0 if self.is_held_back else self._lane.backlog
            took, most = time.monotonic() - began, self._pace.most_requests
            self._lane.resize(self._link.went(len(view), took, waiting=waiting, most=most))
            self._speed_is_known()
            return new

        with self._accounted(requests=1):
            new = self._repeated(len(view), name == self._scout, once, before=held_back)
        with self._lock:
            self._gone += len(view)
            self.bytes_stored += len(view)
            self.bytes_sent += len(view) if new else 0

    def _repeated(
        self, size: int, scout: bool, request: Callable[[Bound], T], *, before: Callable[[], None] = lambda: None
    ) -> T:
        """Until it went through, each time with a time of its own, which ends when the save does: no request outlives what it is sent for."""
        tried = 0

        def once() -> T:
            nonlocal tried
            before()
            if self._stop.wanted:
                raise SaveGivenUp(self._stop.reason or "the time is up")
            before_this, bound = tried, Bound(self._seconds_for(size, tried, scout))
            tried += 1

            def changed() -> None:
                """What is stopped ends now; where there is less time than there was, it gets no more than if it were begun now."""
                if self._stop.wanted:
                    bound.cut()
                else:
                    bound.tighten(self._seconds_for(size, before_this, scout))

            with self._noted(bound, size), self._stop.heard_by(changed):
                try:
                    return request(bound)
                except Unavailable as e:
                    if self._stop.reason:  # cut by ourselves, which says nothing about the store
                        raise SaveGivenUp(self._stop.reason) from e
                    raise

        return persist(self._stop, once)

    def _seconds_for(self, size: int, tried: int, scout: bool = True) -> float:
        known, left = self._link.bytes_per_second, self._stop.left
        return seconds_for(size, bytes_per_second=known, left=left, tried=tried, scout=scout)

    @contextmanager
    def _noted(self, bound: Bound, size: int) -> Iterator[None]:
        if self._link.is_measured:
            yield
            return
        with self._lock:
            self._waiting_for_speed[bound] = size
        try:
            yield
        finally:
            with self._lock:
                self._waiting_for_speed.pop(bound, None)

    def _speed_is_known(self) -> None:
        """What was begun before may take, from now on, as long as what is begun now."""
        with self._lock:
            waiting, self._waiting_for_speed = self._waiting_for_speed, {}
        for bound, size in waiting.items():
            bound.tighten(self._seconds_for(size, 0))
