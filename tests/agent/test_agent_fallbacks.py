"""E3: ranks that do not come are waited for only as long as what they hold already can still be written."""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

from lone import Lone

from holdfast_agent.clock import now
from holdfast_api import ranks as wire
from holdfast_api.messages import Cause


async def test_a_rank_that_votes_and_does_not_come_costs_its_steps_and_not_the_clean_slot(tmp_path):
    one = Lone(tmp_path)
    one.capture(0, 10)

    def send(message) -> None:
        if isinstance(message, wire.CloseGate):
            one.rank.vote = wire.Vote(message.round, 11)
        one.shared.changes.bump()

    one.rank.link = SimpleNamespace(open=True, send=send)
    running = one.rounds.request(Cause.SPOT, evacuate=True, deadline=now() + timedelta(seconds=8), worker=0)
    await asyncio.wait_for(running.ended.wait(), 60)
    assert running.info is not None
    assert running.info.boundary == 10
    told = [(p.choice, p.outcome) for p in one.shared.record.plans]
    assert ("clean-slot", "committed") in told
    assert all(outcome for _, outcome in told)
    await one.close()
