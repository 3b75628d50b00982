"""How far a flush has got, while it runs: the freshest measurement of the store that there is. Written by the flush's threads, read by anybody."""

import threading
from collections.abc import Callable

from holdfast_agent.clock import monotonic

LEAST_SECONDS = 0.5
"""Between the answers that are compared; shorter stretches say nothing."""
MARK_SECONDS = 0.25
MOST_MARKS = 64


class Progress:
    """Of one flush. Any thread.

    A flush is slow while it begins (connections, few requests at once), so what counts is the newer half of the time in which the store has answered, once that
    is long enough.
    """

    def __init__(self, *, full_speed: bool, held_back: bool = False, clock: Callable[[], float] = monotonic) -> None:
        """`full_speed`: it runs as fast as an emergency does, else beside training. `held_back`: by the user's limit, so that it says nothing about the
        store."""
        self.full_speed = full_speed
        self.held_back = held_back
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._done = self._under_way = self._most = 0
        self._marks: list[tuple[float, int]] = []
        """When so many bytes had been answered; the first is the first answer."""
        self._newest = 0.0

    def begins(self, size: int) -> None:
        """A request of so many bytes is on its way."""
        with self._lock:
            self._under_way += size
            self._most = max(self._most, self._under_way)

    def ends(self, size: int, *, stored: bool) -> None:
        """The store has taken it, or it ended otherwise."""
        with self._lock:
            self._under_way -= size
            if not stored:
                return
            at = self._newest = self._clock()
            self._done += size
            if not self._marks or at - self._marks[-1][0] >= MARK_SECONDS:
                self._marks.append((at, self._done))
            else:
                self._marks[-1] = (self._marks[-1][0], self._done)  # answered together
            if len(self._marks) > MOST_MARKS:
                del self._marks[1::2]

    @property
    def answered(self) -> int:
        """Bytes."""
        return self._done

    @property
    def measured(self) -> tuple[int, float, float]:
        """Bytes that were answered lately, in how many seconds, and how often that is all that is under way at once: each of these turns is a measurement
        by itself. Soon after the first answer the time counts from the begin, and it is no turn: the begin was in it. (0, 0, 0): nothing is known."""
        with self._lock:
            if not self._marks:
                return 0, 0.0, 0.0
            first, half = self._marks[0], (self._marks[0][0] + self._newest) / 2
            newer = max((m for m in self._marks if m[0] <= half), default=first)
            for at, done in (newer, first):
                if self._newest - at >= LEAST_SECONDS and self._done > done:
                    return self._done - done, self._newest - at, (self._done - done) / self._most
            return self._done, self._newest - self._began, 0.0
