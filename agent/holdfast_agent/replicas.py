"""Ranks that should hold the same bytes are compared before each commit (J4): silent data corruption and ranks that have come apart are said at once. Pure.

What is compared are digests. Chunks are hashed anyway, and a chunk that holds nothing but replicated tensors stands for all of them; tensors in other chunks
are hashed by themselves, as far as they lie there. Two ranks can be compared where the same names lie at the same places: then they tell the same `table`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast_api import codec
from holdfast_api.manifest import LooseDigest, RankManifest, TensorEntry
from holdfast_api.peers import ReplicaDigest
from holdfast_store.chunks import digest, ranges

SHOWN = 8
"""Names in a sentence."""


@dataclass(slots=True)
class Compared:
    """What one rank shares with the ranks of one group: chunks that hold nothing else, and pieces of tensors in other chunks."""

    chunks: list[int] = field(default_factory=list)
    pieces: list[tuple[str, int, int]] = field(default_factory=list)
    """(name, begin, end) in the image."""
    table: list[list[object]] = field(default_factory=list)


def compared(tensors: Sequence[TensorEntry], image_bytes: int, chunk_bytes: int) -> dict[str, Compared]:
    """By group. Whole tensors and parts of tensors are told apart: the parts of a group differ, unless copies of the parts are held as well."""
    own = sorted((t for t in tensors if t.tied_to is None and t.length_bytes), key=lambda t: t.offset_bytes)
    if not any(t.group for t in own):
        return {}
    found: defaultdict[str, Compared] = defaultdict(Compared)
    first = own[0].offset_bytes
    """Before it lies the header, which tells of everything that a rank has."""
    at = 0
    for index, (begin, length) in enumerate(ranges(image_bytes, chunk_bytes)):
        end = begin + length
        while at < len(own) and own[at].offset_bytes + own[at].length_bytes <= begin:
            at += 1
        last = at
        while last < len(own) and own[last].offset_bytes < end:
            last += 1
        inside = own[at:last]
        if not inside:
            continue
        keys = {_key(t) for t in inside}
        alone = begin >= first and len(keys) == 1
        for t in inside:
            if not t.group:
                continue
            side = found[_key(t)]
            a, b = max(begin, t.offset_bytes), min(end, t.offset_bytes + t.length_bytes)
            side.table.append([t.name, t.dtype, list(t.shape), list(t.global_offset), a, b, alone])
            if not alone:
                side.pieces.append((t.name, a, b))
        if alone and inside[0].group:
            found[_key(inside[0])].chunks.append(index)
    return dict(found)


def loose_digests(sides: Iterable[Compared], view: memoryview) -> tuple[LooseDigest, ...]:
    """Hashes the pieces. `view` is the whole image."""
    return tuple(LooseDigest(n, a, b - a, digest(view[a:b])[:32]) for side in sides for n, a, b in side.pieces)


def summary(sides: Mapping[str, Compared], manifest: RankManifest) -> tuple[ReplicaDigest, ...]:
    """What a rank tells the coordinator: some 200 bytes for each group."""
    pieces = {(p.name, p.offset_bytes): p.digest for p in manifest.loose}
    told = []
    for key, side in sorted(sides.items()):
        content = [manifest.chunks[i].digest for i in side.chunks] + [pieces[n, a] for n, a, _ in side.pieces]
        group = group_in(key)
        table, text = codec.to_json(side.table), " ".join(content).encode()
        told.append(ReplicaDigest(manifest.rank, group, digest(table), digest(text)))
    return tuple(told)


@dataclass(frozen=True, slots=True)
class Difference:
    """Ranks of `group` that should hold the same and do not. `odd` are those that differ from most; of two sides of equal size, the later ones."""

    group: str
    odd: tuple[int, ...]
    others: tuple[int, ...]

    @property
    def words(self) -> str:
        odd, others = ", ".join(map(str, self.odd)), ", ".join(map(str, self.others))
        return f"of ranks {self.group}, which hold copies of one state, {odd} hold other bytes than {others}"


def compare(told: Iterable[ReplicaDigest]) -> tuple[Difference, ...]:
    sides: defaultdict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for t in told:
        sides[t.group, t.table][t.rank] = t.content
    found = []
    for (group, _), held in sorted(sides.items()):
        counted = Counter(held[r] for r in sorted(held))
        usual = counted.most_common(1)[0][0]
        if len(counted) > 1:
            odd = tuple(r for r in sorted(held) if held[r] != usual)
            found.append(Difference(group, odd, tuple(r for r in sorted(held) if held[r] == usual)))
    return tuple(found)


def is_compared(told: Iterable[ReplicaDigest]) -> bool:
    """Some ranks hold the same, if nothing is wrong."""
    return any(n > 1 for n in Counter((t.group, t.table) for t in told).values())


def names_of(one: RankManifest, other: RankManifest) -> tuple[str, ...]:
    """The tensors in which two ranks' copies differ: exact for what was hashed by itself, for the rest those that share the chunk."""
    mine, theirs = (compared(m.tensors, m.image_bytes, m.chunk_bytes) for m in (one, other))
    loose = {(p.name, p.offset_bytes): p.digest for p in other.loose}
    names = {p.name for p in one.loose if loose.get((p.name, p.offset_bytes), p.digest) != p.digest}
    for key, side in mine.items():
        if key not in theirs or theirs[key].table != side.table:
            continue
        for i in side.chunks:
            if one.chunks[i].digest != other.chunks[i].digest:
                begin, end = i * one.chunk_bytes, (i + 1) * one.chunk_bytes
                names |= {
                    t.name
                    for t in one.tensors
                    if t.tied_to is None and t.offset_bytes < end and t.offset_bytes + t.length_bytes > begin
                }
    return tuple(sorted(names))


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def group_in(key: str) -> str:
    """The ranks that a key of `compared` stands for."""
    return key.removesuffix(PARTS).removesuffix(WHOLE)


PARTS, WHOLE = " (parts)", " (whole boxes)"


def _key(tensor: TensorEntry) -> str:
    """A DTensor that is whole on every rank lies beside others of which each rank has another part. It is no plain tensor either: of one too short to be
    shared out a single rank has all."""
    if not tensor.group or not tensor.global_shape:
        return tensor.group
    return tensor.group + (WHOLE if tensor.shape == tensor.global_shape else PARTS)
