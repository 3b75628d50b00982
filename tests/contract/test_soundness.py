"""The rule of what is wrong with a checkpoint: one grade each, and the newest of the best is what a start continues."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_api.soundness import Grade, best, grade, is_sound


class Found(NamedTuple):
    finite: bool | None = None
    suspect: str = ""


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Found(True), Grade.SOUND),
        (Found(None), Grade.SOUND),
        (Found(True, "rank 1"), Grade.SUSPECT),
        (Found(None, "rank 1"), Grade.SUSPECT),
        (Found(False), Grade.NOT_FINITE),
        (Found(False, "rank 1"), Grade.NOT_FINITE),
    ],
)
def test_each_finding_has_one_grade(found: Found, expected: Grade) -> None:
    assert grade(found) is expected
    assert is_sound(found) is (expected is Grade.SOUND)
    assert grade(found, damaged=True) is max(expected, Grade.DAMAGED), "what is in it weighs more than where it lies"


@given(st.lists(st.builds(Found, st.sampled_from([True, False, None]), st.sampled_from(["", "rank 1"]))))
def test_a_start_continues_the_newest_of_the_best(newest_first: list[Found]) -> None:
    found = best(newest_first)
    if not newest_first:
        assert found is None
        return
    assert found is not None
    least = min(map(grade, newest_first))
    assert found is next(f for f in newest_first if grade(f) is least)


def test_no_more_is_read_than_it_takes() -> None:
    def reading() -> object:
        yield Found(False)
        yield Found(True)
        raise AssertionError("read on after a sound one")

    assert best(reading()) == Found(True)  # type: ignore[type-var, arg-type]
