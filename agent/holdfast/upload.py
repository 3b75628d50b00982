"""Tensors on a GPU are filled from an image on the host, at the speed of the bus (the opposite direction of download.py).

From memory that is not page-locked the bus gives a sixth of its speed (8.5 against 55 GB/s, H200), and locking costs twice as long as copying. Where the
image was locked while it was fetched (ahead.py), large tensors are copied straight out of it. The rest goes through a few page-locked buffers: threads fill one
while the others are on their way.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from holdfast import copying, device, mapped
from holdfast.device_gather import memory_of

BUFFER_BYTES = 32 << 20
BUFFERS = 4
SMALL_BYTES = 256 << 10
"""Smaller ones go over the bus together, and are distributed on the device."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""(target, source): same shape and dtype"""
Part = tuple[torch.Tensor, int]
"""(bytes of a target on the device, address of their source)"""


def upload(pairs: Iterable[Pair]) -> list[Pair]:
    """Fills the targets that lie on a GPU from sources on the host, and returns the other pairs. What the current stream is given afterwards sees every
    byte; the sources may go away. Raises RuntimeError."""
    left: list[Pair] = []
    by_device: dict[torch.device, _Work] = defaultdict(_Work)
    seen: set[int] = set()
    for target, source in pairs:
        if not _goes(target, source):
            left.append((target, source))
        elif target.data_ptr() not in seen:  # tied ones have one source
            seen.add(target.data_ptr())
            by_device[target.device].add(memory_of(target), source)
    for place, work in by_device.items():
        _fill(place, work)
    return left


class _Work:
    """Of one device."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.targets: list[torch.Tensor] = []
        """Filled straight from `sources`, which are page-locked."""
        self.sources: list[torch.Tensor] = []

    def add(self, memory: torch.Tensor, source: torch.Tensor) -> None:
        """`memory`: the target's bytes."""
        locked = mapped.locked_pieces(source) if memory.numel() > SMALL_BYTES else None
        if locked is not None:
            self.sources += locked
            self.targets += memory.split([p.numel() for p in locked])
        else:
            self.parts += (
                (memory[at : at + BUFFER_BYTES], source.data_ptr() + at)
                for at in range(0, memory.numel(), BUFFER_BYTES)
            )

    def send_locked(self) -> None:
        torch._foreach_copy_(self.targets, self.sources, non_blocking=True)


def _goes(target: torch.Tensor, source: torch.Tensor) -> bool:
    return (
        device.side_stream_wanted()
        and device.is_far(target)
        and not device.is_far(source)
        and source.device.type == "cpu"
        and target.dtype == source.dtype
        and target.shape == source.shape
        and bool(target.numel())
        and all(t.is_contiguous() and not t.is_conj() and not t.is_neg() for t in (target, source))
    )


def _fill(place: torch.device, work: _Work) -> None:
    streams, parts = device.streams_of(place), work.parts
    count = min(BUFFERS, 1 + sum(p[0].numel() for p in parts) // BUFFER_BYTES) if parts else 0
    buffers = [device.pinned(BUFFER_BYTES) for _ in range(count)]
    behind: list[object] = [None] * count
    streams.follow(streams.mark())  # the targets may have been written to just now
    if work.targets:
        streams.give(work.send_locked)
    with copying.copy_pool() as pool:
        for number, batch in enumerate(_batches(parts)):
            at = number % count
            if behind[at] is not None:
                streams.wait(behind[at])
            _load(buffers[at], batch, pool)
            streams.give(lambda at=at, batch=batch: _send(buffers[at], batch))  # type: ignore[misc]
            behind[at] = streams.record()
    last = streams.record()
    streams.hold_back(last)
    streams.wait(last)


def _batches(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """As many as fit into a buffer, each at a multiple of 64 bytes."""
    batch: list[Part] = []
    used = 0
    for part in parts:
        length = _padded(part[0].numel())
        if batch and used + length > BUFFER_BYTES:
            yield batch
            batch, used = [], 0
        batch.append(part)
        used += length
    if batch:
        yield batch


def _load(buffer: torch.Tensor, batch: Sequence[Part], pool: ThreadPoolExecutor) -> None:
    pieces, to = [], buffer.data_ptr()
    for target, source in batch:
        pieces.append((to, source, target.numel()))
        to += _padded(target.numel())
    copying.run(copying.shares(pieces, threads=copying.thread_count()), pool)


def _send(buffer: torch.Tensor, batch: Sequence[Part]) -> None:
    targets = [t for t, _ in batch]
    offsets, at = [], 0
    for target in targets:
        offsets.append(at)
        at += _padded(target.numel())
    far = buffer
    if sum(t.numel() <= SMALL_BYTES for t in targets) > 1:
        far = torch.empty(at, dtype=torch.uint8, device=targets[0].device)
        far.copy_(buffer[:at], non_blocking=True)
    torch._foreach_copy_(
        targets, [far[o : o + t.numel()] for o, t in zip(offsets, targets, strict=True)], non_blocking=True
    )


def _padded(length: int) -> int:
    return length + -length % 64
