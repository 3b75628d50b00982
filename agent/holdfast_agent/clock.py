"""Absolute deadlines, as they travel between parts, turned into waits. The only place of the agent that reads the wall clock for them.

Moments are the operator's. Where this machine's wall clock differs from the operator's by more than a message can explain (skew.py), `now` is the operator's
time; so agents of machines whose clocks differ mean the same moment by the same deadline.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from holdfast_agent.skew import Skew

_wall: Callable[[], float] = time.time
_steady: Callable[[], float] = time.monotonic
_skew = Skew()


def now() -> datetime:
    wall = _wall()
    return datetime.fromtimestamp(wall - _skew.believed(wall, _steady()), UTC)


def machines_now() -> datetime:
    """By this machine's own clock, however wrong it is."""
    return datetime.fromtimestamp(_wall(), UTC)


def heard_operator(signed_at: float) -> None:
    """The operator has signed something at this time of its clock (Unix seconds), and it has arrived now."""
    _skew.heard(signed_at, _steady())


def skew_seconds() -> float | None:
    """This machine's clock minus the operator's, exact to about a second; None while nothing has been heard."""
    return _skew.of(_wall(), _steady())


def monotonic() -> float:
    """Seconds from somewhere, never set back."""
    return _steady()


@contextlib.contextmanager
def simulated(seconds: Callable[[], float]) -> Iterator[None]:
    """For simulations: both clocks are `seconds`, of whatever time that is."""
    with replaced(seconds, seconds):
        yield


@contextlib.contextmanager
def replaced(wall: Callable[[], float], steady: Callable[[], float]) -> Iterator[None]:
    """As if this were another machine, which has heard nothing of an operator."""
    global _wall, _steady, _skew
    before = _wall, _steady, _skew
    _wall, _steady, _skew = wall, steady, Skew()
    try:
        yield
    finally:
        _wall, _steady, _skew = before


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
