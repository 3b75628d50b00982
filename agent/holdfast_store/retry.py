"""Retries, in one place: a bucket that tries again while the store is Unavailable, until a deadline.

Backends try once. Every operation may be repeated: reads, deletes and overwrites plainly; a `create` whose answer was lost meets its own object the
second time and ends in AlreadyExists, which callers settle by comparing contents (A4; commits by exact text; chunks are named by their content).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import stamina

from holdfast_store.bound import Bound
from holdfast_store.bucket import Bucket, Buffer, Folders, Level, ObjectInfo
from holdfast_store.errors import Unavailable

T = TypeVar("T")


def without_a_line_per_try() -> None:
    """For programs of our own: stamina would log a line for each repetition that names neither store nor reason. The end is told in words."""
    stamina.instrumentation.set_on_retry_hooks(())


class Persistent:
    """`inner`, with retries for at most `retry_seconds` per call and never begun after `deadline` (of `time.monotonic`).

    The last try may run on for the backend's own time-out. Errors of another class are raised at once.
    """

    def __init__(self, inner: Bucket, *, retry_seconds: float = 60.0, deadline: float | None = None) -> None:
        self.inner = inner
        self._retry_seconds = retry_seconds
        self._deadline = deadline

    @property
    def uri(self) -> str:
        return self.inner.uri

    @property
    def verifies_uploads(self) -> bool:
        return self.inner.verifies_uploads

    def until(self, deadline: float) -> "Persistent":
        """The same bucket for work that is worthless after `deadline` (of `time.monotonic`): an evacuation's flush."""
        return Persistent(self.inner, retry_seconds=self._retry_seconds, deadline=deadline)

    def check(self) -> None:
        self._try(self.inner.check)

    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        """`bound` is that of the one request: who gives one repeats by itself, each try with a bound of its own."""
        self._try(lambda: self.inner.create(key, data, bound=bound))

    def put(self, key: str, data: Buffer) -> None:
        self._try(lambda: self.inner.put(key, data))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return self._try(lambda: self.inner.get(key, max_bytes=max_bytes))

    def get_into(self, key: str, view: memoryview) -> None:
        self._try(lambda: self.inner.get_into(key, view))

    def doubt(self) -> None:
        self.inner.doubt()

    def head(self, key: str) -> ObjectInfo:
        return self._try(lambda: self.inner.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        # Whole, not page by page: a listing that is taken up again in the middle could show an object twice or not at all.
        return iter(self._try(lambda: tuple(self.inner.list(prefix))))

    def settle(self, prefix: str) -> None:
        self._try(lambda: self.inner.settle(prefix))

    def list_level(self, prefix: str) -> Level:
        return self._try(lambda: self.inner.list_level(prefix))

    def list_folders(self, prefix: str) -> Folders:
        return self._try(lambda: self.inner.list_folders(prefix))

    def delete(self, keys: Sequence[str]) -> None:
        self._try(lambda: self.inner.delete(keys))

    def discard_unfinished(self, prefix: str) -> int:
        return self._try(lambda: self.inner.discard_unfinished(prefix))

    def _try(self, operation: Callable[[], T]) -> T:
        patience = self._retry_seconds
        if self._deadline is not None:
            patience = min(patience, self._deadline - time.monotonic())
        if patience <= 0:
            return operation()
        # A pause is never a large part of what is left: the last one must not run far past the deadline.
        pauses = {
            "wait_initial": min(0.1, patience / 20),
            "wait_max": min(5.0, patience / 5),
            "wait_jitter": min(0.5, patience / 10),
        }
        for attempt in stamina.retry_context(on=Unavailable, attempts=None, timeout=patience, **pauses):
            with attempt:
                return operation()
        raise AssertionError("stamina ends with a result or an error")
