"""A3, A4, A5, D6: whoever creates the claim is the attempt; its own repeated request is recognized, anybody else's is superseded."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from worlds import NOW, World, ref

from holdfast_api import codec, layout
from holdfast_api.manifest import BranchRef
from holdfast_store.bucket import Bucket
from holdfast_store.errors import Corrupt, Misconfigured, NotOnRecord, Superseded
from holdfast_store.memory import Effect, Fault, MemoryBucket


def test_without_claims_there_is_no_newest_one(world: World) -> None:
    assert world.store.newest_claim() is None
    assert world.store.claims() == {}


def test_a_claim_is_kept_and_the_newest_found_by_number(world: World) -> None:
    for attempt in (1, 2, 10):
        world.claimed(attempt)
    assert world.store.newest_claim() == world.a_claim(10)
    assert sorted(world.store.claims()) == [1, 2, 10]


def test_claiming_again_with_the_same_incarnation_is_fine(world: World) -> None:
    world.claimed(1).claimed(1)


def test_another_life_of_the_same_attempt_is_superseded_and_told_by_whom(world: World) -> None:
    world.claimed(1)
    with pytest.raises(Superseded) as caught:
        world.store.claim(world.a_claim(1, incarnation="another"))
    assert caught.value.newest == world.a_claim(1)


def test_an_older_attempt_is_superseded_by_a_newer_claim(world: World) -> None:
    world.claimed(3)
    with pytest.raises(Superseded) as caught:
        world.store.claim(world.a_claim(2))
    assert caught.value.newest.attempt == 3
    assert sorted(world.store.claims()) == [3]


def test_of_eight_lives_of_an_attempt_exactly_one_claims(world: World) -> None:
    def claim(number: int) -> bool:
        try:
            world.store.claim(world.a_claim(5, incarnation=f"life {number}"))
        except Superseded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [*pool.map(claim, range(8))]
    newest = world.store.newest_claim()
    assert won.count(True) == 1
    assert newest is not None
    assert newest.incarnation == f"life {won.index(True)}"


def test_a_parent_that_is_expired_cannot_be_claimed(world: World) -> None:
    world.claimed(1).saved(1, 1).saved(1, 2).saved(1, 3)
    assert world.store.expire(ref(1, 1), by_attempt=1, reason="test").deleted
    for parent in (ref(1, 1), ref(1, 9)):
        with pytest.raises(NotOnRecord, match="resolve again"):
            world.claimed(2, parent)
    assert sorted(world.store.claims()) == [1]


def test_a_parent_in_another_jobs_prefix_is_named_there_before_the_claim(bucket: Bucket) -> None:
    source = World(bucket, "uid-1").claimed(1).saved(1, 1)
    branch = World(bucket, "uid-2").claimed(1, ref(1, 1), parent_uid="uid-1")
    key = source.store.prefix + layout.branch_key("uid-2")
    stored = codec.from_json(BranchRef, bucket.get(key, max_bytes=1000))
    assert stored == BranchRef("uid-1", "uid-2", ref(1, 1), NOW)
    assert branch.store.newest_claim() is not None


def test_a_parent_in_another_jobs_prefix_that_is_gone_is_not_claimed(bucket: Bucket) -> None:
    World(bucket, "uid-1").claimed(1)
    with pytest.raises(NotOnRecord):
        World(bucket, "uid-2").claimed(1, ref(1, 1), parent_uid="uid-1")


def test_a_claim_continues_an_earlier_attempt_only(world: World) -> None:
    world.claimed(1).saved(1, 1)
    with pytest.raises(ValueError, match="cannot continue"):
        world.store.claim(world.a_claim(2, ref(2, 1)))
    with pytest.raises(ValueError, match="job uid-9"):
        world.store.claim(dataclasses.replace(world.a_claim(2), job_uid="uid-9"))


def test_on_a_store_that_ignores_create_only_the_one_that_was_overwritten_notices() -> None:
    """Where conditional writes are not exact A5 is the care (B8): what lies there after the write decides."""
    bucket = MemoryBucket([Fault(Effect.NOT_EXCLUSIVE, "create", times=0)])
    world = World(bucket)
    other = codec.to_json(world.a_claim(1, incarnation="the other"))
    seen = []

    def meanwhile(operation: str, key: str) -> None:
        if operation == "get" and not seen:
            seen.append(key)
            bucket.damage(key, other)

    bucket.before_call = meanwhile
    with pytest.raises(Superseded):
        world.store.claim(world.a_claim(1, incarnation="ours"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda text: text.replace(b'"attempt":2', b'"attempt":3'), Corrupt),
        (lambda text: text.replace(b"uid-1", b"uid-7"), Corrupt),
        (lambda text: text[:-10], Corrupt),
        (lambda text: b"<html>", Corrupt),
        (lambda text: text.replace(b'"schema":1', b'"schema":0'), Corrupt),
        (lambda text: text.replace(b'"schema":1', b'"schema":2'), Misconfigured),
    ],
    ids=["another attempt", "another job", "cut", "not json", "no release", "newer release"],
)
def test_a_claim_that_does_not_fit_its_key_stops_everything(change: object, error: type[Exception]) -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).claimed(2)
    key = world.store.prefix + layout.claim_key(2)
    bucket.damage(key, change(codec.to_json(world.a_claim(2))))  # type: ignore[operator]  (as older releases wrote it, without a proof)
    with pytest.raises(error, match="0000000002"):
        world.store.newest_claim()


def test_a_claim_of_an_older_release_which_proves_nothing_is_read() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1)
    bucket.damage(
        world.store.prefix + layout.claim_key(1), codec.to_json(world.a_claim(1)).replace(b',"check":""', b"")
    )
    assert world.store.newest_claim() == world.a_claim(1)


def test_a_claim_proves_itself_whatever_its_format() -> None:
    """A changed digit in `parent` would quietly continue something older (A7)."""
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1).saved(1, 2).claimed(2, ref(1, 2))
    key = world.store.prefix + layout.claim_key(2)
    whole = bucket.objects[key]
    for before, after in ((b'"save":2', b'"save":1'), (b'"schema":1', b'"schema":2')):
        bucket.damage(key, whole.replace(before, after))
        with pytest.raises(Corrupt, match="digest that it carries"):
            world.store.newest_claim()
