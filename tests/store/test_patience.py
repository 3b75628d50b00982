"""A download's limits: silence ends it soon, slowness late, and both give way to a store that is slow for everybody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_store.patience import (
    LONGEST_SECONDS,
    SILENT_SECONDS,
    TIMES_SLOWER,
    WHOLE_SECONDS,
    Limits,
    Pace,
    limits,
)

MIB = 1 << 20


def test_before_anything_is_known_silence_costs_seconds_and_a_whole_answer_may_take_its_time() -> None:
    assert limits(64 * MIB, rate=0, doublings=0) == Limits(SILENT_SECONDS, LONGEST_SECONDS)


def test_the_limit_of_a_whole_answer_follows_size_and_rate_with_a_floor() -> None:
    assert limits(MIB, rate=100 * MIB, doublings=0).whole_seconds == WHOLE_SECONDS
    assert limits(64 * MIB, rate=10 * MIB, doublings=0).whole_seconds == pytest.approx(TIMES_SLOWER * 6.4)
    assert limits(64 * MIB, rate=MIB, doublings=0).whole_seconds == LONGEST_SECONDS


@given(st.integers(0, 1 << 40), st.floats(0, 1e12), st.integers(0, 100))
def test_limits_are_finite_and_grow_with_what_was_met(length: int, rate: float, doublings: int) -> None:
    now, later = limits(length, rate=rate, doublings=doublings), limits(length, rate=rate, doublings=doublings + 1)
    assert 0 < now.silent_seconds <= now.whole_seconds <= LONGEST_SECONDS
    assert now.silent_seconds <= later.silent_seconds
    assert now.whole_seconds <= later.whole_seconds


def test_a_store_that_is_slow_for_everybody_is_waited_for_longer_until_something_passes() -> None:
    pace = Pace()
    first = pace.limits(MIB)
    pace.ran_out(first)
    second = pace.limits(MIB)
    assert second.silent_seconds == 2 * first.silent_seconds
    pace.passed(MIB, 1.0)
    assert pace.limits(MIB).silent_seconds == first.silent_seconds


def test_sixteen_requests_that_stall_together_count_once() -> None:
    pace = Pace()
    met = pace.limits(MIB)
    for _ in range(16):
        pace.ran_out(met)
    assert pace.limits(MIB).silent_seconds == 2 * met.silent_seconds


def test_small_answers_say_nothing_about_the_rate() -> None:
    pace = Pace()
    pace.passed(100, 1.0)
    assert pace.limits(64 * MIB).whole_seconds == LONGEST_SECONDS
