"""E1: a worker obeys the greatest round it has heard of. Two coordinators can start at the same moment, and messages can be late."""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lone import Lone

from holdfast_agent.errors import PeerRefused
from holdfast_api import peers
from holdfast_api import ranks as wire

CLOSED, OLDER = (5, "coordinator-b"), [(4, "coordinator-z"), (5, "coordinator-a")]


async def in_round(folder: Path) -> tuple[Lone, list[object]]:
    """The gate is closed for round 5 of coordinator b; the rank has voted for boundary 10."""
    one, heard = Lone(folder), []

    def send(message: object) -> None:
        heard.append(message)
        if isinstance(message, wire.CloseGate):
            one.rank.vote = wire.Vote(message.round, 10)

    one.rank.link = SimpleNamespace(open=True, send=send)
    await one.gates.close_gates(peers.CloseGates(1, *CLOSED, 60.0))
    assert [type(m) for m in heard] == [wire.CloseGate]
    return one, heard


async def released(one: Lone, name: tuple[int, str], target: int) -> object:
    return await asyncio.wait_for(one.gates.release(peers.ReleaseGates(1, *name, target, None)), 10)


@pytest.mark.parametrize("older", OLDER, ids=["smaller number", "same number, smaller coordinator"])
async def test_what_an_older_round_orders_is_refused_and_changes_nothing(
    tmp_path: Path, older: tuple[int, str]
) -> None:
    one, heard = await in_round(tmp_path)
    with pytest.raises(PeerRefused):
        await asyncio.wait_for(one.gates.close_gates(peers.CloseGates(1, *older, 60.0)), 10)
    with pytest.raises(PeerRefused):
        await released(one, older, 7)
    one.gates.open(peers.OpenGates(1, *older))
    assert one.gates.closed
    assert one.gates.greatest == CLOSED
    assert len(heard) == 1, "no rank was told of it"
    assert one.rank.vote == wire.Vote(5, 10)
    await one.close()


async def test_a_newer_round_takes_the_gate_over_and_its_votes_are_asked_for_again(tmp_path: Path) -> None:
    one, heard = await in_round(tmp_path)
    newer = (5, "coordinator-c")
    votes = await one.gates.close_gates(peers.CloseGates(1, *newer, 60.0))
    assert votes.votes == {"0": 10}
    assert [m.round for m in heard if isinstance(m, wire.CloseGate)] == [5, 5]
    with pytest.raises(PeerRefused):
        await released(one, CLOSED, 10)
    await one.close()


async def test_only_a_round_that_was_closed_here_is_released(tmp_path: Path) -> None:
    one, heard = await in_round(tmp_path)
    with pytest.raises(PeerRefused):
        await released(one, (6, "coordinator-b"), 10)
    assert len(heard) == 1
    await one.close()
