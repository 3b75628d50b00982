"""Copies from a GPU into a slot (I3). Not run on a GPU yet: the side stream is off unless HOLDFAST_SIDE_STREAM=on is in the container's environment.

A slot counts as clean only when the event behind its last copy has completed on the host. The state machine is `Transfer`, over the few calls of
`Streams`; torch's are `TorchStreams`, the tests have some of their own that complete when told to.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from holdfast.bits import copy_bits, copyable
from holdfast_api import names

Pair = tuple[torch.Tensor, torch.Tensor]
"""(target in the slot, source on a device)"""


class Streams(Protocol):
    """What `Transfer` needs of one device."""

    def follow(self) -> None:
        """The side stream begins after everything that the current stream has been given so far."""

    def copy(self, pairs: Sequence[Pair]) -> None:
        """On the side stream, in a constant number of calls; the host does not wait."""

    def record(self) -> Any:
        """An event behind everything on the side stream."""

    def completed(self, event: Any) -> bool: ...

    def wait(self, event: Any) -> None:
        """The host waits."""

    def hold_back(self, event: Any) -> None:
        """What the current stream is given from now on waits for the event; the host does not."""


class Transfer:
    """One slot's copy: begun, then clean. Not begun twice before it is clean."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._event: Any = None
        self._sources: Sequence[Pair] = ()

    def begin(self, pairs: Sequence[Pair]) -> None:
        """The sources must not be written before `hold_back`, or until it is clean; their memory is kept until then."""
        if self._event is not None:
            raise RuntimeError("a copy into this slot is under way")
        self._sources = pairs
        self._streams.follow()
        self._streams.copy(pairs)
        self._event = self._streams.record()

    @property
    def clean(self) -> bool:
        """Every byte is in the slot (I3)."""
        if self._event is not None and self._streams.completed(self._event):
            self._event, self._sources = None, ()
        return self._event is None

    def hold_back(self) -> None:
        """At the gate: the update that comes next waits for the copy on the device."""
        if self._event is not None:
            self._streams.hold_back(self._event)

    def wait(self) -> None:
        if self._event is not None:
            self._streams.wait(self._event)
            self._event, self._sources = None, ()


class TorchStreams:
    """CUDA's. Made before training captures a graph: it makes the stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)

    def follow(self) -> None:
        self._side.wait_stream(torch.cuda.current_stream(self._device))

    def copy(self, pairs: Sequence[Pair]) -> None:
        whole = [p for p in pairs if copyable(p[1].dtype)]
        with torch.no_grad(), torch.cuda.stream(self._side):
            if whole:
                torch._foreach_copy_([t for t, _ in whole], [s for _, s in whole], non_blocking=True)
            for target, source in pairs:
                if not copyable(source.dtype):
                    copy_bits(target, source)

    def record(self) -> Any:
        event = torch.cuda.Event()
        event.record(self._side)
        return event

    def completed(self, event: Any) -> bool:
        return bool(event.query())

    def wait(self, event: Any) -> None:
        event.synchronize()

    def hold_back(self, event: Any) -> None:
        torch.cuda.current_stream(self._device).wait_event(event)


def side_stream_wanted() -> bool:
    return os.environ.get(names.ENV_SIDE_STREAM) == "on"


_streams: dict[torch.device, Streams] = {}


def copy(pairs: Sequence[Pair]) -> None:
    """Copies everything, and returns when every byte is there (I3)."""
    devices = {s.device for _, s in pairs if s.device.type == "cuda"}
    for device in devices:
        torch.cuda.synchronize(device)  # whatever streams the update used
    beside = devices if side_stream_wanted() else set()
    transfers = []
    for device in beside:
        if device not in _streams:
            _streams[device] = TorchStreams(device)
        transfers.append(Transfer(_streams[device]))
        transfers[-1].begin([p for p in pairs if p[1].device == device])
    for target, source in pairs:
        if source.device not in beside:
            copy_bits(target, source)
    for transfer in transfers:
        transfer.wait()


def fill(pairs: Sequence[Pair]) -> list[Pair]:
    """The way back, at a restore: (target on a device, source on the host) on the side stream, one batch for each device. Returns the pairs that it has
    left to the caller: all of them unless the side stream is wanted. What the current stream is given afterwards sees every byte."""
    beside = {t.device for t, _ in pairs if t.device.type == "cuda"} if side_stream_wanted() else set()
    transfers = []
    for device in beside:
        if device not in _streams:
            _streams[device] = TorchStreams(device)
        transfers.append(Transfer(_streams[device]))
        transfers[-1].begin([p for p in pairs if p[0].device == device])
    for transfer in transfers:
        transfer.hold_back()
        transfer.wait()  # the image may go away afterwards
    return [p for p in pairs if p[0].device not in beside]
