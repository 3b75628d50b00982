"""E2, E4, I1: the gate as a pure core, and with the two threads that meet at it."""

import random
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_rank.gate import (
    Gate,
    GateState,
    LoopClass,
    Verdict,
    close,
    judge,
    judge_entrance,
    open_,
    release,
    vote,
    wants_copy,
)

ONLY = LoopClass.BOUNDARY_ONLY
CLOSED = GateState(passed=5, closed=True, round=2, lease_ends=100.0)

VOTES = {
    "a loop copied at boundaries votes for the next boundary": (GateState(passed=5), LoopClass.BOUNDARY_ONLY, 6),
    "one that stands at a boundary can still be caught there": (GateState(passed=5, at_boundary=True), LoopClass.BOUNDARY_ONLY, 5),
    "one that has finished votes for its last boundary": (GateState(passed=5, done=True), LoopClass.BOUNDARY_ONLY, 5),
    "a mid-step loop between windows votes for the last boundary": (GateState(passed=5, base=5), LoopClass.MID_STEP, 5),
    "nothing of that kind is known in a loop copied at boundaries": (GateState(passed=5, base=5), LoopClass.BOUNDARY_ONLY, 6),
    "after a micro-batch whose gradients are open the next boundary counts": (GateState(passed=5), LoopClass.MID_STEP, 6),
    "a mid-step loop in a window votes for its end": (GateState(passed=5, in_window=True), LoopClass.MID_STEP, 6),
}  # fmt: skip

JUDGEMENTS = {
    "an open gate lets pass": (GateState(passed=5), 0.0, Verdict.PASS),
    "a closed gate without a target holds": (CLOSED, 0.0, Verdict.WAIT),
    "the target is captured": (CLOSED._replace(target=5), 0.0, Verdict.CAPTURE),
    "below the target everyone runs on": (CLOSED._replace(target=7), 0.0, Verdict.PASS),
    "past the target nobody is held": (CLOSED._replace(target=4), 0.0, Verdict.PASS),
    "after the lease the gate is open": (CLOSED, 100.0, Verdict.PASS),
    "after the lease the target is not captured any more": (CLOSED._replace(target=5), 100.0, Verdict.PASS),
    "a captured boundary is held beyond the lease": (CLOSED._replace(target=5, captured=True), 1000.0, Verdict.WAIT),
    "while the boundary before is copied nobody passes": (
        CLOSED._replace(closed=False, copying=True),
        1000.0,
        Verdict.WAIT,
    ),
    "while the boundary before is wanted nobody passes": (
        CLOSED._replace(target=4, promised=4, base=4),
        0.0,
        Verdict.WAIT,
    ),
    "the boundary before is held captured": (
        CLOSED._replace(target=4, promised=4, captured=True),
        1000.0,
        Verdict.WAIT,
    ),
    "after it was captured a second coordinator may want this one": (
        CLOSED._replace(target=5, promised=4, captured=True),
        0.0,
        Verdict.CAPTURE,
    ),
    "a captured boundary is left for a later target": (CLOSED._replace(target=9, captured=True), 0.0, Verdict.PASS),
}


PROMISED = CLOSED._replace(base=5, promised=5)
ENTRANCES = {
    "an open gate lets in": (GateState(passed=5, base=5), 0.0, Verdict.PASS),
    "who voted for a later boundary may run to it": (CLOSED._replace(target=6), 0.0, Verdict.PASS),
    "a promise holds until the target is known": (PROMISED, 0.0, Verdict.WAIT),
    "a promise that is wanted holds": (PROMISED._replace(target=5), 0.0, Verdict.WAIT),
    "a promise that is not wanted lets run on": (PROMISED._replace(target=6), 0.0, Verdict.PASS),
    "after the lease a promise is void": (PROMISED._replace(target=5), 100.0, Verdict.PASS),
    "a captured boundary is held beyond the lease": (PROMISED._replace(target=5, captured=True), 1000.0, Verdict.WAIT),
    "a copy that runs is not disturbed by an opened gate": (PROMISED._replace(closed=False, copying=True), 1000.0, Verdict.WAIT),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRANCES)
def test_the_entrance_to_a_window_is_judged(name: str) -> None:
    state, now, want = ENTRANCES[name]
    assert judge_entrance(state, now) is want


def test_the_helper_copies_only_what_was_promised_and_stands_still() -> None:
    wanted = PROMISED._replace(target=5)
    assert wants_copy(wanted, 0.0)
    for other in (
        wanted._replace(base=None), wanted._replace(base=6), wanted._replace(promised=None), wanted._replace(target=6), wanted._replace(target=None),
        wanted._replace(captured=True), wanted._replace(copying=True), wanted._replace(closed=False), wanted._replace(done=True),
    ):  # fmt: skip
        assert not wants_copy(other, 0.0), other
    assert not wants_copy(wanted, 100.0), "the lease has run out"


@pytest.mark.parametrize("name", VOTES)
def test_a_vote_is_the_lowest_boundary_the_rank_can_be_caught_at(name: str) -> None:
    state, loop, want = VOTES[name]
    assert vote(state, loop) == want


@pytest.mark.parametrize("name", JUDGEMENTS)
def test_the_main_thread_is_judged(name: str) -> None:
    state, now, want = JUDGEMENTS[name]
    assert judge(state, now) is want


def test_an_older_round_and_one_that_was_opened_are_not_obeyed() -> None:
    assert close(CLOSED, 1, 200.0, ONLY) is None
    assert close(open_(CLOSED, 2), 2, 200.0, ONLY) is None
    assert release(CLOSED, 1, 9) == CLOSED
    assert open_(CLOSED, 1) == CLOSED


def test_a_newer_round_replaces_an_older_one_and_the_same_one_renews_its_lease() -> None:
    aimed = CLOSED._replace(target=6, captured=True)
    assert close(aimed, 3, 200.0, ONLY) == CLOSED._replace(round=3, lease_ends=200.0)
    assert close(aimed, 2, 200.0, ONLY) == aimed._replace(lease_ends=200.0)


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


class LiveRank:
    """A rank whose "state" is a number that only its windows change, and a helper that copies it."""

    def __init__(self, loop: LoopClass) -> None:
        self.gate = Gate(loop)
        self.state = 0
        self.captured: dict[int, tuple[int, int]] = {}
        """Round -> (boundary, state that was copied)."""
        threading.Thread(target=self.help, daemon=True).start()

    def help(self) -> None:
        while (wanted := self.gate.await_copy()) is not None:
            number, boundary = wanted
            if self.gate.begin_copy(number, boundary):
                before = self.state
                time.sleep(0.0002)
                assert self.state == before, "changed under the copy"
                if self.gate.end_copy(number, clean=True):
                    self.captured[number] = (boundary, before)

    def iterate(self, boundary: int, update: bool, collective: Callable[[], None], pause: float) -> None:
        collective()
        time.sleep(pause)
        if update:
            self.gate.enter()
            self.state = -boundary  # torn
            collective()  # ZeRO-1, a second optimizer's backward
            time.sleep(pause)
            self.state = boundary
        number = self.gate.arrive(boundary)
        while number is not None:
            self.captured[number] = (boundary, self.state)
            number = self.gate.hold(number)
        self.gate.rest(boundary)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    loops=st.lists(st.sampled_from([LoopClass.MID_STEP, LoopClass.BOUNDARY_ONLY]), min_size=2, max_size=3),
)
def test_rounds_at_random_moments_copy_whole_states_of_one_boundary(seed: int, loops: list[LoopClass]) -> None:
    """E2, E4, I2: collectives before and inside windows, iterations without an update, ranks of both classes."""
    rng = random.Random(seed)
    ranks, barrier = [LiveRank(loop) for loop in loops], threading.Barrier(len(loops))
    updates = [rng.random() < 0.8 for _ in range(97)]
    pauses = [[rng.random() * 0.0004 for _ in range(7)] for _ in ranks]
    done, problems = threading.Event(), []

    def train(index: int) -> None:
        try:
            for boundary in range(1, 10_000):
                if done.is_set() and index == 0:
                    barrier.abort()
                ranks[index].iterate(
                    boundary, updates[boundary % 97], lambda: (barrier.wait(30), None)[1], pauses[index][boundary % 7]
                )
        except threading.BrokenBarrierError:
            if not done.is_set():
                problems.append(f"rank {index} hung in a collective")

    threads = [threading.Thread(target=train, args=(i,), daemon=True) for i in range(len(ranks))]
    for thread in threads:
        thread.start()
    for number in range(1, 5):
        time.sleep(rng.random() * 0.002)
        answers = [r.gate.close(number, 60) for r in rng.sample(ranks, len(ranks))]
        target = max(a[0] for a in answers if a is not None)
        for rank in rng.sample(ranks, len(ranks)):
            rank.gate.release(number, target)
        limit = time.monotonic() + 30
        while not all(number in r.captured for r in ranks) and time.monotonic() < limit and not problems:
            time.sleep(0.0005)
        state = max((b for b in range(1, target + 1) if updates[b % 97]), default=0)
        assert [r.captured.get(number) for r in ranks] == [(target, state)] * len(ranks), problems
        for rank in ranks:
            rank.gate.open(number)
    done.set()
    for thread in threads:
        thread.join(30)
    for rank in ranks:
        rank.gate.lose()
    assert not problems


def test_a_gate_opened_during_a_copy_keeps_the_window_shut_until_the_copy_is_done() -> None:
    """E4."""
    gate = Gate(LoopClass.MID_STEP)
    gate.arrive(1)
    gate.rest(1)
    assert gate.close(1, 60) == (1, False)
    gate.release(1, 1)
    assert gate.await_copy() == (1, 1)
    assert gate.begin_copy(1, 1)
    gate.open(1)
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (gate.enter(), entered.set()))
    thread.start()
    assert not entered.wait(0.2)
    assert not gate.end_copy(1, clean=True), "nobody wants it any more"
    assert entered.wait(30)
    thread.join()


def test_a_copy_that_is_not_clean_is_not_offered_again() -> None:
    gate = Gate(LoopClass.MID_STEP)
    gate.arrive(1)
    gate.rest(1)
    gate.close(1, 60)
    gate.release(1, 1)
    assert gate.begin_copy(1, 1)
    assert not gate.end_copy(1, clean=False)
    assert not gate.begin_copy(1, 1)
    assert gate.close(1, 60) == (2, False), "the next boundary"
    gate.enter()
    threading.Timer(0.1, gate.release, (1, 2)).start()
    assert gate.arrive(2) == 1, "it waits there for the new target of the same round"


def test_a_rank_that_ends_waits_for_the_copy_and_promises_nothing_more() -> None:
    gate = Gate(LoopClass.MID_STEP)
    gate.arrive(1)
    gate.rest(1)
    gate.close(1, 60)
    gate.release(1, 1)
    assert gate.begin_copy(1, 1)
    ended = threading.Event()
    thread = threading.Thread(target=lambda: (gate.finish(), ended.set()))
    thread.start()
    assert not ended.wait(0.2)
    gate.end_copy(1, clean=True)
    assert ended.wait(30)
    assert gate.await_copy() is None
    thread.join()
