"""A5, A6, A8, B1-B6: a checkpoint exists from the moment of one small create-only write, and only if the rules allow that write."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from worlds import World, ref

from holdfast_api import codec, layout
from holdfast_api.manifest import Chunk, CommitRecord, Tombstone
from holdfast_store.chunks import digest
from holdfast_store.errors import Absent, AlreadyExists, Corrupt, NotOnRecord, Superseded
from holdfast_store.memory import Effect, Fault, MemoryBucket


def test_what_was_saved_is_read_back_byte_for_byte(world: World) -> None:
    world.claimed(1).saved(1, 1, [b"aaaabbbbcc", b"dddd"])
    assert world.image(ref(1, 1), 0) == b"aaaabbbbcc"
    assert world.image(ref(1, 1), 1) == b"dddd"


def test_without_its_commit_record_a_save_is_no_checkpoint(world: World) -> None:
    world.claimed(1).prepared(1, 1)
    assert world.candidates(2) == []
    with pytest.raises(Absent):
        world.store.read_commit(ref(1, 1))


def test_the_exact_text_is_returned_and_holds_a_digest_of_itself(world: World) -> None:
    record = world.claimed(1).prepared(1, 1)
    text = world.store.commit(record)
    stored, again = world.store.read_commit(ref(1, 1))
    assert again == text
    assert stored == dataclasses.replace(record, check=stored.check)
    assert len(stored.check) == 64


def test_committing_the_same_again_is_fine_and_something_else_is_refused(world: World) -> None:
    record = world.claimed(1).prepared(1, 1)
    text = world.store.commit(record)
    assert world.store.commit(record) == text
    for other in (dataclasses.replace(record, bytes_sent=1), dataclasses.replace(record, run={"a": "b"})):
        with pytest.raises(AlreadyExists):
            world.store.commit(other)
    assert world.store.read_commit(ref(1, 1))[1] == text


def test_of_two_coordinators_exactly_one_commits_a_save(world: World) -> None:
    record = world.claimed(1).prepared(1, 1)

    def commit(number: int) -> bool:
        try:
            world.store.commit(dataclasses.replace(record, bytes_sent=number))
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = [*pool.map(commit, range(6))]
    assert won.count(True) == 1
    assert world.store.read_commit(ref(1, 1))[0].bytes_sent == won.index(True)


def test_no_commit_before_the_claim(world: World) -> None:
    record = world.prepared(1, 1)
    with pytest.raises(NotOnRecord, match="A6"):
        world.store.commit(record)
    world.claimed(1)
    world.store.commit(record)


def test_no_commit_after_a_newer_claim(world: World) -> None:
    record = world.claimed(1).prepared(1, 1)
    world.claimed(2)
    with pytest.raises(Superseded) as caught:
        world.store.commit(record)
    assert caught.value.newest.attempt == 2
    assert world.stored("commit.json") == []


def test_another_life_of_the_attempt_commits_nothing(world: World) -> None:
    record = world.claimed(1).prepared(1, 1)
    with pytest.raises(Superseded):
        world.store.commit(record, incarnation="another life")
    world.store.commit(record, incarnation="life-1")


def test_an_older_save_is_abandoned_when_a_newer_one_has_committed(world: World) -> None:
    older = world.claimed(1).prepared(1, 1)
    world.saved(1, 2)
    with pytest.raises(NotOnRecord, match="A8"):
        world.store.commit(older)
    assert [k for k in world.stored("commit.json") if "/0000000001/commit" in k] == []


def test_a_save_that_was_buried_before_its_commit_is_none_and_its_coordinator_hears_it(world: World) -> None:
    """D2: what lies under it may be gone by now, and the next save must not lean on it (B4)."""
    late = world.claimed(1).prepared(1, 1)
    stone = Tombstone(world.uid, 1, 1, 1, "given up", late.created_at)
    world.store.bucket.create(world.store.prefix + layout.tombstone_key(ref(1, 1)), codec.to_json(stone))
    with pytest.raises(NotOnRecord, match="expired"):
        world.store.commit(late)
    assert world.stored("commit.json") == []


def test_a_tombstone_is_for_ever(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    record, _ = world.store.read_commit(ref(1, 1))
    assert world.store.expire(ref(1, 1), by_attempt=1, reason="test").deleted
    with pytest.raises(NotOnRecord):
        world.store.commit(record)
    # And if the write had already been under way: it is there, and is nothing (B2, D2).
    world.store.bucket.create(world.store.prefix + layout.commit_key(ref(1, 1)), codec.to_json(record))
    assert world.candidates(2) == ["1/3", "1/2"]
    with pytest.raises(Absent):
        world.store.read_commit(ref(1, 1))


def test_a_save_shares_the_chunks_of_its_base_and_writes_the_rest_below_itself(world: World) -> None:
    world.claimed(1).saved(1, 1, b"aaaabbbb").saved(1, 2, b"aaaacccc", base=ref(1, 1)).saved(
        1, 3, b"aaaadddd", base=ref(1, 2)
    )
    record, _ = world.store.read_commit(ref(1, 3))
    assert record.refers_to == (ref(1, 1),)
    assert len(world.stored("chunks/")) == 4
    assert world.image(ref(1, 3)) == b"aaaadddd"


def test_content_that_comes_back_is_written_anew(world: World) -> None:
    world.claimed(1).saved(1, 1, b"aaaabbbb").saved(1, 2, b"ccccbbbb", base=ref(1, 1)).saved(
        1, 3, b"aaaabbbb", base=ref(1, 2)
    )
    assert len([k for k in world.stored("chunks/") if k.endswith(digest(b"aaaa"))]) == 2


def test_a_save_on_a_base_that_is_gone_or_never_was_is_not_committed(world: World) -> None:
    world.claimed(1).saved(1, 1, b"aaaabbbb").saved(1, 2, b"aaaacccc").saved(1, 3, b"dddd")
    record = world.prepared(1, 4, b"aaaaeeee", base=ref(1, 1))
    assert world.store.expire(ref(1, 1), by_attempt=1, reason="test").deleted
    with pytest.raises(NotOnRecord, match="B4"):
        world.store.commit(record)
    with pytest.raises(NotOnRecord, match="B4"):
        world.store.commit(dataclasses.replace(record, base=ref(1, 9)))


def test_a_save_refers_to_older_ones_only_through_its_base(world: World) -> None:
    world.claimed(1).saved(1, 1, b"aaaabbbb").saved(1, 2, b"cccc")
    record = world.prepared(1, 3, b"aaaadddd", base=ref(1, 1))
    with pytest.raises(NotOnRecord, match="which its base does not"):
        world.store.commit(dataclasses.replace(record, base=ref(1, 2)))
    with pytest.raises(ValueError, match="through its base"):
        world.store.commit(dataclasses.replace(record, base=None))


def test_a_record_that_is_wrong_in_itself_is_refused(world: World) -> None:
    record = world.claimed(1).prepared(1, 1, [b"aaaa", b"bbbb"])
    for wrong in (
        dataclasses.replace(record, ranks=()),
        dataclasses.replace(record, ranks=record.ranks[1:]),
        dataclasses.replace(record, ranks=record.ranks[::-1]),
        dataclasses.replace(record, job="other"),
        dataclasses.replace(record, job_uid="uid-9"),
        dataclasses.replace(record, base=ref(1, 1)),
    ):
        with pytest.raises(ValueError):
            world.store.commit(wrong)
    assert world.stored("commit.json") == []


def test_a_chunk_is_written_once_and_says_whether_it_was_there(world: World) -> None:
    assert world.store.put_chunk(ref(1, 1), digest(b"aaaa"), memoryview(b"aaaa"))
    assert not world.store.put_chunk(ref(1, 1), digest(b"aaaa"), memoryview(b"aaaa"))


def test_a_manifest_may_be_written_again_but_not_changed(world: World) -> None:
    manifest = world.manifest(1, 1, 0, 1, b"aaaabbbb", {})
    entry = world.store.create_manifest(manifest)
    assert entry == world.store.create_manifest(manifest)
    assert entry.manifest_digest == digest(codec.to_json(manifest))
    with pytest.raises(AlreadyExists):
        world.store.create_manifest(dataclasses.replace(manifest, boundary=99))


def test_a_manifest_that_does_not_add_up_is_never_written(world: World) -> None:
    good = world.manifest(1, 1, 0, 1, b"aaaabbbb", {})
    chunk = good.chunks[0]
    for wrong in (
        dataclasses.replace(good, image_bytes=9),
        dataclasses.replace(good, chunks=(Chunk(chunk.digest, 3, chunk.at), Chunk(chunk.digest, 5, chunk.at))),
        dataclasses.replace(good, chunks=(Chunk("../../x", 4, chunk.at), chunk)),
        dataclasses.replace(good, chunk_bytes=0),
        dataclasses.replace(good, job_uid="uid-9"),
    ):
        with pytest.raises(ValueError):
            world.store.create_manifest(wrong)
    assert world.stored("rank-") == []


DAMAGES = {
    "a flipped bit in a number": lambda text: text.replace(b'"boundary":1', b'"boundary":3'),
    "a flipped bit in a digest": lambda text: (
        text.replace(b'"manifest_digest":"', b'"manifest_digest":"0', 1)[:-1] + b"}"
    ),
    "a flipped bit in the check": lambda text: text.replace(b'"check":"', b'"check":"0'),
    "no check": lambda text: text.replace(b'"check":', b'"chekk":'),
    "half of it": lambda text: text[: len(text) // 2],
    "nothing": lambda text: b"",
    "a web page": lambda text: b"<html>it works</html>",
    "another checkpoint's": lambda text: text.replace(b'"save":1', b'"save":2'),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_commit_record_is_corrupt(how: str) -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1)
    key = world.store.prefix + layout.commit_key(ref(1, 1))
    bucket.damage(key, DAMAGES[how](bucket.objects[key]))
    with pytest.raises(Corrupt) as caught:
        world.store.read_commit(ref(1, 1))
    assert caught.value.key == key


def test_every_single_bit_of_commit_manifest_and_chunks_is_covered() -> None:
    """S4: whatever bit is turned over, some digest notices before a byte is used."""
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1, b"aaaabb")
    pristine = bucket.objects
    for key in [k for k in pristine if "/checkpoints/" in k]:
        for position in range(len(pristine[key])):
            data = bytearray(pristine[key])
            data[position] ^= 1 << (position % 8)
            bucket.damage(key, bytes(data))
            with pytest.raises(Corrupt):
                world.image(ref(1, 1))
            bucket.damage(key, pristine[key])
    assert world.image(ref(1, 1)) == b"aaaabb"


def test_a_chunk_that_is_cut_swapped_or_gone_never_passes() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1, b"aaaabbbb")
    key = world.store.prefix + layout.chunk_key(ref(1, 1), digest(b"aaaa"))
    for content in (b"aaa", b"aaaaa", b"bbbb", b""):
        bucket.damage(key, content)
        with pytest.raises(Corrupt) as caught:
            world.image(ref(1, 1))
        assert caught.value.key == key
    bucket.damage(key, None)
    with pytest.raises(Absent):
        world.image(ref(1, 1))


def test_a_chunk_that_is_damaged_on_the_way_is_corrupt_once_and_good_when_read_again() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1, b"aaaa")
    bucket.faults.append(Fault(Effect.FLIPPED, "get", "chunks/", times=1))
    with pytest.raises(Corrupt):
        world.image(ref(1, 1))
    assert world.image(ref(1, 1)) == b"aaaa"


def test_a_manifest_of_another_save_is_not_taken_although_it_is_whole() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1, b"aaaa").saved(1, 2, b"bbbb")
    one, two = (world.store.prefix + layout.manifest_key(ref(1, n), 0) for n in (1, 2))
    bucket.damage(two, bucket.objects[one])
    with pytest.raises(Corrupt, match="digest"):
        world.image(ref(1, 2))


def test_a_manifest_that_points_to_places_its_commit_record_does_not_name_is_corrupt(world: World) -> None:
    world.claimed(1).saved(1, 1, b"aaaa")
    manifest = world.manifest(1, 2, 0, 1, b"aaaa", {digest(b"aaaa"): ref(1, 1)})
    entry = world.store.create_manifest(manifest)
    standing: CommitRecord = world.store.read_commit(ref(1, 1))[0]
    progress = dataclasses.replace(standing.progress, boundary=manifest.boundary)
    world.store.commit(dataclasses.replace(standing, save=2, ranks=(entry,), progress=progress, check=""))
    with pytest.raises(Corrupt, match="no chunk lie"):
        world.image(ref(1, 2))


def test_a_manifest_of_another_boundary_than_its_commit_record_is_corrupt(world: World) -> None:
    """Ranks of two steps in one checkpoint would load without complaint: every byte verifies."""
    world.claimed(1).saved(1, 1, b"aaaa")
    manifest = world.manifest(1, 2, 0, 1, b"aaaa", {digest(b"aaaa"): ref(1, 1)})
    entry = world.store.create_manifest(manifest)
    standing: CommitRecord = world.store.read_commit(ref(1, 1))[0]
    progress = dataclasses.replace(standing.progress, boundary=manifest.boundary + 1)
    places = {"save": 2, "ranks": (entry,), "progress": progress, "base": ref(1, 1), "refers_to": (ref(1, 1),)}
    world.store.commit(dataclasses.replace(standing, check="", **places))
    with pytest.raises(Corrupt, match="speaks of"):
        world.image(ref(1, 2))


def test_a_view_of_another_length_is_the_callers_mistake(world: World) -> None:
    world.claimed(1).saved(1, 1, b"aaaa")
    with pytest.raises(ValueError):
        world.store.get_chunk_into(Chunk(digest(b"aaaa"), 4, ref(1, 1)), memoryview(bytearray(3)))


def test_a_tombstone_is_written_in_full(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    world.store.expire(ref(1, 1), by_attempt=1, reason="retention")
    data = world.store.bucket.get(world.store.prefix + layout.tombstone_key(ref(1, 1)), max_bytes=1000)
    stone = codec.from_json(Tombstone, data)
    assert (stone.attempt, stone.save, stone.by_attempt, stone.reason) == (1, 1, 1, "retention")
