"""Digests are BLAKE3-256, the same however many threads compute them; verifying reads everything and names what is wrong."""

import os
from pathlib import Path

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import World, ref

from holdfast_api import layout
from holdfast_store.bucket import Bucket
from holdfast_store.chunks import digest, digest_file, hash_chunks, ranges
from holdfast_store.errors import Unavailable
from holdfast_store.memory import Effect, Fault, MemoryBucket
from holdfast_store.overview import Standing, overview
from holdfast_store.verify import verify


def test_the_digest_is_blake3_256_in_hex() -> None:
    assert digest(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


@given(st.binary(max_size=200), st.integers(1, 64), st.integers(1, 4))
def test_chunks_cover_the_image_in_order_whatever_the_number_of_threads(data: bytes, size: int, threads: int) -> None:
    found = hash_chunks(memoryview(data), size, threads=threads)
    assert [length for _, length in found] == [length for _, length in ranges(len(data), size)]
    assert found == [(blake3.blake3(data[s : s + n]).hexdigest(), n) for s, n in ranges(len(data), size)]
    assert sum(n for _, n in found) == len(data)


def test_a_file_has_the_digest_of_its_content(tmp_path: Path) -> None:
    data = os.urandom(9 << 20)
    (tmp_path / "x").write_bytes(data)
    assert digest_file(tmp_path / "x") == digest(data)


def test_chunks_of_no_size_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk_bytes"):
        hash_chunks(memoryview(b"x"), 0, threads=1)


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
