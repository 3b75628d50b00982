"""Tensors of which each rank holds a part: which bytes of which ranks' images make a box of one, and where they go. Pure.

A part is a box of the whole (`TensorEntry.global_offset`). Ranks may hold the same box: it is taken from the first. Of what is wanted each element must lie in
exactly one of the boxes that differ; what lies in none, or in two, is an error that names the tensor and the place.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from holdfast_api.manifest import TensorEntry
from holdfast_store.errors import Corrupt

Box = tuple[tuple[int, int], ...]
"""(first, end) along each axis."""
Held = Sequence[tuple[int, TensorEntry]]
"""(rank, what its image has) of one tensor, in the order in which it is to be taken."""


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of rank `rank`'s image, and where they go: `count` pieces of `length`, which follow each other by a step of their own on either side."""

    rank: int
    source_at: int
    target_at: int
    length: int
    count: int = 1
    source_step: int = 0
    target_step: int = 0

    def pieces(self) -> Iterator[tuple[int, int]]:
        """(place in the image, place where it goes)."""
        for n in range(self.count):
            yield self.source_at + n * self.source_step, self.target_at + n * self.target_step


@dataclass(frozen=True, slots=True)
class Cut:
    """How a box is put together."""

    length_bytes: int
    runs: tuple[Run, ...]
    read: Held
    """Those of `held` that they are taken from."""


def cut(name: str, wanted: Box, held: Held, at: int) -> Cut:
    """The box `wanted` of the tensor `name`, as consecutive bytes from `at` on. Raises Corrupt."""
    item = _item_bytes(name, held)
    left = [wanted] if _volume(wanted) else []
    runs: list[Run] = []
    read: dict[Box, tuple[int, TensorEntry]] = {}
    for rank, entry in held:
        there = box_of(entry)
        both = _intersection(wanted, there)
        if both is None or there in read:
            continue
        still = [piece for box in left for piece in _without(box, both)]
        if sum(map(_volume, left)) - sum(map(_volume, still)) != _volume(both):
            other = next(r for box, (r, _) in read.items() if _intersection(box, both))
            raise Corrupt(name, f"rank {rank} holds {_words(there)} of it, which overlaps what rank {other} holds")
        left, read[there] = still, (rank, entry)
        runs += _runs(rank, there, wanted, both, item, entry.offset_bytes, at)
    if left:
        more = f" ({len(left) - 1} more such boxes)" if len(left) > 1 else ""
        raise Corrupt(name, f"no rank holds {_words(left[0])} of it{more}")
    return Cut(item * _volume(wanted), tuple(runs), tuple(read.values()))


def box_of(entry: TensorEntry) -> Box:
    return box_at(entry.global_offset or (0,) * len(entry.shape), entry.shape)


def box_at(offset: Sequence[int], shape: Sequence[int]) -> Box:
    return tuple((at, at + n) for at, n in zip(offset, shape, strict=True))


def whole_shape(entry: TensorEntry) -> tuple[int, ...]:
    return entry.global_shape or entry.shape


def _item_bytes(name: str, held: Held) -> int:
    """Of one element; 0 where nobody holds any. All must agree on it, and on the form of the whole. Raises Corrupt."""
    found = 0
    for rank, entry in held:
        form, expected = (entry.dtype, whole_shape(entry)), (held[0][1].dtype, whole_shape(held[0][1]))
        if form != expected:
            raise Corrupt(
                name,
                f"is {form[0]} of {form[1]} in rank {rank}'s image, and {expected[0]} of {expected[1]} in rank {held[0][0]}'s",
            )
        if not _is_inside(entry):
            raise Corrupt(
                name, f"rank {rank} holds {entry.shape} at {entry.global_offset}, which is no box of {form[1]}"
            )
        if count := math.prod(entry.shape):
            item, rest = divmod(entry.length_bytes, count)
            if rest or not item or item != (found or item):
                raise Corrupt(
                    name, f"{entry.length_bytes} bytes in rank {rank}'s image do not hold {entry.shape} elements"
                )
            found = item
    return found


def _is_inside(entry: TensorEntry) -> bool:
    """Of its whole. Where a box of no elements lies does not matter."""
    whole, offset = whole_shape(entry), entry.global_offset
    if len(entry.shape) != len(whole) or len(offset) not in (0, len(whole)) or any(n < 0 for n in entry.shape):
        return False
    return not math.prod(entry.shape) or all(
        at >= 0 and end <= n for (at, end), n in zip(box_of(entry), whole, strict=True)
    )


def _runs(rank: int, there: Box, wanted: Box, both: Box, item: int, source_at: int, target_at: int) -> Iterator[Run]:
    """Of `both`, which lies in `there` and in `wanted`: as long as both sides allow, and along one axis more as pieces of one run."""
    length, outer = item, len(both)
    while outer:
        outer -= 1
        length *= _length(both[outer])
        if not there[outer] == wanted[outer] == both[outer]:
            break
    source, target = _steps(there, item), _steps(wanted, item)
    source_at += sum((b[0] - t[0]) * n for b, t, n in zip(both, there, source, strict=True))
    target_at += sum((b[0] - w[0]) * n for b, w, n in zip(both, wanted, target, strict=True))
    pieces = (_length(both[outer - 1]), source[outer - 1], target[outer - 1]) if outer else (1, 0, 0)
    for index in product(*(range(_length(axis)) for axis in both[: max(0, outer - 1)])):
        yield Run(
            rank,
            source_at + sum(i * n for i, n in zip(index, source, strict=False)),
            target_at + sum(i * n for i, n in zip(index, target, strict=False)),
            length,
            *pieces,
        )


def _steps(box: Box, item: int) -> list[int]:
    """Bytes from one index to the next, along each axis."""
    steps = [item]
    for axis in reversed(box[1:]):
        steps.append(steps[-1] * _length(axis))
    return steps[::-1] if box else []


def _intersection(one: Box, other: Box) -> Box | None:
    both = tuple((max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(one, other, strict=True))
    return both if all(first < end for first, end in both) else None


def _without(box: Box, hole: Box) -> Iterator[Box]:
    """`box` but for `hole`, as boxes that do not overlap."""
    inside = _intersection(box, hole)
    if inside is None:
        yield box
        return
    for axis, (inner, whole) in enumerate(zip(inside, box, strict=True)):
        for piece in ((whole[0], inner[0]), (inner[1], whole[1])):
            if piece[0] < piece[1]:
                yield (*inside[:axis], piece, *box[axis + 1 :])


def _volume(box: Box) -> int:
    return math.prod(map(_length, box))


def _length(axis: tuple[int, int]) -> int:
    return axis[1] - axis[0]


def _words(box: Iterable[tuple[int, int]]) -> str:
    return "[" + ", ".join(f"{first}:{end}" for first, end in box) + "]"
