"""The layout of a rank's state as exactly a `.safetensors` file (J1, J2). Pure: from names, dtypes and shapes to offsets and header bytes.

    [ 8 bytes: header length | JSON header, spaces up to a multiple of 4,096 ]
    [ frozen | trainable | optimizer | small and volatile, last of it the state as JSON ]  padded to a multiple of 4,096

Each of the four tiers starts on a chunk boundary (the first one that is not empty follows the header, which never changes): what changes
seldom shares no chunk with what changes at every step. Within a tier the order is by name. Gaps are named U8 fillers, because safetensors
refuses holes. The header depends on the plan alone, never on step or time, so its chunk stays the same too.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from holdfast_api.manifest import TensorEntry

PAGE = 4096
SMALL_BYTES = 4096
"""Up to this size a tensor is small: Adam's step counters and most biases, which would otherwise change chunks of large tensors (J2)."""
ALIGN_BYTES = 64
STATE_NAME = "holdfast.state.json"
FILLER_PREFIX = "holdfast.filler."
MIN_STATE_BYTES = 64 << 10
MOST_HEADER_BYTES = 100_000_000
"""More than this safetensors refuses to read."""

HEADER_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "bool": "BOOL",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
"""Every other dtype is U8 in the header, with its true name in the TensorEntry (J1)."""


class Tier(IntEnum):
    """Classes of J2, in image order."""

    FROZEN = 0
    TRAINABLE = 1
    OPTIMIZER = 2
    SMALL = 3


@dataclass(frozen=True, slots=True)
class Item:
    """One tensor to lay out. `tied_to` names another item that has the same bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    item_bytes: int
    tier: Tier
    tied_to: str | None = None
    global_shape: tuple[int, ...] = ()
    global_offset: tuple[int, ...] = ()
    group: str = ""
    """These three as in TensorEntry: they change nothing in the layout."""

    @property
    def length(self) -> int:
        return math.prod(self.shape) * self.item_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies. `entries` are the tensors, without the fillers, ties last."""

    header: bytes
    entries: tuple[TensorEntry, ...]
    fillers: tuple[tuple[int, int], ...]
    """(offset, length), to be zero."""
    image_bytes: int
    state_bytes: int
    """Capacity for the JSON state."""

    @property
    def state_offset(self) -> int:
        return next(e.offset_bytes for e in self.entries if e.name == STATE_NAME)


@dataclass(frozen=True, slots=True)
class _Piece:
    name: str
    header_dtype: str
    header_shape: tuple[int, ...]
    offset: int
    length: int


def lay_out(items: Iterable[Item], *, state_bytes: int, chunk_bytes: int) -> Layout:
    """Places `items` and a state of `state_bytes`. Equal arguments give equal bytes, in whatever order the items come."""
    state = Item(STATE_NAME, "uint8", (state_bytes,), 1, Tier.SMALL)
    ordered = [*sorted((_settled(i) for i in items), key=lambda i: (i.tier, i.name)), state]
    placed = [i for i in ordered if i.tied_to is None]
    header_bytes = PAGE
    while True:
        pieces = _place(placed, header_bytes, chunk_bytes)
        header = _render(pieces, header_bytes)
        if len(header) == header_bytes:
            break
        header_bytes = len(header)
    if header_bytes > MOST_HEADER_BYTES:
        raise ValueError(
            f"the names of {len(placed)} tensors make a header of {header_bytes} bytes; safetensors reads at most {MOST_HEADER_BYTES}. "
            "Fewer tensors, or shorter names"
        )
    at = {p.name: p for p in pieces}
    entries = [_entry(i, at[i.name]) for i in placed]
    entries += [_entry(i, at[i.tied_to]) for i in ordered if i.tied_to is not None]
    fillers = tuple((p.offset, p.length) for p in pieces if p.name.startswith(FILLER_PREFIX))
    return Layout(header, tuple(entries), fillers, pieces[-1].offset + pieces[-1].length, state_bytes)


def state_capacity(used: int) -> int:
    """Room for a state of `used` bytes that may grow to twice as much before the image must be planned anew: a power of two."""
    return max(MIN_STATE_BYTES, 1 << (2 * used - 1).bit_length())


def _settled(item: Item) -> Item:
    if not item.name or item.name.startswith("holdfast."):
        raise ValueError(f"tensor name {item.name!r} is empty or begins with 'holdfast.', which is reserved")
    return replace(item, tier=Tier.SMALL) if item.length <= SMALL_BYTES else item


def _place(items: list[Item], header_bytes: int, chunk_bytes: int) -> list[_Piece]:
    pieces: list[_Piece] = []
    offset, tier = header_bytes, items[0].tier
    for item in items:
        align = chunk_bytes if item.tier != tier else ALIGN_BYTES if item.length > SMALL_BYTES else item.item_bytes
        offset = _fill(pieces, offset, align)
        dtype = HEADER_DTYPES.get(item.dtype)
        shape = item.shape if dtype else (item.length,)
        pieces.append(_Piece(item.name, dtype or "U8", shape, offset, item.length))
        offset, tier = offset + item.length, item.tier
    _fill(pieces, offset, PAGE)
    return pieces


def _fill(pieces: list[_Piece], offset: int, align: int) -> int:
    gap = -offset % align
    if gap:
        pieces.append(_Piece(f"{FILLER_PREFIX}{offset}", "U8", (gap,), offset, gap))
    return offset + gap


def _render(pieces: list[_Piece], header_bytes: int) -> bytes:
    """Header of at least `header_bytes`, or of the next multiple of a page that holds it."""
    table = {
        p.name: {
            "dtype": p.header_dtype,
            "shape": list(p.header_shape),
            "data_offsets": [p.offset - header_bytes, p.offset - header_bytes + p.length],
        }
        for p in pieces
    }
    text = json.dumps(table, separators=(",", ":")).encode()
    total = max(header_bytes, 8 + len(text) + -(8 + len(text)) % PAGE)
    return (total - 8).to_bytes(8, "little") + text.ljust(total - 8)


def _entry(item: Item, piece: _Piece) -> TensorEntry:
    return TensorEntry(
        item.name,
        item.dtype,
        item.shape,
        piece.offset,
        piece.length,
        item.tied_to,
        item.global_shape,
        item.global_offset,
        item.group,
    )
