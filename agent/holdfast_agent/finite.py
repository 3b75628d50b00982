"""A look at trained parameters and optimizer state beside a save (C4): weights that have become NaN are known within one save, not at the next start.

The ranks say which tensors must be finite (`Plan.must_be_finite`). A floating-point number that is not finite is one whose bits, as an integer, are at
or above those of infinity, so the greatest integer of a range tells, read once signed for positive numbers and once unsigned for negative ones. Nothing
is allocated, every format is treated alike, and NumPy lets other threads run meanwhile.

Nothing waits for it: what nobody has looked at is unknown, and stays so.
"""

import logging
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_api.manifest import NOT_FINITE_NAMED, TensorEntry

log = logging.getLogger(__name__)
BLOCK_BYTES = 1 << 20
"""Read twice, the second time out of the processor's cache."""


@dataclass(frozen=True, slots=True)
class Format:
    """Bits of one number. Not finite is what is, without its sign, at least `infinite`; or what equals `nan`, where the format has that alone."""

    item_bytes: int
    infinite: int = 0
    nan: int = 0


_HALF, _BRAIN = Format(2, 0x7C00), Format(2, 0x7F80)
_SINGLE, _DOUBLE = Format(4, 0x7F80_0000), Format(8, 0x7FF0_0000_0000_0000)
FORMATS = {
    "float16": _HALF, "bfloat16": _BRAIN, "float32": _SINGLE, "float64": _DOUBLE,
    "complex32": _HALF, "bcomplex32": _BRAIN, "complex64": _SINGLE, "complex128": _DOUBLE,
    "float8_e5m2": Format(1, 0x7C), "float8_e4m3fn": Format(1, 0x7F),
    "float8_e5m2fnuz": Format(1, nan=0x80), "float8_e4m3fnuz": Format(1, nan=0x80), "float8_e8m0fnu": Format(1, nan=0xFF),
}  # fmt: skip
"""By torch's name."""
ALWAYS_FINITE = frozenset({
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "qint8", "quint8", "qint32", "quint4x2", "quint2x4", "float4_e2m1fn_x2",
})  # fmt: skip
"""A format that is in neither table is one of a later torch: of it nothing is known."""


@dataclass(frozen=True, slots=True)
class Range:
    """A tensor that must be finite, in the image."""

    start: int
    end: int
    format: Format
    name: str


def ranges_of(tensors: Iterable[TensorEntry], must: Iterable[str]) -> list[Range]:
    """In the order of the image. Tied tensors are one. Raises KeyError for a format that is not known."""
    wanted = set(must)
    found: dict[tuple[int, int], TensorEntry] = {}
    for t in tensors:
        if t.name in wanted and t.length_bytes and t.dtype not in ALWAYS_FINITE:
            found.setdefault((t.offset_bytes, t.length_bytes), t)
    return [Range(at, at + n, FORMATS[t.dtype], t.name) for (at, n), t in sorted(found.items())]


class Look:
    """At one rank's image, piece by piece, by any threads. `must` None: the ranks do not say what to look at."""

    def __init__(self, tensors: Sequence[TensorEntry], must: Sequence[str] | None, pieces: int) -> None:
        self._known = must is not None
        self._ranges: list[Range] = []
        try:
            self._ranges = ranges_of(tensors, must or ())
        except KeyError as e:
            self._unknown(f"{e} is a format that this release cannot look at")
        self._starts = [r.start for r in self._ranges]
        self._lock = threading.Lock()
        self._left = pieces
        self._bad: dict[int, str] = {}
        """By offset in the image."""

    def skip(self) -> None:
        """There is no time for it."""
        self._known = False

    def piece(self, view: memoryview, start: int) -> None:
        """Bytes of the image from `start` on, a multiple of every format's size. Never raises."""
        if not self._known:
            return
        try:
            bad = {r.start: r.name for r in self._within(start, start + len(view)) if not _finite(view, start, r)}
        except Exception as e:  # a look that fails costs what it would have found, and never the save
            self._unknown(f"{type(e).__name__}: {e}")
            return
        with self._lock:
            self._bad |= bad
            self._left -= 1

    def _unknown(self, why: str) -> None:
        if self._known:
            log.warning("whether weights are finite is not known: %s", why)
        self._known = False

    @property
    def finite(self) -> bool | None:
        """Once every piece has been given."""
        with self._lock:
            return False if self._bad else True if self._known and not self._left else None

    @property
    def names(self) -> tuple[str, ...]:
        """The first tensors that are not finite."""
        with self._lock:
            return tuple(name for _, name in sorted(self._bad.items())[:NOT_FINITE_NAMED])

    def _within(self, start: int, end: int) -> list[Range]:
        first = max(0, bisect_right(self._starts, start) - 1)
        last = bisect_right(self._starts, end - 1)
        return [r for r in self._ranges[first:last] if r.end > start]


def _finite(view: memoryview, start: int, wanted: Range) -> bool:
    """The part of `wanted` that lies in `view`, of which the first byte is byte `start` of the image."""
    begin, end = max(wanted.start, start) - start, min(wanted.end, start + len(view)) - start
    if (start + begin - wanted.start) % wanted.format.item_bytes:
        raise ValueError(f"a chunk ends in the middle of a number of {wanted.name}")
    return all(
        block_is_finite(view[at : min(at + BLOCK_BYTES, end)], wanted.format) for at in range(begin, end, BLOCK_BYTES)
    )


def block_is_finite(block: memoryview, form: Format) -> bool:
    """Of whole numbers. Raises ImportError where there is no NumPy."""
    import numpy  # not at start: it takes a tenth of a second, which a restore can use

    bits: Any = numpy.frombuffer(block, dtype=f"u{form.item_bytes}")
    if form.nan:
        return not bool((bits == form.nan).any())
    sign = 1 << (8 * form.item_bytes - 1)
    return int(bits.view(f"i{form.item_bytes}").max()) < form.infinite and int(bits.max()) < sign | form.infinite
