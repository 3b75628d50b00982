"""How far this machine's wall clock is from the operator's, from the times at which the operator has signed what it sent. Pure: no clock, no I/O.

Deadlines are moments by the operator's clock. A message takes time, so each sample shows the operator's clock at least as far behind as it is: the sample that
travelled fastest counts. Samples are kept against the steady clock, so that a wall clock that is set meanwhile spoils none of them. Times are seconds.
"""

from collections import deque

KEPT = 8
FRESH_SECONDS = 900.0
"""Two clocks drift apart by a tenth of a second in that time at most; an older sample may be of another operator on another machine."""
BELIEVED_SECONDS = 3.0
"""A smaller difference is left alone: signatures are dated in whole seconds, and what travels in between is usually less."""
SIGNED_WITHIN_SECONDS = 0.5
"""Signatures are dated in whole seconds, rounded down: on average so long before it was signed."""


class Skew:
    """One operator's. `behind` is not believed from one sample alone: a single message may have been held up."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=KEPT)
        """(steady time of receipt, steady time minus the operator's)."""

    def heard(self, signed_at: float, steady: float) -> None:
        self._samples.append((steady, steady - signed_at - SIGNED_WITHIN_SECONDS))

    def of(self, wall: float, steady: float) -> float | None:
        """The wall clock minus the operator's; positive: this machine is ahead. None: nothing has been heard lately."""
        fresh = [offset for at, offset in self._samples if steady - at <= FRESH_SECONDS]
        return wall - (steady - min(fresh)) if fresh else None

    def believed(self, wall: float, steady: float) -> float:
        """What is taken off the wall clock. A machine that is behind (so that it would take itself to have more time than it has) is corrected at the first
        message, which cannot arrive before it was sent; one that seems ahead at the second."""
        found = self.of(wall, steady)
        if found is None or abs(found) <= BELIEVED_SECONDS or (found > 0 and len(self._samples) < 2):
            return 0.0
        return found
