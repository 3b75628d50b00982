"""In place of a GPU: tensors of the CPU count as lying on one, and what its side stream is given is executed when it is told to, or when it must be.

What the current stream is given is executed at once, as all of torch on the CPU is. So a copy that nobody holds back sees everything that training has done
meanwhile: the worst that a real side stream can do.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from holdfast import device, download
from holdfast.arena import Arena


class FakeStreams:
    """`held`: work of the side stream is executed by `hold_back`, `wait` and `beside` alone for as long; otherwise as soon as somebody waits for it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.held = False
        self.failure = ""
        self.now_failing = False
        self._work: list[tuple[int, Callable[[], None]]] = []
        self._events = self._done = 0
        self._changed = threading.Condition()

    def mark(self) -> int:
        return 0

    def follow(self, event: Any) -> None:
        self.calls.append("follow")

    @contextmanager
    def beside(self) -> Iterator[None]:
        self.run(self._events)
        yield

    def give(self, work: Callable[[], None]) -> None:
        self.calls.append("give")
        with self._changed:
            self._events += 1
            self._work.append((self._events, work))

    def record(self) -> int:
        self.calls.append("record")
        return self._events

    def completed(self, event: Any) -> bool:
        return bool(event <= self._done)

    def wait(self, event: Any) -> None:
        self.calls.append("wait")
        with self._changed:
            assert self._changed.wait_for(lambda: not self.held or self._done >= event, 60), "nobody lets the copy go"
        self.run(event)
        if self.now_failing:
            raise RuntimeError(self.failure)

    def hold_back(self, event: Any) -> None:
        self.calls.append(f"hold back {event}")
        self.run(event)

    def run(self, event: int | None = None) -> None:
        """The device comes as far as this event."""
        with self._changed:
            last = self._events if event is None else event
            while self._work and self._work[0][0] <= last:
                self._work.pop(0)[1]()
                if self.failure:
                    self.now_failing = True
            self._done = max(self._done, last)
            self._changed.notify_all()

    @property
    def pending(self) -> int:
        return len(self._work)

    def hold(self) -> None:
        self.held = True

    def let_go(self) -> None:
        with self._changed:
            self.held = False
            self._changed.notify_all()


def looks_far(tensor: torch.Tensor) -> bool:
    """Optimizers keep the count of steps on the host."""
    return tensor.is_floating_point() and tensor.dim() > 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeStreams:
    streams = FakeStreams()
    monkeypatch.setattr(device, "is_far", looks_far)
    monkeypatch.setattr(device, "streams_of", lambda place: streams)
    monkeypatch.setattr(device, "relaxes", lambda: True)
    monkeypatch.setattr(Arena, "pinned", True)
    monkeypatch.setattr(download, "SMALL_BYTES", 200)  # so that both ways are taken, also by small models
    return streams
