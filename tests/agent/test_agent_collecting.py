"""D2: orders to delete are said again and again; the store is asked again only when its last answer no longer counts."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from lone import Lone
from worlds import NOW, World, ref

from holdfast_agent.clock import now
from holdfast_agent.collecting import Asked, Outcome, rests
from holdfast_agent.run import Agent
from holdfast_api.manifest import BranchRef
from holdfast_api.messages import ClaimInfo, CollectOrder
from holdfast_store.memory import Effect, Fault, MemoryBucket


@pytest.mark.parametrize(
    ("asked", "at", "expected"),
    [
        (None, 0, False),
        (Asked(Outcome.KEPT, 100), 100 + 3599, True),
        (Asked(Outcome.KEPT, 100), 100 + 3600, False),
        (Asked(Outcome.DELETED, 100), 100 + 3599, True),
        (Asked(Outcome.FAILED, 100), 100 + 59, True),
        (Asked(Outcome.FAILED, 100), 100 + 60, False),
    ],
)
def test_an_answer_counts_for_a_while(asked: Asked | None, at: float, expected: bool) -> None:
    assert rests(asked, at) is expected


@pytest.fixture
async def lead(tmp_path: Path):
    """An agent that leads attempt 1 with three checkpoints: (agent, its store's world)."""
    lone = Lone(tmp_path)
    settings = lone.shared.settings
    config = dataclasses.replace(settings.config, memory_dir=str(tmp_path / "memory"), local_dir="")
    agent = Agent(dataclasses.replace(settings, config=config))
    world = World(MemoryBucket()).claimed(1).saved(1, 1).saved(1, 2).saved(1, 3).saved(1, 4)
    agent._store = world.store
    agent._record.claim = ClaimInfo(1, "life", now())
    yield agent, world
    await lone.close()


def order(*saves: int) -> CollectOrder:
    return CollectOrder("uid-1", 1, tuple(ref(1, save) for save in saves))


async def test_what_a_branch_keeps_is_not_asked_about_again_and_still_reported_by_the_next_attempt(lead) -> None:
    agent, world = lead
    world.store.write_branch(BranchRef("uid-1", "uid-2", ref(1, 1), NOW))
    await agent._collect(order(1))
    assert agent.report().kept == (ref(1, 1),)
    asked = len(world.store.bucket.calls)
    agent._record.begin(2)
    agent._record.claim = ClaimInfo(2, "life", now())
    for _ in range(3):
        await agent._collect(order(1))
    assert agent.report().kept == (ref(1, 1),)
    assert len(world.store.bucket.calls) == asked
    await agent._collect(order(2))
    assert agent.report().expired == (ref(1, 2),)


async def test_after_an_hour_the_store_is_asked_again_and_a_deletion_replaces_what_was_kept(lead) -> None:
    agent, world = lead
    world.store.write_branch(BranchRef("uid-1", "uid-2", ref(1, 1), NOW))
    await agent._collect(order(1))
    world.store.write_branch(BranchRef("uid-1", "uid-2", ref(1, 4), NOW))
    agent._asked[ref(1, 1)] = dataclasses.replace(agent._asked[ref(1, 1)], at=float("-inf"))
    await agent._collect(order(1))
    assert (agent.report().expired, agent.report().kept) == ((ref(1, 1),), ())


async def test_a_stray_that_was_ordered_is_no_longer_named_and_stays_so_when_it_is_kept(lead) -> None:
    """D3: else whoever was told that it is gone would be told of it again."""
    agent, world = lead
    world.store.write_branch(BranchRef("uid-1", "uid-2", ref(1, 2), NOW))
    agent._record.found_stray((ref(1, 1), ref(1, 2), ref(1, 9)))
    await agent._collect(order(1, 2))
    assert agent.report().stray == (ref(1, 9),)
    assert (agent.report().expired, agent.report().kept) == ((ref(1, 1),), (ref(1, 2),))


async def test_a_store_that_failed_is_left_alone_for_a_minute(lead) -> None:
    agent, world = lead
    world.store.bucket.faults.append(Fault(Effect.UNAVAILABLE, times=1))
    await agent._collect(order(1))
    asked = len(world.store.bucket.calls)
    await agent._collect(order(1))
    assert len(world.store.bucket.calls) == asked
    assert agent._asked[ref(1, 1)].outcome is Outcome.FAILED
    assert (agent.report().expired, agent.report().kept) == ((), ())
