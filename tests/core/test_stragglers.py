"""Which rank holds the others up (stragglers.py): robust against any one odd value, told when it lasts, taken back when it is clearly over."""

import random
from dataclasses import replace
from typing import Any

import pytest
from job_worlds import JobWorld, a_job, condition, of_type

from holdfast_api.messages import AgentPhase, RankPace
from holdfast_operator.core import stragglers
from holdfast_operator.core.actions import EmitEvent


def paces(*busy: float, step: float = 1.0, data: float = 0.01, update: float = 0.1) -> tuple[RankPace, ...]:
    return tuple(RankPace(r, step, b, update, data) for r, b in enumerate(busy))


def found(pace: tuple[RankPace, ...], before: tuple[int, str] | None = None) -> tuple[int, str] | None:
    slow = stragglers.find(pace, before)
    return (slow.rank, slow.part) if slow else None


def test_the_one_that_computes_longer_while_all_take_the_same_time_from_step_to_step() -> None:
    slow = stragglers.find(paces(0.5, 0.51, 0.9, 0.49))
    assert slow is not None
    assert (slow.rank, slow.part) == (2, "busy")
    assert slow.ratio == pytest.approx(1.8)


def test_of_two_as_well() -> None:
    assert found(paces(0.5, 0.9)) == (1, "busy")


def test_one_that_waits_for_data() -> None:
    pace = paces(0.5, 0.5, 0.5)
    assert found((replace(pace[0], data_seconds=0.4), *pace[1:])) == (0, "data")


def test_what_costs_the_most_is_told() -> None:
    pace = paces(0.5, 0.5, 0.9)
    assert found((replace(pace[0], data_seconds=0.2), *pace[1:])) == (2, "busy")


@pytest.mark.parametrize("busy", [(0.5, 0.52, 0.55, 0.6), (0.5,), (), (0.5, 0.5), (0.2, 0.5, 0.7, 0.9, 1.2, 0.3)])
def test_ranks_that_differ_as_ranks_do_are_none(busy: tuple[float, ...]) -> None:
    assert found(paces(*busy)) is None


def test_three_times_as_long_for_next_to_nothing_is_none() -> None:
    pace = paces(0.5, 0.5, 0.5, data=0.001)
    assert found((replace(pace[0], data_seconds=0.003), *pace[1:])) is None


def test_a_measure_that_one_rank_does_not_give_is_not_compared() -> None:
    """On a GPU the processor's time says nothing, and it is 0."""
    assert found(paces(0.0, 0.5, 0.9)) is None
    assert found(paces(float("nan"), 0.5, 0.9)) is None
    assert found(paces(0.5, 0.5, 0.9, step=0.0)) is None


def test_one_that_was_found_stays_until_it_is_clearly_over() -> None:
    nearly = paces(0.5, 0.5, 0.6)
    assert found(nearly) is None
    assert found(nearly, (2, "busy")) == (2, "busy")
    assert found(paces(0.5, 0.5, 0.54), (2, "busy")) is None


def test_noise_is_seldom_a_straggler() -> None:
    rng = random.Random(1)
    wrong = sum(found(paces(*(0.5 * rng.lognormvariate(0, 0.05) for _ in range(8)))) is not None for _ in range(500))
    assert wrong <= 5, "of 500 looks at eight ranks that differ by 5 %"


# ---- over time


def world(*busy: float) -> JobWorld:
    w = a_job(workers=3).with_pods().training()
    return tell(w, *busy)


def tell(w: JobWorld, *busy: float, **fields: Any) -> JobWorld:
    for worker, pace in enumerate(paces(*busy)):
        w.reports(worker, AgentPhase.TRAINING, pace=(pace,), **fields)
    return w


def reasons(decision: Any) -> list[str]:
    return [e.reason for e in of_type(decision, EmitEvent)]


def test_it_is_told_once_it_has_lasted_with_worker_node_and_how_much() -> None:
    w = world(0.5, 0.9, 0.5)
    first = w.settled()
    assert first.wake_at is not None
    assert not reasons(first)
    assert w.status.straggler is not None
    assert not w.status.straggler.lasting
    second = tell(w.after(300), 0.5, 0.9, 0.5).settled()
    assert reasons(second) == ["Straggler"]
    told = condition(w.status, "RanksKeepPace")
    assert (told.status, told.reason) == ("False", "Straggler")
    assert "rank 1 (worker 1 on node n1) holds the others up: 80 % more" in told.message
    assert not reasons(tell(w.after(10), 0.5, 0.91, 0.5).settled()), "once"


def test_a_short_one_is_never_told() -> None:
    w = world(0.5, 0.9, 0.5)
    w.settled()
    tell(w.after(200), 0.5, 0.5, 0.5).settled()
    decision = tell(w.after(200), 0.5, 0.9, 0.5).settled()
    assert not reasons(decision), "the time counts from the newest begin"


def test_it_is_taken_back_when_it_is_over() -> None:
    w = world(0.5, 0.9, 0.5)
    w.settled()
    tell(w.after(300), 0.5, 0.9, 0.5).settled()
    tell(w.after(10), 0.5, 0.6, 0.5).settled()
    assert condition(w.status, "RanksKeepPace").status == "False", "not clearly over"
    tell(w.after(10), 0.5, 0.5, 0.5).settled()
    assert condition(w.status, "RanksKeepPace").status == "True"
    assert w.status.straggler is None


def test_numbers_that_move_a_little_are_not_written_again_and_again() -> None:
    w = world(0.5, 0.9, 0.5)
    w.settled()
    before = w.status
    for busy in (0.88, 0.95, 1.0, 0.85):
        tell(w.after(1), 0.5, busy, 0.5).settled()
    assert w.status.straggler == before.straggler


def test_nobody_is_compared_before_the_first_step_nor_while_one_is_not_training() -> None:
    w = world(0.5, 0.9, 0.5).reports(0, AgentPhase.RESTORING)
    w.settled()
    assert w.status.straggler is None
