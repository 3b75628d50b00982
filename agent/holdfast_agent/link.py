"""What an agent has learned about its store: how much one request brings, and how many at once it takes. Decisions are in requests.py.

It outlives the save: an emergency begins with what the periodic saves have found out.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from holdfast_agent.pace import Pace
from holdfast_agent.requests import Width, Window, next_width

WEIGHT = 0.2
"""Of the newest request in the moving average of what one request brings."""
SAME = 0.75
"""A speed that was measured with this share of the requests is that of so many; with fewer it is forgotten when the first of more has ended."""
WINDOW_SECONDS = 0.25
"""Shorter ones say nothing."""


class Link:
    """What is known about the store. Any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._width: Width | None = None
        self._rate = 0.0
        self._among = 0.0
        """So many were sent at once when that was measured, moving average."""
        self._began = 0.0
        self._bytes = self._ended = 0
        self._most = 0
        """At once, of the save that began last: what is still under way of one that had other bounds measures and decides nothing."""
        self._halved = False
        """This window began with a refusal; what else was sent before is refused too."""
        self.refused = self._told = 0
        """Requests that the store refused for now or did not answer in time, ever."""

    @property
    def bytes_per_second(self) -> float:
        """Of one request, as far as it can be relied on; 0 while nothing is known. Where more are sent at once now than when it was measured, they may have
        to share what those had: an emergency that begins with many on a slow line must not take its own crowd for dead connections."""
        with self._lock:
            return self._rate * min(1.0, self._among / self._now)

    @property
    def is_measured(self) -> bool:
        """With about as many at once as are sent now. Before, the speed is not known, or only from below."""
        with self._lock:
            return self._measured

    @property
    def requests(self) -> int:
        """At once, as last found good; 0 while nothing is known."""
        return self._width.requests if self._width is not None else 0

    def new_refusals(self) -> int:
        """Since the last question."""
        with self._lock:
            new, self._told = self.refused - self._told, self.refused
            return new

    def begin(self, pace: Pace) -> int:
        """A save begins: how many requests at once."""
        with self._lock:
            width = self._width or Width(pace.first_requests)
            if not pace.background:
                # What was learned at leisure was bounded by it: an emergency looks for more at once.
                width = Width(max(width.requests, pace.first_requests))
            self._width = replace(width, requests=min(width.requests, pace.most_requests))
            self._most = pace.most_requests
            self._start_window()
            return self._width.requests

    def went(self, size: int, seconds: float, *, waiting: int, most: int) -> int:
        """A request ended well; how many at once from now on. `waiting`: pieces for which there is no room yet."""
        with self._lock:
            assert self._width is not None
            if most != self._most:
                return min(self._width.requests, most)
            rate = size / max(seconds, 1e-6)
            weight = WEIGHT if self._measured else 1.0
            self._rate += weight * (rate - self._rate)
            self._among += weight * (self._now - self._among)
            self._bytes += size
            self._ended += 1
            if self._ended >= self._width.requests and self._seconds >= WINDOW_SECONDS:
                self._decide(refusals=0, full=waiting > 0, most=most)
            return self._width.requests

    def failed(self, *, most: int) -> int:
        """A request was refused for now, or cut; how many at once from now on. Several in one window are one sign: they were sent by one decision."""
        with self._lock:
            assert self._width is not None
            self.refused += 1
            if most != self._most:
                return min(self._width.requests, most)
            self._ended += 1
            if not self._halved:
                self._decide(refusals=1, full=True, most=most)
                self._halved = True
            return self._width.requests

    @property
    def _now(self) -> int:
        return self._width.requests if self._width is not None else 1

    @property
    def _measured(self) -> bool:
        return self._rate > 0 and self._among >= SAME * self._now

    @property
    def _seconds(self) -> float:
        return self._clock() - self._began

    def _decide(self, *, refusals: int, full: bool, most: int) -> None:
        assert self._width is not None
        self._width = next_width(self._width, Window(self._bytes, self._seconds, refusals, full), most=most)
        self._start_window()

    def _start_window(self) -> None:
        self._began = self._clock()
        self._bytes = self._ended = 0
        self._halved = False
