"""Absolute deadlines, as they travel between parts, turned into waits. The only place of the agent that reads the wall clock for them."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(slots=True)
class Deadline:
    """A moment that may move closer while somebody waits for it (F1: the minimum counts)."""

    at: datetime

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
        return max(0.0, (self.at - now()).total_seconds())

    @property
    def passed(self) -> bool:
        return self.remaining <= 0
