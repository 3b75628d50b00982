"""Holds back what is sent beside training, at the rate that the user has set (allowance.py). One for the whole agent, so that saves that overlap share it."""

import threading
import time
from collections.abc import Callable

from holdfast_agent import allowance
from holdfast_agent.stopping import Stop

LONGEST_PAUSE_SECONDS = 5.0
"""What is left to go, and the time for it, are looked at again."""


class Throttle:
    """Any thread."""

    def __init__(self, bytes_per_second: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """0: no limit."""
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._allowance = allowance.Allowance(0.0, clock())

    def wait(self, size: int, stop: Stop, to_go: Callable[[], float]) -> None:
        """Until a request of `size` may begin. Returns at once without a limit, when the save becomes urgent or is stopped, and when the save could not be
        done in its time at this rate. `to_go`: bytes that the save has still to send."""
        rate = self.bytes_per_second
        while rate and not (stop.wanted or stop.hurried):
            if not allowance.holds_back(to_go(), rate=rate, left=stop.left):
                return
            with self._lock:
                self._allowance, pause = allowance.take(self._allowance, size, rate=rate, now=self._clock())
            if not pause:
                return
            stop.pause(min(pause, LONGEST_PAUSE_SECONDS), while_calm=True)
