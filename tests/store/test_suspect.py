"""C1, C2, J4, D5: a checkpoint whose copies differ is kept and passed over, and never costs the last one in which nothing was found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import NOW, World, ref

from holdfast_api.manifest import Verdict
from holdfast_api.messages import RestoreOrder
from holdfast_api.soundness import Grade
from holdfast_store.memory import MemoryBucket

BY = {"by_attempt": 1, "reason": "test"}
ODD = "rank 1 is not like ranks 0, 2"


def tried(world: World, **order: object) -> list[str]:
    return world.candidates(2, RestoreOrder(**order))  # type: ignore[arg-type]


def test_it_is_passed_over_with_its_reason_and_is_not_quarantined(world: World) -> None:
    world.claimed(1).told(1, 1, True).told(1, 2, None).told(1, 3, True, suspect=ODD).told(1, 4, False)
    found = world.store.resolve(RestoreOrder(), 2)
    assert [str(c.record.ref) for c in found.candidates] == ["1/2", "1/1"]
    assert {(r.save, r.of_checkpoint) for r in found.rejections} == {(3, False), (4, True)}
    assert any(ODD in r.reason for r in found.rejections)


def test_where_nothing_sound_is_left_the_newest_of_them_is_continued_and_nothing_starts_from_zero(world: World) -> None:
    """C1. NaN is worse: a load would refuse it."""
    world.claimed(1).told(1, 1, True, suspect=ODD).told(1, 2, True, suspect=ODD).told(1, 3, False, suspect=ODD)
    found = world.store.resolve(RestoreOrder(), 2)
    assert [str(c.record.ref) for c in found.candidates] == ["1/2", "1/1"]
    assert [(r.save, r.of_checkpoint) for r in found.rejections] == [(3, True)]
    assert not found.fresh_allowed


def test_what_a_person_has_named_trusted_or_accepted_is_continued(world: World) -> None:
    world.claimed(1).told(1, 1, True).told(1, 2, True, suspect=ODD).told(1, 3, True, suspect=ODD).told(1, 4, False)
    assert tried(world) == ["1/1"]
    assert tried(world, pinned=ref(1, 2)) == ["1/2"]
    assert tried(world, trusted=(ref(1, 2),)) == ["1/2", "1/1"]
    assert tried(world, accept_suspect=True) == ["1/3", "1/2", "1/1"]
    assert tried(world, trusted=(ref(1, 4),)) == ["1/4", "1/1"]


def test_no_verdict_speaks_against_what_a_person_trusts(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2)
    world.store.write_verdict(Verdict("uid-1", 1, 2, "canary", False, "loss 9.1, recorded 2.3", NOW))
    assert tried(world) == ["1/1"]
    assert tried(world, trusted=(ref(1, 2),)) == ["1/2", "1/1"]


def test_trust_is_in_the_jobs_own_checkpoint_of_that_number_not_in_another_jobs(bucket: MemoryBucket) -> None:
    World(bucket, "uid-0").claimed(1).told(1, 1, True).told(1, 2, True, suspect=ODD)
    order = RestoreOrder(resume_from_uid="uid-0", trusted=(ref(1, 2),))
    found = World(bucket, "uid-1").store.resolve(order, 1)
    assert [str(c.record.ref) for c in found.candidates] == ["1/1"]
    assert [(r.save, r.job_uid) for r in found.rejections] == [(2, "uid-0")]


def test_the_last_sound_one_is_never_deleted_whatever_is_ordered(world: World) -> None:
    """Every save after a flipped bit is suspect: they must not push out what can be gone back to."""
    world.claimed(1).told(1, 1, True).told(1, 2, True)
    for save in (3, 4, 5, 6):
        world.told(1, save, True, suspect=ODD)
    assert "the least is known to be wrong" in world.store.expire(ref(1, 2), **BY).kept_because
    assert world.store.expire(ref(1, 1), **BY).deleted
    assert world.store.expire(ref(1, 3), **BY).deleted
    assert tried(world) == ["1/2"]
    world.told(1, 7, True)
    assert world.store.expire(ref(1, 2), **BY).deleted, "there is a newer one"


ONE = st.tuples(st.sampled_from([True, False, None]), st.booleans())


@pytest.mark.parametrize("accept", [False, True])
@given(st.lists(ONE, min_size=1, max_size=8), st.data())
def test_deleting_whatever_is_ordered_leaves_what_a_start_would_have_continued(
    accept: bool, findings: list[tuple[bool | None, bool]], data: st.DataObject
) -> None:
    world = World(MemoryBucket()).claimed(1)
    for save, (finite, odd) in enumerate(findings, 1):
        world.told(1, save, finite, suspect=ODD if odd else "")
        for doomed in data.draw(st.lists(st.integers(1, save), max_size=3)):
            world.store.expire(ref(1, doomed), **BY)
    grades = [
        Grade.NOT_FINITE if finite is False else Grade.SUSPECT if odd and not accept else Grade.SOUND
        for finite, odd in findings
    ]
    newest = max(n for n, found in enumerate(grades, 1) if found is min(grades))
    assert tried(world, accept_suspect=accept)[0] == f"1/{newest}"
