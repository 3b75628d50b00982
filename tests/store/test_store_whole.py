"""Parts of tensors are put together by their boxes: whatever the grid, each byte lands where it belongs; what is no whole is an error that names the tensor."""

import itertools
import os
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_api.manifest import RankManifest, TensorEntry
from holdfast_store.errors import Corrupt
from holdfast_store.whole import copy, whole

Cuts = list[list[int]]


def manifest(rank: int, image_bytes: int, entry: TensorEntry) -> RankManifest:
    return RankManifest("uid", 1, 1, rank, 8, 1, image_bytes, 1 << 20, (), (entry,))


class Images:
    """Of ranks that each hold one box of a tensor of numbers, one after the other in their images; `twice`: as many ranks again hold the same."""

    def __init__(self, shape: tuple[int, ...], cuts: Cuts, *, twice: bool = False, item: str = "<i4") -> None:
        self.values = numpy.arange(int(numpy.prod(shape)), dtype=item).reshape(shape)
        runs = [list(itertools.pairwise([0, *sorted(c), n])) for c, n in zip(cuts, shape, strict=True)]
        self.boxes = [*itertools.product(*runs)] * (2 if twice else 1)
        self.images, self.manifests = {}, {}
        for rank, box in enumerate(self.boxes):
            part = self.values[tuple(slice(a, b) for a, b in box)]
            at = 64 + 8 * rank
            self.images[rank] = b"\xff" * at + part.tobytes()
            entry = TensorEntry("w", "int32", part.shape, at, part.nbytes, None, shape, tuple(a for a, _ in box))
            self.manifests[rank] = manifest(rank, len(self.images[rank]), entry)

    def put_together(self, directory: Path) -> bytes:
        made = whole(["w"], self.manifests, 100)
        (entry,) = made.entries
        assert (entry.shape, entry.global_shape) == (self.values.shape, ())
        with (directory / "whole").open("w+b") as target:
            target.truncate(made.end)
            for rank, image in self.images.items():
                source = directory / "image"
                source.write_bytes(image)
                with source.open("rb") as file:
                    copy((r for r in made.runs if r.rank == rank), file.fileno(), target.fileno())
            return os.pread(target.fileno(), entry.length_bytes, entry.offset_bytes)


shapes = st.lists(st.integers(0, 6), min_size=1, max_size=3).flatmap(
    lambda shape: st.tuples(
        st.just(tuple(shape)), st.tuples(*(st.lists(st.integers(0, n), max_size=3) for n in shape)), st.booleans()
    )
)


@settings(deadline=None)
@given(shapes)
def test_any_grid_of_boxes_becomes_the_whole(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[tuple[int, ...], tuple[list[int], ...], bool]
) -> None:
    shape, cuts, twice = case
    images = Images(shape, list(cuts), twice=twice)
    assert images.put_together(tmp_path_factory.mktemp("whole")) == images.values.tobytes()


def test_only_parts_that_are_needed_are_read() -> None:
    made = whole(["w"], Images((4, 4), [[2], [2]], twice=True).manifests, 0)
    assert sorted(made.needed) == [0, 1, 2, 3]


@pytest.mark.parametrize("lacking", range(4))
def test_a_gap_is_an_error(lacking: int) -> None:
    manifests = Images((4, 4), [[2], [2]]).manifests
    del manifests[lacking]
    with pytest.raises(Corrupt, match=r"w: no rank holds \["):
        whole(["w"], manifests, 0)


def test_an_overlap_and_another_dtype_are_errors() -> None:
    one, other = Images((4,), [[2]]), Images((4,), [[1]])
    with pytest.raises(Corrupt, match=r"rank 1 holds \[1:4\] of it, which overlaps what rank 0 holds"):
        whole(["w"], {0: one.manifests[0], 1: other.manifests[1]}, 0)
    (entry,) = one.manifests[1].tensors
    halves = TensorEntry(
        "w",
        "float32",
        *(
            getattr(entry, f)
            for f in ("shape", "offset_bytes", "length_bytes", "tied_to", "global_shape", "global_offset")
        ),
    )
    with pytest.raises(Corrupt, match="is float32 of"):
        whole(["w"], {0: one.manifests[0], 1: manifest(1, 200, halves)}, 0)
