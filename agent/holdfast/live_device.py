"""The part of a list of storages (live.py) that lies on a GPU: noted at a boundary, looked at, and copied beside training (I3, I5, I7).

The order of things on the device is that of two streams. Training's current stream gets what `note` does, so that it comes after the update and before
whatever a forward writes; the copies run on the side stream, after an event behind that. Nobody who runs on the main thread waits for the device here.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from holdfast import device
from holdfast.audit import Block
from holdfast.device import Transfer
from holdfast.device_gather import DeviceGather, memory_of
from holdfast.download import Download

Extra = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""(bytes in the slot, small tensor on the device that nobody writes to)"""


class LiveOnDevice:
    """`note` and `look` are the main thread's, and `begin` with `now`; the rest is for whoever copies. One copy at a time."""

    def __init__(
        self,
        live: Mapping[str, torch.Tensor],
        noted: Mapping[str, torch.Tensor],
        offsets: Mapping[str, int],
        points: Sequence[Block],
    ) -> None:
        """`live` stand still between updates, `noted` are kept at each boundary; `points` are the fingerprint. All on one device."""
        self.names = frozenset({*live, *noted})
        self._streams = device.streams_of(next(iter([*live.values(), *noted.values()])).device)
        views = [b.view for b in points if b.view is not None]
        self._noted = DeviceGather([*(memory_of(t) for t in noted.values()), *views])
        self._points, self._found = DeviceGather(views), DeviceGather(views)
        self._point_names = [b.name for b in points]
        copies = {n: self._noted.piece(i) for i, n in enumerate(noted)}
        start = self._noted.offsets[len(noted)] if views else len(self._noted.bytes)
        self._then = self._noted.bytes[start:]
        self._download = Download({**live, **copies}, offsets, frozenset(copies))
        self._transfer = Transfer(self._streams)
        self._busy = threading.Lock()
        """Held from `begin` to `finish`, whoever calls them."""
        self._slot: torch.Tensor | None = None
        self._at: Any = None
        """An event behind the last `note`."""
        self._looking: Any = None
        """An event behind a look that has begun."""
        self._moved = device.pinned(1)

    # Main thread

    def note(self) -> None:
        """At a boundary. The host does not wait."""
        self._noted.take()
        self._at = self._streams.mark()

    def look(self) -> bool:
        """Whether the fingerprint was found to have changed, as far as is known by now; looks again."""
        found = False
        if self._looking is not None:
            if not self._streams.completed(self._looking):
                return False
            found = bool(self._moved[0])
        with torch.no_grad():
            self._found.take()
            differs = (self._found.bytes != self._then).any().view(1).view(torch.uint8)
            self._moved.copy_(differs, non_blocking=True)
        self._looking = self._streams.mark()
        return found

    def hold_back(self) -> None:
        """What the current stream is given from now on waits for the copy on the device, if there is one."""
        self._transfer.hold_back()

    # Whoever copies

    def moved(self) -> bool:
        """The fingerprint is not that of the last note. Waits until the device has come to it. Raises RuntimeError."""
        with self.beside(), torch.no_grad():
            self._points.take()
            return not torch.equal(self._points.bytes, self._then)

    def written(self) -> list[str]:
        """Names of what the fingerprint has changed of. As `moved`."""
        with self.beside(), torch.no_grad():
            self._points.take()
            here, there = self._points.bytes.cpu(), self._then.cpu()
        ends = [*self._points.offsets[1:], len(here)]
        spans = zip(self._point_names, self._points.offsets, ends, strict=True)
        return [name for name, a, b in spans if not torch.equal(here[a:b], there[a:b])]

    def prepare(self, slot: torch.Tensor) -> None:
        self._download.prepare(slot)

    def begin(self, slot: torch.Tensor, extra: Extra, *, now: bool) -> None:
        """Copies into a slot. `now`: on the main thread, which goes on at once; what is small is collected in the order of its stream. Else the main
        thread is in the middle of a step, and everything is done beside it. Waits for the copy before; ended by `finish`. Raises RuntimeError; what was
        begun is over then."""
        self._busy.acquire()
        try:
            self._begin(slot, extra, now=now)
            self._slot = slot
        except BaseException:
            try:
                self._transfer.wait()
            finally:
                self._busy.release()
            raise

    def _begin(self, slot: torch.Tensor, extra: Extra, *, now: bool) -> None:
        if now:
            self._download.stage()

        def work() -> None:
            if not now:
                self._download.stage()
            for place, tensor in extra:
                place.copy_(memory_of(tensor.resolve_conj().resolve_neg().contiguous()), non_blocking=True)
            self._download.copy(slot)

        self._transfer.begin(work, (self._download.keep, slot, extra), after=None if now else self._at)

    def finish(self) -> str:
        """Waits for the device. Returns what speaks against the copy, "" if every byte is in the slot. Raises RuntimeError."""
        slot, self._slot = self._slot, None
        assert slot is not None
        try:
            self._transfer.wait()
            problem = self._download.finish(slot)
            if not problem:
                return ""
            with self._streams.beside():
                return f"{problem} ({self._download.written()} among them)"
        finally:
            self._busy.release()

    @contextmanager
    def beside(self) -> Iterator[None]:
        if self._at is not None:
            self._streams.follow(self._at)
        with self._streams.beside():
            yield
