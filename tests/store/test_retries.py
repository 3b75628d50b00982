"""Retries: only while the store is Unavailable, only until the deadline, and a repeated create is told from a lost one."""

import time

import pytest
from worlds import World, ref

from holdfast_api import codec
from holdfast_store.errors import AlreadyExists, Denied, Superseded, Unavailable
from holdfast_store.job import JobStore
from holdfast_store.memory import Effect, Fault, MemoryBucket
from holdfast_store.retry import Persistent


def calls(bucket: MemoryBucket, operation: str) -> int:
    return [name for name, _ in bucket.calls].count(operation)


def test_an_outage_that_passes_is_not_noticed() -> None:
    inner = MemoryBucket([Fault(Effect.UNAVAILABLE, "create", times=3)])
    Persistent(inner, retry_seconds=30).create("a/x", b"1")
    assert inner.objects == {"a/x": b"1"}
    assert calls(inner, "create") == 4


def test_an_outage_that_lasts_ends_in_unavailable() -> None:
    inner = MemoryBucket([Fault(Effect.UNAVAILABLE, times=0)])
    with pytest.raises(Unavailable):
        Persistent(inner, retry_seconds=0.4).get("a/x", max_bytes=1)
    assert calls(inner, "get") >= 2


def test_other_errors_are_not_repeated() -> None:
    inner = MemoryBucket([Fault(Effect.DENIED, times=0)])
    with pytest.raises(Denied):
        Persistent(inner, retry_seconds=30).put("a/x", b"1")
    assert calls(inner, "put") == 1


def test_nothing_is_tried_again_after_the_deadline() -> None:
    inner = MemoryBucket([Fault(Effect.UNAVAILABLE, times=0)])
    persistent = Persistent(inner, retry_seconds=3600).until(time.monotonic() - 1)
    with pytest.raises(Unavailable):
        persistent.put("a/x", b"1")
    assert calls(inner, "put") == 1


def test_the_last_pause_does_not_run_far_past_the_deadline() -> None:
    persistent = Persistent(MemoryBucket([Fault(Effect.UNAVAILABLE, times=0)]), retry_seconds=3600)
    deadline = time.monotonic() + 1
    with pytest.raises(Unavailable):
        persistent.until(deadline).put("a/x", b"1")
    assert time.monotonic() < deadline + 10  # a pause of one hour's patience would be five seconds and more


def test_a_job_store_passes_its_deadline_on() -> None:
    inner = MemoryBucket([Fault(Effect.UNAVAILABLE, times=0)])
    store = JobStore(Persistent(inner, retry_seconds=3600), "ns", "job", "uid-1").until(time.monotonic() + 0.3)
    with pytest.raises(Unavailable):
        store.newest_claim()


def test_a_listing_that_fails_in_the_middle_shows_nothing_twice() -> None:
    inner = MemoryBucket([Fault(Effect.UNAVAILABLE, "list", times=1)])
    inner.create("a/x", b"1")
    assert [o.key for o in Persistent(inner, retry_seconds=30).list("a/")] == ["a/x"]


def a_world(*faults: Fault) -> tuple[World, MemoryBucket]:
    inner = MemoryBucket(faults)
    return World(Persistent(inner, retry_seconds=30)), inner


def test_a_claim_whose_answer_was_lost_is_recognized_as_our_own() -> None:
    world, inner = a_world(Fault(Effect.LOST_ANSWER, "create", "attempts/"))
    world.claimed(1)
    assert calls(inner, "create") == 2


def test_a_claim_that_another_life_has_made_between_two_tries_is_not() -> None:
    inner = MemoryBucket([Fault(Effect.UNAVAILABLE, "create", "attempts/")])
    world = World(Persistent(inner, retry_seconds=30))
    other = codec.to_json(world.a_claim(2, incarnation="the other"))

    def meanwhile(operation: str, key: str) -> None:
        if operation == "create" and calls(inner, "create") == 1:
            inner.damage(key, other)

    inner.before_call = meanwhile
    with pytest.raises(Superseded) as caught:
        world.store.claim(world.a_claim(2, incarnation="ours"))
    assert caught.value.newest.incarnation == "the other"
    assert calls(inner, "create") == 2


def test_a_commit_whose_answer_was_lost_is_success_with_the_exact_text() -> None:
    world, inner = a_world(Fault(Effect.LOST_ANSWER, "create", "commit.json"))
    record = world.claimed(1).prepared(1, 1)
    text = world.store.commit(record)
    assert inner.objects[f"{world.store.prefix}checkpoints/0000000001/0000000001/commit.json"] == text.encode()


def test_a_commit_of_another_text_is_not_taken_for_our_own() -> None:
    world, _ = a_world(
        Fault(Effect.LOST_ANSWER, "create", "rank-0.json"), Fault(Effect.LOST_ANSWER, "create", "chunks/")
    )
    world.claimed(1).saved(1, 1, b"aaaabbbb")
    other = world.manifest(1, 1, 0, 1, b"aaaacccc", {})
    with pytest.raises(AlreadyExists):
        world.store.create_manifest(other)
    assert world.image(ref(1, 1)) == b"aaaabbbb"
