"""What shows that the state stands still between two update windows (I5).

Everything that a copy between windows relies on is looked at, not believed: blocks of the live state at the boundary, or of the slot that was
copied there, are compared with the live state just before the next window begins. A few bytes of many tensors, the fingerprint, are compared at
every single copy as well, before and after it. Version counters are not asked: fused optimizers, `.data` writes, BatchNorm statistics and kernels
that take raw pointers do not move them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from holdfast import device
from holdfast.device_gather import DeviceGather, is_dense, memory_of
from holdfast.gather import Gather, Segment

BLOCK_BYTES = 16 << 10
POINTS = 64
POINT_BYTES = 32
ROUNDS = 3
"""Iterations in a row that must be clean before copies between windows are allowed."""
FIRST_BYTES = 16 << 20
"""Of an audit in the first steps: some 20 ms, three times."""
SAVE_BYTES = 4 << 20
"""Of one after a periodic save, which has just copied everything."""


@dataclass(frozen=True, slots=True)
class Block:
    """`length` bytes of a tensor's memory, from `offset` on."""

    name: str
    address: int
    offset: int
    length: int
    view: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """The bytes, where they lie on a GPU and no address on the host leads to them."""

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor, offset: int, length: int) -> "Block":
        view = memory_of(tensor)[offset : offset + length] if device.is_far(tensor) else None
        return cls(name, tensor.data_ptr(), offset, length, view)

    @property
    def segment(self) -> Segment:
        return self.address + self.offset, self.length


def span(tensor: torch.Tensor) -> int:
    """Bytes from its first element on that are surely its own: all of a dense tensor's, one element's of a strided one."""
    if not tensor.numel():
        return 0
    dense = tensor.is_contiguous() or is_dense(tensor)
    return int(tensor.element_size() * (tensor.numel() if dense else 1))


def blocks_of(tensors: Mapping[str, torch.Tensor], turn: int, budget_bytes: int = FIRST_BYTES) -> list[Block]:
    """Everything, where `budget_bytes` allow; else the ends of each tensor and a block in between that moves with `turn`, of as many tensors as
    fit, others in the next turn. Pure, but for reading addresses."""
    spans = {n: span(t) for n, t in tensors.items()}
    if sum(spans.values()) <= budget_bytes:
        return [Block.of(n, tensors[n], 0, s) for n, s in spans.items() if s]
    names = sorted(n for n, s in spans.items() if s)
    start = turn * max(1, budget_bytes // (3 * BLOCK_BYTES)) % len(names)
    found: list[Block] = []
    used = 0
    for name in names[start:] + names[:start]:
        size = spans[name]
        for offset in sorted({0, _middle(size, turn), max(0, size - BLOCK_BYTES)}):
            length = min(BLOCK_BYTES, size - offset)
            if used + length > budget_bytes:
                return found
            found.append(Block.of(name, tensors[name], offset, length))
            used += length
    return found


def fingerprint_blocks(tensors: Mapping[str, torch.Tensor]) -> list[Block]:
    """A few bytes in the middle of up to POINTS tensors, spread over their sizes."""
    spans = sorted(((span(t), n) for n, t in tensors.items() if span(t)), reverse=True)
    step = max(1.0, len(spans) / POINTS)
    chosen = [spans[int(i * step)] for i in range(min(POINTS, len(spans)))]
    found = []
    for size, name in chosen:
        length = min(POINT_BYTES, size)
        found.append(Block.of(name, tensors[name], (size - length) // 2 // 8 * 8, length))
    return found


class Audit:
    """One comparison: made at a boundary, judged once or more before the next window."""

    def __init__(self, blocks: Sequence[Block], slot_addresses: Mapping[str, int] | None = None) -> None:
        """With `slot_addresses` the reference is what was copied into a slot, which stays as it is until then; blocks on a GPU are left out (they are
        looked at while they are copied). Waits for the GPU. Raises OSError."""
        self._blocks = [b for b in blocks if b.view is None]
        self._far = [b for b in blocks if b.view is not None and slot_addresses is None]
        views = [b.view for b in self._far if b.view is not None]
        self._far_now, self._far_then = DeviceGather(views), DeviceGather(views)
        self.unsettled = self._settle(views)
        """Names of what was still being written when the current stream had nothing to do any more: by a stream that it does not wait for."""
        live = [b.segment for b in self._blocks]
        self._now = Gather(live)
        self._then = Gather(
            live if slot_addresses is None else [(slot_addresses[b.name] + b.offset, b.length) for b in self._blocks]
        )
        self._then.take()
        self.looked = 0

    def changed(self) -> list[str]:
        """Names of the tensors that differ now. Any thread; waits for its current stream. Raises OSError."""
        self._now.take()
        self.looked += 1
        found = {self._blocks[i].name for i in self._now.differing(self._then)}
        if self._far:
            self._far_now.take()
            found |= {self._far[i].name for i in self._far_now.differing(self._far_then)}
        return sorted(found)

    def _settle(self, views: Sequence[torch.Tensor]) -> list[str]:
        if not views:
            return []
        self._far_then.take()
        device.synchronize(views)
        self._far_now.take()
        return sorted({self._far[i].name for i in self._far_now.differing(self._far_then)})


def _middle(size: int, turn: int) -> int:
    blocks = max(1, size // BLOCK_BYTES)
    return (turn * 7919 % blocks) * BLOCK_BYTES
