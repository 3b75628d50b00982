"""Copies from a GPU into a slot (I3): the stream that they run on, and when they count.

A slot counts as clean only when the event behind its last copy has completed on the host. The state machine is `Transfer`, over the few calls of
`Streams`; torch's are `TorchStreams`, the tests have some of their own that complete when told to. What is copied is download.py's business.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from holdfast import capture_mode
from holdfast_api import names


class Streams(Protocol):
    """What is needed of one device: the current stream, which training gives work to, and a side stream of ours."""

    def mark(self) -> Any:
        """An event behind everything that the current stream has been given so far."""

    def follow(self, event: Any) -> None:
        """What the side stream is given from now on begins after the event."""

    def beside(self) -> AbstractContextManager[Any]:
        """What torch is given inside goes to the side stream; what it waits for is that stream alone."""

    def give(self, work: Callable[[], None]) -> None:
        """The side stream is given what `work` issues; the host does not wait."""

    def record(self) -> Any:
        """An event behind everything on the side stream."""

    def completed(self, event: Any) -> bool: ...

    def wait(self, event: Any) -> None:
        """The host waits. Raises RuntimeError when something that the device was given has failed."""

    def hold_back(self, event: Any) -> None:
        """What the current stream is given from now on waits for the event; the host does not."""


class Transfer:
    """One slot's copy: begun, then clean. Not begun twice before it is clean."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._event: Any = None
        self._kept: Any = None

    def begin(self, work: Callable[[], None], keep: Any, after: Any = None) -> None:
        """The side stream copies, by what `work` issues, after the event `after`, or all that the current stream has been given so far. `keep` is
        everything that it reads or writes: its memory is kept until the copy is clean, and must not be written before `hold_back`."""
        if self._event is not None:
            raise RuntimeError("a copy into this slot is under way")
        self._kept = keep
        self._streams.follow(self._streams.mark() if after is None else after)
        try:
            self._streams.give(work)
        finally:  # what was issued before a failure still runs
            self._event = self._streams.record()

    @property
    def clean(self) -> bool:
        """Every byte is in the slot (I3)."""
        if self._event is not None and self._streams.completed(self._event):
            self._event, self._kept = None, None
        return self._event is None

    def hold_back(self) -> None:
        """At the gate: the update that comes next waits for the copy on the device."""
        event = self._event
        if event is not None:
            self._streams.hold_back(event)

    def wait(self) -> None:
        """Raises RuntimeError; the copy is not clean then, and never will be."""
        if self._event is not None:
            self._streams.wait(self._event)
            self._event, self._kept = None, None


class TorchStreams:
    """CUDA's. Made before training captures a graph: it makes the stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(
            device, priority=-1
        )  # its few small kernels do not wait for the rest of a large one

    def mark(self) -> Any:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def follow(self, event: Any) -> None:
        self._side.wait_event(event)

    def beside(self) -> AbstractContextManager[Any]:
        beside: AbstractContextManager[Any] = torch.cuda.stream(self._side)
        return beside

    def give(self, work: Callable[[], None]) -> None:
        with torch.no_grad(), torch.cuda.stream(self._side):
            work()

    def record(self) -> Any:
        event = torch.cuda.Event(blocking=True)  # who waits gives up the processor
        event.record(self._side)
        return event

    def completed(self, event: Any) -> bool:
        return bool(event.query())

    def wait(self, event: Any) -> None:
        event.synchronize()

    def hold_back(self, event: Any) -> None:
        torch.cuda.current_stream(self._device).wait_event(event)


_streams: dict[torch.device, Streams] = {}


def streams_of(device: torch.device) -> Streams:
    """The one pair of streams for a device. Main thread."""
    if device not in _streams:
        _streams[device] = TorchStreams(device)
    return _streams[device]


def is_far(tensor: torch.Tensor) -> bool:
    """It lies on a GPU."""
    return bool(tensor.device.type == "cuda")


def side_stream_wanted() -> bool:
    """Off by a person's wish: then nothing is copied beside training or in the middle of a step, and a save synchronizes the devices first."""
    return os.environ.get(names.ENV_SIDE_STREAM) != "off"


def why_not_beside(tensors: Sequence[torch.Tensor]) -> str:
    """Why tensors on a GPU cannot be copied while training goes on; "" if they can."""
    if not side_stream_wanted():
        return f"switched off by {names.ENV_SIDE_STREAM}"
    if len({t.device for t in tensors}) > 1:
        return "the state lies on several GPUs"
    if not relaxes():
        return "the CUDA runtime has no way to copy beside the capture of a graph (cudaThreadExchangeStreamCaptureMode)"
    return ""


def relaxes() -> bool:
    """Threads of ours can leave captures alone (I7)."""
    return capture_mode.available()


def capturing() -> bool:
    """The calling thread captures a CUDA graph: nothing that it is given now is executed now."""
    return bool(torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())


def current_stream() -> Any:
    """What the calling thread gives work to; None where CUDA is not in use."""
    return torch.cuda.current_stream() if torch.cuda.is_initialized() else None


def join(streams: Sequence[Any]) -> None:
    """The current stream goes on after everything that those were given."""
    here = current_stream()
    for stream in streams:
        if here is not None and stream != here:
            here.wait_stream(stream)


def synchronize(tensors: Sequence[torch.Tensor]) -> None:
    """Waits for whatever streams an update used, on the devices of `tensors`."""
    for device in {t.device for t in tensors if t.device.type == "cuda"}:
        torch.cuda.synchronize(device)


def pinned(length: int) -> torch.Tensor:
    """Bytes on the host that a device copies to at full speed."""
    return torch.empty(length, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
