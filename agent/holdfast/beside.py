"""A save that a GPU copies while training goes on (I3): begun at a boundary, clean when its event has completed on the host, and only then the agent's.

The main thread begins it and holds back, on the device, the update that comes next; a thread of its own waits for the event, looks whether anybody wrote to
the state meanwhile past the gate, and hands the slot over. What is not whole is thrown away, and the next boundary is saved by the main thread.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from holdfast import capture_mode, device
from holdfast.arena import Arena
from holdfast.errors import HoldfastError
from holdfast.live import Live
from holdfast.live_device import LiveOnDevice
from holdfast.progress import Progress

log = logging.getLogger("holdfast")
MOST_FAILURES = 3
"""So many copies in a row that were not whole, and saves are copied by the main thread from then on."""


@dataclass
class Copy:
    """One save on its way."""

    live: Live
    far: LiveOnDevice
    arena: Arena
    slot: int
    at: Progress
    metrics: dict[str, torch.Tensor]
    """Of this boundary, still on the device."""
    began: float
    held_up: float = 0.0
    """Seconds for which the main thread stood still."""
    written: str = ""
    """What a forward has written to."""
    looked: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Beside:
    """At most one copy. `begin`, `settle` are the main thread's; `hold_back` is for whoever is about to change the state; `settle` for anyone but the
    thread that hands over."""

    def __init__(self, hand_over: Callable[[Copy, float], None]) -> None:
        """`hand_over(copy, seconds)` runs on the thread of its own, for a slot that is clean."""
        self._hand_over = hand_over
        self._lock = threading.Lock()
        self._copy: Copy | None = None
        self._waiting: queue.SimpleQueue[Copy | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failures = 0
        self.owed = False
        """The last one was not whole, and nothing was saved since."""

    @property
    def possible(self) -> bool:
        return self._failures < MOST_FAILURES and device.relaxes()

    def begin(self, copy: Copy, document: bytes, small: dict[str, torch.Tensor], pool: Callable[[], Any]) -> None:
        """The caller has settled the one before. Raises RuntimeError and whatever copying raises; nothing is under way then."""
        self.settle()
        self._copy = copy
        try:
            copy.live.begin(copy.slot, document, small, pool)
        except BaseException:
            self._copy = None
            copy.done.set()
            raise
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="holdfast-beside", daemon=True)
            self._thread.start()
        copy.held_up = time.monotonic() - copy.began
        self._waiting.put(copy)

    def hold_back(self) -> None:
        """What the calling thread's current stream is given from now on waits for the copy; the thread does not."""
        copy = self._copy
        if copy is None:
            return
        self._look(copy)
        if device.capturing():  # an event from outside would spoil the capture
            copy.done.wait()
        else:
            copy.far.hold_back()

    def settle(self) -> None:
        """Waits until nothing is under way: what could be handed over has been."""
        copy = self._copy
        if copy is not None:
            copy.done.wait()

    def end(self) -> None:
        """Nothing will be begun any more; what is under way is still handed over."""
        self._waiting.put(None)

    def _look(self, copy: Copy) -> None:
        """Before the next update, or when the copy is done, whichever comes first: torch has counted no write to what a forward may write."""
        with self._lock:
            if not copy.looked:
                copy.looked = True
                copy.written = next(iter(copy.live.written_since_note()), "")

    def _serve(self) -> None:
        capture_mode.relax()
        while (copy := self._waiting.get()) is not None:
            try:
                self._finish(copy)
            finally:
                self._copy = None
                copy.done.set()

    def _finish(self, copy: Copy) -> None:
        try:
            problem = copy.far.finish()
            self._look(copy)
            problem = problem or (copy.written and f"{copy.written} was written to while it was copied")
            if not problem and copy.metrics:
                with copy.live.beside():
                    copy.at.note_metrics(copy.metrics, now=True)
        except (RuntimeError, OSError, HoldfastError) as e:
            problem = f"{type(e).__name__}: {e}"
        if not problem:
            self._failures, self.owed = 0, False
            copy.arena.hand_over(copy.slot, copy.at.boundary)
            self._hand_over(copy, time.monotonic() - copy.began)
            return
        self._failures += 1
        self.owed = True
        copy.arena.free(copy.slot)
        log.warning("holdfast: the save of boundary %d is made at the next one: %s", copy.at.boundary, problem)
