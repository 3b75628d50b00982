"""A7, A9, C1-C3, D3: what an attempt may continue, and when starting from nothing is allowed."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import NOW, World, ref

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import CheckpointKind, Claim, ParentRef, Tombstone, Verdict
from holdfast_api.messages import RestoreOrder
from holdfast_store.bucket import Bucket
from holdfast_store.chunks import digest
from holdfast_store.errors import Denied, Misconfigured, Unavailable
from holdfast_store.lineage import Span, protected, spans
from holdfast_store.memory import Effect, Fault, MemoryBucket


def walk(parents: dict[int, CheckpointRef | None], attempt: int) -> list[tuple[int, int | None]]:
    def claim_of(uid: str, number: int) -> Claim | None:
        if number not in parents:
            return None
        parent = parents[number]
        return Claim(uid, number, "x", (), ParentRef(uid, parent.attempt, parent.save) if parent else None, NOW)

    return [(s.attempt, s.last_save) for s in spans("u", attempt, None, claim_of)]


def test_a_lineage_goes_back_from_parent_to_parent_each_up_to_what_was_continued() -> None:
    parents = {1: None, 2: ref(1, 4), 3: ref(1, 2), 4: ref(3, 7)}
    assert walk(parents, 4) == [(4, None), (3, 7), (1, 2)]
    assert walk(parents, 2) == [(2, None), (1, 4)]
    assert walk(parents, 1) == [(1, None)]


@given(
    st.dictionaries(st.integers(1, 6), st.none() | st.builds(CheckpointRef, st.integers(1, 6), st.integers(1, 3))),
    st.integers(1, 6),
)
def test_a_walk_over_any_claims_ends(parents: dict[int, CheckpointRef | None], attempt: int) -> None:
    assert len(walk(parents, attempt)) <= 7


def test_a_late_commit_of_a_superseded_attempt_is_never_a_candidate(world: World) -> None:
    zombie = world.claimed(1).saved(1, 1).prepared(1, 2)
    world.claimed(2, ref(1, 1)).saved(2, 1)
    # The zombie has looked for newer claims before there was one (A5) and writes now.
    world.store.bucket.create(world.store.prefix + layout.commit_key(ref(1, 2)), codec.to_json(zombie))
    assert world.candidates(3) == ["2/1", "1/1"]


def test_what_a_superseded_attempt_committed_before_the_claim_is_found_although_nobody_reported_it(
    world: World,
) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2)
    assert world.candidates(2) == ["1/2", "1/1"]


def test_after_its_claim_an_attempt_sees_what_lies_below_its_parent_and_not_its_own(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    world.claimed(2, ref(1, 2)).saved(2, 1)
    assert world.candidates(2) == ["1/2", "1/1"]
    assert world.candidates(3) == ["2/1", "1/2", "1/1"]


def test_a_rollback_is_a_claim_with_an_older_parent_and_holds_for_all_that_follow(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    assert world.candidates(2, RestoreOrder(pinned=ref(1, 1))) == ["1/1"]
    world.claimed(2, ref(1, 1))
    assert world.candidates(3) == ["1/1"]
    order = RestoreOrder(pinned=ref(1, 3))
    found = world.store.resolve(order, 3)
    assert found.candidates == ()
    assert not found.fresh_allowed
    assert "1/3" in found.reason


def test_what_the_operator_excludes_is_left_out_and_named_when_nothing_else_is_left(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    assert world.candidates(2, RestoreOrder(excluded=(ref(1, 3),))) == ["1/2", "1/1"]
    found = world.store.resolve(RestoreOrder(excluded=(ref(1, 3), ref(1, 2), ref(1, 1))), 2)
    assert found.candidates == ()
    assert not found.fresh_allowed
    assert all(name in found.reason for name in ("1/1", "1/2", "1/3"))


def test_at_or_below_the_horizon_only_what_is_retained_may_be_used(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3).claimed(2, ref(1, 3)).saved(2, 1)
    assert world.candidates(3, RestoreOrder(horizon=ref(1, 3), retained=(ref(1, 2),))) == ["2/1", "1/2"]


def deleted_for_long(checkpoints: int) -> tuple[MemoryBucket, World, RestoreOrder]:
    """Ten saves an attempt, all but the last two of each of the last two attempts deleted; the order as the operator gives it then."""
    bucket, attempts = MemoryBucket(), checkpoints // 10
    world = World(bucket)
    for attempt in range(1, attempts + 1):
        claim = world.a_claim(attempt, ref(attempt - 1, 10) if attempt > 1 else None)
        bucket.create(world.store.prefix + layout.claim_key(attempt), codec.to_json(claim))
        for save in range(1, 11):
            if attempt > attempts - 2 and save > 8:
                world.saved(attempt, save)
            else:
                stone = Tombstone("uid-1", attempt, save, attempt, "test", NOW)
                bucket.create(world.store.prefix + layout.tombstone_key(ref(attempt, save)), codec.to_json(stone))
    retained = tuple(ref(a, s) for a in (attempts - 1, attempts) for s in (9, 10))
    return bucket, world, RestoreOrder(horizon=ref(attempts, 8), retained=retained)


def requests_to_resolve(checkpoints: int) -> tuple[int, list[str]]:
    bucket, world, order = deleted_for_long(checkpoints)
    bucket.calls.clear()
    found = world.candidates(checkpoints // 10 + 1, order)
    return len(bucket.calls), found


def test_neither_deleted_checkpoints_nor_past_attempts_cost_time_to_resume() -> None:
    """D3: below the horizon only what is retained costs a request."""
    few, many = requests_to_resolve(40), requests_to_resolve(500)
    assert many[1] == ["50/10", "50/9", "49/10", "49/9"]
    assert many[0] == few[0] <= 15


def test_when_all_own_ones_are_bad_the_source_of_a_branch_is_still_found(bucket: Bucket) -> None:
    """A7: however far back it lies below the horizon, which speaks of the job's own checkpoints only."""
    World(bucket, "uid-1").claimed(1).saved(1, 1)
    branch = World(bucket, "uid-2").claimed(1, ref(1, 1), parent_uid="uid-1").saved(1, 1)
    branch.claimed(2, ref(1, 1)).saved(2, 1)
    order = RestoreOrder(horizon=ref(2, 1), retained=(ref(2, 1),))
    assert branch.candidates(3, order) == ["2/1"]
    found = branch.store.resolve(dataclasses.replace(order, excluded=(ref(2, 1),)), 3)
    assert [(c.record.job_uid, str(c.record.ref)) for c in found.candidates] == [("uid-1", "1/1")]


def test_a_job_whose_checkpoints_were_all_deleted_is_seen_so_by_one_listing_of_its_tombstones() -> None:
    """A9: the first start of a job of the same name waits for it."""
    bucket = MemoryBucket()
    world, source = World(bucket, "uid-2"), World(bucket, "uid-1").store
    for save in range(1, 501):
        stone = Tombstone("uid-1", 1, save, 1, "test", NOW)
        bucket.create(source.prefix + layout.tombstone_key(ref(1, save)), codec.to_json(stone))
    bucket.create(source.prefix + layout.claim_key(1), codec.to_json(World(bucket, "uid-1").a_claim(1)))
    bucket.calls.clear()
    assert world.store.earlier_jobs() == ()
    assert len(bucket.calls) < 15
    bucket.create(source.prefix + layout.commit_key(ref(1, 400)), b"{}")
    bucket.delete([source.prefix + layout.tombstone_key(ref(1, 400))])
    assert world.store.earlier_jobs() == ("uid-1",)


def test_a_commit_above_the_horizon_that_the_operator_has_not_heard_of_is_found_among_them() -> None:
    """C2."""
    bucket, world, order = deleted_for_long(40)
    world.saved(4, 11)
    assert world.candidates(5, order)[0] == "4/11"
    world.claimed(5, ref(4, 11)).saved(5, 1)
    assert world.candidates(6, order)[:2] == ["5/1", "4/11"]
    bucket.faults.append(Fault(Effect.UNAVAILABLE, "list", "checkpoints/0000000005", times=0))
    with pytest.raises(Unavailable):
        world.candidates(6, order)


def test_when_nothing_can_be_used_what_lies_below_the_horizon_is_named_too() -> None:
    """C1."""
    world = World(MemoryBucket()).claimed(1).saved(1, 1).claimed(2, ref(1, 1)).saved(2, 1)
    found = world.store.resolve(RestoreOrder(excluded=(ref(2, 1),), horizon=ref(1, 9)), 3)
    assert (found.candidates, found.fresh_allowed) == ((), False)
    assert "1/1" in found.reason
    assert "2/1" in found.reason


def test_a_pinned_checkpoint_is_found_without_looking_at_the_others() -> None:
    bucket, world, order = deleted_for_long(500)
    bucket.calls.clear()
    assert world.candidates(51, dataclasses.replace(order, pinned=ref(49, 9))) == ["49/9"]
    assert sum(operation == "list" for operation, _ in bucket.calls) <= 3


def test_an_expired_checkpoint_is_no_candidate(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    world.store.expire(ref(1, 1), by_attempt=1, reason="test")
    assert world.candidates(2) == ["1/3", "1/2"]


def test_a_damaged_commit_record_is_rejected_and_the_next_older_taken() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1).saved(1, 2)
    bucket.damage(world.store.prefix + layout.commit_key(ref(1, 2)), b"{}")
    found = world.store.resolve(RestoreOrder(), 2)
    assert [str(c.record.ref) for c in found.candidates] == ["1/1"]
    assert [(r.attempt, r.save, r.of_checkpoint) for r in found.rejections] == [(1, 2, True)]


def test_a_failed_verdict_rejects_and_a_passed_one_does_not(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    for save, passed in ((3, False), (2, True)):
        world.store.write_verdict(Verdict("uid-1", 1, save, "canary", passed, "loss 9 instead of 2", NOW))
    found = world.store.resolve(RestoreOrder(), 2)
    assert [str(c.record.ref) for c in found.candidates] == ["1/2", "1/1"]
    assert "canary failed: loss 9" in found.rejections[0].reason
    assert [v.check for v in world.store.read_verdicts(ref(1, 3))] == ["canary"]


def test_weights_alone_are_not_continued(world: World) -> None:
    world.claimed(1).saved(1, 1)
    world.store.commit(world.prepared(1, 2, kind=CheckpointKind.WEIGHTS_ONLY))
    assert world.candidates(2) == ["1/1"]


def test_how_many_ranks_made_a_checkpoint_does_not_matter(world: World) -> None:
    world.claimed(1).saved(1, 1, b"aaaa").saved(1, 2, [b"aaaa", b"bbbb"])
    assert world.candidates(2) == ["1/2", "1/1"]


def test_no_more_than_enough_candidates_are_read(world: World) -> None:
    world.claimed(1)
    for save in range(1, 24):
        world.saved(1, save, b"aaaa")
    assert world.candidates(2) == [f"1/{n}" for n in range(23, 3, -1)]


class TestStartingFromNothing:
    def test_is_allowed_where_no_commit_has_ever_been(self, world: World) -> None:
        found = world.store.resolve(RestoreOrder(), 1)
        assert found.fresh_allowed
        assert not world.store.ever_committed()

    def test_is_still_allowed_when_earlier_attempts_left_only_unfinished_saves(self, world: World) -> None:
        world.claimed(1).prepared(1, 1)
        assert world.store.resolve(RestoreOrder(), 2).fresh_allowed

    def test_is_never_allowed_again_after_a_commit_even_if_all_are_gone(self, world: World) -> None:
        world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
        world.store.expire(ref(1, 1), by_attempt=1, reason="test")
        prefix = world.store.prefix
        for save in (2, 3):
            world.store.bucket.delete([prefix + layout.commit_key(ref(1, save))])
        found = world.store.resolve(RestoreOrder(), 2)
        assert found.candidates == ()
        assert not found.fresh_allowed
        assert "has had checkpoints" in found.reason
        assert world.store.ever_committed()

    def test_is_not_allowed_when_every_checkpoint_is_damaged_and_each_reason_is_given(self) -> None:
        bucket = MemoryBucket()
        world = World(bucket).claimed(1).saved(1, 1).saved(1, 2)
        for save in (1, 2):
            bucket.damage(world.store.prefix + layout.commit_key(ref(1, save)), b"?")
        found = world.store.resolve(RestoreOrder(), 2)
        assert (found.candidates, found.fresh_allowed) == ((), False)
        assert "1/1" in found.reason
        assert "1/2" in found.reason

    def test_is_allowed_when_the_user_says_so(self, world: World) -> None:
        world.claimed(1).saved(1, 1)
        found = world.store.resolve(RestoreOrder(fresh=True, excluded=(ref(1, 1),)), 2)
        assert found.fresh_allowed

    def test_is_not_allowed_in_place_of_a_pinned_checkpoint(self, world: World) -> None:
        found = world.store.resolve(RestoreOrder(pinned=ref(1, 1)), 1)
        assert not found.fresh_allowed

    @pytest.mark.parametrize("error", [Unavailable, Denied])
    @pytest.mark.parametrize("operation", ["list", "get", "head"])
    def test_is_not_offered_by_a_store_that_fails(self, operation: str, error: type[Exception]) -> None:
        bucket = MemoryBucket()
        world = World(bucket).claimed(1).saved(1, 1)
        bucket.faults.append(Fault(Effect(error.__name__.lower()), operation, times=0))
        if operation == "head":
            with pytest.raises(error):
                world.store.read_commit(ref(1, 1))
        else:
            with pytest.raises(error):
                world.store.resolve(RestoreOrder(), 2)

    def test_is_not_offered_by_a_newer_format(self) -> None:
        bucket = MemoryBucket()
        world = World(bucket).claimed(1).saved(1, 1)
        key = world.store.prefix + layout.commit_key(ref(1, 1))
        later = bucket.objects[key].replace(b'"schema":1}', b'"schema":2}')
        before, _, after = later.rpartition(later.split(b'"check":"')[1][:64])
        bucket.damage(key, before + digest(before + after).encode() + after)
        with pytest.raises(Misconfigured, match="newer one"):
            world.store.resolve(RestoreOrder(), 2)


class TestAnEarlierJobOfTheSameName:
    def test_stops_a_fresh_start_and_says_which_line_to_add(self, bucket: Bucket) -> None:
        World(bucket, "uid-1").claimed(1).saved(1, 1)
        later = World(bucket, "uid-2")
        found = later.store.resolve(RestoreOrder(), 1)
        assert (found.candidates, found.fresh_allowed) == ((), False)
        assert "spec.resumeFrom.uid: uid-1" in found.reason
        assert "spec.fresh: true" in found.reason
        assert later.store.earlier_jobs() == ("uid-1",)

    def test_is_ignored_when_the_user_wants_a_fresh_start(self, bucket: Bucket) -> None:
        World(bucket, "uid-1").claimed(1).saved(1, 1)
        assert World(bucket, "uid-2").store.resolve(RestoreOrder(fresh=True), 1).fresh_allowed

    def test_is_not_asked_about_again_once_a_fresh_start_was_claimed(self, bucket: Bucket) -> None:
        World(bucket, "uid-1").claimed(1).saved(1, 1)
        later = World(bucket, "uid-2").claimed(1)
        assert later.store.resolve(RestoreOrder(), 2).fresh_allowed

    def test_does_not_count_if_it_never_committed(self, bucket: Bucket) -> None:
        World(bucket, "uid-1").claimed(1).prepared(1, 1)
        later = World(bucket, "uid-2").store
        assert later.earlier_jobs() == ()
        assert later.resolve(RestoreOrder(), 1).fresh_allowed

    def test_is_not_mistaken_for_a_job_whose_name_begins_alike(self, bucket: Bucket) -> None:
        uid = "0b6f7a52-5f0e-4bd1-9d0c-2f3d5a1c7e11"
        other = World(bucket, uid)
        other.store = type(other.store)(bucket, "ns", "job-two", uid)
        other.claimed(1)
        record = dataclasses.replace(other.prepared(1, 1), job="job-two")
        other.store.commit(record)
        assert World(bucket, "uid-2").store.earlier_jobs() == ()

    def test_is_continued_on_order_with_its_own_lineage(self, bucket: Bucket) -> None:
        World(bucket, "uid-1").claimed(1).saved(1, 1).saved(1, 2).claimed(2, ref(1, 1)).saved(2, 1, b"source")
        later = World(bucket, "uid-2")
        assert later.candidates(1, RestoreOrder(resume_from_uid="uid-1")) == ["2/1", "1/1"]

    def test_still_counts_after_the_claim_when_the_order_no_longer_names_it(self, bucket: Bucket) -> None:
        source = World(bucket, "uid-1").claimed(1).saved(1, 1, b"source").saved(1, 2)
        later = World(bucket, "uid-2").claimed(1, ref(1, 1), parent_uid="uid-1")
        found = later.store.resolve(RestoreOrder(), 2)
        assert [(c.record.job_uid, str(c.record.ref)) for c in found.candidates] == [("uid-1", "1/1")]
        manifest = later.store.read_manifest(found.candidates[0].record, 0)
        view = memoryview(bytearray(4))
        later.store.for_job("uid-1").get_chunk_into(manifest.chunks[0], view)
        assert bytes(view) == b"sour"
        # Its own commits come first from then on, also if the order still says where it once came from.
        later.claimed(2, ref(1, 1), parent_uid="uid-1").saved(2, 1)
        assert later.candidates(3, RestoreOrder(resume_from_uid="uid-1")) == ["2/1", "1/1"]
        assert source.candidates(2) == ["1/2", "1/1"]

    def test_that_has_nothing_allows_no_fresh_start_by_accident(self, bucket: Bucket) -> None:
        found = World(bucket, "uid-2").store.resolve(RestoreOrder(resume_from_uid="uid-1"), 1)
        assert (found.candidates, found.fresh_allowed) == ((), False)
        assert "uid-1" in found.reason

    def test_that_is_damaged_allows_no_fresh_start(self) -> None:
        bucket = MemoryBucket()
        source = World(bucket, "uid-1").claimed(1).saved(1, 1)
        later = World(bucket, "uid-2").claimed(1, ref(1, 1), parent_uid="uid-1")
        bucket.damage(source.store.prefix + layout.commit_key(ref(1, 1)), b"?")
        found = later.store.resolve(RestoreOrder(), 2)
        assert (found.candidates, found.fresh_allowed) == ((), False)
        assert "1/1" in found.reason


def test_a_span_holds_the_saves_of_its_attempt_up_to_its_bound() -> None:
    span = Span("u", 3, 5)
    assert span.holds("u", ref(3, 5))
    assert not span.holds("u", ref(3, 6))
    assert not span.holds("u", ref(2, 1))
    assert not span.holds("other", ref(3, 1))
    assert Span("u", 3, None).holds("u", ref(3, 999))


@pytest.mark.parametrize(
    ("commits", "kept"),
    [
        ([], set()),
        ([(ref(1, 1), None)], {ref(1, 1)}),
        ([(ref(1, 3), None), (ref(1, 2), None), (ref(1, 1), None)], {ref(1, 3), ref(1, 2)}),
        ([(ref(1, 5), ref(1, 2)), (ref(1, 4), ref(1, 2)), (ref(1, 3), ref(1, 2)), (ref(1, 2), None), (ref(1, 1), None)],
         {ref(1, 5), ref(1, 4), ref(1, 3), ref(1, 2)}),
        ([(ref(2, 1), ref(1, 9)), (ref(1, 9), ref(1, 8)), (ref(1, 8), None)], {ref(2, 1), ref(1, 9)}),
    ],
    ids=["nothing", "the only one", "the newest two", "from the base of the newest up to it", "a base in an earlier attempt"],
)  # fmt: skip
def test_what_no_order_may_delete(
    commits: list[tuple[CheckpointRef, CheckpointRef | None]], kept: set[CheckpointRef]
) -> None:
    assert protected(commits) == kept
