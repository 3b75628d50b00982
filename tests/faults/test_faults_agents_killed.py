"""Fault scenarios 4 to 9, 22 to 28, with real agents and ranks: killed at random moments of periodic saves, of emergencies and of the end of training.

After each the next start resumes from the newest commit, byte by byte (the fake trainer ends with 66 otherwise), and everything that was ever committed is
looked at as a whole (history.py). HOLDFAST_FAULT_SEED moves the moments, HOLDFAST_KILL_SEEDS says how many runs of each there are.
"""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.agent.conftest import Gang, Pod, eventually, free_port
from tests.faults import points
from tests.faults.history import History, ranks_of

SEEDS = int(os.environ.get("HOLDFAST_KILL_SEEDS", "1"))
pytestmark = pytest.mark.timeout(600)
seeds = pytest.mark.parametrize("seed", [points.seed() * 1000 + n for n in range(SEEDS)])
MakeGang = Callable[..., Gang]


def make(gang: MakeGang, *, steps: int = 1_000_000, **fields: object) -> Gang:
    config = {"every_steps": 5, "sigterm_floor_seconds": 8} | dict(fields.pop("config", {}))  # type: ignore[call-overload]
    return gang(workers=2, trainer=(str(steps), "--step-seconds", "0.005"), config=config, **fields)


def end_all(g: Gang) -> None:
    for pod in g.pods.values():
        if pod.process is not None and pod.process.poll() is None:
            pod.kill()
        pod.wait()


def again(g: Gang, rng: random.Random) -> None:
    """In the same pods, or in new ones as after the loss of the nodes."""
    if rng.random() < 0.5:
        for pod in g.pods.values():
            pod.start()
    else:
        for worker in list(g.pods):
            g.new_pod(worker)
    g.begin()


def resumed(g: Gang) -> set[str]:
    """How the ranks of the newest attempt have begun."""
    words = (line.split(maxsplit=2) for line in g.lines())
    return {what for attempt, _, what in words if attempt == str(g.attempt) and not what.startswith("finished")}


def check_resumed(g: Gang, history: History, newest: int) -> None:
    """From the newest commit that was there, or from one that was finished on the nodes before the claim (E6)."""
    ranks = g.workers * g.processes
    eventually(
        lambda: len([line for line in g.lines() if line.startswith(f"{g.attempt} ")]) >= ranks, "all ranks begin"
    )
    (start,) = resumed(g)
    g.wait_for_commit(int(start.removeprefix("restored ")) + 1)
    before = {b for ref, b, _ in g.commits() if int(ref.split("/")[0]) < g.attempt and b >= newest}
    assert start in {f"restored {b}" for b in before}, (newest, g.commits())
    assert not [line for line in g.lines() if "TORN" in line]
    history.look()


# ---- what happens to the gang; afterwards no agent lives


def agents_die(g: Gang, rng: random.Random) -> None:
    for pod in rng.sample(list(g.pods.values()), 2):
        pod.kill()
        time.sleep(rng.random() * 0.05)


def a_rank_dies(g: Gang, rng: random.Random) -> None:
    """The agents live on: what was in flight may still be committed, and they end by themselves."""
    pod = g.pods[rng.randrange(2)]
    for rank in ranks_of(pod.process.pid):
        os.kill(rank, signal.SIGKILL)
    assert pod.wait() == 70


def agents_die_in_an_emergency(g: Gang, rng: random.Random) -> None:
    g.notice(rng.randrange(2), seconds=10)
    time.sleep(rng.random() * 0.25)
    agents_die(g, rng)


def one_agent_dies_in_an_emergency(g: Gang, rng: random.Random) -> None:
    """The other goes on by itself, and hears SIGTERM."""
    g.notice(0, 1, seconds=6)
    time.sleep(rng.random() * 0.15)
    dead = rng.randrange(2)
    g.pods[dead].kill()
    g.pods[1 - dead].kill(signal.SIGTERM)
    assert g.pods[1 - dead].wait() in (72, 73)


def sigterm_and_then_sigkill(g: Gang, rng: random.Random) -> None:
    for pod in g.pods.values():
        pod.kill(signal.SIGTERM)
    time.sleep(rng.random() * 0.3)


DISTURBANCES = [
    agents_die,
    a_rank_dies,
    agents_die_in_an_emergency,
    one_agent_dies_in_an_emergency,
    sigterm_and_then_sigkill,
]


@seeds
@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_after_a_death_at_any_moment_the_newest_commit_is_resumed_byte_by_byte(
    gang: MakeGang, disturb: Callable[[Gang, random.Random], None], seed: int
) -> None:
    rng = random.Random(f"{disturb.__name__}/{seed}")
    g = make(gang, config={"slots": rng.choice([1, 2])}).start().begin()
    history = History(g)
    for _ in range(2):
        g.wait_for_commit(history.newest + 5)
        time.sleep(rng.random() * 0.3)
        disturb(g, rng)
        end_all(g)
        newest = history.newest
        history.look()
        again(g, rng)
        check_resumed(g, history, newest)


@seeds
def test_a_notice_that_is_withdrawn_at_any_moment_leaves_a_gang_that_trains_and_saves(
    gang: MakeGang, seed: int
) -> None:
    """Scenario 28: "sealed" races the withdrawal; no gate stays closed, nothing is torn."""
    rng = random.Random(seed)
    g = make(gang, config={"slots": rng.choice([1, 2])}).start().begin()
    history = History(g)
    g.wait_for_commit(5)
    for _ in range(6):
        worker, before = rng.randrange(2), history.newest
        order = list(g.pods.values())
        rng.shuffle(order)
        g.notice(worker, seconds=20, to=order)
        time.sleep(rng.random() * 0.25)
        rng.shuffle(order)
        g.notice(worker, seconds=20, withdrawn=True, to=order)
        g.wait_for_commit(before + 10)
        history.look()
    end_all(g)
    newest = history.newest
    again(g, rng)
    check_resumed(g, history, newest)


@seeds
def test_killed_around_the_end_of_training_the_last_boundary_is_committed_by_a_later_start(
    gang: MakeGang, seed: int
) -> None:
    rng = random.Random(seed)
    last = 83  # no multiple of `every_steps`: the last save is of its own kind
    g = make(gang, steps=last).start().begin()
    history = History(g)
    for _ in range(3):
        g.wait_for_boundary(60)
        time.sleep(rng.random() * 0.3)
        agents_die(g, rng)
        end_all(g)
        history.look()
        again(g, rng)
    assert [pod.wait() for pod in g.pods.values()] == [0, 0], [p.words() for p in g.pods.values()]
    history.look()
    assert history.newest == last
    assert not [line for line in g.lines() if "TORN" in line]


@seeds
def test_two_agents_on_one_directory_of_a_node_do_not_take_each_others_images(gang: MakeGang, seed: int) -> None:
    """Two workers of a job whose pods share a hostPath: each prunes what it knows, under the same names."""
    rng = random.Random(seed)
    g = make(gang)
    shared = g.root / "node"
    shared.mkdir()
    for worker in range(2):
        pod = Pod(g, worker, 1, g.root / f"p{worker}-1", free_port())
        pod.folder.mkdir(parents=True)
        (pod.folder / "local").symlink_to(shared)
        g.pods[worker] = pod
        g.all_pods.append(pod)
        pod.start()
    g.begin()
    history = History(g)
    for _ in range(2):
        g.wait_for_commit(history.newest + 15)
        time.sleep(rng.random() * 0.2)
        end_all(g)
        newest = history.newest
        for pod in g.pods.values():
            for file in (pod.folder / "memory").iterdir():
                file.unlink(missing_ok=True)
            pod.start()
        g.begin()
        check_resumed(g, history, newest)
    fetched = [pod.report().fetched_from for pod in g.pods.values()]
    assert all(fetched), fetched


@seeds
def test_a_lead_that_is_stopped_and_continues_after_its_successor_has_claimed_writes_nothing_that_counts(
    gang: MakeGang, seed: int
) -> None:
    """Scenarios 30, 31: a zombie (its node was unreachable) looks before it commits and ends as superseded, or its commit is off the lineage (A5, A7)."""
    rng = random.Random(seed)
    g = make(gang).start().begin()
    history = History(g)
    g.wait_for_commit(10)
    time.sleep(rng.random() * 0.2)
    zombies = list(g.pods.values())
    groups = [pid for pod in zombies for pid in (pod.process.pid, *ranks_of(pod.process.pid))]
    for pid in groups:
        os.kill(pid, signal.SIGSTOP)
    newest = history.newest
    for worker in list(g.pods):
        g.new_pod(worker)
    g.begin()
    check_resumed(g, history, newest)
    for pid in groups:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: zombies[0].process.poll() == 74, f"the old lead ends as superseded; {zombies[0].words()}")
    g.wait_for_commit(history.newest + 10)
    history.look()
    end_all(g)
    newest = max(b for name, b, _ in g.commits() if name.startswith("2/"))
    again(g, rng)
    check_resumed(g, history, newest)
