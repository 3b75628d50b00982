"""The real code under random interleavings of attempts, zombies, deletions, sweeps and deaths: no usable checkpoint is ever lost (SAFE, ALIVE)."""

import os
from collections.abc import Iterable
from dataclasses import replace

import pytest
from interleaving import Happens, Rules, Stage
from worlds import World, ref

from holdfast_store import claims, collect, commits, deletion, unfinished
from holdfast_store.deletion import Held
from holdfast_store.errors import Absent, NotOnRecord, Superseded
from holdfast_store.memory import MemoryBucket

DEEP = int(os.environ.get("HOLDFAST_MODEL_DEEP", "1"))
"""How many times as far to go."""
SEEDS = range(50)


def first_violation(rules: Rules, seeds: range) -> str:
    return next((found for seed in seeds if (found := Stage(seed, rules).run())), "")


@pytest.mark.parametrize("block", range(3))
def test_no_interleaving_loses_a_usable_checkpoint(block: int) -> None:
    steps = commits_made = deleted = 0
    for seed in SEEDS:
        stage = Stage(seed + 1000 * block, Rules())
        assert stage.run() == ""
        steps += stage.steps
        commits_made += sum(1 for key in stage.bucket.objects if key.endswith("commit.json"))
        deleted += sum(1 for key in stage.bucket.objects if key.endswith("expired.json"))
    assert steps > 5_000  # the actors really ran
    assert commits_made > 50
    assert deleted > 20  # and deleted


def test_the_store_itself_keeps_the_newest_when_the_operator_forgets_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """D5 is kept twice. Without the store's own look a careless order leaves a job with nothing."""
    monkeypatch.setattr(deletion, "why_kept", lambda _: "")
    assert "ALIVE" in first_violation(Rules(operator_keeps_newest=False), range(200))


def test_a_deleter_that_spares_nothing_of_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_held", lambda *_: Held())
    assert "SAFE" in first_violation(Rules(), range(200))


def test_a_sweep_that_takes_saves_in_the_making_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "leftover", lambda *_: "sweep")
    # One interleaving in some two hundred shows it; the range begins shortly before one of them.
    assert "SAFE" in first_violation(Rules(), range(150, 360))


def test_saves_that_lean_on_more_than_their_base_are_refused_and_would_be_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    careless = Rules(agent_uses_its_base_only=False)
    # Few interleavings show it (one in some thousand); the range begins shortly before one of them.
    shows_it = range(2660, 2690)
    assert first_violation(careless, shows_it) == ""
    monkeypatch.setattr(commits, "_check_base", lambda *_: None)
    assert "SAFE" in first_violation(careless, shows_it)


EVERYTHING = Happens(ranks=2, open_saves=2, second_life=0.003, resend=0.05, branch=True)
FORGETTING = Happens(resend=0.2, forget=0.05)
BRANCHED = Happens(branch=True)


def first(happens: Happens, seeds: Iterable[int], rules: Rules | None = None) -> str:
    return next((found for seed in seeds if (found := Stage(seed, rules or Rules(), happens=happens).run())), "")


@pytest.mark.parametrize(
    "happens",
    [EVERYTHING, FORGETTING, BRANCHED, Happens(open_saves=2), Happens(conditional=False)],
    ids=["everything", "forgetting", "branched", "two open saves", "no conditional writes"],
)
def test_whatever_else_happens_nothing_usable_is_lost(happens: Happens) -> None:
    """A4, A8, B3, B8, D2, D6 by the real code."""
    assert first(happens, range(5_000, 5_000 + 30 * DEEP)) == ""


def test_what_else_can_happen_does_happen() -> None:
    """Else the test above would show nothing."""
    stages = [Stage(seed, Rules(), happens=EVERYTHING) for seed in range(5_000, 5_020)]
    assert [stage.run() for stage in stages] == [""] * 20
    assert sum(len(stage.lives) for stage in stages) > 3
    assert sum(stage.oracle.built_on is not None for stage in stages) > 3
    assert sum(actor.life for stage in stages for actor in stage.actors) > 3
    revived = [key for stage in stages for key in stage.bucket.objects if key.endswith("/expired.json")]
    assert any(key.replace("expired", "commit") in stage.bucket.objects for stage in stages for key in revived)


def test_a_claim_that_is_believed_without_its_incarnation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A4."""
    monkeypatch.setattr(claims, "_settle", lambda *_: None)
    assert "ONE" in first(Happens(second_life=0.02), range(100))


def test_a_tombstone_that_nobody_honours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """D2: a commit record that arrives once more would revive what has lost its chunks."""
    monkeypatch.setattr(collect, "_bury", lambda *_: None)
    assert "SAFE" in first(FORGETTING, range(200))


def test_a_branch_that_is_not_named_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """D6."""
    monkeypatch.setattr(claims, "write_branch", lambda *_: None)
    assert "BRANCH" in first(BRANCHED, range(300))


def test_a_deleter_that_reads_no_references_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """D2, D6."""
    monkeypatch.setattr(collect, "branch_on", lambda *_: "")
    assert "BRANCH" in first(BRANCHED, range(300))


ON_NODES = Happens(ranks=2, open_saves=2, nodes=True, resend=0.02)


@pytest.mark.parametrize("happens", [ON_NODES, Happens(nodes=True)], ids=["two ranks", "one rank"])
def test_whatever_is_finished_from_nodes_nothing_usable_is_lost(happens: Happens) -> None:
    """E6 by the real code, among zombies, sweeps, deletions and saves that are given up; and saves are finished."""
    stages = [Stage(seed, Rules(), happens=happens) for seed in range(8_000, 8_000 + 60 * DEEP)]
    assert [stage.run() for stage in stages] == [""] * len(stages)
    assert sum(len(stage.finished) for stage in stages) > 10


@pytest.mark.parametrize("buried", [True, False])
def test_what_is_given_up_is_buried_where_somebody_may_finish_it(buried: bool) -> None:
    """The shortest way that the model finds without "heard" (E6, D2): whoever finishes has looked before what he counts on is taken away."""
    world = World(MemoryBucket()).claimed(1)
    world.prepared(1, 1, [b"aaaa", b"bbbb"])
    pending, _ = world.left(1, 1, [b"aaaa", b"bbbb"], worker=0)
    refused = []

    def finishes(operation: str, _: str) -> None:
        if operation == "delete":
            world.store.bucket.before_call = None  # type: ignore[attr-defined]
            try:
                world.store.finish(pending)
            except NotOnRecord as e:
                refused.append(e)

    world.store.bucket.before_call = finishes  # type: ignore[attr-defined]
    world.store.discard(ref(1, 1), sent=buried)
    if buried:
        assert refused
        assert world.candidates(2) == []
        return
    assert world.candidates(2) == ["1/1"], "torn, and taken for a checkpoint"
    with pytest.raises(Absent):
        world.image(ref(1, 1))


def test_a_record_before_all_manifests_are_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """E6, B2."""
    record = unfinished._record

    def careless(records, pending, found, namespace, job):  # type: ignore[no-untyped-def]
        entries = {m.rank for m, _ in found}
        invented = [(replace(found[0][0], rank=r), "0" * 64) for r in range(pending.world_size) if r not in entries]
        return record(records, pending, sorted([*found, *invented], key=lambda f: f[0].rank), namespace, job)

    monkeypatch.setattr(unfinished, "_record", careless)
    monkeypatch.setattr(unfinished, "all_there", lambda *_: True)
    assert "SAFE" in first(ON_NODES, range(8_000, 8_200))


LOCKS = ["look_for_claims", "_check_base", "look_for_newer"]


@pytest.mark.parametrize("kept", [*LOCKS, ""])
def test_a_late_commit_on_a_lost_base_is_refused_by_each_of_three_rules(
    kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortest way that the model finds without A8, walked by the real code: A5, B4 and A8 each stop it; without all three a usable checkpoint is torn."""
    world = World(MemoryBucket()).claimed(1).saved(1, 1, b"aaaabbbb")
    late = world.prepared(1, 2, b"bbbbcccc", base=ref(1, 1))
    world.store.commit(world.prepared(1, 3, b"cccc", base=ref(1, 1)))
    world.claimed(2, ref(1, 3)).saved(2, 1, b"dddd").saved(2, 2, b"eeee").saved(2, 3, b"ffff")
    assert world.store.expire(ref(1, 1), by_attempt=2, reason="order").deleted
    for lock in LOCKS:
        if lock != kept:
            monkeypatch.setattr(commits, lock, lambda *_: None)
    if kept:
        with pytest.raises((NotOnRecord, Superseded)):
            world.store.commit(late)
        return
    world.store.commit(late)
    assert "1/2" in world.candidates(3)
    with pytest.raises(Absent):
        world.image(ref(1, 2))
