"""D1, D2, D4-D6: deleting stops anywhere without harm, spares what anyone needs, and what is gone stays gone."""

import contextlib

import pytest
from worlds import NOW, World, ref

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import BranchRef, Tombstone
from holdfast_store.bucket import Bucket
from holdfast_store.chunks import digest
from holdfast_store.collect import Expiry, SweepResult
from holdfast_store.errors import Absent, Corrupt, StoreError, Superseded, Unavailable
from holdfast_store.memory import Effect, Fault, MemoryBucket


def expire(world: World, checkpoint: CheckpointRef, by: int = 1, in_use: tuple[CheckpointRef, ...] = ()) -> Expiry:
    return world.store.expire(checkpoint, by_attempt=by, reason="test", in_use=in_use)


def four_saves(bucket: Bucket) -> World:
    """1/1 aaaa bbbb; 1/2 shares aaaa; 1/3 shares it through 1/2; 1/4 stands alone."""
    world = World(bucket).claimed(1)
    world.saved(1, 1, b"aaaabbbb").saved(1, 2, b"aaaacccc", base=ref(1, 1)).saved(1, 3, b"aaaadddd", base=ref(1, 2))
    return world.saved(1, 4, b"eeeeffff").saved(1, 5, b"gggg")


def test_an_expired_checkpoint_frees_what_nobody_else_refers_to_and_keeps_the_rest(bucket: Bucket) -> None:
    world = four_saves(bucket)
    assert expire(world, ref(1, 1)) == Expiry(True, "", 4)
    assert world.stored("0000000001/0000000001/") == [
        f"checkpoints/0000000001/0000000001/chunks/{digest(b'aaaa')}",
        "checkpoints/0000000001/0000000001/expired.json",
    ]
    assert world.image(ref(1, 2)) == b"aaaacccc"
    assert world.image(ref(1, 3)) == b"aaaadddd"


def test_a_chunk_under_an_expired_checkpoint_goes_with_the_last_that_refers_to_it(bucket: Bucket) -> None:
    world = four_saves(bucket)
    expire(world, ref(1, 1))
    assert expire(world, ref(1, 2)).bytes_freed == 4
    assert expire(world, ref(1, 3)).bytes_freed == 8  # dddd of its own, aaaa below 1/1
    assert [k for k in world.stored() if "chunks/" in k and "0000000001/0000000001/" in k] == []
    assert world.image(ref(1, 4)) == b"eeeeffff"


def test_expiring_again_changes_nothing(bucket: Bucket) -> None:
    world = four_saves(bucket)
    expire(world, ref(1, 1))
    before = world.stored()
    assert expire(world, ref(1, 1)) == Expiry(True, "", 0)
    assert world.stored() == before


def test_the_newest_usable_ones_are_kept_whatever_is_ordered(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    for save in (3, 2):
        result = expire(world, ref(1, save))
        assert (result.deleted, "D5" in result.kept_because) == (False, True)
    assert world.candidates(2) == ["1/3", "1/2", "1/1"]


def test_bases_that_an_open_save_may_lean_on_are_kept(world: World) -> None:
    """1/5 was open together with others: their bases lie between its own base and it."""
    world.claimed(1).saved(1, 1).saved(1, 2, base=ref(1, 1)).saved(1, 3).saved(1, 4).saved(1, 5, base=ref(1, 2))
    assert [str(r) for r in (ref(1, n) for n in range(1, 6)) if not expire(world, r).deleted] == [
        "1/2",
        "1/3",
        "1/4",
        "1/5",
    ]


def test_what_the_caller_says_is_in_use_is_kept(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    assert not expire(world, ref(1, 1), in_use=(ref(1, 1),)).deleted
    assert expire(world, ref(1, 1)).deleted


def test_the_newest_that_can_be_read_counts_not_a_damaged_one() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    bucket.damage(world.store.prefix + layout.commit_key(ref(1, 3)), b"?")
    assert not expire(world, ref(1, 1)).deleted
    assert expire(world, ref(1, 3)).deleted


def test_what_has_no_commit_record_is_not_deleted_by_an_order(world: World) -> None:
    world.claimed(1).prepared(1, 1)
    assert "no commit record" in expire(world, ref(1, 1)).kept_because
    assert world.stored("chunks/")


def test_nothing_is_deleted_before_the_claim_nor_by_a_superseded_attempt(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    assert "D1" in expire(world, ref(1, 1), by=2).kept_because
    world.claimed(2, ref(1, 3))
    with pytest.raises(Superseded):
        expire(world, ref(1, 1), by=1)
    with pytest.raises(Superseded):
        world.store.sweep(attempt=1)
    assert world.store.sweep(attempt=3) == SweepResult(0, 0, (), ())
    assert expire(world, ref(1, 1), by=2).deleted


def test_a_checkpoint_that_a_branch_builds_on_is_kept_and_usable(bucket: Bucket) -> None:
    world = four_saves(bucket)
    world.store.write_branch(BranchRef("uid-1", "uid-2", ref(1, 1), NOW))
    assert "branch uid-2" in expire(world, ref(1, 1)).kept_because
    assert world.image(ref(1, 1)) == b"aaaabbbb"
    world.store.write_branch(BranchRef("uid-1", "uid-2", ref(1, 4), NOW))
    assert expire(world, ref(1, 1)).deleted


def test_what_a_branch_builds_on_gets_no_tombstone_not_even_for_a_moment() -> None:
    """D2, D6: whoever resolves in that moment would take an older checkpoint."""
    bucket = MemoryBucket()
    world = four_saves(bucket)
    world.store.write_branch(BranchRef("uid-1", "uid-2", ref(1, 1), NOW))
    before = bucket.changes
    assert "branch uid-2" in expire(world, ref(1, 1)).kept_because
    assert bucket.changes == before


def test_references_are_read_once_more_after_the_tombstone() -> None:
    """D2: a branch that came in between has not seen the tombstone, or is seen."""
    bucket = MemoryBucket()
    world = four_saves(bucket)
    bucket.calls.clear()
    expire(world, ref(1, 1))
    buried = bucket.calls.index(("create", world.store.prefix + layout.tombstone_key(ref(1, 1))))
    looked = [n for n, call in enumerate(bucket.calls) if call == ("list", world.store.prefix + "refs/")]
    assert looked[0] < buried < looked[1]


def test_a_branch_that_cannot_be_read_protects_everything() -> None:
    bucket = MemoryBucket()
    world = four_saves(bucket)
    bucket.damage(world.store.prefix + layout.branch_key("uid-2"), b"?")
    with pytest.raises(Corrupt):
        expire(world, ref(1, 1))
    assert world.image(ref(1, 1)) == b"aaaabbbb"
    assert world.candidates(2)[-1] == "1/1"


def branch_during_a_deletion(moment: int) -> tuple[World, bool, str]:
    """At the deleter's `moment`-th request a branch tries to claim the checkpoint: the source, whether it was deleted, how the branch fared."""
    bucket = MemoryBucket()
    source, branch = four_saves(bucket), World(bucket, "uid-2")
    began, outcome = len(bucket.calls), []

    def meanwhile(_operation: str, _key: str) -> None:
        if not outcome and len(bucket.calls) == began + moment:
            outcome.append("refused")
            with contextlib.suppress(StoreError):
                branch.claimed(1, ref(1, 1), parent_uid="uid-1")
                outcome[0] = "branched"

    bucket.before_call = meanwhile
    deleted = expire(source, ref(1, 1)).deleted
    bucket.before_call = None
    return source, deleted, "".join(outcome)


def test_a_branch_and_a_deletion_at_the_same_time_never_both_succeed() -> None:
    """D6: the branch writes its reference and looks for a tombstone; the deleter writes its tombstone and looks for references."""
    outcomes = set()
    for moment in range(60):
        source, deleted, outcome = branch_during_a_deletion(moment)
        outcomes.add((deleted, outcome))
        if outcome == "branched":
            assert source.image(ref(1, 1)) == b"aaaabbbb"
    # Also both may fail; "" means that the deletion was over before that moment.
    assert outcomes >= {(False, "branched"), (True, "refused"), (True, "")}
    assert (True, "branched") not in outcomes


def steps_of_a_deletion() -> int:
    bucket = MemoryBucket()
    world = four_saves(bucket)
    expire(world, ref(1, 1))
    bucket.calls.clear()
    expire(world, ref(1, 2))
    return len(bucket.calls)


@pytest.mark.parametrize("step", range(1, steps_of_a_deletion() + 1))
def test_a_deletion_that_stops_at_any_step_harms_nothing_and_is_finished_later(step: int) -> None:
    bucket = MemoryBucket()
    world = four_saves(bucket)
    expire(world, ref(1, 1))
    count = len(bucket.calls)
    bucket.faults.append(Fault(Effect.UNAVAILABLE, first=step, times=0))
    with pytest.raises(Unavailable):
        expire(world, ref(1, 2))
    bucket.faults.clear()
    assert len(bucket.calls) >= count + step
    for save in (3, 4, 5):
        world.image(ref(1, save))
    if "1/2" in world.candidates(2):
        assert world.image(ref(1, 2)) == b"aaaacccc"
    world.store.sweep(attempt=1)
    assert expire(world, ref(1, 2)).deleted
    reference = four_saves(MemoryBucket())
    expire(reference, ref(1, 1))
    expire(reference, ref(1, 2))
    assert world.stored() == reference.stored()


def test_a_damaged_checkpoint_is_deleted_without_touching_what_it_shared() -> None:
    bucket = MemoryBucket()
    world = four_saves(bucket)
    bucket.damage(world.store.prefix + layout.manifest_key(ref(1, 2), 0), b"?")
    assert expire(world, ref(1, 2)).deleted
    assert world.image(ref(1, 1)) == b"aaaabbbb"
    assert world.image(ref(1, 3)) == b"aaaadddd"


@pytest.mark.parametrize("damaged", [layout.commit_key(ref(1, 3)), layout.manifest_key(ref(1, 3), 0)])
def test_what_a_damaged_checkpoint_might_refer_to_is_kept(damaged: str) -> None:
    """D5: what cannot be explained is never touched."""
    bucket = MemoryBucket()
    world = four_saves(bucket)
    bucket.damage(world.store.prefix + damaged, b"?")
    assert expire(world, ref(1, 1)) == Expiry(True, "", 0)
    assert len(world.stored("0000000001/0000000001/chunks/")) == 2


def test_a_manifest_without_a_commit_cannot_point_a_deletion_at_a_save_in_the_making() -> None:
    bucket = MemoryBucket()
    world = four_saves(bucket)
    expire(world, ref(1, 1))
    world.prepared(1, 6, b"in the making!!!")
    key = world.store.prefix + layout.manifest_key(ref(1, 1), 0)
    bent = world.manifest(1, 1, 0, 1, b"in the making!!!", {digest(b"in t"): ref(1, 6)})
    bucket.damage(key, codec.to_json(bent))
    before = world.stored("0000000001/0000000006/")
    expire(world, ref(1, 1))
    assert world.stored("0000000001/0000000006/") == before


class TestSweeping:
    def test_leftovers_of_an_earlier_attempt_go_once_a_claim_excludes_them(self, world: World) -> None:
        world.claimed(1).saved(1, 1, b"aaaa").prepared(1, 2, b"bbbbcccc")
        assert world.store.sweep(attempt=1).objects_deleted == 0
        world.claimed(2, ref(1, 1))
        result = world.store.sweep(attempt=2)
        assert result.objects_deleted == 3
        assert world.stored("0000000001/0000000002/") == []
        assert world.image(ref(1, 1)) == b"aaaa"

    def test_a_save_in_the_making_is_left_alone_and_an_abandoned_one_is_not(self, world: World) -> None:
        world.claimed(1).prepared(1, 1, b"aaaa")
        world.saved(1, 2, b"bbbb").prepared(1, 3, b"cccc")
        world.store.sweep(attempt=1)
        assert world.stored("0000000001/0000000001/") == ["checkpoints/0000000001/0000000001/expired.json"]
        assert len(world.stored("0000000001/0000000003/")) == 2

    def test_an_abandoned_save_below_the_parent_is_buried_first_so_that_a_late_commit_is_nothing(
        self, bucket: Bucket
    ) -> None:
        world = World(bucket).claimed(1)
        late = world.prepared(1, 1, b"aaaa")
        world.saved(1, 2, b"bbbb").claimed(2, ref(1, 2))
        world.store.sweep(attempt=2)
        bucket.create(world.store.prefix + layout.commit_key(ref(1, 1)), codec.to_json(late))
        assert world.candidates(3) == ["1/2"]

    def test_a_commit_off_the_lineage_is_reported_and_left_to_an_order(self, bucket: Bucket) -> None:
        world = World(bucket).claimed(1).saved(1, 1, b"aaaa").saved(1, 2, b"bbbb").claimed(2, ref(1, 1))
        assert world.store.sweep(attempt=2).off_lineage == (ref(1, 2),)
        assert world.image(ref(1, 2)) == b"bbbb"
        assert expire(world, ref(1, 2), by=2).deleted

    def test_chunks_of_an_expired_checkpoint_that_others_share_stay(self, bucket: Bucket) -> None:
        world = four_saves(bucket)
        expire(world, ref(1, 1))
        world.claimed(2, ref(1, 5))
        world.store.sweep(attempt=2)
        assert world.image(ref(1, 2)) == b"aaaacccc"
        assert world.image(ref(1, 3)) == b"aaaadddd"

    def test_a_deletion_that_was_cut_short_is_finished(self) -> None:
        bucket = MemoryBucket()
        world = four_saves(bucket)
        bucket.faults.append(Fault(Effect.UNAVAILABLE, "delete", "commit.json", times=0))
        with pytest.raises(Unavailable):
            expire(world, ref(1, 1))
        bucket.faults.clear()
        assert world.store.sweep(attempt=1).finished == (ref(1, 1),)
        assert world.stored("0000000001/0000000001/commit") == []

    def test_nothing_of_a_later_attempt_is_touched(self, world: World) -> None:
        world.claimed(1).saved(1, 1, b"aaaa").prepared(3, 1, b"bbbb")
        world.store.sweep(attempt=1)
        assert len(world.stored("0000000003/")) == 2

    def test_a_fresh_start_that_never_committed_does_not_come_to_have_committed_by_sweeping(self, world: World) -> None:
        world.claimed(1).prepared(1, 1)
        world.claimed(2)
        world.store.sweep(attempt=2)
        assert world.stored("checkpoints/") == []
        assert not world.store.ever_committed()


def test_a_tombstone_is_not_taken_back_from_what_has_lost_its_chunks(bucket: Bucket) -> None:
    """D2: deleted; the commit record arrives once more; a branch that came too late has left its name. Found by the model."""
    world = four_saves(bucket)
    key = world.store.prefix + layout.commit_key(ref(1, 1))
    record = bucket.get(key, max_bytes=1 << 20)
    assert expire(world, ref(1, 1)).deleted
    bucket.create(key, record)
    world.store.write_branch(BranchRef("uid-1", "uid-2", ref(1, 1), NOW))
    world.store.sweep(attempt=1)
    assert world.stored("0000000001/0000000001/expired.json") != []
    assert "1/1" not in world.candidates(2)


def test_a_tombstone_is_taken_back_for_a_branch_while_nothing_is_missing(bucket: Bucket) -> None:
    """D2, D6: a deleter was stopped after its tombstone, and the branch had looked before it."""
    world = four_saves(bucket)
    world.store.write_branch(BranchRef("uid-1", "uid-2", ref(1, 1), NOW))
    stone = Tombstone("uid-1", 1, 1, 1, "order", NOW)
    bucket.create(world.store.prefix + layout.tombstone_key(ref(1, 1)), codec.to_json(stone))
    world.store.sweep(attempt=1)
    assert world.image(ref(1, 1)) == b"aaaabbbb"


@pytest.mark.parametrize("sent", [False, True])
def test_what_a_save_has_stored_that_was_given_up_goes_and_nothing_else(world: World, sent: bool) -> None:
    """D4: such a save did not fit, and the next one needs the room."""
    world.claimed(1).saved(1, 1, b"aaaabbbb")
    world.prepared(1, 2, b"aaaacccc", base=ref(1, 1))
    before = world.stored("checkpoints/0000000001/0000000001/")
    assert world.store.discard(ref(1, 2), sent=sent) > 4
    stone = [layout.tombstone_key(ref(1, 2))] if sent else []
    assert world.stored("checkpoints/0000000001/0000000002/") == stone
    assert world.stored("checkpoints/0000000001/0000000001/") == before
    assert world.store.discard(ref(1, 1), sent=sent) == 0
    assert world.image(ref(1, 1)) == b"aaaabbbb"


def test_a_commit_record_that_arrives_after_its_save_was_given_up_makes_no_checkpoint(world: World) -> None:
    """D2: its chunks are gone."""
    world.claimed(1).saved(1, 1, b"aaaabbbb")
    late = world.prepared(1, 2, b"ccccdddd")
    text, key = world.store.commit(late), world.store.prefix + layout.commit_key(late.ref)
    world.store.bucket.delete([key])  # it has been on its way until now
    world.store.discard(late.ref, sent=True)
    world.store.bucket.create(key, text.encode())
    assert world.candidates(2)[:1] == ["1/1"]
    with pytest.raises(Absent):
        world.store.read_commit(late.ref)


def test_only_the_newest_claim_discards_what_its_saves_have_stored(world: World) -> None:
    world.claimed(1)
    world.prepared(1, 1, b"aaaa")
    world.claimed(2)
    with pytest.raises(Superseded):
        world.store.discard(ref(1, 1), sent=False)
    assert world.stored("checkpoints/0000000001/0000000001/chunks/")


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_commit_record_that_arrives_while_its_save_is_being_discarded_loses_nothing(goes_on: bool) -> None:
    """Between the look and the tombstone: it is a checkpoint then, and the next attempt may have claimed it as its parent already (A5, D2)."""
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1, b"aaaabbbb")
    late = world.prepared(1, 2, b"ccccdddd")
    text, key = world.store.commit(late), world.store.prefix + layout.commit_key(late.ref)
    bucket.delete([key])  # it has been on its way until now

    def arrives(operation: str, of: str) -> None:
        if operation == "create" and of.endswith("expired.json"):
            bucket.before_call = None
            bucket.create(key, text.encode())
            if goes_on:
                world.claimed(2, ref(1, 2))

    bucket.before_call = arrives
    assert world.store.discard(late.ref, sent=True) == 0
    assert bucket.before_call is None
    assert world.image(late.ref) == b"ccccdddd"
    assert world.candidates(3)[:1] == ["1/2"]
