"""A dry run says exactly what the real deletion then removes (D2, D4, D5, D6), and why the rest stays."""

import random

import pytest
from worlds import NOW, World, ref

from holdfast_api import layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import BranchRef
from holdfast_store.chunks import digest
from holdfast_store.deletion import Facts, why_kept
from holdfast_store.errors import StoreError
from holdfast_store.foretell import CUT_SHORT, ORDERED, Fate, foretell
from holdfast_store.memory import MemoryBucket

CONTENT = [b"aaaabbbb", b"bbbbcccc", b"aaaacccc", b"bbbbdddd", b"aaaadddd"]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (Facts(committed=False, expired=False), "no commit record"),
        (Facts(committed=True, expired=False, in_use=True), "in use"),
        (Facts(committed=True, expired=False, protected=True), "newest usable"),
        (Facts(committed=True, expired=False, best=True), "the least is known to be wrong"),
        (Facts(committed=True, expired=False, branch="uid-9"), "branch uid-9"),
        (Facts(committed=True, expired=True, branch="uid-9"), ""),
        (Facts(committed=False, expired=True, in_use=True), ""),
        (Facts(committed=True, expired=False), ""),
    ],
)
def test_an_order_is_carried_out_unless_there_is_a_reason(facts: Facts, words: str) -> None:
    assert words in why_kept(facts)
    assert bool(words) == bool(why_kept(facts))


def keys_of(world: World, fates: list[Fate]) -> list[str]:
    prefix = world.store.prefix
    keys = []
    for fate in fates:
        if fate.removal:
            keys += [prefix + layout.chunk_key(at, name) for at, name in fate.removal.chunks]
            keys += [prefix + layout.checkpoint_prefix(fate.ref) + name for name in fate.removal.others]
            keys.append(prefix + layout.commit_key(fate.ref))  # goes first, so it is not among the rest
    return keys


def a_random_world(seed: int) -> tuple[World, MemoryBucket, int]:
    """Three attempts, each with some saves, commits, leftovers, a zombie's late commit, perhaps a branch and a deletion that was cut short."""
    chance, bucket = random.Random(seed), MemoryBucket()
    world = World(bucket)
    on_line: list[CheckpointRef] = []
    for attempt in (1, 2, 3):
        parent = chance.choice(on_line[-2:]) if on_line else None
        world.claimed(attempt, parent)
        on_line = on_line[: on_line.index(parent) + 1] if parent else []
        base = parent
        for save in range(1, chance.randint(2, 6)):
            record = world.prepared(attempt, save, chance.choice(CONTENT), base=base)
            if chance.random() < 0.7:
                world.store.commit(record)
                base = ref(attempt, save)
                on_line.append(base)
    branched = chance.choice(on_line) if on_line and chance.random() < 0.3 else None
    if branched:
        world.store.write_branch(BranchRef("uid-1", "uid-2", branched, NOW))
    commits = [
        key
        for key in bucket.objects
        if key.endswith("commit.json") and (not branched or layout.commit_key(branched) not in key)
    ]
    if commits and chance.random() < 0.3:
        bucket.put(chance.choice(commits).replace("commit.json", "expired.json"), b"{}")
    return world, bucket, 3


@pytest.mark.parametrize("block", range(4))
def test_what_is_foretold_is_what_is_removed(block: int) -> None:
    deleted = kept = swept = 0
    for seed in range(block * 50, block * 50 + 50):
        world, bucket, attempt = a_random_world(seed)
        chance = random.Random(-seed)
        there = sorted(
            {p[0] for key in bucket.objects if (p := layout.parse_checkpoint_key(key.removeprefix(world.store.prefix)))}
        )
        named = chance.sample(there, k=min(len(there), 4))
        before = set(bucket.objects)
        fates = foretell(world.store, named)
        assert set(bucket.objects) == before  # a dry run writes nothing
        results = {each: world.store.expire(each, by_attempt=attempt, reason="order") for each in named}
        world.store.sweep(attempt=attempt)
        gone = {
            key for key in before - set(bucket.objects) if not key.endswith("expired.json")
        }  # taken back for a branch
        assert gone == set(keys_of(world, fates)) & before, f"seed {seed}"
        for fate in fates[: len(named)]:
            real = results[fate.ref]
            assert (real.deleted, real.kept_because) == (fate.removal is not None, "" if fate.removal else fate.why)
            assert real.bytes_freed == (fate.removal.chunk_bytes if fate.removal else 0)
        deleted += sum(r.deleted for r in results.values())
        kept += sum(not r.deleted for r in results.values())
        swept += len(fates) - len(named)
    assert min(deleted, kept, swept) > 10  # each of them really happened


def test_each_chunk_that_stays_names_who_needs_it() -> None:
    world = World(MemoryBucket()).claimed(1)
    world.saved(1, 1, b"aaaabbbb").saved(1, 2, b"aaaacccc", base=ref(1, 1)).saved(1, 3, b"dddd").saved(1, 4, b"eeee")
    (fate,) = foretell(world.store, [ref(1, 1)])
    assert fate.why == ORDERED
    assert fate.removal is not None
    assert fate.removal.chunks == ((ref(1, 1), digest(b"bbbb")),)
    assert fate.removal.kept == {(ref(1, 1), digest(b"aaaa")): ref(1, 2)}


def test_a_deletion_that_was_cut_short_is_foretold_with_its_reason() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1)
    for save in (1, 2, 3, 4):
        world.saved(1, save, b"%04d" % save)
    world.store.bucket.put(world.store.prefix + layout.tombstone_key(ref(1, 1)), b"{}")
    assert [(f.ref, f.why, f.removal is not None) for f in foretell(world.store, [])] == [(ref(1, 1), CUT_SHORT, True)]


def test_before_any_claim_nothing_would_be_deleted() -> None:
    world = World(MemoryBucket())
    (fate,) = foretell(world.store, [ref(1, 1)])
    assert fate.removal is None
    assert "D1" in fate.why


def test_a_store_that_cannot_be_read_is_an_error_and_no_plan() -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1)
    bucket.damage(world.store.prefix + layout.claim_key(1), b"?")
    with pytest.raises(StoreError):
        foretell(world.store, [ref(1, 1)])
