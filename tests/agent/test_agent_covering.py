"""Which bytes of which images make a wanted region: each from exactly one place, nothing beyond the chunks that hold them, and what is missing is named."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_agent.covering import ALIGN_BYTES, cover, jobs
from holdfast_agent.errors import NotCovered
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Chunk, RankManifest, TensorEntry
from holdfast_api.ranks import Region
from holdfast_store.errors import Corrupt

CHUNK = 64


class Images:
    """The images of a checkpoint, made of boxes of tensors whose content is known."""

    def __init__(self) -> None:
        self.entries: dict[int, list[TensorEntry]] = {}
        self.bytes: dict[int, bytearray] = {}

    def put(self, rank: int, name: str, whole: tuple[int, ...], box: tuple[tuple[int, int], ...], item: int) -> None:
        data = b"".join(element(name, index, item) for index in indices(box))
        image = self.bytes.setdefault(rank, bytearray(b"\xee" * 8))
        shape, offset = tuple(e - b for b, e in box), tuple(b for b, _ in box)
        part = shape != whole
        entry = TensorEntry(
            name, "x", shape, len(image), len(data), None, whole if part else (), offset if part else ()
        )
        self.entries.setdefault(rank, []).append(entry)
        image += data

    def manifests(self) -> dict[int, RankManifest]:
        found = {}
        for rank, image in self.bytes.items():
            chunks = tuple(
                Chunk(f"{rank}-{at}", min(CHUNK, len(image) - at), CheckpointRef(1, 1))
                for at in range(0, len(image), CHUNK)
            )
            found[rank] = RankManifest(
                "u", 1, 1, rank, len(self.bytes), 1, len(image), CHUNK, chunks, tuple(self.entries[rank])
            )
        return found


def indices(box: tuple[tuple[int, int], ...]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for first, end in box:
        found = [(*index, i) for index in found for i in range(first, end)]
    return found


def element(name: str, index: tuple[int, ...], item: int) -> bytes:
    return random.Random(f"{name}{index}").randbytes(item)


def region(name: str, whole: tuple[int, ...], box: tuple[tuple[int, int], ...], ranks: tuple[int, ...] = ()) -> Region:
    return Region(f"my {name}", name, ranks, "x", tuple(e - b for b, e in box), whole, tuple(b for b, _ in box))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Images, list[tuple[Region, int]]]:
    """Tensors cut into boxes along random lines, copies of some boxes in several ranks; and regions of them that somebody wants."""
    images, wanted = Images(), []
    images.bytes = {r: bytearray(b"\xee" * draw(st.integers(8, 70))) for r in range(draw(st.integers(1, 4)))}
    images.entries = {r: [] for r in images.bytes}
    for number in range(draw(st.integers(1, 3))):
        name, item = f"t{number}", draw(st.sampled_from([1, 2, 4, 8]))
        whole = tuple(draw(st.lists(st.integers(1, 7), max_size=3)))
        cuts = [sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=2))}) for n in whole]
        boxes: list[tuple[tuple[int, int], ...]] = [()]
        for axis in cuts:
            boxes = [(*box, run) for box in boxes for run in pairwise(axis)]
        for box in boxes:
            for rank in draw(st.sets(st.sampled_from(sorted(images.bytes)), min_size=1)):
                images.put(rank, name, whole, box, item)
        box = tuple(tuple(sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))) for n in whole)
        wanted.append((region(name, whole, box), item))
    return images, wanted


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_every_byte_comes_from_exactly_one_place_and_no_chunk_is_read_for_nothing(
    world: tuple[Images, list[tuple[Region, int]]],
) -> None:
    images, wanted = world
    manifests = images.manifests()
    found = cover([r for r, _ in wanted], manifests)
    written = [0] * found.image_bytes
    target = bytearray(found.image_bytes)
    touched = set()
    for run in found.runs:
        for source_at, target_at in run.pieces():
            target[target_at : target_at + run.length] = images.bytes[run.rank][source_at : source_at + run.length]
            touched |= {(run.rank, at // CHUNK) for at in range(source_at, source_at + run.length)}
            for at in range(target_at, target_at + run.length):
                written[at] += 1
    for (asked, item), entry in zip(wanted, found.entries, strict=True):
        box = tuple((at, at + n) for at, n in zip(asked.global_offset, asked.shape, strict=True))
        want = b"".join(element(asked.source, index, item) for index in indices(box))
        assert bytes(target[entry.offset_bytes : entry.offset_bytes + entry.length_bytes]) == want
        assert entry.offset_bytes % ALIGN_BYTES == 0
        assert set(written[entry.offset_bytes : entry.offset_bytes + entry.length_bytes]) <= {1}
    assert sum(written) == sum(e.length_bytes for e in found.entries), "nothing is written between the tensors"

    plan = jobs({7: found}, manifests)
    assert {(j.rank, j.index) for j in plan} == touched, "a chunk is read if and only if something in it is wanted"
    through_chunks = bytearray(found.image_bytes)
    for job in plan:
        data = images.bytes[job.rank][job.index * CHUNK : (job.index + 1) * CHUNK]
        for cut in job.cuts:
            assert cut.to == 7
            cut.copy(memoryview(data), memoryview(through_chunks))
    assert through_chunks == target


@settings(max_examples=100, deadline=None)
@given(worlds(), st.randoms())
def test_a_region_that_no_rank_holds_is_named(
    world: tuple[Images, list[tuple[Region, int]]], chance: random.Random
) -> None:
    images, wanted = world
    asked = [r for r, _ in wanted if all(r.shape)]
    if not asked:
        return
    lost = chance.choice(asked)
    box = tuple((at, at + n) for at, n in zip(lost.global_offset, lost.shape, strict=True))
    hole = tuple(chance.randrange(first, end) for first, end in box)
    for rank, entries in images.entries.items():
        images.entries[rank] = [
            e
            for e in entries
            if e.name != lost.source
            or not all(
                at <= i < at + n for i, at, n in zip(hole, e.global_offset or (0,) * len(hole), e.shape, strict=True)
            )
        ]
    left = any(e.name == lost.source for entries in images.entries.values() for e in entries)
    refused = (
        Corrupt if left else NotCovered
    )  # of a part the image is at fault (C3); of a name that it never had, whoever asks
    with pytest.raises(refused, match=f"^{lost.source}: (no rank holds \\[|no image has a tensor of that name)"):
        cover([r for r, _ in wanted], images.manifests())


def test_what_is_the_ranks_own_comes_from_that_rank() -> None:
    images = Images()
    images.put(0, "buffer", (4,), ((0, 4),), 2)
    images.put(1, "buffer", (4,), ((0, 4),), 2)
    assert {r.rank for r in cover([region("buffer", (4,), ((0, 4),), (1,))], images.manifests()).runs} == {1}
    assert {r.rank for r in cover([region("buffer", (4,), ((0, 4),))], images.manifests()).runs} == {0}, "the first"


def test_equal_chunks_of_two_images_are_read_once_for_all_who_want_them() -> None:
    images = Images()
    for rank in (0, 1):
        images.put(rank, "weight", (100,), ((0, 100),), 1)
    manifests = images.manifests()
    same = {
        r: m.__class__(**{f: getattr(m, f) for f in m.__slots__} | {"chunks": manifests[0].chunks})
        for r, m in manifests.items()
    }
    wants = {r: cover([region("weight", (100,), ((0, 100),), (r,))], same) for r in (0, 1)}
    plan = jobs(wants, same)
    assert len(plan) == 2
    assert {cut.to for job in plan for cut in job.cuts} == {0, 1}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (region("other", (4,), ((0, 4),)), "other: no image has a tensor of that name"),
        (
            region("weight", (6,), ((0, 6),)),
            "weight is x of shape (4,) in rank 0's image, and x of shape (6,) is wanted",
        ),
        (region("weight", (4,), ((0, 4),), (3,)), "weight: no image of ranks 3 has a tensor of that name"),
        (Region("w", "weight", (), "float32", (4,), (4,), (0,)), "and float32 of shape (4,) is wanted"),
        (
            Region("w", "weight", (), "x", (4,), (4,), (1,)),
            "weight: (4,) at (1,) is wanted, which is not inside of (4,)",
        ),
        (Region("w", "weight", (), "x", (4,), (4,), (-1,)), "weight: (4,) at (-1,) is wanted"),
        (Region("w", "weight", (), "x", (-4,), (4,), (0,)), "weight: the box that is wanted has no form"),
        (Region("w", "weight", (), "x", (4,), (4, 1), (0,)), "weight: the box that is wanted has no form"),
    ],
)
def test_what_does_not_fit_is_said(asked: Region, words: str) -> None:
    images = Images()
    images.put(0, "weight", (4,), ((0, 4),), 2)
    with pytest.raises(NotCovered) as refused:
        cover([asked], images.manifests())
    assert words in str(refused.value)


def test_a_box_of_no_elements_needs_nothing() -> None:
    images = Images()
    images.put(0, "weight", (4, 3), ((0, 2), (0, 3)), 2)
    found = cover([region("weight", (4, 3), ((4, 4), (0, 3)))], images.manifests())
    assert found.runs == ()
    assert found.entries[0].length_bytes == 0
