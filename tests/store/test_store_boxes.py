"""A box of a tensor is put together from the boxes that ranks hold: each element from exactly one, copies from the first; all else is an error by name."""

import math

import pytest

from holdfast_api.manifest import TensorEntry
from holdfast_store import boxes
from holdfast_store.errors import Corrupt

WHOLE = (4, 6)


def entry(
    box: boxes.Box, *, whole: tuple[int, ...] = WHOLE, dtype: str = "int16", length: int | None = None
) -> TensorEntry:
    shape = tuple(end - first for first, end in box)
    size = 2 * math.prod(shape) if length is None else length
    return TensorEntry("w", dtype, shape, 100, size, None, whole, tuple(first for first, _ in box))


ALL: boxes.Box = ((0, 4), (0, 6))
LEFT, RIGHT = entry(((0, 4), (0, 3))), entry(((0, 4), (3, 6)))
TOP, BOTTOM = entry(((0, 2), (0, 6))), entry(((2, 4), (0, 6)))


def test_rows_of_columns_are_one_run_of_pieces() -> None:
    """Not one for each row: a tensor of tensor parallelism has thousands."""
    found = boxes.cut("w", ALL, [(0, LEFT), (1, RIGHT)], 1000)
    assert found.length_bytes == 48
    assert [(r.rank, r.length, r.count) for r in found.runs] == [(0, 6, 4), (1, 6, 4)]
    assert [*found.runs[1].pieces()] == [(100, 1006), (106, 1018), (112, 1030), (118, 1042)]


def test_what_lies_together_on_both_sides_is_one_piece() -> None:
    (first, second) = boxes.cut("w", ALL, [(0, TOP), (1, BOTTOM)], 0).runs
    assert (first.count, first.length, second.target_at) == (1, 24, 24)


def test_copies_are_taken_from_the_first_and_what_is_not_wanted_is_not_read() -> None:
    found = boxes.cut("w", ((0, 2), (1, 2)), [(3, TOP), (4, TOP), (5, BOTTOM)], 0)
    assert {r.rank for r in found.runs} == {3}
    assert found.read == ((3, TOP),)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([LEFT], "no rank holds [0:4, 3:6] of it"),
        ([entry(((0, 2), (0, 3))), entry(((2, 4), (3, 6)))], "no rank holds [2:4, 0:3] of it (1 more such boxes)"),
        ([LEFT, RIGHT, entry(((3, 4), (2, 4)))], "rank 2 holds [3:4, 2:4] of it, which overlaps what rank 0 holds"),
        ([entry(ALL, whole=()), LEFT], "rank 1 holds [0:4, 0:3] of it, which overlaps what rank 0 holds"),
        (
            [LEFT, entry(((0, 4), (3, 6)), dtype="int32")],
            "is int32 of (4, 6) in rank 1's image, and int16 of (4, 6) in rank 0's",
        ),
        ([LEFT, entry(((0, 4), (3, 6)), whole=(4, 7))], "is int16 of (4, 7) in rank 1's image"),
        ([entry(((0, 4), (3, 7)))], "which is no box of (4, 6)"),
        ([entry(((-1, 4), (3, 6)))], "which is no box of (4, 6)"),
        ([entry(((0, 4),))], "which is no box of (4, 6)"),
        ([entry(((0, 0),))], "which is no box of (4, 6)"),
        ([entry(((0, -4), (0, -6)))], "which is no box of (4, 6)"),
        ([TensorEntry("w", "int16", (4, 6), 0, 48, None, WHOLE, (0,))], "which is no box of (4, 6)"),
        ([LEFT, entry(((0, 4), (3, 6)), length=48)], "48 bytes in rank 1's image do not hold (4, 3) elements"),
        ([entry(ALL, length=47)], "47 bytes in rank 0's image do not hold (4, 6) elements"),
        ([entry(ALL, length=0)], "0 bytes in rank 0's image do not hold (4, 6) elements"),
        ([], "no rank holds [0:4, 0:6] of it"),
    ],
)
def test_what_does_not_make_it_is_named(held: list[TensorEntry], words: str) -> None:
    with pytest.raises(Corrupt) as refused:
        boxes.cut("w", ALL, [*enumerate(held)], 0)
    assert str(refused.value).startswith("w: ")
    assert words in str(refused.value)


def test_shapes_without_bound_cost_nothing_before_they_are_refused() -> None:
    huge = 1 << 60
    with pytest.raises(Corrupt, match="do not hold"):
        boxes.cut("w", ((0, huge), (0, huge)), [(0, TensorEntry("w", "int16", (huge, huge), 0, 8, None))], 0)


def test_parts_of_no_elements_may_lie_anywhere() -> None:
    empty = entry(((9, 9), (0, 6)))
    assert len(boxes.cut("w", ALL, [(0, TOP), (1, empty), (2, BOTTOM)], 0).runs) == 2
    assert boxes.cut("w", ((2, 2), (0, 6)), [(0, empty)], 0) == boxes.Cut(0, (), ())


def test_a_number_is_a_box_of_no_axes() -> None:
    one = TensorEntry("n", "int64", (), 8, 8)
    assert boxes.cut("n", (), [(0, one), (1, one)], 64).runs == (boxes.Run(0, 8, 64, 8),)
