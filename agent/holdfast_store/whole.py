"""Tensors of which each rank holds a part, put together: which bytes of which ranks' images make the whole, and where they go. Pure but for `copy`.

A part is a box of the whole (`TensorEntry.global_offset`). What DTensor makes is a grid: along each axis the boxes have the same cuts. Ranks may hold the same
box; it is taken from the first. What does not make a whole, without gaps and without overlaps, is an error that names the tensor.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product

from holdfast_api.manifest import RankManifest, TensorEntry
from holdfast_store.errors import Corrupt

ALIGN_BYTES = 4096
_COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive bytes of one rank's image, and where they go."""

    rank: int
    source_at: int
    target_at: int
    length: int


@dataclass(frozen=True, slots=True)
class Whole:
    """`entries` are whole tensors of a file of `end` bytes."""

    entries: tuple[TensorEntry, ...]
    runs: tuple[Run, ...]
    needed: Mapping[int, tuple[TensorEntry, ...]]
    """By rank, the parts that are read."""
    end: int


def whole(names: Iterable[str], manifests: Mapping[int, RankManifest], at: int) -> Whole:
    """The named tensors one after the other from byte `at` on. Names of the same bytes in the lowest rank stay one tensor. Raises Corrupt."""
    ranks = sorted(manifests)
    by_rank = {rank: {e.name: e for e in manifests[rank].tensors} for rank in ranks}
    entries: dict[str, TensorEntry] = {}
    runs: list[Run] = []
    needed: dict[int, list[TensorEntry]] = {}
    for name in dict.fromkeys(names):
        first = by_rank[ranks[0]][name]
        if first.tied_to in entries and _like(first, by_rank[ranks[0]][first.tied_to]):
            entries[name] = replace(entries[first.tied_to], name=name, tied_to=first.tied_to)
            continue
        boxes = _boxes(name, [(rank, held[name]) for rank, held in by_rank.items() if name in held])
        at += -at % ALIGN_BYTES
        item = _item_bytes(first, boxes)
        length = item * math.prod(first.global_shape)
        entries[name] = TensorEntry(name, first.dtype, first.global_shape, at, length)
        for rank, entry in boxes:
            needed.setdefault(rank, []).append(entry)
            runs += (Run(rank, source, at + target, count) for source, target, count in _runs(entry, item))
        at += length
    return Whole(tuple(entries.values()), tuple(runs), {r: tuple(e) for r, e in needed.items()}, at)


def copy(runs: Iterable[Run], source: int, target: int) -> None:
    """From one rank's image into the file of the whole, both open. OSError."""
    for run in runs:
        done = 0
        while done < run.length:
            piece = os.pread(source, min(run.length - done, _COPY_BYTES), run.source_at + done)
            if not piece:
                raise OSError(f"the image of rank {run.rank} ends before byte {run.source_at + run.length}")
            written = 0
            while written < len(piece):
                written += os.pwrite(target, memoryview(piece)[written:], run.target_at + done + written)
            done += len(piece)


Held = list[tuple[int, TensorEntry]]


def _like(one: TensorEntry, other: TensorEntry) -> bool:
    return (one.dtype, one.shape, one.global_shape, one.global_offset) == (
        other.dtype,
        other.shape,
        other.global_shape,
        other.global_offset,
    )


def _boxes(name: str, held: Held) -> Held:
    """One holder of each box that is not empty; together they are the whole. Raises Corrupt."""
    dtype, shape = held[0][1].dtype, held[0][1].global_shape
    found: dict[tuple[tuple[int, int], ...], tuple[int, TensorEntry]] = {}
    for rank, entry in held:
        if (entry.dtype, entry.global_shape) != (dtype, shape) or len(entry.global_offset) != len(entry.shape):
            raise Corrupt(
                name,
                f"is {entry.dtype} of {entry.global_shape} in rank {rank}, and {dtype} of {shape} in rank {held[0][0]}",
            )
        if math.prod(entry.shape):
            box = tuple((o, o + n) for o, n in zip(entry.global_offset, entry.shape, strict=True))
            found.setdefault(box, (rank, entry))
    cuts = [sorted({box[axis] for box in found}) for axis in range(len(shape))]
    grid = all(
        runs[0][0] == 0 and runs[-1][1] == n and all(a[1] == b[0] for a, b in pairwise(runs))
        for runs, n in zip(cuts, shape, strict=True)
        if runs
    )
    if math.prod(shape) and not (found and grid and len(found) == math.prod(map(len, cuts))):
        raise Corrupt(name, f"the parts that the ranks hold do not make the whole of {shape}, or overlap")
    return list(found.values())


def _item_bytes(first: TensorEntry, boxes: Held) -> int:
    if not boxes:
        return 1
    entry = boxes[0][1]
    item, rest = divmod(entry.length_bytes, math.prod(entry.shape))
    if rest or any(e.length_bytes != item * math.prod(e.shape) for _, e in boxes):
        raise Corrupt(first.name, "the bytes of its parts are no whole elements")
    return item


def _runs(entry: TensorEntry, item: int) -> Iterator[tuple[int, int, int]]:
    """(place in the image, place in the whole, length), as long as the box allows."""
    shape, total = entry.shape, entry.global_shape
    outer, length = len(shape), item
    while outer:
        outer -= 1
        length *= shape[outer]
        if shape[outer] != total[outer]:
            break
    steps = [item]
    for n in reversed(total[1:]):
        steps.append(steps[-1] * n)
    steps = steps[::-1] if total else []
    start = sum(o * s for o, s in zip(entry.global_offset, steps, strict=True))
    for number, index in enumerate(product(*(range(n) for n in shape[:outer]))):
        yield (
            entry.offset_bytes + number * length,
            start + sum(i * s for i, s in zip(index, steps, strict=False)),
            length,
        )
