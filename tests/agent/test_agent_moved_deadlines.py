"""A deadline that moves while an emergency save is being written: the order in flight takes it over, in both directions (F1, F3)."""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lone import Barrier, Lone, in_thread

from holdfast_agent import rounds
from holdfast_agent.clock import Deadline, now
from holdfast_agent.errors import PeerSilent, SaveGivenUp
from holdfast_agent.peers import Mesh
from holdfast_api import peers
from holdfast_api import ranks as wire
from holdfast_api.messages import Cause


class StoppedRank:
    """A rank between two updates: votes for the boundary it stands at, captures it when it is let go to it."""

    def __init__(self, one: Lone, boundary: int) -> None:
        self.one, self.boundary = one, boundary
        one.rank.link = SimpleNamespace(open=True, send=self.send)

    def send(self, message) -> None:
        one = self.one
        match message:
            case wire.CloseGate():
                one.rank.vote = wire.Vote(message.round, self.boundary)
            case wire.ReleaseGate() if not one.rank.holds(message.target):
                one.capture(next(s for s in range(2) if s not in one.rank.book.held), message.target, "round")
        one.shared.changes.bump()


async def test_a_flush_that_runs_gets_the_time_that_a_later_deadline_gives(tmp_path):
    chunk = Barrier("create", "/chunks/")
    one = Lone(tmp_path, before_call=chunk)
    one.capture(0, 10)
    deadline = Deadline.after(1.0)
    saving = asyncio.ensure_future(one.saves.make(10, Cause.SPOT, deadline=deadline, emergency=True))
    await in_thread(chunk.reached)
    deadline.at = now() + timedelta(seconds=60)
    one.saves.deadline_moved()
    await asyncio.sleep(1.2)  # past what was assumed first
    assert not one.writing._flushes[1].stop.wanted
    chunk.free.set()
    info = await saving
    assert (info.save, info.boundary) == (1, 10)
    assert {o.save for o in one.orders} == {1}, "no second save was begun"
    await one.close()


async def test_a_flush_that_runs_ends_by_an_earlier_deadline(tmp_path):
    chunk = Barrier("create", "/chunks/")
    one = Lone(tmp_path, before_call=chunk)
    one.capture(0, 10)
    deadline = Deadline.after(3600)
    saving = asyncio.ensure_future(one.saves.make(10, Cause.SPOT, deadline=deadline, emergency=True))
    await in_thread(chunk.reached)
    deadline.at = now() + timedelta(seconds=0.5)
    one.saves.deadline_moved()
    with pytest.raises(SaveGivenUp):
        await asyncio.wait_for(saving, 30)
    await one.until(lambda: one.writing._flushes[1].stop.wanted)
    chunk.free.set()
    assert one.commits() == []
    await one.close()


async def test_a_commit_record_on_its_way_is_tried_as_long_as_the_later_deadline_allows(tmp_path):
    commit = Barrier("create", "commit.json")
    one = Lone(tmp_path, before_call=commit)
    one.capture(0, 10)
    deadline = Deadline.after(1.0)
    saving = asyncio.ensure_future(one.saves.make(10, Cause.SPOT, deadline=deadline, emergency=True))
    await in_thread(commit.reached)
    deadline.at = now() + timedelta(seconds=60)
    one.saves.deadline_moved()
    await asyncio.sleep(1.2)
    assert not one.saves._under_way.stop.wanted
    commit.free.set()
    assert (await saving).boundary == 10
    await one.close()


async def test_a_round_passes_on_what_a_worker_says_last(tmp_path):
    """What SIGTERM left to assume would have cut the flush short; then the operator tells the pod's grace (F3)."""
    chunk = Barrier("create", "/chunks/")
    one = Lone(tmp_path, before_call=chunk)
    StoppedRank(one, 10)
    running = one.rounds.request(Cause.SIGTERM, evacuate=True, deadline=now() + timedelta(seconds=3), worker=0)
    await in_thread(chunk.reached)
    one.rounds.wanted_by(0, now() + timedelta(seconds=60))
    await asyncio.sleep(3.2)
    chunk.free.set()
    await asyncio.wait_for(running.ended.wait(), 30)
    assert running.info is not None
    assert (running.info.save, running.info.boundary) == (1, 10)
    await one.close()


async def test_where_nothing_fits_the_deadline_may_still_prove_to_be_later(tmp_path, monkeypatch):
    """A round that has given up cannot be had again: the ranks would be sealed with nothing new."""
    monkeypatch.setattr(rounds, "PATIENCE_SECONDS", 30.0)
    one = Lone(tmp_path)
    StoppedRank(one, 10)
    one.shared.experience.estimates = one.shared.experience.estimates.flushed(
        logical=8192, sent=8192, seconds=400.0, emergency=True, based=False, at=now().timestamp()
    )
    running = one.rounds.request(Cause.SIGTERM, evacuate=True, deadline=now() + timedelta(seconds=15), worker=0)
    await one.until(lambda: running.planning is not None and running.planning._heard_at is not None)
    await asyncio.sleep(0.1)
    assert not running.ended.is_set()
    assert one.orders == []
    one.rounds.wanted_by(0, now() + timedelta(seconds=3600))
    await asyncio.wait_for(running.ended.wait(), 30)
    assert running.info is not None
    await one.close()


async def test_an_answer_is_not_waited_for_longer_than_a_deadline_that_has_moved_closer(tmp_path):
    never = asyncio.Event()
    until = Deadline.after(3600)

    async def handler(message):
        await never.wait()

    mesh = Mesh(1, (), 0, handler, None, b"", "uid")
    asking = asyncio.ensure_future(mesh.ask(0, peers.OpenGates(1, 1, "pod"), until=until))
    await asyncio.sleep(0.05)
    until.at = now()
    with pytest.raises(PeerSilent):
        await asyncio.wait_for(asking, 30)
