"""B5, C3: what is stored is re-read at a bounded rate; damage is mended from where the bytes still are, or told; whatever ends it, it goes on."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from on_node import put_image
from worlds import CHUNK, NOW, World, ref

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import INTACT, ScrubNotes, Verdict
from holdfast_api.messages import RestoreOrder
from holdfast_store.bucket import Bucket
from holdfast_store.chunks import digest
from holdfast_store.errors import Unavailable
from holdfast_store.local import LocalTier
from holdfast_store.memory import Effect, Fault, MemoryBucket
from holdfast_store.scrub import Ended, OnNode, Pace, Round, read_notes, scrub

BY = {"by_attempt": 1, "reason": "test"}


def run(world: World, **options: object) -> Round:
    return scrub(world.store, **{"pace": Pace(), **options})  # type: ignore[arg-type]


def four(bucket: Bucket) -> World:
    """1/1 aaaa bbbb; 1/2 shares aaaa; 1/3 stands alone; 1/4 has cccc of its own, as 1/2 has."""
    world = World(bucket).claimed(1)
    world.saved(1, 1, b"aaaabbbb").saved(1, 2, b"aaaacccc", base=ref(1, 1)).saved(1, 3, b"ddddeeee")
    return world.saved(1, 4, b"ccccffff")


def key(world: World, at: CheckpointRef, content: bytes) -> str:
    return world.store.prefix + layout.chunk_key(at, digest(content))


def verdicts(world: World) -> dict[str, bool]:
    found = {}
    for number in range(1, 5):
        for v in world.store.read_verdicts(ref(1, number)):
            assert v.check == INTACT
            found[f"1/{number}"] = v.passed
    return found


def test_everything_is_read_once_newest_first_and_written_down(bucket: Bucket) -> None:
    world = four(bucket)
    found = run(world)
    assert [str(s.ref) for s in found.done] == ["1/4", "1/3", "1/2", "1/1"]
    assert [s.chunks for s in found.done] == [2, 2, 2, 1], "aaaa is read once"
    assert (found.problems, found.whole) == ((), True)
    assert verdicts(world) == {"1/1": True, "1/2": True, "1/3": True, "1/4": True}
    assert [len(run(world).done) for _ in range(2)] == [4, 4], "the next one begins a new round"


def test_a_flipped_bit_is_found_and_a_start_takes_the_next_older_one_without_fetching_it() -> None:
    bucket = MemoryBucket()
    world = four(bucket)
    bucket.damage(key(world, ref(1, 4), b"ffff"), b"fffg")
    found = run(world)
    assert [str(s.ref) for s in found.done if s.problems] == ["1/4"]
    assert digest(b"ffff") in found.problems[0]
    assert verdicts(world) == {"1/1": True, "1/2": True, "1/3": True, "1/4": False}
    resolved = world.store.resolve(RestoreOrder(), 2)
    assert [str(c.record.ref) for c in resolved.candidates] == ["1/3", "1/2", "1/1"]
    assert [(r.save, r.of_checkpoint) for r in resolved.rejections] == [(4, False)], "it may be mended"
    assert "scrub" in resolved.rejections[0].reason


def test_who_asks_hears_which_are_damaged_until_they_are_mended() -> None:
    bucket = MemoryBucket()
    world = four(bucket)
    assert world.store.damaged() == {}
    bucket.damage(key(world, ref(1, 3), b"dddd"), b"ddd?")
    run(world)
    (found,) = world.store.damaged().items()
    assert found[0] == ref(1, 3)
    assert digest(b"dddd") in found[1]
    bucket.put(key(world, ref(1, 3), b"dddd"), b"dddd")
    run(world)
    assert world.store.damaged() == {}


def test_where_nothing_else_is_left_what_is_damaged_in_the_store_is_tried() -> None:
    """C1: a node may have the bytes."""
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1, b"aaaabbbb")
    bucket.damage(key(world, ref(1, 1), b"bbbb"), b"bbbc")
    run(world)
    assert world.candidates(2) == ["1/1"]


def test_the_newest_that_is_whole_is_never_deleted_while_newer_ones_are_damaged() -> None:
    """One bad chunk may lie under every newer checkpoint: without the rule the last whole one is pushed out."""
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1, b"aaaabbbb").saved(1, 2, b"zzzzcccc")
    for number in (3, 4, 5):
        world.saved(1, number, b"zzzz%04d" % number, base=ref(1, number - 1))
    assert "is known to be wrong" not in world.store.expire(ref(1, 1), **BY).kept_because
    world = World(bucket := MemoryBucket()).claimed(1).saved(1, 1, b"aaaabbbb").saved(1, 2, b"zzzzcccc")
    for number in (3, 4, 5):
        world.saved(1, number, b"zzzz%04d" % number, base=ref(1, number - 1))
    bucket.damage(key(world, ref(1, 2), b"zzzz"), b"zzzy")
    assert [str(s.ref) for s in run(world).done if s.problems] == ["1/5", "1/4", "1/3", "1/2"]
    assert "the least is known to be wrong" in world.store.expire(ref(1, 1), **BY).kept_because
    assert world.candidates(2) == ["1/1"]


def test_damage_is_mended_from_another_checkpoint_that_holds_the_same_content() -> None:
    bucket = MemoryBucket()
    world = four(bucket)
    bucket.damage(key(world, ref(1, 4), b"cccc"), b"ccc?")
    found = run(world)
    assert found.problems == ()
    assert "another checkpoint in the store" in found.done[0].mended[0]
    assert world.image(ref(1, 4)) == b"ccccffff"
    assert verdicts(world)["1/4"]


def test_damage_is_mended_from_the_directory_of_a_node(tmp_path: Path) -> None:
    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1, b"aaaabbbb")
    node = LocalTier(tmp_path, "ns", "job", "uid-1")
    put_image(node, ref(1, 1), 0, b"aaaabbbb")
    bucket.delete([key(world, ref(1, 1), b"bbbb")])
    assert run(world, mend=False).problems, "nothing is written where that is not wanted"
    assert key(world, ref(1, 1), b"bbbb") not in bucket.objects
    found = run(world, sources=[OnNode(node)])
    assert found.problems == ()
    assert str(tmp_path) in found.done[0].mended[0]
    assert world.image(ref(1, 1)) == b"aaaabbbb"
    assert verdicts(world)["1/1"], "and the verdict is taken back"


def test_what_a_source_has_is_believed_only_if_it_verifies() -> None:
    class Liar:
        name = "a liar"

        def read(self, _manifest: object, _index: int, view: memoryview) -> None:
            view[:] = b"x" * len(view)

    bucket = MemoryBucket()
    world = World(bucket).claimed(1).saved(1, 1, b"aaaabbbb")
    bucket.damage(key(world, ref(1, 1), b"bbbb"), b"bbbc")
    assert run(world, sources=[Liar()]).problems
    assert bucket.objects[key(world, ref(1, 1), b"bbbb")] == b"bbbc"


def test_damaged_manifests_and_commit_records_are_found() -> None:
    bucket = MemoryBucket()
    world = four(bucket)
    bucket.damage(world.store.prefix + layout.manifest_key(ref(1, 3), 0), b"{}")
    bucket.damage(world.store.prefix + layout.commit_key(ref(1, 2)), b"{}")
    found = {str(s.ref): s.problems for s in run(world).done}
    assert "rank 0, its manifest" in found["1/3"][0]
    assert "the commit record" in found["1/2"][0]
    assert (found["1/1"], found["1/4"]) == ((), ())


def test_a_bit_that_flips_on_the_way_is_no_damage() -> None:
    bucket = MemoryBucket([Fault(Effect.FLIPPED, "get", "/chunks/", times=1)])
    world = four(bucket)
    assert run(world).problems == ()


@pytest.mark.parametrize("moment", range(1, 40))
def test_a_checkpoint_that_is_deleted_meanwhile_is_no_damage(moment: int, caplog: pytest.LogCaptureFixture) -> None:
    bucket = MemoryBucket()
    world = four(bucket).saved(1, 5, b"gggg").saved(1, 6, b"hhhh")
    calls, busy = itertools.count(1), []

    def delete(_operation: str, _key: str) -> None:
        if not busy and next(calls) == moment:
            busy.append(True)
            world.store.expire(ref(1, 2), **BY)

    bucket.before_call = delete
    assert run(world).problems == ()
    bucket.before_call = None
    assert not busy or world.stored("0000000002/chunks/") == []
    assert not [r for r in caplog.records if r.levelname == "ERROR"], "nobody is told of damage"


class Killed(BaseException):
    pass


def dying_at(moment: int) -> Callable[[str, str], None]:
    calls = itertools.count(1)

    def hook(_operation: str, _key: str) -> None:
        if next(calls) == moment:
            raise Killed

    return hook


def test_killed_at_any_operation_it_goes_on_and_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast_store import scrub as module

    monkeypatch.setattr(module, "NOTE_SECONDS", 0.0)
    for moment in range(1, 60):
        bucket = MemoryBucket()
        world = four(bucket)
        bucket.damage(key(world, ref(1, 1), b"aaaa"), b"aaa?")
        bucket.before_call = dying_at(moment)
        try:
            run(world)
        except Killed:
            bucket.before_call = None
            run(world)
        bucket.before_call = None
        assert verdicts(world) == {"1/1": False, "1/2": False, "1/3": True, "1/4": True}, moment


def test_what_was_read_before_an_end_is_not_read_again() -> None:
    bucket = MemoryBucket()
    world = four(bucket)
    bucket.damage(key(world, ref(1, 1), b"aaaa"), b"aaa?")
    for chunks in range(1, 7):
        wanted = iter([False] * chunks + [True])
        bucket.calls.clear()
        with pytest.raises(Ended):
            run(world, pace=Pace(ended=lambda wanted=wanted: next(wanted)), anew=True)
        notes = read_notes(world.store)
        assert notes is not None
        rest = run(world)
        read = [k for op, k in bucket.calls if op == "get" and "/chunks/" in k]
        assert len(read) - sum(k == key(world, ref(1, 1), b"aaaa") for k in read) == 6, "each of the whole ones once"
        assert len(rest.before) + len(rest.done) == 4
        assert [str(s.ref) for s in (*rest.before, *rest.done) if s.problems] == ["1/2", "1/1"], "found before or now"
        assert verdicts(world) == {"1/1": False, "1/2": False, "1/3": True, "1/4": True}, chunks


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"schema":9}'])
def test_it_survives_damage_of_its_own_notes(content: bytes) -> None:
    bucket = MemoryBucket()
    world = four(bucket)
    bucket.put(world.store.prefix + layout.scrub_key(), content)
    assert len(run(world).done) == 4


def test_notes_of_another_job_or_about_checkpoints_that_are_gone_count_for_nothing() -> None:
    bucket = MemoryBucket()
    world = four(bucket)
    place = world.store.prefix + layout.scrub_key()
    bucket.put(place, codec.to_json(ScrubNotes("uid-9", NOW, (ref(1, 1), ref(1, 2)))))
    assert len(run(world).done) == 4
    bucket.put(place, codec.to_json(ScrubNotes("uid-1", NOW, (ref(9, 9),), ref(1, 4), 7, 5)))
    assert [s.chunks for s in run(world).done] == [2, 2, 2, 1]


def test_two_at_once_do_no_harm() -> None:
    for moment in range(1, 30, 3):
        bucket = MemoryBucket()
        world = four(bucket)
        bucket.damage(key(world, ref(1, 4), b"cccc"), b"ccc?")
        calls, busy = itertools.count(1), []

        def another(_operation: str, _key: str, calls=calls, busy=busy, moment=moment, world=world) -> None:
            if not busy and next(calls) == moment:
                busy.append(run(world))

        bucket.before_call = another
        assert run(world).problems == ()
        assert len(busy) == 1
        assert world.image(ref(1, 4)) == b"ccccffff"


def test_a_store_that_is_away_is_no_damage_and_ends_it() -> None:
    bucket = MemoryBucket([Fault(Effect.UNAVAILABLE, "get", "/chunks/", first=3)])
    world = four(bucket)
    with pytest.raises(Unavailable):
        run(world)
    assert run(world).problems == ()


def test_it_reads_no_faster_than_it_is_told_and_does_not_save_up_time() -> None:
    now = 0.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    pace = Pace(100.0, clock=lambda: now, sleep=sleep)
    for _ in range(10):
        pace.pay(50)
    assert now == pytest.approx(4.5)
    assert max(slept) <= 0.5
    now += 1000.0
    before = now
    for _ in range(3):
        pace.pay(100)
    assert now - before == pytest.approx(2.0)


def test_an_order_to_end_is_heard_while_it_waits() -> None:
    ended = iter([False, False, True])
    pace = Pace(0.001, ended=lambda: next(ended), sleep=lambda _s: None)
    pace.pay(CHUNK)
    with pytest.raises(Ended):
        pace.pay(CHUNK)


def test_where_there_is_nothing_nothing_is_written() -> None:
    bucket = MemoryBucket()
    assert run(World(bucket)).done == ()
    assert not bucket.objects


def test_nothing_is_deleted_and_nothing_else_written() -> None:
    bucket = MemoryBucket()
    world = four(bucket)
    bucket.damage(key(world, ref(1, 3), b"dddd"), b"ddd?")
    bucket.calls.clear()
    run(world)
    written = {k.removeprefix(world.store.prefix) for op, k in bucket.calls if op in ("put", "create")}
    assert written == {layout.scrub_key(), *(layout.verdict_key(ref(1, n), INTACT) for n in range(1, 5))}
    assert not any(op == "delete" for op, _ in bucket.calls)


def test_a_verdict_that_cannot_be_read_costs_no_checkpoint() -> None:
    """The notes about a checkpoint must not be more dangerous than what they are about."""
    bucket = MemoryBucket()
    world = four(bucket)
    run(world)
    bucket.damage(world.store.prefix + layout.verdict_key(ref(1, 4), INTACT), b"?")
    foreign = Verdict("uid-9", 1, 3, INTACT, False, "of another job", NOW)
    bucket.put(world.store.prefix + layout.verdict_key(ref(1, 3), INTACT), codec.to_json(foreign))
    assert world.candidates(2) == ["1/4", "1/3", "1/2", "1/1"]
