"""I5: a rank whose state changed while it was copied in the middle of a step gives nothing away; the round goes on at its next boundary."""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

from lone import Lone

from holdfast_api import ranks as wire
from holdfast_api.messages import Cause


class TornRank:
    """Votes for the boundary it has passed, and takes that back when it has tried to copy it."""

    def __init__(self, one: Lone, torn: int) -> None:
        self.one, self.boundary, self.torn, self.targets = one, 10, torn, []
        one.rank.link = SimpleNamespace(open=True, send=self.send)

    def send(self, message) -> None:
        one = self.one
        match message:
            case wire.CloseGate():
                one.rank.vote = wire.Vote(message.round, self.boundary)
            case wire.ReleaseGate():
                self.targets.append(message.target)
                if len(self.targets) <= self.torn:
                    self.boundary = message.target + 1
                    one.rank.vote = wire.Vote(message.round, self.boundary)
                elif not one.rank.holds(message.target):
                    slot = next(s for s in range(2) if s not in one.rank.book.held)
                    one.capture(slot, message.target, "round")
        one.shared.changes.bump()


async def test_an_evacuation_goes_on_at_the_next_boundary(tmp_path):
    one = Lone(tmp_path)
    rank = TornRank(one, torn=1)
    running = one.rounds.request(Cause.SPOT, evacuate=True, deadline=None)
    await asyncio.wait_for(running.ended.wait(), 30)
    assert rank.targets == [10, 11]
    assert running.info is not None
    assert running.info.boundary == 11
    assert [r.progress.boundary for r in one.commits()] == [11]
    await one.close()


async def test_a_rank_that_is_never_whole_does_not_keep_the_round_for_ever(tmp_path):
    one = Lone(tmp_path)
    rank = TornRank(one, torn=99)
    running = one.rounds.request(Cause.SPOT, evacuate=True, deadline=None)
    await asyncio.wait_for(running.ended.wait(), 30)
    assert len(rank.targets) == 3
    assert one.commits() == []
    await one.close()
