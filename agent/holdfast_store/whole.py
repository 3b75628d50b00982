"""Tensors of which each rank holds a part, put together to whole ones in a file (boxes.py has the rule). Pure but for `copy`."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from holdfast_api.manifest import RankManifest, TensorEntry
from holdfast_store import boxes
from holdfast_store.boxes import Run

ALIGN_BYTES = 4096
_COPY_BYTES = 8 << 20


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
        shape = boxes.whole_shape(first)
        at += -at % ALIGN_BYTES
        there = [(rank, held[name]) for rank, held in by_rank.items() if name in held]
        found = boxes.cut(name, boxes.box_at((0,) * len(shape), shape), there, at)
        entries[name] = TensorEntry(name, first.dtype, shape, at, found.length_bytes)
        for rank, entry in found.read:
            needed.setdefault(rank, []).append(entry)
        runs += found.runs
        at += found.length_bytes
    return Whole(tuple(entries.values()), tuple(runs), {r: tuple(e) for r, e in needed.items()}, at)


def copy(runs: Iterable[Run], source: int, target: int) -> None:
    """From one rank's image into the file of the whole, both open. OSError."""
    for run in runs:
        for source_at, target_at in run.pieces():
            done = 0
            while done < run.length:
                piece = os.pread(source, min(run.length - done, _COPY_BYTES), source_at + done)
                if not piece:
                    raise OSError(f"the image of rank {run.rank} ends before byte {source_at + run.length}")
                written = 0
                while written < len(piece):
                    written += os.pwrite(target, memoryview(piece)[written:], target_at + done + written)
                done += len(piece)


def _like(one: TensorEntry, other: TensorEntry) -> bool:
    return (one.dtype, one.shape, one.global_shape, one.global_offset) == (
        other.dtype,
        other.shape,
        other.global_shape,
        other.global_offset,
    )
