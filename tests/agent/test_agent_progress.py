"""A flush that runs is a measurement of the store: what it has sent, what that says, and what an agent expects from it (planner; E3)."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_agent import clock, spans
from holdfast_agent.clock import Deadline
from holdfast_agent.estimate import Estimates
from holdfast_agent.outlook import outlook_of
from holdfast_agent.planning import Planning
from holdfast_agent.progress import MOST_MARKS, Progress
from holdfast_api.messages import Cause
from holdfast_api.peers import GateVotes
from tests.agent.lone import CHUNK, Barrier, Lone, in_thread

NOW = 1_800_000_000.0
MIB = 1 << 20
anything = st.floats(allow_nan=True, allow_infinity=True)


def test_what_counts_is_what_was_answered_lately():
    at = [100.0]
    progress = Progress(full_speed=True, clock=lambda: at[0])
    for _ in range(4):
        progress.begins(16 * MIB)
    at[0] += 2
    assert progress.measured == (0, 0.0, 0.0), "nothing was answered"
    for _ in range(2):
        progress.ends(16 * MIB, stored=True)
    assert progress.measured == (2 * 16 * MIB, 2.0, 0.0), "from the begin, which was slow: it is no turn"
    for _ in range(20):
        at[0] += 0.5
        progress.begins(64 * MIB)
        progress.ends(64 * MIB, stored=True)
    size, seconds, turns = progress.measured
    assert size / seconds == pytest.approx(128 * MIB)
    assert turns == pytest.approx(size / (96 * MIB))
    progress.ends(16 * MIB, stored=False)  # refused: nothing of it counts
    assert progress.answered == (2 + 80) * 16 * MIB


def test_a_flush_of_hours_is_measured_by_its_newer_half_with_few_marks():
    at = [0.0]
    progress = Progress(full_speed=False, clock=lambda: at[0])
    for n in range(4000):
        at[0] += 1.0 if n < 2000 else 0.5
        progress.begins(MIB)
        progress.ends(MIB, stored=True)
    size, seconds, _ = progress.measured
    assert MIB < size / seconds <= 2 * MIB
    assert len(progress._marks) <= MOST_MARKS


def test_a_flush_that_runs_counts_more_the_more_it_has_shown_and_less_than_none_never():
    size, rate = 10_000 * MIB, 500e6
    unknown = Estimates()
    spreads = []
    for turns in (None, 0.0, 1.0, 2.0, 5.0):
        known = unknown if turns is None else unknown.under_way(rate * 3, 3.0, turns, emergency=True, at=NOW)
        span = known.store_span(size, NOW, based=False)
        spreads.append(span.sure / span.best)
        if turns is not None:
            assert known.hurried.value == pytest.approx(rate)
    assert spreads == sorted(spreads, reverse=True)
    assert unknown.under_way(rate, 1.0, 3.0, emergency=False, at=NOW).hurried == unknown.hurried


@given(sent=anything, seconds=anything, turns=anything, emergency=st.booleans())
def test_nonsense_is_no_measurement(sent, seconds, turns, emergency):
    found = Estimates().under_way(sent, seconds, turns, emergency=emergency, at=NOW)
    span = found.store_span(1 << 30, NOW, based=False)
    assert 0 < span.best <= span.likely <= span.sure <= 10 * spans.LONG_SECONDS
    assert math.isfinite(found.hurried.value)


async def test_an_agent_expects_of_its_store_what_the_flush_that_runs_shows(tmp_path):
    lone = Lone(tmp_path)
    size = lone.shared.logical_bytes
    at = [0.0]
    progress = Progress(full_speed=True, clock=lambda: at[0])
    progress.begins(size // 2)
    at[0] = 100.0
    progress.ends(size // 2, stored=True)
    before, after = outlook_of(lone.shared), outlook_of(lone.shared, progress)
    assert before is not None
    assert after is not None
    assert before.store.likely < 1, "the guess"
    assert after.store.likely > 150, "half of it has taken 100 s"
    assert after.beside == after.store, "what runs at full speed ends at full speed"
    await lone.close()


async def test_a_real_flush_says_how_far_it_is(tmp_path):
    second = Barrier("create", "/chunks/")
    second.armed = False
    calls = []

    def before_call(operation, key):
        if operation == "create" and "/chunks/" in key:
            calls.append(key)
            second.armed = len(calls) == 2
        second(operation, key)

    lone = Lone(tmp_path, before_call=before_call)
    lone.capture(0, 10)
    lone.offer(10)
    await in_thread(second.reached)
    await lone.until(
        lambda: lone.writing.progress is not None and lone.writing.progress.answered > 0, "one is answered"
    )
    progress = lone.writing.progress
    assert progress.answered == CHUNK
    assert progress.measured[0] == CHUNK
    second.free.set()
    await lone.until(lambda: lone.shared.last_boundary == 10)
    assert progress.answered == 2 * CHUNK
    assert lone.writing.progress is None
    await lone.close()


async def test_time_in_which_ranks_stand_at_their_gates_says_nothing_of_their_steps(tmp_path):
    """Until a target is released a rank may stand there: a later deadline would find it hung (F3)."""
    lone = Lone(tmp_path)
    lone.rank.boundary = 10
    for _ in range(20):
        lone.shared.experience.stepped(0.1)
    start = clock.monotonic()
    seconds = [start]
    with clock.simulated(lambda: seconds[0]):
        lone.rank.passed_at = start
        outlook = outlook_of(lone.shared)
        assert outlook is not None
        planning = Planning(lone.shared, 1, Cause.SPOT, Deadline.after(30.0))
        planning.heard([GateVotes({"0": 11}, outlook=outlook)], 11)
        seconds[0] += 5.0
        assert planning.now().options[0].seconds.likely < 5
        planning.released()
        seconds[0] += 5.0
        assert planning.now().options[0].seconds.sure > 30.0, "now they run, and do not come"
    await lone.close()
