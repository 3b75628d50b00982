"""Attempts in which workers are missing: ranks are counted over the members, and so is whose a share is."""

from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_agent.asking import FromMembers
from holdfast_agent.settings import Settings
from holdfast_agent.spawning import specs
from holdfast_agent.threads import Stop
from holdfast_api import names, sources
from holdfast_api.config import AgentConfig, StorageConfig
from holdfast_api.messages import AgentPhase, AttemptOrder, Member, RestoreOrder

MEMBERS = tuple(Member(w, f"pod-{w}", f"uid-{w}", 1, "node", f"10.0.0.{w}:8471") for w in (1, 3, 4))


def an_order(**changes: object) -> AttemptOrder:
    return replace(AttemptOrder("uid", 7, MEMBERS, 2, False, RestoreOrder()), **changes)


@pytest.mark.parametrize(("worker", "ranks"), [(1, [0, 1]), (3, [2, 3]), (4, [4, 5])])
def test_ranks_have_no_gaps_where_workers_have(worker: int, ranks: list[int]) -> None:
    config = AgentConfig("ns", "job", "uid", worker, 1, 5, 2, StorageConfig("memory://x"))
    settings = Settings(config, ("true",), "pod", "pod-uid", "", "node", "", 0, {}, Path("/token"), None)
    found = specs(settings, an_order(global_batch=96), "/socket")
    assert [(s.rank, s.local_rank, s.world_size) for s in found] == [(ranks[0], 0, 6), (ranks[1], 1, 6)]
    environment = found[0].environment({})
    assert environment["GROUP_RANK"] == str(ranks[0] // 2)
    assert environment["MASTER_ADDR"] == "10.0.0.1", "the lead is the lowest that there is"
    assert environment[names.ENV_GLOBAL_BATCH] == "96"
    assert names.ENV_GLOBAL_BATCH not in specs(settings, an_order(), "/socket")[0].environment({})


def test_others_are_asked_by_the_place_that_their_ranks_follow_from() -> None:
    asked = FromMembers(MEMBERS, 3, 2, lambda m, path: {}, Stop())
    assert {place: other.member.worker for place, other in asked._others.items()} == {0: 1, 2: 4}
    assert asked._order == [2, 0], "the next one first, so that not all ask the same"


def test_a_notice_that_is_about_nobody_seals_everybody_and_ends_nobody(gang) -> None:
    g = gang(workers=2).start().begin()
    g.wait_for_boundary(5)
    g.notice(sources.NOBODY, source=sources.RESIZE, seconds=3600)
    g.wait_for_phase(AgentPhase.SEALED)
    boundaries = {p.report().boundary for p in g.pods.values()}
    assert len(boundaries) == 1
    assert max(b for _, b, _ in g.commits()) == boundaries.pop(), "no step is done again"
    assert all(p.process.poll() is None for p in g.pods.values())
    g.begin()
    g.wait_for_phase(AgentPhase.TRAINING)


def test_such_a_notice_is_taken_back_and_training_goes_on(gang) -> None:
    g = gang(workers=2).start().begin()
    g.wait_for_boundary(5)
    g.notice(sources.NOBODY, source=sources.RESIZE, seconds=3600)
    g.wait_for_phase(AgentPhase.SEALED)
    stood = max(p.report().boundary for p in g.pods.values())
    g.notice(sources.NOBODY, source=sources.RESIZE, seconds=3600, withdrawn=True)
    g.wait_for_boundary(stood + 5)
