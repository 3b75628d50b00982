"""How long one request may take, while it runs: the time may be shortened, or ended, from any thread. Standard library only, as the seam is (bucket.py).

Whoever sends makes one for each request. A backend that can cut a request follows it; the others do not look at it, and the request takes its time.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Moved = Callable[[float], None]
"""Told the end, in seconds of `time.monotonic`. Any thread; must not block."""


class Bound:
    """Of one request. Thread-safe."""

    def __init__(self, seconds: float) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._follower: Moved | None = None

    @property
    def seconds(self) -> float:
        """Allowed from its begin, as it is now."""
        return max(0.0, self._end - self._began)

    def tighten(self, seconds: float) -> None:
        """From now on it may take so much longer at most; never more than it had."""
        with self._lock:
            self._end = min(self._end, time.monotonic() + seconds)
            if self._follower is not None:
                self._follower(self._end)

    def cut(self) -> None:
        """It ends now, if it can be cut; before it has begun it ends as it begins."""
        self.tighten(0.0)

    @contextmanager
    def followed(self, moved: Moved) -> Iterator[None]:
        """For the backend: `moved` is called with the end now, and each time it has changed, until the request is over."""
        with self._lock:
            self._follower = moved
            moved(self._end)
        try:
            yield
        finally:
            with self._lock:
                self._follower = None
