"""E2, I: rounds at random moments over real processes of a gloo group, each state bit by bit the one of an uninterrupted run, and resumable."""

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from ddp_ranks import Job, finished, kill, start
from fake_agent import Connection, FakeAgent

from holdfast_api import ranks as wire

STEPS = 90
ROUNDS = 40
PAUSES = (0.0, 0.004, 0.0, 0.011, 0.002)


class Digests(FakeAgent):
    """Keeps of each image what identifies it, and the image itself only when asked to."""

    def __init__(self, *arguments: Any, keep: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.keep = keep
        self.digests: dict[tuple[int, int], str] = {}

    def _keep(self, connection: Connection, message: wire.CapturedSlot) -> wire.FromAgent | None:
        data = connection.slots[message.slot].read_bytes()
        self.digests[(connection.rank, message.boundary)] = hashlib.sha256(data).hexdigest()
        self.forget_images = not self.keep
        return super()._keep(connection, message)


KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "DDP": ({}, "mid-step", "plain"),
    "ZeRO-1": ({"zero": True}, "mid-step", "ZeRO-1"),
    "FSDP2": ({"shard": "FSDP2"}, "boundary-only", "plain"),
    "pipeline": ({"pipeline": True}, "mid-step", "plain"),
}
"""How its ranks train, and what the library says of their loop."""


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_rounds_at_random_moments_are_those_of_an_uninterrupted_run_and_resume_it(
    kind: str, tmp_path: Path
) -> None:
    """K1, K2, E2, I4: 40 rounds in one run of two ranks with dropout and batch norm; the last but one is then gone on with. Whoever is stopped has the other
    wait in a collective, of ZeRO-1 and FSDP2 also inside the window; stages of a pipeline have windows at different times and states of different sizes."""
    how, loop, loop_kind = KINDS[kind]
    options: dict[str, Any] = {"world": 2, "steps": STEPS, "bucket_cap_mb": 0.1, **how}
    with Digests(tmp_path / "a", keep=False, every_steps=1) as agent:
        whole = Job(directory=tmp_path / "whole", socket=agent.path, **options)
        want = finished(whole, start(whole))
        truth = dict(agent.digests)
    assert set(truth) == {(r, b) for r in range(2) for b in range(1, STEPS + 1)}

    rng = random.Random(5)
    with Digests(tmp_path / "b", keep=True) as agent:
        job = Job(directory=tmp_path / "snapped", socket=agent.path, step_seconds=0.002, pauses=PAUSES, **options)
        ranks = start(job)
        try:
            agent.wait(lambda: len(agent.connections) == 2, "all ranks to say hello")
            agent.wait(lambda: all(_boundary(agent, r) >= 12 for r in range(2)), "the audit")
            targets = []
            for number in range(1, ROUNDS + 1):
                time.sleep(rng.random() * 0.03)
                if _boundary(agent, 0) > STEPS - 8:
                    break
                targets.append(agent.start_round(number, world=2))
                assert set(agent.await_round(number, world=2).values()) == {targets[-1]}
                if rng.random() < 0.5:
                    agent.open_gates(number)  # else the next round closes a gate that was never opened
                else:
                    time.sleep(rng.random() * 0.01)
            agent.open_gates(ROUNDS + 1)
            got = finished(job, ranks)
        finally:
            kill(ranks)
        messages = [m for _, m in agent.captured if m.kind == "round"]
        taken = dict(agent.digests)
        images = {r: [agent.images[r][targets[-1]]] for r in range(2)}
    assert len(targets) > 15
    assert {m.run["loop"] for m in messages} == {loop}
    assert loop_kind in {m.run["loop_kind"] for m in messages}
    wrong = [(r, b) for (r, b), digest in taken.items() if truth[(r, b)] != digest]
    assert not wrong, f"of {len(taken)}"
    assert _results(got) == _results(want), "the rounds have left no trace in training"

    with FakeAgent(tmp_path / "c") as agent:
        agent.restore_from = images
        resumed = Job(directory=tmp_path / "resumed", socket=agent.path, **options)
        ended = finished(resumed, start(resumed))
    assert {r["first"] for r in ended} == {targets[-1] + 1}
    for a, b in zip(want, ended, strict=True):
        assert (a["weights"], a["rng"]) == (b["weights"], b["rng"])
        assert {n: a["losses"][n] for n in b["losses"]} == b["losses"]


def test_a_rank_in_a_collective_whose_peer_stands_still_is_copied_there(tmp_path: Path) -> None:
    """The reason for mid-step copies: rank 0 waits in all-reduce for rank 1, which waits for data; neither comes to a boundary."""
    with FakeAgent(tmp_path / "a") as agent:
        job = Job(world=2, directory=tmp_path / "j", socket=agent.path, steps=4000, stall_at=40)
        ranks = start(job)
        try:
            agent.wait(lambda: len(agent.connections) == 2, "all ranks to say hello")
            agent.wait(lambda: _boundary(agent, 0) >= 39, "the stall")
            target = agent.start_round(1, world=2)
            assert agent.await_round(1, world=2) == {0: 39, 1: 39} == {0: target, 1: target}
        finally:
            kill(ranks)


def _boundary(agent: FakeAgent, rank: int) -> int:
    passed = [m.boundary for m in list(agent.connections[rank].messages) if isinstance(m, wire.Passed)]
    return passed[-1] if passed else 0


def _results(results: list[dict[str, Any]]) -> str:
    return json.dumps(results, sort_keys=True)
