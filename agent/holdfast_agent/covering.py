"""Which bytes of which ranks' images make the tensors that a rank wants of a checkpoint of another number of ranks. Pure: over frozen values.

A wanted region is a box of a tensor of the checkpoint; holdfast_store/boxes.py says how it is put together. Here stands
what it becomes for one rank, and which chunks are read for it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from holdfast_agent.errors import NotCovered
from holdfast_api.manifest import RankManifest, TensorEntry
from holdfast_api.ranks import Region
from holdfast_store import boxes
from holdfast_store.boxes import Run

ALIGN_BYTES = 64


@dataclass(frozen=True, slots=True)
class Cover:
    """The image that a rank is given: where its tensors lie, and where its bytes come from."""

    entries: tuple[TensorEntry, ...]
    image_bytes: int
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """A run, or a part of one, that lies in one chunk: `count` pieces of `length` bytes."""

    chunk_at: int
    to: int
    """The rank that gets it."""
    target_at: int
    length: int
    count: int = 1
    chunk_step: int = 0
    target_step: int = 0

    def copy(self, chunk: memoryview, target: memoryview) -> None:
        for n in range(self.count):
            source_at, target_at = self.chunk_at + n * self.chunk_step, self.target_at + n * self.target_step
            target[target_at : target_at + self.length] = chunk[source_at : source_at + self.length]


@dataclass(frozen=True, slots=True)
class ChunkJob:
    """A chunk that is needed, read once whoever needs it: chunk `index` of rank `rank`'s image."""

    rank: int
    index: int
    cuts: tuple[Cut, ...]


def cover(regions: Sequence[Region], manifests: Mapping[int, RankManifest]) -> Cover:
    """Raises NotCovered for what the checkpoint does not have, Corrupt for images that contradict each other; both name the tensor."""
    held = _by_name(manifests)
    entries: list[TensorEntry] = []
    runs: list[Run] = []
    at = 0
    for region in regions:
        at += -at % ALIGN_BYTES
        there = _found(region, held)
        found = boxes.cut(region.source, boxes.box_at(_offset(region), region.shape), there, at)
        entries.append(
            TensorEntry(
                region.name,
                region.dtype,
                region.shape,
                at,
                found.length_bytes,
                None,
                region.global_shape,
                region.global_offset,
            )
        )
        runs += found.runs
        at += found.length_bytes
    return Cover(tuple(entries), max(at, 1), tuple(runs))


def jobs(covers: Mapping[int, Cover], manifests: Mapping[int, RankManifest]) -> list[ChunkJob]:
    """The chunks that hold the runs of `covers` (by the rank that wants them), and no other; equal chunks of several images once."""
    cuts: defaultdict[str, list[Cut]] = defaultdict(list)
    first: dict[str, tuple[int, int]] = {}
    for to, wanted in sorted(covers.items()):
        for run in wanted.runs:
            manifest = manifests[run.rank]
            for index, cut in _in_chunks(run, to, manifest.chunk_bytes):
                name = manifest.chunks[index].digest
                first.setdefault(name, (run.rank, index))
                cuts[name].append(cut)
    return [ChunkJob(*first[name], tuple(cuts[name])) for name in sorted(first, key=lambda n: first[n])]


def _by_name(manifests: Mapping[int, RankManifest]) -> dict[str, list[tuple[int, TensorEntry]]]:
    held: defaultdict[str, list[tuple[int, TensorEntry]]] = defaultdict(list)
    for rank in sorted(manifests):
        for entry in manifests[rank].tensors:
            held[entry.name].append((rank, entry))
    return held


def _found(region: Region, held: Mapping[str, list[tuple[int, TensorEntry]]]) -> boxes.Held:
    """What there is of the tensor where it may be taken from. Raises NotCovered for a region that is none of it."""
    if not len(_whole_of(region)) == len(region.shape) == len(_offset(region)) or any(n < 0 for n in region.shape):
        raise NotCovered(f"{region.source}: the box that is wanted has no form")
    if any(
        at < 0 or at + n > whole for at, n, whole in zip(_offset(region), region.shape, _whole_of(region), strict=True)
    ):
        raise NotCovered(
            f"{region.source}: {region.shape} at {_offset(region)} is wanted, which is not inside of {_whole_of(region)}"
        )
    found = [(r, e) for r, e in held.get(region.source, []) if not region.ranks or r in region.ranks]
    if not found:
        where = f" of ranks {', '.join(map(str, region.ranks))}" if region.ranks else ""
        raise NotCovered(f"{region.source}: no image{where} has a tensor of that name")
    rank, entry = found[0]
    if boxes.whole_shape(entry) != _whole_of(region) or entry.dtype != region.dtype:
        raise NotCovered(
            f"{region.source} is {entry.dtype} of shape {boxes.whole_shape(entry)} in rank {rank}'s image, and {region.dtype} of shape "
            f"{_whole_of(region)} is wanted"
        )
    return found


def _in_chunks(run: Run, to: int, chunk_bytes: int) -> Iterator[tuple[int, Cut]]:
    """(chunk, what of it)."""
    done = 0
    while done < run.count:
        at, target = run.source_at + done * run.source_step, run.target_at + done * run.target_step
        index, inside = divmod(at, chunk_bytes)
        room = chunk_bytes - inside
        if run.count > 1 and run.length <= room:
            fit = min(run.count - done, (room - run.length) // run.source_step + 1)
            yield index, Cut(inside, to, target, run.length, fit, run.source_step, run.target_step)
            done += fit
            continue
        left = run.length
        while left:
            length = min(left, chunk_bytes - inside)
            yield index, Cut(inside, to, target, length)
            index, inside, target, left = index + 1, 0, target + length, left - length
        done += 1


def _whole_of(region: Region) -> tuple[int, ...]:
    return region.global_shape or region.shape


def _offset(region: Region) -> tuple[int, ...]:
    return region.global_offset or (0,) * len(region.shape)
