"""E1-E6 against everything at once: real agents, ranks that meet in a collective in the middle of every step, and a signal that comes at a bad moment to
whoever it finds. Whatever happens, nobody waits for ever, and what the next attempt resumes from is one boundary of all ranks, whole, and no older than the
last commit.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from holdfast_api.messages import AgentPhase
from tests.agent.conftest import Gang, Pod, eventually

ADVERSITIES = int(os.environ.get("HOLDFAST_ADVERSITIES", "1"))
"""How many moments are tried of each kind."""
FLOOR_SECONDS = 8
"""What a bare SIGTERM leaves (F3)."""
SEALED, NOTHING_NEW, FAILED = 72, 73, 74


def a_gang(gang, *, workers: int = 3, every: int = 10, seconds: float = 0.01) -> Gang:
    g = gang(workers=workers, config={"every_steps": every, "sigterm_floor_seconds": FLOOR_SECONDS})
    g.trainer = ("100000", "--step-seconds", str(seconds), "--together", str(g.root / "together"))
    return g.start()


def training(gang, **how) -> Gang:
    g = a_gang(gang, **how).begin()
    g.wait_for_commit(10)
    return g


def rank_of(pod: Pod) -> int:
    """Its process."""
    assert pod.process is not None
    with open(f"/proc/{pod.process.pid}/task/{pod.process.pid}/children") as file:
        return int(file.read().split()[0])


def newest(g: Gang) -> int:
    return max((boundary for _, boundary, _ in g.commits()), default=0)


def ends(pod: Pod) -> int:
    """By itself, and in time."""
    code = pod.wait(FLOOR_SECONDS + 30)
    assert code in (SEALED, NOTHING_NEW, FAILED), pod.words()
    return code


def goes_on(g: Gang, *gone: int, least: int) -> int:
    """The next attempt, with new pods for the workers that have gone and whoever has ended: where all its ranks have begun."""
    for worker, pod in list(g.pods.items()):
        assert pod.process is not None
        if worker in gone and pod.process.poll() is None:
            pod.kill(signal.SIGTERM)
            ends(pod)
        if pod.process.poll() is not None:
            g.new_pod(worker)
    g.begin()

    def begun() -> list[str]:
        said = [line.split(maxsplit=2) for line in g.lines()]
        return [text for attempt, _, text in said if int(attempt) == g.attempt]

    eventually(lambda: len(begun()) == g.workers, "all ranks begin: " + "".join(p.words() for p in g.pods.values()))
    where = set(begun())
    assert len(where) == 1, f"ranks begin at {where}"
    text = where.pop()
    boundary = 0 if text == "fresh" else int(text.removeprefix("restored "))  # neither TORN nor anything else
    assert boundary >= least, "what was committed is not lost"
    g.wait_for_boundary(boundary + 3)
    return boundary


def test_one_worker_hears_of_it_and_nobody_else(gang) -> None:
    """E1: any pod's signal suffices; the coordinator is one that stays."""
    g = training(gang)
    for worker in (2, 0):
        before = newest(g)
        g.notice(worker, to=[g.pods[worker]])
        g.wait_for_phase(AgentPhase.SEALED)
        sealed = newest(g)
        assert sealed > before
        assert goes_on(g, worker, least=sealed) == sealed


@pytest.mark.parametrize("seed", range(ADVERSITIES))
def test_all_hear_of_it_at_different_times_with_different_deadlines(gang, seed: int) -> None:
    g, rng = training(gang), random.Random(seed)
    workers = [0, 1, 2]
    rng.shuffle(workers)
    for worker in workers:
        g.notice(worker, to=[g.pods[worker]], seconds=rng.uniform(15, 40), source=f"taint:{worker}")
        time.sleep(rng.uniform(0, 0.1))
    g.wait_for_phase(AgentPhase.SEALED)
    sealed = newest(g)
    assert goes_on(g, *workers, least=sealed) == sealed


@pytest.mark.parametrize("lead_too", [False, True])
def test_a_signal_that_comes_twice_is_one_signal(gang, lead_too: bool) -> None:
    g = training(gang)
    doomed = (0, 1) if lead_too else (1,)
    for _ in range(2):
        for worker in doomed:
            g.notice(worker)
            g.pods[worker].kill(signal.SIGTERM)
        time.sleep(0.05)
    assert {ends(g.pods[w]) for w in doomed} == {SEALED}
    emergencies = [c for c in g.commits() if c[2] in ("sigterm", "spot")]
    assert len(emergencies) == 1
    assert goes_on(g, least=emergencies[0][1]) == emergencies[0][1]


@pytest.mark.parametrize("seed", range(ADVERSITIES))
def test_a_signal_during_a_save(gang, seed: int) -> None:
    """A save every other step: one is always under way."""
    g, rng = training(gang, every=2), random.Random(seed)
    time.sleep(rng.uniform(0, 0.3))
    before, worker = newest(g), rng.randrange(3)
    g.pods[worker].kill(signal.SIGTERM)
    assert ends(g.pods[worker]) == SEALED
    assert goes_on(g, least=before) >= before


@pytest.mark.parametrize("seed", range(ADVERSITIES))
def test_a_signal_during_the_start(gang, seed: int) -> None:
    """Nothing has been saved: a fresh start follows, or what was sealed after all; nobody waits for who has gone."""
    g, rng = a_gang(gang), random.Random(seed)
    g.begin()
    time.sleep(rng.uniform(0, 0.4))
    worker = rng.randrange(3)
    g.pods[worker].kill(signal.SIGTERM)
    ends(g.pods[worker])
    goes_on(g, least=newest(g))


@pytest.mark.parametrize("seed", range(ADVERSITIES))
def test_a_signal_during_the_restore_of_an_attempt(gang, seed: int) -> None:
    g, rng = training(gang), random.Random(seed)
    g.notice(1)
    g.wait_for_phase(AgentPhase.SEALED)
    sealed = newest(g)
    g.pods[1].kill(signal.SIGTERM)
    ends(g.pods[1])
    g.new_pod(1)
    g.begin()
    time.sleep(rng.uniform(0, 0.4))
    worker = rng.randrange(3)
    g.notice(worker, to=[g.pods[worker]])
    g.pods[worker].kill(signal.SIGTERM)
    ends(g.pods[worker])
    assert goes_on(g, least=sealed) >= sealed


def test_the_lead_itself_goes_and_only_it_has_heard(gang) -> None:
    g = training(gang)
    g.pods[0].kill(signal.SIGTERM)
    assert ends(g.pods[0]) == SEALED
    sealed = newest(g)
    g.wait_for_phase(AgentPhase.SEALED, g.pods[1], g.pods[2])
    assert goes_on(g, least=sealed) == sealed


@pytest.mark.parametrize("harm", ["dead", "hung"])
def test_one_rank_cannot_come_to_the_boundary_and_all_others_wait_for_it_in_a_collective(gang, harm: str) -> None:
    """E3: the newest boundary that every rank holds, or nothing new; and in time."""
    g = training(gang)
    os.kill(rank_of(g.pods[2]), signal.SIGKILL if harm == "dead" else signal.SIGSTOP)
    before = newest(g)
    g.pods[1].kill(signal.SIGTERM)
    ends(g.pods[1])
    if harm == "dead":
        eventually(lambda: g.pods[2].process.poll() is not None or g.pods[2].report().exit is None, "it is told")
    assert goes_on(g, 2, least=before) >= before


def test_one_agent_is_silent(gang) -> None:
    """It neither refuses nor answers: its machine hangs. The others end in time; when it comes back it is of an attempt that is over."""
    g = training(gang)
    g.pods[0].kill(signal.SIGSTOP)
    before = newest(g)
    g.pods[2].kill(signal.SIGTERM)
    ends(g.pods[2])
    stopped = g.pods[0]
    g.new_pod(0)
    begun = goes_on(g, least=before)
    stopped.kill(signal.SIGCONT)
    stopped_at = newest(g)
    eventually(lambda: newest(g) > stopped_at, "the attempt goes on beside what has come back")
    assert begun >= before


CHAOS: dict[str, Callable[[Gang, random.Random], None]] = {
    "a notice to one": lambda g, r: g.notice(w := r.randrange(3), to=[g.pods[w]], source=f"taint:{r.random()}"),
    "a notice to all": lambda g, r: g.notice(r.randrange(3), source=f"taint:{r.random()}"),
    "a withdrawn one": lambda g, r: g.notice(0, source="taint:w", withdrawn=r.random() < 0.5),
    "SIGTERM": lambda g, r: g.pods[r.randrange(3)].kill(signal.SIGTERM),
    "a rank is killed": lambda g, r: os.kill(rank_of(g.pods[r.randrange(3)]), signal.SIGKILL),
    "a rank hangs": lambda g, r: os.kill(rank_of(g.pods[r.randrange(3)]), signal.SIGSTOP),
    "an agent hangs for a while": lambda g, r: hang(g.pods[r.randrange(3)], r.uniform(0.1, 1.0)),
}


def hang(pod: Pod, seconds: float) -> None:
    pod.kill(signal.SIGSTOP)
    time.sleep(seconds)
    pod.kill(signal.SIGCONT)


@pytest.mark.parametrize("seed", range(ADVERSITIES))
def test_any_of_these_in_any_order_at_any_time(gang, seed: int) -> None:
    g, rng = training(gang, every=rng_every(seed)), random.Random(seed)
    for _ in range(2):
        before = newest(g)
        for name in rng.sample(sorted(CHAOS), 3):
            time.sleep(rng.uniform(0, 0.3))
            # Whoever it was meant for may have ended already.
            with contextlib.suppress(AssertionError, OSError, IndexError, ValueError):
                CHAOS[name](g, rng)
        for pod in g.pods.values():
            if pod.process.poll() is None:
                pod.kill(signal.SIGTERM)
        for pod in g.pods.values():
            ends(pod)
        assert goes_on(g, least=before) >= before


def rng_every(seed: int) -> int:
    return (2, 10)[seed % 2]
