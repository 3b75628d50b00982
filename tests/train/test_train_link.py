"""The socket and the conversation on it: no agent, an agent that dies, refusals, slots, rounds inside one process, and the end."""

import logging
import os
import queue
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from torch import nn

import holdfast
from holdfast_api import ranks
from holdfast_rank.agent_link import AgentLink


class Loop:
    """A model that learns something at each step; the shortest loop there is."""

    def __init__(self) -> None:
        self.model = nn.Linear(4, 4)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.ckpt = holdfast.Checkpointer(model=self.model, optimizer=self.optimizer)

    def step(self, **metrics: Any) -> None:
        self.model(torch.ones(1, 4)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ckpt.step(**metrics)


def test_without_an_agent_everything_works_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    assert loop.ckpt.restore() == 0
    seen = []
    for batch in loop.ckpt.batches([1, 2, 3], epochs=2):
        seen.append(batch)
        loop.step(loss=torch.tensor(0.5))
    loop.ckpt.finish()
    assert seen == [1, 2, 3, 1, 2, 3]
    assert loop.ckpt.boundary == 6
    assert [r.message.count("NOTHING IS SAVED") for r in caplog.records] == [1]


def test_a_process_with_more_than_a_thousand_open_files_saves_and_restores(agent: FakeAgent) -> None:
    """As one whose data set keeps its shards open: select() would refuse the socket's number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert max(held) > 1024
        for boundary in (0, 3):
            loop = Loop()
            assert loop.ckpt.restore() == boundary
            for _ in range(3):
                loop.step()
            loop.ckpt.finish()
            agent.restore_from = {0: [agent.newest()]}
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_agent_that_dies_in_training_does_not_stop_it(agent: FakeAgent, caplog: pytest.LogCaptureFixture) -> None:
    agent.every_steps = 2
    loop = Loop()
    loop.ckpt.restore()
    for n in range(20):
        if n == 7:
            agent.die()
        loop.step()
    loop.ckpt.finish()
    assert loop.ckpt.boundary == 20
    said = [r for r in caplog.records if "NOTHING IS SAVED FROM NOW ON" in r.message]
    assert len(said) == 1
    assert said[0].levelno == logging.ERROR


@pytest.mark.parametrize("held", ["waiting for a slot", "held by a round"])
def test_an_agent_that_dies_frees_a_rank_that_waits(agent: FakeAgent, held: str) -> None:
    agent.every_steps = 1
    agent.keep_slots = held == "waiting for a slot"
    loop = Loop()
    loop.ckpt.restore()
    loop.step()
    if not agent.keep_slots:
        agent.start_round(1, world=1)
    threading.Timer(0.5, agent.die).start()
    for _ in range(4):
        loop.step()
    assert loop.ckpt.boundary == 5


def test_an_agent_that_is_not_there_is_an_error_of_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SOCKET", str(tmp_path / "nobody"))
    loop = Loop()
    with pytest.raises(holdfast.RestoreError, match="cannot be reached"):
        loop.ckpt.restore()


def test_an_agent_that_dies_while_restoring_is_an_error_of_restore(agent: FakeAgent) -> None:
    loop = Loop()
    agent.wait(lambda: bool(agent.connections), "hello")
    agent.die()
    with pytest.raises(holdfast.RestoreError, match="lost while restoring"):
        loop.ckpt.restore()


def test_what_the_agent_refuses_is_raised_in_its_own_words(agent: FakeAgent) -> None:
    agent.refuse_restore = "commits exist and none can be used; see status.conditions"
    with pytest.raises(holdfast.RestoreError, match=r"none can be used; see status\.conditions"):
        Loop().ckpt.restore()


def test_refused_slots_leave_training_unsaved_and_say_why(agent: FakeAgent, caplog: pytest.LogCaptureFixture) -> None:
    agent.refuse_plan, agent.every_steps = "memory limit 1 GiB; raise it to 3 GiB", 2
    loop = Loop()
    loop.ckpt.restore()
    for _ in range(6):
        loop.step()
    loop.ckpt.finish()
    assert sum("raise it to 3 GiB" in r.message for r in caplog.records) == 1
    assert agent.captured == []


@pytest.mark.parametrize("call", ["step", "batches", "finish"])
def test_training_before_restore_is_refused(call: str) -> None:
    calls: dict[str, Callable[[holdfast.Checkpointer], object]] = {
        "step": lambda c: c.step(), "batches": lambda c: c.batches([1]), "finish": lambda c: c.finish(),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="call restore"):
        calls[call](Loop().ckpt)


def test_bad_arguments_name_the_value() -> None:
    loop = Loop()
    with pytest.raises(ValueError, match="allow='everything' is unknown"):
        loop.ckpt.restore(allow=["everything"])
    loop.ckpt.restore()
    with pytest.raises(RuntimeError, match="already"):
        loop.ckpt.restore()
    with pytest.raises(ValueError, match="epochs=-1"):
        loop.ckpt.batches([1], epochs=-1)
    with pytest.raises(ValueError, match="'loss' has 2 elements"):
        loop.step(loss=torch.ones(2))
    with pytest.raises(ValueError, match="'loss' is NoneType"):
        loop.step(loss=None)


def test_the_first_boundary_is_reported_at_once_and_the_newest_in_the_end(agent: FakeAgent) -> None:
    loop = Loop()
    loop.ckpt.restore()
    loop.step(loss=float("nan"))
    agent.wait(lambda: [p.boundary for p in agent.heard(ranks.Passed)] == [1], "the first")
    for n in range(2000):
        loop.ckpt.step(loss=n)
    agent.wait(lambda: agent.heard(ranks.Passed)[-1].boundary == 2001, "the newest, without another step")
    passed = agent.heard(ranks.Passed)
    assert passed[-1].metrics == {"loss": 1999.0}
    assert passed[0].metrics == {}, "NaN is no JSON"
    assert len(passed) < 200


def test_periodic_captures_fall_on_multiples_and_the_last_boundary_is_captured_at_the_end(agent: FakeAgent) -> None:
    agent.every_steps = 3
    loop = Loop()
    loop.ckpt.restore()
    for _ in range(8):
        loop.step(loss=1.0)
    loop.ckpt.finish()
    assert [(c.boundary, c.kind) for _, c in agent.captured] == [(3, "periodic"), (6, "periodic"), (8, "final")]
    assert [d.boundary for d in agent.heard(ranks.Done)] == [8]
    message = agent.captured[-1][1]
    assert (message.updates, message.metrics) == (8, {"loss": 1.0})
    assert message.run["exact"] == "bitwise"
    assert message.run["loop_kind"] == "plain"


def test_a_boundary_that_is_saved_already_is_not_captured_again_at_the_end(agent: FakeAgent) -> None:
    agent.every_steps = 2
    loop = Loop()
    loop.ckpt.restore()
    for _ in range(4):
        loop.step()
    loop.ckpt.finish()
    assert [c.boundary for _, c in agent.captured] == [2, 4]


def test_a_third_capture_waits_until_a_slot_is_free(agent: FakeAgent) -> None:
    agent.every_steps, agent.keep_slots = 1, True
    loop = Loop()
    loop.ckpt.restore()
    loop.step()
    loop.step()
    third = threading.Thread(target=loop.step)
    third.start()
    third.join(0.3)
    assert third.is_alive()
    agent.free(0, agent.captured[0][1].slot)
    agent.wait(lambda: len(agent.captured) == 3, "the third capture")
    third.join(30)
    assert [(c.boundary, c.slot) for _, c in agent.captured] == [(1, 0), (2, 1), (3, 0)]


def test_updates_are_counted_apart_from_boundaries(agent: FakeAgent) -> None:
    loop = Loop()
    loop.ckpt.restore()
    for n in range(6):
        loop.ckpt.step() if n % 3 else loop.step()
    loop.ckpt.finish()
    assert (agent.captured[-1][1].boundary, agent.captured[-1][1].updates) == (6, 2)


def test_the_layout_is_told_once_every_optimizer_has_its_state(agent: FakeAgent) -> None:
    """I9: before, it would be another one at the first update, and its slots made for nothing."""
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer)
    ckpt.restore()
    for update in (False, False, True, True):
        model(torch.ones(1, 4)).sum().backward()
        if update:
            optimizer.step()
            optimizer.zero_grad()
        ckpt.step()
    ckpt.finish()
    (plan,) = agent.heard(ranks.Plan)
    assert "optimizer.state.0.exp_avg" in {e.name for e in plan.tensors}


def test_a_round_before_any_plan_is_planned_at_its_boundary(agent: FakeAgent) -> None:
    loop = Loop()
    loop.ckpt.restore()
    target = agent.start_round(1, world=1)
    threading.Thread(target=loop.ckpt.step, daemon=True).start()  # no update yet: no plan either
    assert agent.await_round(1, world=1) == {0: target} == {0: 1}
    agent.open_gates(1)


def test_a_rank_that_ends_under_a_closed_gate_says_done(agent: FakeAgent) -> None:
    """E3."""
    loop = Loop()
    loop.ckpt.restore()
    loop.step()
    agent.connections[0].send(ranks.CloseGate(round=1, lease_seconds=60))
    agent.wait(lambda: (0, 1) in agent.votes, "the vote")
    assert agent.votes[(0, 1)] == ranks.Vote(round=1, boundary=2)
    loop.ckpt.finish()
    agent.wait(lambda: agent.votes[(0, 1)].done, "the corrected vote")
    assert agent.votes[(0, 1)].boundary == 1


def test_two_ranks_are_stopped_at_one_boundary_by_rounds_at_random_moments(tmp_path: Path) -> None:
    """E2 over real sockets, a collective in every step, periodic captures between the rounds."""
    with FakeAgent(tmp_path, every_steps=5) as agent:
        agent.forget_images = True
        loops = []
        for rank in range(2):
            with agent.as_environment(rank=rank, world=2):
                loops.append(Loop())
        collective = threading.Barrier(2)
        ended = threading.Event()

        def train(rank: int) -> None:
            try:
                while True:
                    collective.wait(60)
                    loops[rank].step()
                    time.sleep(0.0005 * rank)
            except threading.BrokenBarrierError:
                assert ended.is_set()

        for loop in loops:
            loop.ckpt.restore()
        threads = [threading.Thread(target=train, args=(r,)) for r in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 26):
            time.sleep(0.003 * (number % 5))
            target = agent.start_round(number, world=2)
            assert agent.await_round(number, world=2) == {0: target, 1: target}
            boundaries = [loop.ckpt.boundary for loop in loops]
            assert boundaries == [target, target], "they stand still"
            agent.open_gates(number)
        ended.set()
        collective.abort()
        for thread in threads:
            thread.join(30)


@pytest.mark.parametrize(
    "line", [b"not json\n", b'{"type":"Unknown"}\n', b'{"type":"SlotFree"}\n'], ids=["no JSON", "unknown", "incomplete"]
)
def test_a_line_that_is_no_message_ends_the_link_and_names_the_reason(line: bytes) -> None:
    lost: queue.Queue[str] = queue.Queue()
    link, peer = connected(lost.put)
    peer.sendall(line)
    with pytest.raises(holdfast.LinkLost):
        link.expect(ranks.Welcome, timeout=30)
    assert lost.get(timeout=30)
    assert lost.empty()


def test_a_line_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "MAX_LINE_BYTES", 1 << 20)
    link, peer = connected(lambda reason: None)
    with suppress(OSError):  # the link hangs up somewhere in between
        peer.sendall(b"x" * (16 << 20))
    with pytest.raises(holdfast.LinkLost, match="more than 1048576 bytes"):
        link.expect(ranks.Welcome, timeout=30)


def connected(lost: Callable[[str], None]) -> tuple[AgentLink, socket.socket]:
    name = f"\0holdfast-test-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        link = AgentLink(name, lambda message: False, lost)
        peer, _ = listener.accept()
    link.start()
    return link, peer


def test_a_process_may_end_without_finish_and_leaves_nothing_running(tmp_path: Path) -> None:
    """A script that raises must not hang on the helper thread."""
    script = (
        "import holdfast, torch\n"
        "m = torch.nn.Linear(1, 1)\n"
        "c = holdfast.Checkpointer(model=m); c.restore(); c.step()\n"
        "raise SystemExit(5)\n"
    )
    with FakeAgent(tmp_path) as agent, agent.as_environment():
        assert subprocess.run([sys.executable, "-c", script], timeout=120, check=False).returncode == 5


def test_with_one_slot_the_next_capture_waits_and_says_at_once_where_the_rank_stands(tmp_path: Path) -> None:
    """J6: the agent gives the only slot to a round once it knows that the rank has arrived."""
    with FakeAgent(tmp_path / "agent", every_steps=1, slots=1) as agent, agent.as_environment():
        agent.keep_slots = True
        loop = Loop()
        loop.ckpt.restore()
        loop.step()
        second = threading.Thread(target=loop.step)
        second.start()
        agent.wait(lambda: agent.heard(ranks.Passed)[-1].boundary == 2, "where it stands")
        second.join(0.3)
        assert second.is_alive()
        assert [c.boundary for _, c in agent.captured] == [1]
        agent.free(0, 0)
        agent.wait(lambda: len(agent.captured) == 2, "the second capture")
        second.join(30)
        assert [(c.boundary, c.slot) for _, c in agent.captured] == [(1, 0), (2, 0)]


def test_with_one_slot_a_round_captures_into_it_when_it_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_MID_STEP", "off")  # the target is the next boundary
    with FakeAgent(tmp_path / "agent", every_steps=3, slots=1) as agent, agent.as_environment():
        agent.keep_slots = True
        loop = Loop()
        loop.ckpt.restore()
        for _ in range(3):
            loop.step()
        agent.wait(lambda: len(agent.captured) == 1, "the periodic capture")
        training = threading.Thread(target=lambda: [loop.step() for _ in range(2)])
        target = agent.start_round(1, world=1)
        training.start()
        agent.wait(lambda: agent.heard(ranks.Passed)[-1].boundary >= target, "it stands at the target")
        assert len(agent.captured) == 1
        agent.free(0, 0)
        assert agent.await_round(1, world=1) == {0: target}
        agent.open_gates(1)
        training.join(60)
        assert not training.is_alive()
