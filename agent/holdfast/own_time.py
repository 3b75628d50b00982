"""How much of an iteration is this rank's own: ranks that wait for each other all take the same time from boundary to boundary, and the slow one is the
one that waits least. Three measures that cost nothing: what the main thread has computed, the update window, and the wait for a batch.

Main thread only; numbers are read by the helper.
"""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from holdfast import device
from holdfast_rank.doing import Doing

T = TypeVar("T")


class OwnTime:
    """One rank's, of the newest iteration."""

    def __init__(self) -> None:
        self.busy_seconds = self.update_seconds = self.data_seconds = 0.0
        self._data = 0.0
        self._entered: float | None = None
        self._computed: float | None = None

    def enters(self) -> None:
        """An update window, by whichever thread opens it."""
        if self._entered is None:
            self._entered = time.monotonic()

    def boundary(self, *, interrupted: bool) -> None:
        """`interrupted`: the rank stood still on our account in this iteration, so that it is not measured."""
        now, computed = time.monotonic(), time.thread_time()
        if not interrupted:
            # A wait for a GPU may keep the processor busy.
            known = self._computed is not None and device.current_stream() is None
            self.busy_seconds = computed - (self._computed or 0.0) if known else 0.0
            self.update_seconds = now - self._entered if self._entered is not None else 0.0
            self.data_seconds = self._data
        self._data, self._entered, self._computed = 0.0, None, computed

    def goes_on(self) -> None:
        """What was done at the boundary is no part of the next iteration."""
        self._computed = time.thread_time()

    def timed(self, batches: Iterable[T], doing: Doing) -> Iterator[T]:
        """The same batches; ends `batches` when it is ended."""
        iterator = iter(batches)
        try:
            while True:
                began, before, doing.now = time.monotonic(), doing.now, "data"
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                finally:
                    doing.now = before
                    self._data += time.monotonic() - began
                yield batch
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
