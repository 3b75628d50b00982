"""How long a download may stay silent, and how long it may take: from its size and the rate seen so far, with floors.

A server that accepts a connection and never answers must cost seconds, not the minutes that a large object over a slow line may rightly need. So there
are two limits: silence ends a request soon, slowness late. Both grow when they were met and go back when something has passed: a store that is slow for
everybody is waited for longer each time, instead of being asked in vain for ever. Only arithmetic; no clock, no I/O.
"""

import threading
from dataclasses import dataclass

SILENT_SECONDS = 4.0
"""Without a single byte, at first. The longest wait for a first byte from a healthy store under load is below it."""
LONGEST_SILENCE_SECONDS = 30.0
"""However often it was met: whoever waits for the end of a request, because its memory is needed, waits so long at most."""
WHOLE_SECONDS = 20.0
"""The least that is allowed for a whole answer."""
TIMES_SLOWER = 8.0
"""Than what has been seen so far may a whole answer be."""
LONGEST_SECONDS = 120.0
NEWEST_WEIGHT = 0.2
MEASURED_BYTES = 256 << 10
"""Smaller answers say more about the way than about the rate."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one request, in seconds."""

    silent_seconds: float
    whole_seconds: float


def limits(length: int, *, rate: float, doublings: int, longest: float = LONGEST_SECONDS) -> Limits:
    """For an answer of `length` bytes. `rate`: bytes per second of one request so far, 0 if unknown. `doublings`: how often a limit was met since
    something has passed."""
    grown = 2.0 ** min(doublings, 16)
    expected = TIMES_SLOWER * length / rate if rate > 0 else longest
    whole = min(longest, max(WHOLE_SECONDS, expected) * grown)
    return Limits(min(LONGEST_SILENCE_SECONDS, whole, SILENT_SECONDS * grown), whole)


class Pace:
    """What one store has shown so far. Thread-safe."""

    def __init__(self, *, longest: float = LONGEST_SECONDS) -> None:
        self._lock = threading.Lock()
        self._longest = longest
        self._rate = 0.0
        self._doublings = 0

    def limits(self, length: int) -> Limits:
        with self._lock:
            return limits(length, rate=self._rate, doublings=self._doublings, longest=self._longest)

    def passed(self, length: int, seconds: float) -> None:
        """A whole answer was received."""
        with self._lock:
            self._doublings = 0
            if length >= MEASURED_BYTES and seconds > 0:
                new = length / seconds
                self._rate = (1 - NEWEST_WEIGHT) * self._rate + NEWEST_WEIGHT * new if self._rate else new

    def ran_out(self, met: Limits) -> None:
        """A request has met its limits. Requests that run at once meet the same ones: that counts once."""
        with self._lock:
            now = limits(0, rate=1.0, doublings=self._doublings, longest=self._longest)
            if met.silent_seconds >= now.silent_seconds:
                self._doublings += 1
