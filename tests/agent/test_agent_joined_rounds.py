"""F1, E3: an evacuation that joins a round which training was to survive goes by its own deadline from then on, in whatever part of the round it comes."""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lone import Lone

from holdfast_agent import gates
from holdfast_agent.clock import now
from holdfast_agent.rounds import Round
from holdfast_api import ranks as wire
from holdfast_api.messages import Cause

SECONDS = 10


class HungRank:
    """It hears everything and says nothing by itself."""

    open = True

    def __init__(self) -> None:
        self.heard: list[object] = []

    def send(self, message: object) -> None:
        self.heard.append(message)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "VOTE_SECONDS", 60.0)


async def joined(one: Lone) -> Round:
    """A periodic round waits for the rank's vote; the notice comes. Boundary 10 is clean and not committed."""
    one.rank.link = rank = HungRank()
    one.capture(0, 10)
    running = one.rounds.request(Cause.PERIODIC, evacuate=False, deadline=None)
    await one.until(lambda: any(isinstance(m, wire.CloseGate) for m in rank.heard))
    again = one.rounds.request(Cause.SPOT, evacuate=True, deadline=now() + timedelta(seconds=SECONDS), worker=0)
    assert again is running
    return running


async def test_the_votes_of_a_rank_that_hangs_are_not_waited_for_as_if_there_were_time(tmp_path):
    one = Lone(tmp_path)
    running = await joined(one)
    await asyncio.wait_for(running.ended.wait(), 60)
    assert [c.progress.boundary for c in one.commits()] == [10]
    await one.close()


async def test_a_rank_that_votes_and_never_arrives_costs_its_step_and_not_the_clean_slot(tmp_path):
    one = Lone(tmp_path)
    running = await joined(one)
    one.rank.vote = wire.Vote(running.number, 12)
    one.shared.changes.bump()
    await asyncio.wait_for(running.ended.wait(), 60)
    assert [c.progress.boundary for c in one.commits()] == [10]
    await one.close()
