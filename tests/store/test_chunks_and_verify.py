"""Digests are BLAKE3-256; verifying reads everything and names what is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import World, ref

from holdfast_api import layout
from holdfast_store.bucket import Bucket
from holdfast_store.chunks import digest, ranges
from holdfast_store.errors import Unavailable
from holdfast_store.memory import Effect, Fault, MemoryBucket
from holdfast_store.overview import Standing, overview
from holdfast_store.verify import verify


def test_the_digest_is_blake3_256_in_hex() -> None:
    assert digest(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


@given(st.integers(0, 200), st.integers(1, 64))
def test_chunks_cover_the_image_in_order_and_all_but_the_last_are_whole(total: int, size: int) -> None:
    found = ranges(total, size)
    assert [start for start, _ in found] == [n * size for n in range(len(found))]
    assert sum(length for _, length in found) == total
    assert all(length == size for _, length in found[:-1])
    assert all(0 < length <= size for _, length in found)


def test_chunks_of_no_size_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk_bytes"):
        ranges(1, 0)


def test_an_intact_checkpoint_verifies_with_every_byte_counted_once(bucket: Bucket) -> None:
    world = World(bucket).claimed(1).saved(1, 1, [b"aaaabbbb", b"aaaacc"])
    record, _ = world.store.read_commit(ref(1, 1))
    seen: list[tuple[int, int]] = []
    result = verify(world.store, record, threads=3, progress=lambda done, total: seen.append((done, total)))
    assert (result.problems, result.chunks, result.bytes_read) == ((), 3, 10)
    assert seen[0] == (0, 10)
    assert seen[-1] == (10, 10)


def test_each_damage_is_named() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1, [b"aaaabbbb", b"cccc", b"dddd"])
    record, _ = world.store.read_commit(ref(1, 1))
    prefix = world.store.prefix
    bucket.damage(prefix + layout.chunk_key(ref(1, 1), digest(b"aaaa")), b"aaab")
    bucket.damage(prefix + layout.chunk_key(ref(1, 1), digest(b"bbbb")), None)
    bucket.damage(prefix + layout.manifest_key(ref(1, 1), 2), b"?")
    problems = verify(world.store, record).problems
    assert len(problems) == 3
    assert sum(digest(b"aaaa") in p for p in problems) == 1
    assert sum(digest(b"bbbb") in p for p in problems) == 1
    assert sum("rank-2.json" in p for p in problems) == 1


def test_a_store_that_does_not_answer_says_nothing_about_the_checkpoint() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1)
    record, _ = world.store.read_commit(ref(1, 1))
    bucket.faults.append(Fault(Effect.UNAVAILABLE, "get", "chunks/", times=0))
    with pytest.raises(Unavailable):
        verify(world.store, record)


def test_the_overview_says_how_each_save_stands() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1)
    for save in (1, 2, 3, 4):
        world.saved(1, save)
    world.store.expire(ref(1, 1), by_attempt=1, reason="test")
    world.claimed(2, ref(1, 3)).saved(2, 1).saved(2, 2).prepared(2, 3)
    bucket.damage(world.store.prefix + layout.commit_key(ref(2, 1)), b"?")
    found = {str(v.ref): v.standing for v in overview(world.store)}
    assert found == {
        "2/3": Standing.UNFINISHED,
        "2/2": Standing.USABLE,
        "2/1": Standing.DAMAGED,
        "1/4": Standing.OFF_LINEAGE,
        "1/3": Standing.USABLE,
        "1/2": Standing.USABLE,
        "1/1": Standing.EXPIRED,
    }
