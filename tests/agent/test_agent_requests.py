"""How many requests at once, and how long one may take: pure decisions, against small models of a store."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.link import Link
from holdfast_agent.pace import pace_of
from holdfast_agent.requests import MOST_SECONDS, Width, Window, next_width, seconds_for

CHUNK = 16 << 20


def settled(
    limit: float, *, most: int = 128, start: Width | None = None, each: float = 40e6, windows: int = 60
) -> Width:
    """After a while with a store that gives `each` to a request and `limit` to all of them."""
    width = start or Width(8)
    for _ in range(windows):
        rate = min(limit, width.requests * each)
        width = next_width(width, Window(int(rate), 1.0, 0, True), most=most)
    return width


@pytest.mark.parametrize(("limit", "needed"), [(1e9, 25), (5e9, 125), (100e6, 3)])
def test_as_many_requests_as_a_store_needs_for_what_it_gives_and_not_many_more(limit: float, needed: int) -> None:
    reached = settled(limit)
    assert min(reached.requests * 40e6, limit) >= 0.9 * limit
    assert reached.requests <= max(2 * needed, 8)


def test_growth_doubles_until_it_stops_paying_so_that_an_emergency_loses_no_time() -> None:
    width, seen = Width(8), []
    for _ in range(4):
        width = next_width(width, Window(int(width.requests * 40e6), 1.0, 0, True), most=128)
        seen.append(width.requests)
    assert seen == [16, 32, 64, 128]


def test_after_growth_has_stopped_requests_are_added_one_by_one_and_rarely() -> None:
    width = settled(1e9, windows=8)
    numbers = []
    for _ in range(32):
        width = next_width(width, Window(int(1e9), 1.0, 0, True), most=128)
        numbers.append(width.requests)
    assert max(numbers) - min(numbers) == 1


def test_a_refusal_halves_and_growth_goes_on_one_by_one() -> None:
    width = next_width(Width(64, best=1e9), Window(CHUNK, 1.0, 1, True), most=128)
    assert (width.requests, width.doubling) == (32, False)
    assert next_width(width, Window(int(1e9), 1.0, 0, True), most=128).requests == 33


def test_a_store_that_refuses_everything_is_asked_by_one_request() -> None:
    width = Width(128)
    for _ in range(20):
        width = next_width(width, Window(0, 1.0, 5, True), most=128)
    assert width.requests == 1
    assert settled(1e9, start=width, windows=80).requests >= 20  # and found again when it recovers


def test_where_hashing_is_the_limit_nothing_is_learned() -> None:
    width = Width(8, best=1e9)
    assert next_width(width, Window(int(2e9), 1.0, 0, False), most=128) == width


def test_a_network_that_got_slower_does_not_count_as_one_that_does_not_grow() -> None:
    width = next_width(Width(64, best=5e9), Window(int(1e9), 1.0, 0, True), most=128)
    assert width.best == 1e9
    assert next_width(width, Window(int(1.5e9), 1.0, 0, True), most=128).requests == 65


@given(
    st.integers(1, 200), st.floats(0, 1e10), st.integers(0, 200), st.booleans(), st.integers(0, 20), st.integers(0, 10**12),
    st.floats(0, 100), st.integers(0, 50), st.booleans(), st.integers(1, 128),
)  # fmt: skip
def test_the_number_is_always_between_one_and_the_most(
    requests: int,
    best: float,
    good: int,
    doubling: bool,
    flat: int,
    size: int,
    seconds: float,
    refusals: int,
    full: bool,
    most: int,
) -> None:
    width = next_width(Width(requests, best, good, doubling, flat), Window(size, seconds, refusals, full), most=most)
    assert 1 <= width.requests <= most


# ---- how long one may take


def test_a_request_that_hangs_leaves_time_for_another_one() -> None:
    for left in (5.0, 15.0, 30.0, 120.0):
        for rate in (0.0, 20e6, 200e6):
            expected = CHUNK / (rate or 4e6)
            allowed = seconds_for(CHUNK, bytes_per_second=rate, left=left, tried=0)
            if left >= 3 * expected:
                assert left - allowed >= expected, (left, rate)


def test_the_last_request_before_a_deadline_is_not_cut_before_it() -> None:
    assert seconds_for(CHUNK, bytes_per_second=4e6, left=5.0, tried=0) == 5.0


def test_each_try_gets_twice_as_long_so_that_a_slow_store_is_not_cut_for_ever() -> None:
    tries = [seconds_for(CHUNK, bytes_per_second=40e6, left=math.inf, tried=n) for n in range(12)]
    assert tries[:3] == [2.0, 4.0, 8.0]
    assert tries[-1] == MOST_SECONDS


@given(st.integers(0, 1 << 30), st.floats(0, 1e11), st.one_of(st.just(math.inf), st.floats(0, 1e4)), st.integers(0, 99))
def test_a_request_always_has_some_time_and_never_more_than_is_left(
    size: int, rate: float, left: float, tried: int
) -> None:
    allowed = seconds_for(size, bytes_per_second=rate, left=left, tried=tried)
    assert 0 < allowed <= MOST_SECONDS
    assert allowed <= max(left, 0.1)


# ---- what is remembered


def test_what_periodic_saves_have_learned_is_where_an_emergency_begins() -> None:
    clock = [0.0]
    link = Link(lambda: clock[0])
    background, emergency = pace_of(emergency=False, cpus=4), pace_of(emergency=True, cpus=4)
    assert link.begin(background) == background.first_requests
    for _ in range(400):
        clock[0] += 0.2
        link.went(CHUNK, 0.4, waiting=5, most=background.most_requests)
    assert link.requests <= background.most_requests
    learned = link.requests
    assert link.is_measured
    assert 40e6 < link.bytes_per_second < 43e6
    assert link.begin(emergency) == max(learned, emergency.first_requests)


def test_refusals_of_requests_that_were_sent_together_count_once() -> None:
    link = Link(lambda: 0.0)
    first = link.begin(pace_of(emergency=True, cpus=4))
    for _ in range(first):
        number = link.failed(most=128)
    assert number == first // 2
    assert link.refused == first


def test_a_background_flush_yields_and_an_emergency_does_not() -> None:
    background, emergency = pace_of(emergency=False, cpus=64), pace_of(emergency=True, cpus=64)
    assert background.background
    assert not emergency.background
    assert background.hashers == 1
    assert emergency.hashers > 1
    assert pace_of(emergency=True, cpus=1).hashers == 1


# ---- before anything is known


@pytest.mark.parametrize("left", [5.0, 30.0, 90.0])
def test_while_the_speed_is_unknown_only_the_scout_is_cut_before_the_deadline(left: float) -> None:
    assert seconds_for(CHUNK, bytes_per_second=0.0, left=left, tried=0, scout=False) == left
    if left >= 30.0:
        assert seconds_for(CHUNK, bytes_per_second=0.0, left=left, tried=0, scout=True) < left
    known = [seconds_for(CHUNK, bytes_per_second=8e6, left=left, tried=0, scout=scout) for scout in (True, False)]
    assert known[0] == known[1]


def test_what_two_requests_had_is_not_expected_of_each_of_eight() -> None:
    """A slow line that a background save has measured: 4 MB/s for two. The eight of an emergency get a quarter of it each, and are not cut for that."""
    clock = [0.0]
    link = Link(lambda: clock[0])
    link.begin(pace_of(emergency=False, cpus=4))
    for _ in range(40):
        clock[0] += 4.2
        link.went(CHUNK, 8.4, waiting=0, most=16)
    assert link.requests == 2
    assert 1.9e6 < link.bytes_per_second < 2.1e6
    link.begin(pace_of(emergency=True, cpus=4))
    assert link.requests == 8
    assert link.bytes_per_second < 0.6e6
    assert not link.is_measured
    takes = 8 * CHUNK / 4e6
    assert seconds_for(CHUNK, bytes_per_second=link.bytes_per_second, left=math.inf, tried=0) > takes
    link.went(CHUNK, 0.4, waiting=0, most=128)
    assert link.is_measured
    assert link.bytes_per_second == CHUNK / 0.4, (
        "a store that gives each request its own is known at once for what it is"
    )


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_late_request_of_the_save_that_stepped_aside_does_not_narrow_the_emergency(ends_well: bool) -> None:
    clock = [0.0]
    link = Link(lambda: clock[0])
    background, emergency = pace_of(emergency=False, cpus=4), pace_of(emergency=True, cpus=4)
    link.begin(background)
    link.begin(emergency)
    for _ in range(6):  # it has found that much brings more
        for _ in range(link.requests):
            clock[0] += 0.4 / link.requests
            link.went(CHUNK, 0.4, waiting=1000, most=emergency.most_requests)
    wide = link.requests
    assert wide > background.most_requests
    clock[0] += 1.0
    for _ in range(2 * wide):
        late = {"most": background.most_requests}
        own = link.went(CHUNK, 5.0, waiting=10, **late) if ends_well else link.failed(**late)
    assert link.requests == wide
    assert own <= background.most_requests, "the older save's own lane stays as narrow as it was"
