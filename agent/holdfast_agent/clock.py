"""Absolute deadlines, as they travel between parts, turned into waits. The only place of the agent that reads the wall clock for them."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

_wall: Callable[[], float] = time.time
_steady: Callable[[], float] = time.monotonic


def now() -> datetime:
    return datetime.fromtimestamp(_wall(), UTC)


def monotonic() -> float:
    """Seconds from somewhere, never set back."""
    return _steady()


@contextlib.contextmanager
def simulated(seconds: Callable[[], float]) -> Iterator[None]:
    """For simulations: both clocks are `seconds`, of whatever time that is."""
    global _wall, _steady
    before = _wall, _steady
    _wall = _steady = seconds
    try:
        yield
    finally:
        _wall, _steady = before


class Deadline:
    """A moment that may move closer while somebody waits for it (F1: the minimum counts).

    The wall clock is read once for each value of `at`, when it is heard; from then on the steady clock counts. So a wall clock that is set while somebody
    waits (a machine that has just started and learns the time) neither ends an evacuation at once nor keeps a gate closed for an hour.
    """

    __slots__ = ("_at", "_end")

    def __init__(self, at: datetime) -> None:
        self.at = at

    @property
    def at(self) -> datetime:
        return self._at

    @at.setter
    def at(self, at: datetime) -> None:
        self._at = at
        self._end = monotonic() + (at - now()).total_seconds()

    def copy(self) -> "Deadline":
        """The same moment, to be moved by itself."""
        other = Deadline.__new__(Deadline)
        other._at, other._end = self._at, self._end
        return other

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(now() + timedelta(seconds=seconds))

    @classmethod
    def of(cls, at: datetime | None, *, otherwise_seconds: float) -> "Deadline":
        return cls(at) if at is not None else cls.after(otherwise_seconds)

    def tighten(self, at: datetime | None) -> None:
        if at is not None and at < self.at:
            self.at = at

    @property
    def remaining(self) -> float:
        """Seconds, never negative."""
        return max(0.0, self._end - monotonic())

    @property
    def passed(self) -> bool:
        return self.remaining <= 0
