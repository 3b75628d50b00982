"""What was left on a node becomes a checkpoint, or never: `JobStore.look_at`, `missing`, `finish`, and the node's directory beside them (E6)."""

from dataclasses import replace
from pathlib import Path

import pytest
from on_node import images_on, put_image
from worlds import World, ref

from holdfast_api.manifest import Pending, RankEntry
from holdfast_store.errors import Absent, Corrupt, Denied, NotOnRecord, Superseded
from holdfast_store.local import LocalTier
from holdfast_store.memory import MemoryBucket

IMAGES = [b"aaaacccc", b"bbbbdddd"]


@pytest.fixture
def world() -> World:
    """Attempt 1 has claimed and holds one checkpoint of two ranks."""
    return World(MemoryBucket()).claimed(1).saved(1, 1, [b"aaaaxxxx", b"bbbbxxxx"])


def left(world: World, worker: int, save: int = 2, **fields) -> tuple[Pending, object]:
    return world.left(1, save, IMAGES, worker=worker, **({"base": ref(1, 1)} | fields))


def test_what_both_nodes_bring_is_a_checkpoint_byte_for_byte(world: World) -> None:
    """B2: nothing of it exists before it is whole."""
    assert world.sent(*left(world, 0), IMAGES[0]) is None
    assert world.candidates(2) == ["1/1"]
    record = world.sent(*left(world, 1), IMAGES[1])
    assert record is not None
    assert record.base == ref(1, 1)
    assert record.refers_to == (ref(1, 1),)
    assert world.candidates(2) == ["1/2", "1/1"]
    assert [world.image(ref(1, 2), rank) for rank in (0, 1)] == IMAGES


def test_the_other_ranks_part_may_be_in_the_store_already(world: World) -> None:
    """A flush that was cut short: one worker was done, the other only on its node, and a chunk of it had arrived."""
    manifest = world.manifest(1, 2, 1, 2, IMAGES[1], world.referable(ref(1, 1)))
    world.store.create_manifest(manifest)
    pending, own = left(world, 0)
    assert len(world.store.missing([own])) == 1, "the first chunk lies under the base"
    record = world.sent(pending, own, IMAGES[0])
    assert record is not None
    assert world.image(ref(1, 2), 0) == IMAGES[0]


def test_only_what_is_missing_is_sent(world: World) -> None:
    _, own = left(world, 0, base=None)
    assert len(world.store.missing([own])) == 2
    world.store.put_chunk(ref(1, 2), own.chunks[0].digest, memoryview(b"aaaa"))
    assert world.store.missing([own]) == [(0, 1)]


def test_twice_and_by_two_it_is_the_same_checkpoint(world: World) -> None:
    """E5: create-only decides."""
    world.sent(*left(world, 0), IMAGES[0])
    first = world.sent(*left(world, 1), IMAGES[1])
    assert world.sent(*left(world, 0), IMAGES[0]) == first
    assert world.sent(*left(world, 1), IMAGES[1]) == first


def whole_but_the_record(world: World) -> Pending:
    for worker in (0, 1):
        world.store.create_manifest(world.manifest(1, 2, worker, 2, IMAGES[worker], world.referable(ref(1, 1))))
    return left(world, 0)[0]


def test_after_the_next_claim_it_is_finished_no_more(world: World) -> None:
    """A5."""
    pending = whole_but_the_record(world)
    world.claimed(2, ref(1, 1))
    for act in (world.store.look_at, world.store.finish):
        with pytest.raises(Superseded):
            act(pending)
    assert not [key for key in world.stored("commit") if "0000000002/commit" in key]


def test_under_the_claim_of_another_life_it_is_not_finished(world: World) -> None:
    """A4."""
    pending = replace(whole_but_the_record(world), incarnation="another")
    for act in (world.store.look_at, world.store.finish):
        with pytest.raises(Superseded):
            act(pending)


def test_what_is_buried_is_not_finished(world: World) -> None:
    """D2."""
    pending = whole_but_the_record(world)
    world.store.discard(ref(1, 2), sent=True)
    for act in (world.store.look_at, world.store.finish):
        with pytest.raises(NotOnRecord, match="expired"):
            act(pending)


def test_what_a_newer_save_has_left_behind_is_not_finished(world: World) -> None:
    """A8."""
    pending = whole_but_the_record(world)
    world.saved(1, 3, IMAGES)
    for act in (world.store.look_at, world.store.finish):
        with pytest.raises(NotOnRecord, match="A8"):
            act(pending)


def test_what_leans_on_something_that_is_gone_is_not_finished(world: World) -> None:
    """B4."""
    pending = replace(whole_but_the_record(world), base=ref(1, 7))
    with pytest.raises(NotOnRecord, match="B4"):
        world.store.finish(pending)


def test_manifests_of_two_boundaries_make_no_checkpoint(world: World) -> None:
    """B1: two coordinators with one number."""
    pending = whole_but_the_record(world)
    with pytest.raises(Corrupt, match="speaks of"):
        world.store.finish(replace(pending, progress=replace(pending.progress, boundary=3)))


def test_a_manifest_that_is_not_the_one_that_lies_on_the_node_makes_no_checkpoint(world: World) -> None:
    pending = whole_but_the_record(world)
    (entry,) = pending.ranks
    other = replace(pending, ranks=(RankEntry(0, "f" * 64, entry.image_bytes),))
    with pytest.raises(Corrupt, match="not the manifest"):
        world.store.finish(other)


class TestOnTheNode:
    @pytest.fixture
    def tier(self, tmp_path: Path) -> LocalTier:
        return LocalTier(tmp_path, "ns", "job", "uid-1")

    def put(self, tier: LocalTier, world: World, save: int = 2, worker: int = 0) -> Pending:
        pending, manifest = left(world, worker, save)
        put_image(tier, pending.ref, worker, IMAGES[worker])
        tier.write_manifest(manifest)
        tier.write_pending(pending)
        return pending

    def file(self, tier: LocalTier, name: str) -> Path:
        (found,) = tier.root.rglob(name)
        return found

    def test_it_is_found_with_its_manifest_and_is_no_commit(self, tier: LocalTier, world: World) -> None:
        pending = self.put(tier, world)
        (found,) = tier.left()
        assert replace(found.pending, check="") == pending
        assert tier.read_manifest(pending.ref, pending.ranks[0]).rank == 0
        assert [i.committed for i in images_on(tier)] == [False]

    def test_a_disk_that_ends_at_any_file_leaves_nothing_that_claims_more_than_is_there(
        self, tier: LocalTier, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """B9: what says that a part waits is the last file of it."""

        def broken(*_: object, **__: object) -> None:
            raise Denied("ordered fault")

        pending, manifest = left(world, 0)
        put_image(tier, pending.ref, 0, IMAGES[0])
        for last_write in ("write_manifest", "write_pending"):
            with monkeypatch.context() as patch:
                patch.setattr(LocalTier, last_write, broken)
                with pytest.raises(Denied):
                    tier.leave(pending, [manifest])
            assert tier.left() == []
        tier.leave(pending, [manifest])
        assert len(tier.left()) == 1

    def test_of_two_workers_on_one_node_neither_replaces_the_other(self, tier: LocalTier, world: World) -> None:
        self.put(tier, world, worker=0)
        self.put(tier, world, worker=1)
        assert [f.worker for f in tier.left()] == [0, 1]
        tier.drop_pending(ref(1, 2), 0)
        assert [f.worker for f in tier.left()] == [1]

    def test_one_that_has_turned_a_bit_is_said_and_the_others_are_found(self, tier: LocalTier, world: World) -> None:
        self.put(tier, world, worker=0)
        self.put(tier, world, worker=1)
        path = self.file(tier, "pending-0.json")
        data = bytearray(path.read_bytes())
        data[data.index(b'"save":2') + 7] ^= 1
        path.write_bytes(data)
        bad, good = tier.left()
        assert isinstance(bad.problem, Corrupt)
        assert good.pending is not None

    def test_one_in_another_saves_folder_is_refused(self, tier: LocalTier, world: World) -> None:
        self.put(tier, world)
        path = self.file(tier, "pending-0.json")
        path.rename(path.with_name("pending-1.json"))
        assert isinstance(tier.left()[0].problem, Corrupt)

    def test_a_manifest_that_has_turned_a_bit_or_is_gone_is_refused(self, tier: LocalTier, world: World) -> None:
        pending = self.put(tier, world)
        path = self.file(tier, "rank-0.json")
        data = path.read_bytes()
        path.write_bytes(data.replace(b'"boundary":2', b'"boundary":3'))
        with pytest.raises(Corrupt):
            tier.read_manifest(pending.ref, pending.ranks[0])
        path.unlink()
        with pytest.raises(Absent):
            tier.read_manifest(pending.ref, pending.ranks[0])

    def test_pruning_keeps_it_until_a_later_attempt_saves(self, tier: LocalTier, world: World) -> None:
        """Without the rule a full disk would take the only copy for the next try."""
        self.put(tier, world)
        put_image(tier, ref(1, 1), 0, b"aaaaxxxx")
        tier.prune({ref(1, 3)})
        assert [i.ref for i in images_on(tier)] == [ref(1, 2)]
        assert tier.left()
        tier.prune({ref(2, 1)})
        assert not images_on(tier)
        assert not tier.left()

    def test_once_it_is_dropped_it_is_pruned_like_any_other(self, tier: LocalTier, world: World) -> None:
        self.put(tier, world)
        tier.drop_older(ref(1, 3))
        tier.prune({ref(1, 3)})
        assert not images_on(tier)

    def test_a_commit_drops_what_is_older_and_nothing_newer(self, tier: LocalTier, world: World) -> None:
        self.put(tier, world, save=2)
        self.put(tier, world, save=4)
        tier.drop_older(ref(1, 3))
        assert [f.ref for f in tier.left()] == [ref(1, 4)]
