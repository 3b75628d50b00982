"""E6: the claim waits for what members finish from their nodes if, and only as long as, that is shorter than doing the steps again."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent.worth_waiting import LAST_SECONDS, Wait, choose, is_covered
from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import UnfinishedCopy


def a_copy(**fields: object) -> UnfinishedCopy:
    usual = {"attempt": 3, "save": 5, "worker": 0, "boundary": 120, "ranks": (0,), "state": "sending", "seconds": 10.0}
    return UnfinishedCopy(**(usual | {"step_seconds": 1.0} | fields))


def chosen(*copies: UnfinishedCopy, **fields: object) -> Wait | None:
    usual = {
        "claimed": 3,
        "world_size": len(copies),
        "committed_boundary": 100,
        "step_seconds": 0.5,
        "waited_seconds": 0.0,
    }
    return choose(copies, **(usual | fields))


def test_a_copy_that_is_there_sooner_than_its_steps_are_done_again_is_waited_for():
    assert chosen(a_copy()) == Wait(CheckpointRef(3, 5), 120, 20, 10.0 + LAST_SECONDS, 20.0)


@pytest.mark.parametrize(
    ("copies", "fields"),
    [
        pytest.param([a_copy(seconds=25.0)], {}, id="the steps are done again sooner"),
        pytest.param([a_copy(boundary=100)], {}, id="as much is committed already"),
        pytest.param([a_copy(attempt=2)], {}, id="a claim has excluded it"),
        pytest.param([a_copy()], {"claimed": 0}, id="nobody has claimed"),
        pytest.param([a_copy()], {"world_size": 2}, id="another rank's part is with nobody"),
        pytest.param([a_copy(state="given-up")], {}, id="it is given up"),
        pytest.param([a_copy(state="committed")], {}, id="it is committed, so it is found like any other"),
        pytest.param([a_copy(state="a later word")], {}, id="a state of a later release"),
        pytest.param([a_copy()], {"waited_seconds": 20.0}, id="it has been waited for as long as it is worth"),
        pytest.param([a_copy(), a_copy(worker=1, ranks=(1,), seconds=30.0)], {}, id="the slowest counts"),
        pytest.param([], {"world_size": 1}, id="nobody has anything"),
        pytest.param([a_copy(seconds=math.nan)], {}, id="nonsense"),
    ],
)
def test_otherwise_the_claim_is_made_now(copies, fields):
    assert chosen(*copies, **fields) is None


def test_a_rank_whose_part_is_in_the_store_needs_nobody_who_holds_it():
    assert chosen(a_copy(there=(1, 2)), world_size=3) is not None


def test_a_save_of_another_world_is_whole_with_all_ranks_of_its_own():
    """Fewer workers than before wait for nothing that nobody can finish, more of them for what can be."""
    assert chosen(a_copy(world_size=2), world_size=1) is None
    assert chosen(a_copy(world_size=10**12), world_size=1) is None
    assert chosen(a_copy(world_size=1), world_size=2) is not None


def test_of_two_who_hold_the_same_part_the_faster_counts():
    assert chosen(a_copy(seconds=500.0), a_copy(), world_size=1).seconds == 10.0 + LAST_SECONDS


def test_where_the_newest_lacks_a_part_the_next_older_is_waited_for():
    copies = [a_copy(save=6, boundary=130), a_copy(), a_copy(worker=1, ranks=(1,))]
    assert chosen(*copies, world_size=2).ref == CheckpointRef(3, 5)


def test_without_a_known_step_the_leads_own_counts():
    assert chosen(a_copy(step_seconds=0.0), step_seconds=0.6).worth_seconds == pytest.approx(12.0)
    assert chosen(a_copy(step_seconds=0.0), step_seconds=0.5) is None


NUMBERS = st.floats(0, 1e4)
COPIES = st.lists(
    st.builds(
        UnfinishedCopy,
        attempt=st.integers(1, 4),
        save=st.integers(1, 3),
        worker=st.integers(0, 3),
        boundary=st.integers(0, 300),
        ranks=st.lists(st.integers(0, 3), max_size=3).map(tuple),
        state=st.sampled_from(["sending", "stored", "committed", "given-up"]),
        seconds=NUMBERS,
        there=st.lists(st.integers(0, 3), max_size=2).map(tuple),
        step_seconds=NUMBERS,
    ),
    max_size=6,
)


@given(COPIES, st.integers(0, 4), st.integers(1, 4), st.integers(0, 300), NUMBERS, NUMBERS)
def test_nothing_is_waited_for_that_is_not_worth_it_or_cannot_come(copies, claimed, world, committed, step, waited):
    wait = choose(
        copies,
        claimed=claimed,
        world_size=world,
        committed_boundary=committed,
        step_seconds=step,
        waited_seconds=waited,
    )
    if wait is None:
        return
    assert wait.ref.attempt == claimed
    assert wait.steps == wait.boundary - committed > 0
    assert wait.seconds < wait.worth_seconds
    assert waited < wait.worth_seconds
    assert is_covered([c for c in copies if c.ref == wait.ref and c.state in ("sending", "stored")], world)


@given(COPIES, st.integers(1, 4), st.integers(1, 4), st.integers(1, 300), NUMBERS, NUMBERS)
def test_with_less_committed_or_less_waited_it_is_not_given_up(copies, claimed, world, committed, step, waited):
    def at(boundary: int, seconds: float) -> Wait | None:
        return choose(
            copies, claimed=claimed, world_size=world, committed_boundary=boundary, step_seconds=step, waited_seconds=seconds
        )  # fmt: skip

    if at(committed, waited) is not None:
        assert at(committed - 1, waited) is not None
        assert at(committed, waited / 2) is not None


@given(st.floats(0, 1e3), st.floats(0.01, 10), st.integers(1, 100), st.lists(st.floats(0, 1e3), max_size=50))
def test_in_all_it_is_waited_no_longer_than_it_is_worth(first, step, steps, estimates):
    """Whatever the estimates say from look to look."""
    waited, look = 0.0, 0.5
    for seconds in (first, *estimates * 10):
        copy = a_copy(seconds=seconds, step_seconds=step, boundary=100 + steps)
        if chosen(copy, waited_seconds=waited) is None:
            break
        waited += look
    assert waited <= step * steps + look


def test_a_part_of_a_rank_that_somebody_else_has_given_up_counts_where_it_is_still_held():
    gone = dataclasses.replace(a_copy(), state="given-up")
    assert chosen(gone, a_copy(), world_size=1) is not None
