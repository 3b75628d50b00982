"""A plan of the image and the copy into a slot (I9).

A plan is an epoch: names, shapes, dtypes, tiers and ties. Every copy compares first; what differs means a new plan at this boundary, and no tensor
is ever left out of a copy.
"""

import json
import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import attrgetter, methodcaller
from typing import Any

import torch

from holdfast import device
from holdfast.bits import copy_bits
from holdfast.copying import CopyTable
from holdfast.download import fetching
from holdfast.errors import UnsupportedState
from holdfast.part import Leaves
from holdfast.sharding import Box
from holdfast.state import Captured
from holdfast_rank.image import STATE_NAME, Item, Layout, lay_out, state_capacity

_WHOLE = Box((), ())


@dataclass(frozen=True)
class SnapshotPlan:
    """Which tensors go where."""

    number: int
    items: tuple[Item, ...]
    layout: Layout
    _fitting: list[Any] = field(default_factory=list, repr=False, compare=False)
    """The form of the leaves that were found to fit last: with thousands of tensors, looking whether it is the same is much cheaper."""

    @classmethod
    def of(cls, number: int, captured: Captured, chunk_bytes: int) -> "SnapshotPlan":
        items = items_of(captured.leaves)
        capacity = state_capacity(len(document_bytes(captured.document)))
        return cls(number, items, lay_out(items, state_bytes=capacity, chunk_bytes=chunk_bytes))

    def fits(self, captured: Captured, document: bytes) -> bool:
        if len(document) > self.layout.state_bytes:
            return False
        form = _form_of(captured.leaves)
        if form != self._fitting:
            if items_of(captured.leaves) != self.items:
                return False
            self._fitting[:] = form
        return True


def document_bytes(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode(
        errors="backslashreplace"
    )  # half a character, as in a file's name that is no UTF-8: JSON's own form of it


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
        box = leaves.boxes.get(name, _WHOLE)
        items.append(
            Item(
                name,
                dtype,
                shape,
                tensor.element_size(),
                leaves.tiers[name],
                None if tied == name else tied,
                box.global_shape,
                box.offset,
                leaves.groups.get(name, ""),
            )
        )
    return tuple(items)


def _form_of(leaves: Leaves) -> list[Any]:
    """All that `items_of` looks at."""
    tensors = list(leaves.tensors.values())
    known = [list(leaves.tensors), dict(leaves.tiers), dict(leaves.boxes), dict(leaves.groups)]
    return [*known, *(list(map(question, tensors)) for question in _QUESTIONS)]


_QUESTIONS: tuple[Any, ...] = (
    *map(attrgetter, ("dtype", "shape", "device")),
    *map(methodcaller, ("data_ptr", "stride", "is_conj", "is_neg")),
)


class SlotWriter:
    """Views of one slot for one plan; made once, so that a capture is copies and nothing else."""

    def __init__(self, plan: SnapshotPlan, memory: mmap.mmap) -> None:
        self._plan = plan
        self._memory = memory
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        memory[: len(plan.layout.header)] = plan.layout.header
        for offset, length in plan.layout.fillers:
            self._bytes[offset : offset + length].zero_()
        self._entries = [
            e for e in plan.layout.entries if e.tied_to is None and e.name != STATE_NAME and e.length_bytes
        ]
        self._table = CopyTable(self._bytes, self._entries)

    def write(self, tensors: dict[str, torch.Tensor], document: bytes, pool: ThreadPoolExecutor) -> None:
        """Copies everything. When it returns the slot is clean: copies from a device have completed as well (I3). Raises UnsupportedState."""
        far = {e.name: e.offset_bytes for e in self._entries if device.is_far(tensors[e.name])}
        try:
            with fetching(self._bytes, {n: tensors[n] for n in far}, far):
                self._write_near(tensors, document, pool)
        except RuntimeError as e:
            if not far:
                raise
            raise UnsupportedState(f"the copy from the GPU has failed: {e}") from e

    def _write_near(self, tensors: dict[str, torch.Tensor], document: bytes, pool: ThreadPoolExecutor) -> None:
        for entry in self._table.copy(tensors, pool):
            if not device.is_far(tensors[entry.name]):
                copy_bits(self._table.target(entry, tensors[entry.name]), tensors[entry.name])
        offset, capacity = self._plan.layout.state_offset, self._plan.layout.state_bytes
        self._memory[offset : offset + capacity] = document.ljust(capacity)

    def addresses(self) -> dict[str, int]:
        """Where each tensor lies in the slot."""
        base = self._bytes.data_ptr()
        return {e.name: base + e.offset_bytes for e in self._entries}
