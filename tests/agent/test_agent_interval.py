"""`every: auto`: the interval follows from what a save costs and how often it is needed (interval.py, costs.py)."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.costs import Measured
from holdfast_agent.interval import (
    FIRST_SECONDS,
    LONGEST_SECONDS,
    PRIOR_WORKER_SECONDS,
    REQUEST_SECONDS,
    SHORTEST_SECONDS,
    Bound,
    Choice,
    Costs,
    History,
    Limits,
    choose,
    daly,
    steady,
)

WIDE = Limits(max_loss_seconds=LONGEST_SECONDS, max_overhead=1.0)
DAY = 86_400.0


def expected_loss(period: float, cost: float, mean: float) -> float:
    """Share of time lost with saves every `period` and memoryless interruptions: per finished period, period - cost seconds are won, and by the
    memoryless property it takes mean * (exp(period / mean) - 1) seconds to finish one."""
    return 1 - (period - cost) / (mean * math.expm1(period / mean))


@pytest.mark.parametrize(("cost", "mean"), [(0.2, 3600), (1, 3600), (5, 3 * 3600), (30, 1800), (60, 600)])
def test_the_formula_is_the_best_period_for_memoryless_interruptions(cost, mean):
    best = min(expected_loss(cost * (1 + n / 200), cost, mean) for n in range(1, 100_000) if cost * n / 200 < 20 * mean)
    assert expected_loss(daly(cost, mean), cost, mean) == pytest.approx(best, rel=2e-3)


def test_a_job_without_history_goes_by_the_prior_and_one_with_a_long_one_by_itself():
    costs = Costs(1.0, 0.0, 10.0)
    young = choose(costs, History(workers=8), WIDE)
    effective = PRIOR_WORKER_SECONDS / 8 / (1 - 0.5)
    assert (young.bound, young.seconds) == (Bound.BEST, pytest.approx(daly(1.0, effective)))
    old = choose(costs, History(interruptions=1000, caught=0, seconds=1000 * 3600.0, workers=8), WIDE)
    assert old.seconds == pytest.approx(daly(1.0, 3600), rel=0.02)


def test_interruptions_that_are_caught_do_not_count():
    costs = Costs(1.0, 0.0, 10.0)
    lost = choose(costs, History(interruptions=1000, caught=0, seconds=1000 * 3600.0), WIDE)
    caught = choose(costs, History(interruptions=1000, caught=949, seconds=1000 * 3600.0), WIDE)
    assert caught.seconds / lost.seconds == pytest.approx(1 / math.sqrt(1 - 0.95), rel=0.05)


@pytest.mark.parametrize(
    ("costs", "limits", "seconds", "bound"),
    [
        (Costs(1, 0, 10), Limits(100, 1.0), 90, Bound.MAX_LOSS),
        (Costs(60, 40, 10), Limits(LONGEST_SECONDS, 0.01), 10_000, Bound.MAX_OVERHEAD),
        (Costs(60, 40, 10), Limits(300, 0.01), 290, Bound.MAX_LOSS),  # the loss is bounded before the overhead is
        (Costs(1, 0, 200), Limits(300, 1.0), 220, Bound.PERSIST),  # one save in flight, whatever is wished
        (Costs(1e-9, 0, 0.001), Limits(1, 1.0), SHORTEST_SECONDS, Bound.RANGE),
    ],
)
def test_limits_bound_the_interval_and_are_named(costs, limits, seconds, bound):
    choice = choose(costs, History(interruptions=100, caught=50, seconds=100 * 7200.0), limits)
    assert (round(choice.seconds), choice.bound) == (round(seconds), bound)
    assert bound.value in choice.words


def test_a_loss_that_cannot_be_bounded_is_said():
    choice = choose(Costs(1, 0, 200), History(), Limits(60, 1.0))
    assert choice.bound is Bound.PERSIST
    assert "maxLossSeconds 60 cannot be held" in choice.words
    assert "cannot be held" not in choose(Costs(1, 0, 20), History(), Limits(3600, 1.0)).words


def test_requests_that_cost_money_make_saves_rarer():
    """J3."""
    history = History(interruptions=10, caught=0, seconds=DAY)
    free, paid = Costs(0.5, 0, 10), Costs(0.5, 0, 10, requests=500)
    assert paid.seconds == 0.5 + 500 * REQUEST_SECONDS
    assert choose(paid, history, WIDE).seconds > 2 * choose(free, history, WIDE).seconds


def test_the_first_save_comes_early_so_that_there_is_something_to_go_by():
    assert choose(None, History(), WIDE).seconds == FIRST_SECONDS
    assert choose(None, History(), Limits(20, 1.0)).seconds == 20
    assert choose(None, History(), WIDE).bound is Bound.NOTHING_MEASURED


count = st.integers(min_value=0, max_value=10**9)


@given(
    st.builds(Costs, *(4 * [st.floats(min_value=0) | st.just(math.nan)])) | st.none(),
    st.builds(History, count, count, st.floats(0, 1e12), st.integers(0, 10**6)),
    st.builds(Limits, st.floats(1, 1e9), st.floats(0, 1)),
)
def test_whatever_the_numbers_the_interval_can_be_used(costs, history, limits):
    choice = choose(costs, history, limits)
    assert SHORTEST_SECONDS <= choice.seconds <= LONGEST_SECONDS
    if choice.bound in (Bound.BEST, Bound.MAX_LOSS, Bound.MAX_OVERHEAD):
        assert costs is not None
        assert choice.seconds + costs.persist_seconds <= max(limits.max_loss_seconds, SHORTEST_SECONDS) * 1.001


@given(st.floats(1e-3, 1e5), st.floats(1, 1e8), st.floats(1.001, 100))
def test_dearer_saves_and_rarer_interruptions_mean_longer_intervals(cost, mean, factor):
    assert daly(cost * factor, mean) >= daly(cost, mean) * 0.999 or cost * factor >= 2 * mean
    assert daly(cost, mean * factor) >= daly(cost, mean) * 0.999


def test_small_changes_are_no_news():
    before = Choice(100.0, Bound.BEST, "before")
    assert steady(before, Choice(109.0, Bound.BEST, "after")) is before
    assert steady(before, Choice(111.0, Bound.BEST, "after")).words == "after"
    first = Choice(60.0, Bound.NOTHING_MEASURED, "first")
    assert steady(first, Choice(60.0, Bound.BEST, "measured")).words == "measured"
    assert steady(None, first) is first


def test_costs_are_unknown_until_a_save_was_seen_whole_and_then_follow_what_is_seen():
    assert Measured().costs is None
    assert Measured().stalled(1).costs is None
    assert Measured().persisted(5, 0).costs is None
    seen = Measured().stalled(1.0).persisted(5.0, 100)
    assert seen.costs == Costs(1.0, 0.0, 5.0, 100)
    for _ in range(50):
        seen = seen.stalled(2.0).persisted(10.0, 50)
    assert seen.costs.stall_seconds == pytest.approx(2.0)
    assert seen.costs.persist_seconds == pytest.approx(10.0)
    assert seen.costs.requests == pytest.approx(50)


def test_slower_steps_while_a_save_is_written_are_part_of_its_cost():
    seen = Measured().stalled(0.0).persisted(10.0, 0)
    for _ in range(100):
        seen = seen.stepped(0.1, saving=False).stepped(0.125, saving=True)
    assert seen.costs.slowdown_seconds == pytest.approx(10.0 * 0.2)
    assert seen.stepped(0.01, saving=True).stepped(0.05, saving=False).costs.slowdown_seconds >= 0
