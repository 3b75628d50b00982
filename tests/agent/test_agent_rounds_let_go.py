"""A round that is no evacuation stops training for the copy and not for the upload (design, section 3); an evacuation that comes meanwhile is a round of
its own and loses no step.
"""

import asyncio
import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

from lone import Barrier, Lone, in_thread

from holdfast_agent.peers import Mesh
from holdfast_api import peers
from holdfast_api import ranks as wire
from holdfast_api.messages import Cause


class StandingRank:
    """A rank that votes for the boundary it stands at and captures it when it is let go to it."""

    def __init__(self, one: Lone) -> None:
        self.one, self.open, self.boundary, self.gate_open = one, True, 10, True
        one.rank.link = SimpleNamespace(open=True, send=self.send)

    def send(self, message) -> None:
        one = self.one
        match message:
            case wire.CloseGate():
                self.gate_open = False
                one.rank.vote = wire.Vote(message.round, self.boundary)
            case wire.ReleaseGate():
                if not one.rank.holds(message.target):
                    slot = next(s for s in range(2) if s not in one.rank.book.held)
                    one.capture(slot, message.target, "round")
            case wire.OpenGate():
                self.gate_open = True
        one.shared.changes.bump()


async def test_training_goes_on_while_what_was_captured_is_still_being_written(tmp_path):
    commit = Barrier("create", "commit.json")
    one = Lone(tmp_path, before_call=commit)
    rank = StandingRank(one)
    running = one.rounds.request(Cause.MANUAL, evacuate=False, deadline=None)
    await in_thread(commit.reached)
    assert rank.gate_open
    assert not running.ended.is_set(), "who asked for it hears of it when it is durable"
    assert one.rank.holds(10), "the slot is the agent's until then"
    commit.free.set()
    await running.ended.wait()
    assert running.info is not None
    assert [r.progress.boundary for r in one.commits()] == [10]
    await one.close()


async def test_an_evacuation_meanwhile_saves_where_the_ranks_are_then(tmp_path):
    chunk = Barrier("create", "/chunks/")
    one = Lone(tmp_path, before_call=chunk)
    rank = StandingRank(one)
    first = one.rounds.request(Cause.PERIODIC, evacuate=False, deadline=None)
    await in_thread(chunk.reached)
    assert rank.gate_open
    rank.boundary = 17
    second = one.rounds.request(Cause.SPOT, evacuate=True, deadline=None)
    assert second is not first
    await asyncio.wait_for(second.ended.wait(), 30)  # while the chunk of the first is stuck
    await asyncio.wait_for(first.ended.wait(), 30)
    assert first.info is None
    assert second.info is not None
    assert second.info.boundary == 17
    assert one.commits()[-1].progress.boundary == 17
    assert not rank.gate_open
    assert {m.info.boundary for m in one.sealed} == {17}
    chunk.free.set()
    await one.close()


async def test_gates_open_only_after_the_save_where_an_older_agent_would_give_the_slot_back(tmp_path):
    """An agent that does not know `OpenGates.keep` frees what a round has captured as soon as its gates open."""
    commit = Barrier("create", "commit.json")
    one = Lone(tmp_path, before_call=commit)
    rank = StandingRank(one)
    votes = one.gates._votes
    one.gates._votes = lambda: dataclasses.replace(votes(), keeps=False)
    running = one.rounds.request(Cause.MANUAL, evacuate=False, deadline=None)
    await in_thread(commit.reached)
    assert not rank.gate_open
    commit.free.set()
    await running.ended.wait()
    assert rank.gate_open
    assert [r.progress.boundary for r in one.commits()] == [10]
    await one.close()


async def test_workers_whose_ranks_arrived_at_different_boundaries_save_nothing(tmp_path, caplog, monkeypatch):
    """E3: one worker's ranks ended before the target, another's did not; no boundary is everybody's."""
    one = Lone(tmp_path)
    rank = StandingRank(one)
    ask_all = Mesh.ask_all

    async def and_another_worker(mesh, message, **options):
        answers = await ask_all(mesh, message, **options)
        return answers | {1: peers.Captured(11)} if isinstance(message, peers.ReleaseGates) else answers

    monkeypatch.setattr(Mesh, "ask_all", and_another_worker)
    running = one.rounds.request(Cause.MANUAL, evacuate=False, deadline=None)
    await asyncio.wait_for(running.ended.wait(), 30)
    assert running.info is None
    assert one.orders == []
    assert one.commits() == []
    assert "different boundaries: [10, 11]" in caplog.text
    assert rank.gate_open
    await one.close()
