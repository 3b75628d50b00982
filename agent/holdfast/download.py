"""The tensors of one GPU on their way into a slot, by as few calls as there are large ones (I7).

Small tensors are collected on the device first, and go over the bus as one piece: ten thousand of 64 bytes take 29 ms one by one, most of it the calls
(H200). Large ones go straight into the slot, in segments; right after each a few bytes of every tensor in it are compared with what they were when the
copy began, on the device: who writes to them meanwhile, past the gate, is found out (I5).
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from holdfast import device
from holdfast.bits import copy_bits
from holdfast.device import Transfer
from holdfast.device_gather import DeviceGather, memory_of

SMALL_BYTES = 256 << 10
STAGE_BYTES = 64 << 20
"""So much memory of the GPU is taken at most, for the smallest tensors."""
SEGMENT_BYTES = 128 << 20
"""2.4 ms over a bus of 55 GB/s."""
POINT_BYTES = 32


class Download:
    """One list of tensors, copied into any slot of one plan. `stage`, `copy` and `finish` one after another, the first two on the device's streams."""

    def __init__(
        self,
        sources: Mapping[str, torch.Tensor],
        offsets: Mapping[str, int],
        taken: frozenset[str] = frozenset(),
        *,
        watched: bool = True,
    ) -> None:
        """`offsets`: where each begins in the slot. `taken` are copies already, which nobody writes to. Not an empty list. Not `watched`: the caller sees
        to it that nobody writes meanwhile. Raises torch.OutOfMemoryError."""
        ordered = sorted(sources, key=lambda n: (sources[n].nbytes, n))
        small: list[str] = []
        room = STAGE_BYTES
        for name in ordered:
            tensor = sources[name]
            if is_plain(tensor) and (name in taken or tensor.nbytes <= min(room, SMALL_BYTES)):
                small.append(name)
                room -= tensor.nbytes
        self._offsets = offsets
        self._stage = DeviceGather([memory_of(sources[n]) for n in sorted(small, key=lambda n: offsets[n])])
        self._bounce = device.pinned(len(self._stage.bytes))
        joined = _joined(sorted(offsets[n] for n in small), self._stage)
        self._places = [(offset, length) for offset, _, length in joined]
        self._pieces = [self._bounce[at : at + length] for _, at, length in joined]
        self._segments: list[_Segment] = []
        self._odd: list[tuple[int, torch.Tensor]] = []
        self._watched: list[str] = []
        views: list[torch.Tensor] = []
        rest = sources.keys() - set(small)
        # Those that are copied last are looked at last.
        for name in sorted(rest, key=lambda n: (not is_plain(sources[n]), offsets[n])):
            if is_plain(sources[name]):
                self._add(name, memory_of(sources[name]), offsets[name], views)
            else:
                self._odd.append((offsets[name], sources[name]))
                views.append(memory_of(sources[name])[:POINT_BYTES])
                self._watched.append(name)
        views = views if watched else []
        self._then, self._now = DeviceGather(views), DeviceGather(views)
        self._differs = device.pinned(1)
        self._targets: dict[int, _Targets] = {}
        self.keep = (sources, self._stage, self._then, self._now, self._bounce, self._differs)
        """What the device reads and writes, beside the slot."""

    def _add(self, name: str, memory: torch.Tensor, offset: int, views: list[torch.Tensor]) -> None:
        for at in range(0, memory.numel(), SEGMENT_BYTES):
            piece = memory[at : at + SEGMENT_BYTES]
            last = self._segments[-1] if self._segments else None
            if last is None or last.length + piece.numel() > SEGMENT_BYTES:
                last = _Segment(len(views))
                self._segments.append(last)
            last.sources.append(piece)
            last.offsets.append(offset + at)
            last.length += piece.numel()
            for start in sorted({0, piece.numel() // 2 // 8 * 8, max(0, piece.numel() - POINT_BYTES)}):
                views.append(piece[start : start + POINT_BYTES])
                self._watched.append(name)
            last.views_end = len(views)

    def stage(self) -> None:
        """What is small is collected, and what is looked at is noted: in the order of the current stream, so what that is given afterwards may write to
        the small ones."""
        self._stage.take()
        self._then.take()

    def prepare(self, slot: torch.Tensor) -> None:
        """Before a copy into it is needed in a hurry."""
        self._in(slot)

    def copy(self, slot: torch.Tensor) -> None:
        """Given to the current stream; the host does not wait, if `slot` is page-locked."""
        large = self._in(slot).large
        with torch.no_grad():
            if self._bounce.numel():
                self._bounce.copy_(self._stage.bytes, non_blocking=True)
            for segment, targets in zip(self._segments, large, strict=True):
                torch._foreach_copy_(targets, segment.sources, non_blocking=True)
                self._look(segment.views_start, segment.views_end)
            start = self._segments[-1].views_end if self._segments else 0
            for offset, tensor in self._odd:
                # Resolved on the device: torch would do it on the host, before the bytes are there.
                plain = memory_of(tensor.resolve_conj().resolve_neg().contiguous())
                slot[offset : offset + plain.numel()].copy_(plain, non_blocking=True)
            self._look(start, len(self._watched))
            if self._then.views:
                differs = (self._now.bytes != self._then.bytes).any().view(1).view(torch.uint8)
                self._differs.copy_(differs, non_blocking=True)
            else:
                self._differs.zero_()

    def finish(self, slot: torch.Tensor) -> str:
        """On the host, when the device is done: the last of it goes into the slot. Returns what speaks against the copy, "" if nothing does."""
        if self._pieces:
            with torch.no_grad():  # one call: a thread that is busy in Python would hold up each of thousands (I7)
                torch._foreach_copy_(self._in(slot).small, self._pieces)
        return (
            ""
            if not self._differs[0]
            else "parameters or optimizer state were written to while they were copied, past the gate"
        )

    def written(self) -> str:
        """The first tensor that was found to differ. Waits for the current stream."""
        return next((self._watched[i] for i in self._now.differing(self._then)), "")

    def _in(self, slot: torch.Tensor) -> "_Targets":
        known = self._targets.get(slot.data_ptr())
        if known is None:
            large = [
                [slot[o : o + s.numel()] for o, s in zip(segment.offsets, segment.sources, strict=True)]
                for segment in self._segments
            ]
            known = self._targets[slot.data_ptr()] = _Targets(large, [slot[o : o + n] for o, n in self._places])
        return known

    def _look(self, start: int, end: int) -> None:
        if start < end and self._now.views:
            first = self._now.offsets[start]
            last = self._now.offsets[end] if end < len(self._now.offsets) else self._now.bytes.numel()
            torch.cat(self._now.views[start:end], out=self._now.bytes[first:last])


@contextmanager
def fetching(slot: torch.Tensor, sources: Mapping[str, torch.Tensor], offsets: Mapping[str, int]) -> Iterator[None]:
    """Copies everything into the slot while the caller, who keeps the state as it is, does something else on the host; every byte is there when it ends
    (I3). What is large is under way before the lists of what is small are made. Raises RuntimeError."""
    device.synchronize([*sources.values()])  # whatever streams the update used
    transfers: list[Transfer] = []
    downloads: list[Download] = []
    done: set[str] = set()
    try:
        for gpu in {t.device for t in sources.values()} if device.side_stream_wanted() else ():
            here = {n: t for n, t in sources.items() if t.device == gpu}
            large = {n: memory_of(t) for n, t in here.items() if is_plain(t) and t.nbytes > SMALL_BYTES}
            rest = {n: t for n, t in here.items() if n not in large}
            if large:
                transfers.append(Transfer(device.streams_of(gpu)))
                transfers[-1].begin(functools.partial(_straight, slot, large, offsets), (slot, large))
                done |= large.keys()
            if rest:
                try:
                    download = Download(rest, offsets, watched=False)
                except torch.OutOfMemoryError:
                    continue
                transfers.append(Transfer(device.streams_of(gpu)))
                transfers[-1].begin(functools.partial(_all, download, slot), (download.keep, slot))
                downloads.append(download)
                done |= rest.keys()
        yield
    finally:  # what was begun is written to the slot, whatever has happened meanwhile
        for transfer in transfers:
            transfer.wait()
    for download in downloads:
        download.finish(slot)
    for name in sources.keys() - done:
        tensor = sources[name]
        place = slot[offsets[name] : offsets[name] + tensor.nbytes]
        copy_bits(place.view(tensor.dtype).view(tensor.shape), tensor)


def _straight(slot: torch.Tensor, large: Mapping[str, torch.Tensor], offsets: Mapping[str, int]) -> None:
    targets = [slot[offsets[n] : offsets[n] + m.numel()] for n, m in large.items()]
    torch._foreach_copy_(targets, [*large.values()], non_blocking=True)


def _all(download: Download, slot: torch.Tensor) -> None:
    download.stage()
    download.copy(slot)


class _Targets(NamedTuple):
    """Views of one slot."""

    large: list[list[torch.Tensor]]
    small: list[torch.Tensor]


class _Segment:
    def __init__(self, views_start: int) -> None:
        self.sources: list[torch.Tensor] = []
        self.offsets: list[int] = []
        self.length = 0
        self.views_start = self.views_end = views_start


def is_plain(tensor: torch.Tensor) -> bool:
    """Its bytes in memory are its content, one after the other."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _joined(offsets: Sequence[int], stage: DeviceGather) -> list[tuple[int, int, int]]:
    """(offset in the slot, in the stage, length): neighbours in both are one."""
    found: list[tuple[int, int, int]] = []
    for offset, at, view in zip(offsets, stage.offsets, stage.views, strict=True):
        length = view.numel()
        if found and found[-1][0] + found[-1][2] == offset and found[-1][1] + found[-1][2] == at:
            found[-1] = (found[-1][0], found[-1][1], found[-1][2] + length)
        else:
            found.append((offset, at, length))
    return found
