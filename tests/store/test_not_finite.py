"""C1, C4, D5: a checkpoint that is known to hold NaN is passed over without being loaded, and never costs the last one that does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import World, ref

from holdfast_api.manifest import RankEntry
from holdfast_api.messages import RestoreOrder
from holdfast_store.foretell import foretell
from holdfast_store.memory import MemoryBucket

BY = {"by_attempt": 1, "reason": "test"}


def test_what_is_known_not_to_be_finite_is_refused_with_its_reason_and_the_next_older_one_is_taken(
    world: World,
) -> None:
    world.claimed(1).told(1, 1, True).told(1, 2, None).told(1, 3, False).told(1, 4, False)
    found = world.store.resolve(RestoreOrder(), 2)
    assert [str(c.record.ref) for c in found.candidates] == ["1/2", "1/1"]
    assert {(r.save, r.of_checkpoint, r.job_uid) for r in found.rejections} == {(4, True, ""), (3, True, "")}
    assert all("model.w held NaN" in r.reason for r in found.rejections)


def test_where_nothing_else_is_left_the_load_has_the_last_word_and_nothing_starts_from_zero(world: World) -> None:
    """C1."""
    world.claimed(1).told(1, 1, False).told(1, 2, False)
    found = world.store.resolve(RestoreOrder(), 2)
    assert [str(c.record.ref) for c in found.candidates] == ["1/2", "1/1"]
    assert (found.rejections, found.fresh_allowed) == ((), False)


def test_what_a_person_has_named_is_tried(world: World) -> None:
    world.claimed(1).told(1, 1, True).told(1, 2, False)
    found = world.store.resolve(RestoreOrder(pinned=ref(1, 2)), 2)
    assert [str(c.record.ref) for c in found.candidates] == ["1/2"]


def test_a_long_run_of_them_hides_nothing() -> None:
    """The walk reads at most twenty candidates: those that are none are not counted."""
    world = World(MemoryBucket()).claimed(1).told(1, 1, True)
    for save in range(2, 40):
        world.told(1, save, False)
    assert world.candidates(2) == ["1/1"]


def test_one_of_another_job_is_refused_under_that_jobs_name(bucket: MemoryBucket) -> None:
    World(bucket, "uid-0").claimed(1).told(1, 1, True).told(1, 2, False)
    world = World(bucket, "uid-1")
    found = world.store.resolve(RestoreOrder(resume_from_uid="uid-0"), 1)
    assert [str(c.record.ref) for c in found.candidates] == ["1/1"]
    assert [(r.save, r.job_uid) for r in found.rejections] == [(2, "uid-0")]


@pytest.mark.parametrize("finite", [True, None])
def test_the_newest_one_that_may_be_finite_is_never_deleted_whatever_is_ordered(
    world: World, finite: bool | None
) -> None:
    world.claimed(1).told(1, 1, True).told(1, 2, finite)
    for save in (3, 4, 5):
        world.told(1, save, False)
    (fate,) = foretell(world.store, [ref(1, 2)])
    assert fate.removal is None
    assert "the least is known to be wrong" in fate.why
    assert world.store.expire(ref(1, 2), **BY).kept_because == fate.why
    assert world.store.expire(ref(1, 1), **BY).deleted
    assert world.store.expire(ref(1, 3), **BY).deleted
    assert world.candidates(2) == ["1/2"]
    world.told(1, 6, True)
    assert world.store.expire(ref(1, 2), **BY).deleted, "there is a newer one"


ONE = st.sampled_from([True, False, None])


@given(st.lists(ONE, min_size=1, max_size=9), st.data())
def test_deleting_whatever_is_ordered_leaves_something_to_go_back_to(
    findings: list[bool | None], data: st.DataObject
) -> None:
    world = World(MemoryBucket()).claimed(1)
    for save, finite in enumerate(findings, 1):
        world.told(1, save, finite)
        for doomed in data.draw(st.lists(st.integers(1, save), max_size=3)):
            world.store.expire(ref(1, doomed), **BY)
    if any(f is not False for f in findings):
        newest = max(n for n, f in enumerate(findings, 1) if f is not False)
        assert world.candidates(2)[0] == f"1/{newest}"


def test_of_several_ranks_one_that_is_not_finite_decides_and_one_that_is_unknown_leaves_it_open(world: World) -> None:
    record = world.claimed(1).prepared(1, 1, [b"aaaa", b"bbbb", b"cccc"])

    def whole(*findings: bool | None) -> bool | None:
        ranks = tuple(
            RankEntry(e.rank, e.manifest_digest, e.image_bytes, f, ("w", f"r{e.rank}") if f is False else ())
            for e, f in zip(record.ranks, findings, strict=True)
        )
        told = type(record)(**{n: getattr(record, n) for n in record.__slots__} | {"ranks": ranks})
        assert told.not_finite == tuple(dict.fromkeys(n for r in ranks for n in r.not_finite))
        return told.finite

    assert whole(True, True, True) is True
    assert whole(True, None, True) is None
    assert whole(None, False, False) is False
