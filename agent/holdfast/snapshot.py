"""A plan of the image and the copy into a slot (I9).

A plan is an epoch: names, shapes, dtypes, tiers and ties. Every copy compares first; what differs means a new plan at this boundary, and no tensor
is ever left out of a copy.
"""

import ctypes
import json
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from holdfast.bits import copy_bits
from holdfast.image import STATE_NAME, Item, Layout, lay_out, state_capacity
from holdfast.parts import Leaves
from holdfast.state import Captured

PIECE_BYTES = 16 << 20
THREADED_BYTES = 32 << 20
"""Below this the hand-over to threads costs more than it gains."""


@dataclass(frozen=True)
class SnapshotPlan:
    """Which tensors go where."""

    number: int
    items: tuple[Item, ...]
    layout: Layout

    @classmethod
    def of(cls, number: int, captured: Captured, chunk_bytes: int) -> "SnapshotPlan":
        items = items_of(captured.leaves)
        capacity = state_capacity(len(document_bytes(captured.document)))
        return cls(number, items, lay_out(items, state_bytes=capacity, chunk_bytes=chunk_bytes))

    def fits(self, captured: Captured, document: bytes) -> bool:
        return len(document) <= self.layout.state_bytes and items_of(captured.leaves) == self.items


def document_bytes(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def items_of(leaves: Leaves) -> tuple[Item, ...]:
    """The tensors as the layout sees them, in the order of their names. Two names of the same bytes are stored once, under the first."""
    first: dict[tuple[Any, ...], str] = {}
    items = []
    for name in sorted(leaves.tensors):
        tensor = leaves.tensors[name]
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        tied = None
        if tensor.numel():
            place = (tensor.data_ptr(), tensor.device, dtype, shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())
            tied = first.setdefault(place, name)
        items.append(
            Item(name, dtype, shape, tensor.element_size(), leaves.tiers[name], None if tied == name else tied)
        )
    return tuple(items)


class SlotWriter:
    """Views of one slot for one plan; made once, so that a capture is copies and nothing else."""

    def __init__(self, plan: SnapshotPlan, memory: mmap.mmap) -> None:
        self._plan = plan
        self._memory = memory
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._address = self._bytes.data_ptr()
        memory[: len(plan.layout.header)] = plan.layout.header
        for offset, length in plan.layout.fillers:
            self._bytes[offset : offset + length].zero_()
        self._entries = [
            e for e in plan.layout.entries if e.tied_to is None and e.name != STATE_NAME and e.length_bytes
        ]

    def write(self, tensors: dict[str, torch.Tensor], document: bytes, pool: ThreadPoolExecutor) -> None:
        """Copies everything. When it returns the slot is clean: copies from a device have completed as well (I3)."""
        if any(t.device.type == "cuda" for t in tensors.values()):
            torch.cuda.synchronize()  # whatever streams the update used (I3)
        raw: list[tuple[int, int, int]] = []
        for entry in self._entries:
            source, at, length = tensors[entry.name], entry.offset_bytes, entry.length_bytes
            if source.device.type == "cpu" and source.is_contiguous() and not source.is_conj() and not source.is_neg():
                raw += _pieces(self._address + at, source.data_ptr(), length)
            else:
                # Strided, on a device, or lazily conjugated: torch resolves it into contiguous order.
                copy_bits(self._bytes[at : at + length].view(source.dtype).view(source.shape), source)
        _copy_raw(raw, pool)
        offset, capacity = self._plan.layout.state_offset, self._plan.layout.state_bytes
        self._memory[offset : offset + capacity] = document.ljust(capacity)


def copy_pool() -> ThreadPoolExecutor:
    """Threads for large copies: a few saturate memory bandwidth, and training keeps the other cores."""
    return ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0))), thread_name_prefix="holdfast-copy")


def _pieces(target: int, source: int, length: int) -> list[tuple[int, int, int]]:
    return [(target + at, source + at, min(PIECE_BYTES, length - at)) for at in range(0, length, PIECE_BYTES)]


def _copy_raw(pieces: list[tuple[int, int, int]], pool: ThreadPoolExecutor) -> None:
    # memmove gives up the GIL, knows every dtype, and starts no OpenMP threads of its own in each copying thread.
    if sum(p[2] for p in pieces) < THREADED_BYTES:
        for piece in pieces:
            ctypes.memmove(*piece)
    else:
        list(pool.map(lambda p: ctypes.memmove(*p), pieces))
