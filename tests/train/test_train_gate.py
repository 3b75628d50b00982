"""E2, E4, I1: the gate as a pure core, and with the two threads that meet at it."""

import random
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.gate import Gate, GateState, LoopClass, Verdict, close, judge, open_, release, vote

CLOSED = GateState(passed=5, closed=True, round=2, lease_ends=100.0)

VOTES = {
    "a loop copied at boundaries votes for the next boundary": (GateState(passed=5), LoopClass.BOUNDARY_ONLY, 6),
    "one that stands at a boundary can still be caught there": (GateState(passed=5, at_boundary=True), LoopClass.BOUNDARY_ONLY, 5),
    "one that has finished votes for its last boundary": (GateState(passed=5, done=True), LoopClass.BOUNDARY_ONLY, 5),
    "a mid-step loop between windows votes for the last boundary": (GateState(passed=5), LoopClass.MID_STEP, 5),
    "a mid-step loop in a window votes for its end": (GateState(passed=5, in_window=True), LoopClass.MID_STEP, 6),
}  # fmt: skip

JUDGEMENTS = {
    "an open gate lets pass": (GateState(passed=5), 0.0, Verdict.PASS),
    "a closed gate without a target holds": (CLOSED, 0.0, Verdict.WAIT),
    "the target is captured": (replace(CLOSED, target=5), 0.0, Verdict.CAPTURE),
    "below the target everyone runs on": (replace(CLOSED, target=7), 0.0, Verdict.PASS),
    "past the target nobody is held": (replace(CLOSED, target=4), 0.0, Verdict.PASS),
    "after the lease the gate is open": (CLOSED, 100.0, Verdict.PASS),
    "after the lease the target is not captured any more": (replace(CLOSED, target=5), 100.0, Verdict.PASS),
    "a captured boundary is held beyond the lease": (replace(CLOSED, target=5, captured=True), 1000.0, Verdict.WAIT),
    "a captured boundary is left for a later target": (replace(CLOSED, target=9, captured=True), 0.0, Verdict.PASS),
}


@pytest.mark.parametrize("name", VOTES)
def test_a_vote_is_the_lowest_boundary_the_rank_can_be_caught_at(name: str) -> None:
    state, loop, want = VOTES[name]
    assert vote(state, loop) == want


@pytest.mark.parametrize("name", JUDGEMENTS)
def test_the_main_thread_is_judged(name: str) -> None:
    state, now, want = JUDGEMENTS[name]
    assert judge(state, now) is want


def test_an_older_round_and_one_that_was_opened_are_not_obeyed() -> None:
    assert close(CLOSED, 1, 200.0) is None
    assert close(open_(CLOSED, 2), 2, 200.0) is None
    assert release(CLOSED, 1, 9) == CLOSED
    assert open_(CLOSED, 1) == CLOSED


def test_a_newer_round_replaces_an_older_one_and_the_same_one_renews_its_lease() -> None:
    aimed = replace(CLOSED, target=6, captured=True)
    assert close(aimed, 3, 200.0) == replace(CLOSED, round=3, lease_ends=200.0)
    assert close(aimed, 2, 200.0) == replace(aimed, lease_ends=200.0)


def test_a_gate_nobody_opens_opens_when_the_lease_runs_out() -> None:
    gate = Gate()
    assert gate.close(1, lease_seconds=0.2) == (1, False)
    assert gate.arrive(1) is None
    assert gate.arrive(2) is None


def test_a_lost_agent_frees_a_rank_that_is_held() -> None:
    gate = Gate()
    gate.close(1, 60)
    gate.release(1, 1)
    assert gate.arrive(1) == 1
    threading.Timer(0.1, gate.lose).start()
    assert gate.hold(1) is None


def test_a_newer_round_at_the_same_boundary_captures_it_again() -> None:
    gate = Gate()
    gate.close(1, 60)
    gate.release(1, 1)
    assert gate.arrive(1) == 1

    def second_round() -> None:
        answer = gate.close(2, 60)
        assert answer == (1, False), "it still stands at boundary 1"
        gate.release(2, 1)

    threading.Timer(0.1, second_round).start()
    assert gate.hold(1) == 2


class Collective:
    """What holds ranks together: nobody passes an iteration alone. Raises when a rank has stopped for good."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)

    def join(self) -> None:
        self.barrier.wait(timeout=30)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), ranks=st.integers(2, 4))
def test_a_round_at_a_random_moment_stops_all_ranks_at_one_boundary(seed: int, ranks: int) -> None:
    """With a collective in every iteration, and rounds one after another (E2)."""
    rng = random.Random(seed)
    gates, collective = [Gate() for _ in range(ranks)], Collective(ranks)
    captured: dict[int, dict[int, int]] = {}
    done, problems = threading.Event(), []
    pauses = [[rng.random() * 0.0005 for _ in range(7)] for _ in range(ranks)]

    def train(rank: int) -> None:
        try:
            for boundary in range(1, 10_000):
                collective.join()
                if done.is_set() and rank == 0:
                    collective.barrier.abort()
                time.sleep(pauses[rank][boundary % 7])
                number = gates[rank].arrive(boundary)
                while number is not None:
                    captured.setdefault(number, {})[rank] = boundary
                    number = gates[rank].hold(number)
        except threading.BrokenBarrierError:
            if not done.is_set():
                problems.append(f"rank {rank} hung in a collective")

    threads = [threading.Thread(target=train, args=(r,), daemon=True) for r in range(ranks)]
    for thread in threads:
        thread.start()
    for number in range(1, 4):
        time.sleep(rng.random() * 0.002)
        answers = [gate.close(number, 60) for gate in rng.sample(gates, ranks)]
        target = max(a[0] for a in answers if a is not None)
        for gate in rng.sample(gates, ranks):
            gate.release(number, target)
        limit = time.monotonic() + 30
        while len(captured.get(number, {})) < ranks and time.monotonic() < limit and not problems:
            time.sleep(0.0005)
        assert captured.get(number) == dict.fromkeys(range(ranks), target), problems
        for gate in gates:
            gate.open(number)
    done.set()
    for thread in threads:
        thread.join(30)
    assert not problems
