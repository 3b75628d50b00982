"""E6 in one worker: what is written on the node alone, what a flush that was cut short leaves there, and what whoever comes next makes of it."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from lone import CHUNK, UID, Barrier, Lone, image, in_thread

from holdfast_agent import unfinished
from holdfast_agent.clock import Deadline, monotonic, now
from holdfast_agent.errors import SaveGivenUp
from holdfast_agent.experience import Experience
from holdfast_agent.metrics import Metrics
from holdfast_agent.record import Record
from holdfast_agent.threads import Threads
from holdfast_agent.unfinished import Part, Unfinished, seconds_left
from holdfast_api import peers
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim, Pending
from holdfast_api.messages import Cause, UnfinishedCopy
from holdfast_store.errors import Denied, Full
from holdfast_store.folders import Folder, NewFile
from holdfast_store.local import LocalTier
from holdfast_store.memory import Effect, Fault
from tests.store.on_node import images_on


def with_node(folder: Path, **fields) -> Lone:
    one = Lone(folder, **fields)
    (folder / "node").mkdir(exist_ok=True)
    one.shared.node = LocalTier(folder / "node", "ns", "job", UID)
    return one


def soon() -> Deadline:
    return Deadline.after(60)


def waiting(one: Lone) -> list[Pending]:
    assert one.shared.node is not None
    return [left.pending for left in one.shared.node.left() if left.pending is not None]


async def committed(one: Lone, slot: int, boundary: int) -> None:
    one.capture(slot, boundary)
    await one.saves.make(boundary, Cause.PERIODIC, deadline=soon())
    await one.writing._node_work


async def kept(one: Lone, slot: int, boundary: int) -> None:
    one.capture(slot, boundary, "round")
    await one.saves.keep(boundary, Cause.EVICTION, deadline=soon())


class Next:
    """The agent that comes to the node afterwards, as far as it finishes what lies there."""

    def __init__(self, before: Lone, *, attempt: int = 2) -> None:
        self.threads, self.record, self.metrics = Threads(), Record(UID, 0, "pod-2"), Metrics(0)
        self.store = before.store
        self.node = LocalTier(before.shared.node.root, "ns", "job", UID)
        self.finishing = Unfinished(
            self.node, lambda: self.store, self.threads, Experience(), self.metrics, self.record
        )
        self.finishing.begin(attempt)

    async def ended(self) -> tuple[UnfinishedCopy, ...]:
        """Once nothing more is done."""
        await asyncio.wait_for(self.finishing._task, 30)
        return await self.finishing.copies()

    async def until(self, state: str) -> UnfinishedCopy:
        for _ in range(600):
            found = [c for c in await self.finishing.copies() if c.state == state]
            if found:
                return found[0]
            await asyncio.sleep(0.05)
        raise AssertionError(f"nothing is {state}: {await self.finishing.copies()}")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(unfinished, "LOOK_SECONDS", 0.02)
    return


# ---- on the node alone


async def test_a_save_on_the_node_alone_is_whole_there_and_asks_nothing_of_the_store(tmp_path):
    one = with_node(tmp_path)
    await committed(one, 0, 10)
    before, changes = dict(one.bucket.objects), one.bucket.changes
    await kept(one, 1, 20)
    assert (one.bucket.objects, one.bucket.changes) == (before, changes)
    assert next((i.ref.save, i.committed, i.path.read_bytes()) for i in images_on(one.shared.node)) == (
        2,
        False,
        image(20),
    )
    (pending,) = waiting(one)
    assert (pending.ref, pending.progress.boundary, pending.incarnation) == (CheckpointRef(1, 2), 20, "life")
    manifest = one.shared.node.read_manifest(pending.ref, pending.ranks[0])
    assert [c.at.save for c in manifest.chunks] == [1, 2], "the frozen chunk lies under the base (B4)"
    report = one.shared.record.report()
    assert (report.on_node, report.on_node_boundary) == (CheckpointRef(1, 2), 20)
    assert [c.boundary for c in report.checkpoints] == [10], "it is no checkpoint (B2)"
    assert b'holdfast_agent_saves_total{cause="eviction",outcome="on-node"} 1.0' in one.shared.metrics.page()
    await one.close()


async def test_it_is_finished_by_whoever_comes_next(tmp_path):
    one = with_node(tmp_path)
    await committed(one, 0, 10)
    await kept(one, 1, 20)
    await one.close()
    after = Next(one)
    (copy,) = await after.ended()
    assert (copy.state, copy.boundary) == ("committed", 20)
    record, _ = one.store.read_commit(CheckpointRef(1, 2))
    assert (record.progress.boundary, record.cause, record.base) == (20, Cause.EVICTION, CheckpointRef(1, 1))
    assert record.bytes_stored == CHUNK
    manifest = one.store.read_manifest(record, 0)
    data = bytearray(len(image(20)))
    for number, chunk in enumerate(manifest.chunks):
        one.store.get_chunk_into(chunk, memoryview(data)[number * CHUNK : (number + 1) * CHUNK])
    assert data == image(20)
    assert waiting(one) == []
    assert images_on(after.node)[0].committed, "it is the node's copy of a checkpoint now"
    assert after.record.report().unfinished == (copy,)
    assert b'holdfast_agent_unfinished_total{outcome="committed"} 1.0' in after.metrics.page()


async def test_where_the_node_does_not_take_it_the_save_is_given_up(tmp_path, monkeypatch):
    one = with_node(tmp_path)

    def broken(file: NewFile, **_: object) -> None:
        raise Denied("ordered fault")

    monkeypatch.setattr(NewFile, "keep", broken)
    one.capture(0, 10, "round")
    with pytest.raises(SaveGivenUp, match="node"):
        await one.saves.keep(10, Cause.EVICTION, deadline=soon())
    assert one.shared.record.report().local.reason == "LocalStorageReadOnly"
    assert one.shared.record.report().on_node is None
    await one.close()


async def test_nothing_is_said_to_be_on_the_node_before_what_says_so_is_durable(tmp_path, monkeypatch):
    """The answer comes after the last file: what is said to be on the node can be finished."""
    one = with_node(tmp_path)

    def broken(node: LocalTier, pending: Pending) -> None:
        raise Denied("ordered fault")

    monkeypatch.setattr(LocalTier, "write_pending", broken)
    one.capture(0, 10, "round")
    with pytest.raises(SaveGivenUp):
        await one.saves.keep(10, Cause.EVICTION, deadline=soon())
    assert waiting(one) == []
    await one.close()


async def test_a_newer_save_does_not_take_the_room_of_what_waits(tmp_path, monkeypatch):
    """A full disk gives up the copy of the committed one, never the only copy of a newer state."""
    one = with_node(tmp_path)
    await committed(one, 0, 10)
    await kept(one, 1, 20)
    real = LocalTier.begin_image

    def begin(tier: LocalTier, ref: CheckpointRef, rank: int, size: int) -> NewFile:
        if ref.save == 3 and len(images_on(tier)) > 1:
            raise Full("ordered fault")
        return real(tier, ref, rank, size)

    monkeypatch.setattr(LocalTier, "begin_image", begin)
    await kept(one, 0, 30)
    assert [i.ref.save for i in images_on(one.shared.node)] == [3, 2]
    assert [p.save for p in waiting(one)] == [3, 2]
    await one.close()


# ---- a flush that was cut short


async def test_a_flush_that_the_deadline_cuts_short_is_finished_with_what_has_arrived(tmp_path):
    """The node was done, the store was not."""
    one = with_node(tmp_path, faults=(Fault(Effect.UNAVAILABLE, "create", "rank-0", times=0),))
    one.capture(0, 10, "round")
    making = asyncio.ensure_future(
        one.saves.make(10, Cause.EVICTION, deadline=soon(), emergency=True, sealed=lambda: True)
    )
    await one.until(lambda: one.shared.record.on_node is not None, "the node's part is written down")
    one.writing._flushes[1].stop.set("the deadline")
    with pytest.raises(SaveGivenUp):
        await making
    await one.close()
    one.bucket.faults.clear()
    arrived = one.bucket.changes
    (copy,) = await Next(one).ended()
    assert copy.state == "committed"
    assert one.store.read_commit(CheckpointRef(1, 1))[0].progress.boundary == 10
    assert one.bucket.changes - arrived == 2, "the manifest and the record; the chunks had arrived"


async def test_the_end_of_an_evacuation_leaves_it_and_a_save_that_is_given_up_does_not(tmp_path):
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    one.writing.committed(peers.Committed(1, 1, "", None, sealed=True))
    await one.writing.dropped()
    assert [p.save for p in waiting(one)] == [1]
    await kept(one, 1, 20)
    one.writing.committed(peers.Committed(1, 2, ""))
    await one.writing.dropped()
    assert [p.save for p in waiting(one)] == [1]
    await one.close()


async def test_an_evacuation_that_is_withdrawn_gives_the_slot_back_and_leaves_what_is_on_the_node(tmp_path):
    """F1: training goes on, with one slot too."""
    one = with_node(tmp_path)
    one.shared.record.evacuating = True
    await kept(one, 0, 10)
    assert one.writing.wants(10), "the plan may still choose it for the store"
    assert 0 in one.rank.book.held
    one.shared.record.evacuating = False
    one.writing.release_round()
    assert one.rank.book.held == {}
    assert not one.writing.wants(10)
    assert [p.save for p in waiting(one)] == [1], "it is newer than any checkpoint"
    await one.close()


async def test_what_was_given_up_while_the_node_was_slow_is_not_written_down_afterwards(tmp_path, monkeypatch):
    one = with_node(tmp_path)
    reached = asyncio.Event()
    real = one.writing._note_pending

    async def late(*arguments) -> None:
        one.writing.committed(peers.Committed(1, 1, ""))
        await one.writing.dropped()
        reached.set()
        await real(*arguments)

    monkeypatch.setattr(one.writing, "_note_pending", late)
    one.capture(0, 10)
    making = asyncio.ensure_future(one.saves.make(10, Cause.PERIODIC, deadline=soon()))
    await asyncio.wait_for(reached.wait(), 30)
    await asyncio.gather(making, return_exceptions=True)
    await asyncio.gather(*(f.written.on_node for f in one.writing._flushes.values() if f.written))
    assert waiting(one) == []
    await one.close()


async def test_a_commit_ends_what_waits_up_to_it(tmp_path):
    """A8."""
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    await committed(one, 1, 20)
    assert waiting(one) == []
    assert [(i.ref.save, i.committed) for i in images_on(one.shared.node)] == [(2, True)]
    assert one.shared.record.on_node is None
    await one.close()


# ---- what cannot be finished


async def test_an_image_that_is_not_whole_is_dropped_and_said(tmp_path, caplog):
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    await one.close()
    path = images_on(one.shared.node)[0].path
    data = bytearray(path.read_bytes())
    data[CHUNK + 5] ^= 1
    path.write_bytes(data)
    (copy,) = await Next(one).ended()
    assert (copy.state, "not whole" in copy.detail) == ("given-up", True)
    assert waiting(one) == []
    assert "not whole" in caplog.text
    assert not [key for key in one.bucket.objects if key.endswith(("commit.json", "rank-0.json"))]


async def test_an_image_that_is_cut_or_gone_is_dropped(tmp_path):
    for number, harm in enumerate((lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        one = with_node(folder)
        await kept(one, 0, 10)
        await one.close()
        harm(images_on(one.shared.node)[0].path)
        (copy,) = await Next(one).ended()
        assert copy.state == "given-up"
        assert waiting(one) == []


async def test_after_the_claim_of_the_next_attempt_nothing_is_sent(tmp_path):
    """A5."""
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    await one.close()
    one.store.claim(Claim(UID, 2, "other", (), None, now()))
    before = dict(one.bucket.objects)
    (copy,) = await Next(one).ended()
    assert copy.state == "given-up"
    assert one.bucket.objects == before
    assert waiting(one) == []


async def test_a_claim_while_it_is_sent_leaves_no_record(tmp_path):
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    await one.close()
    barrier = Barrier("create", "rank-0")
    one.bucket.before_call = barrier
    after = Next(one)
    await in_thread(barrier.reached)
    one.store.claim(Claim(UID, 2, "other", (), None, now()))
    barrier.free.set()
    (copy,) = await after.ended()
    assert copy.state == "given-up"
    assert one.commits() == []


async def test_another_ranks_part_is_waited_for_until_the_claim(tmp_path):
    one = with_node(tmp_path)
    one.shared.order = replace(one.shared.order, processes_per_worker=2)  # the other rank's worker does not come back
    await kept(one, 0, 10)
    await one.close()
    after = Next(one)
    copy = await after.until("stored")
    await asyncio.sleep(0.1)
    copy = await after.until("stored")
    assert (copy.ranks, copy.there, copy.seconds) == ((0,), (0,), 0.0)
    assert one.commits() == []
    after.finishing.end("attempt 2 has claimed")
    (copy,) = await after.ended()
    assert (copy.state, copy.detail) == ("given-up", "attempt 2 has claimed")
    assert one.commits() == []
    assert [p.save for p in waiting(one)] == [1], "only a look that finds the claim drops it"


async def test_a_claim_between_two_looks_does_not_hide_what_another_has_committed(tmp_path, monkeypatch):
    one = with_node(tmp_path)
    one.shared.order = replace(one.shared.order, processes_per_worker=2)
    await kept(one, 0, 10)
    await one.close()
    monkeypatch.setattr(unfinished, "LOOK_SECONDS", 1.0)
    after = Next(one)
    await after.until("stored")
    (pending,) = waiting(one)
    manifest = one.shared.node.read_manifest(pending.ref, pending.ranks[0])
    one.store.create_manifest(replace(manifest, rank=1))
    assert one.store.finish(pending) is not None
    after.finishing.end("attempt 2 has claimed")
    (copy,) = await after.ended()
    assert (copy.state, copy.detail) == ("committed", "")
    assert waiting(one) == []
    assert images_on(after.node)[0].committed


async def test_what_is_of_this_attempt_is_left_alone(tmp_path):
    """Its own gang may still be at it."""
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    assert await Next(one, attempt=1).ended() == ()
    assert [p.save for p in waiting(one)] == [1]
    await one.close()


async def test_a_store_that_refuses_is_said_and_the_part_stays(tmp_path):
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    await one.close()
    one.bucket.faults.append(Fault(Effect.DENIED, "create", times=0))
    (copy,) = await Next(one).ended()
    assert copy.state == "given-up"
    assert "Denied" in copy.detail
    assert [p.save for p in waiting(one)] == [1]


async def test_a_store_that_is_away_is_waited_for(tmp_path):
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    await one.close()
    one.bucket.faults.append(Fault(Effect.UNAVAILABLE, "create", times=3))
    (copy,) = await Next(one).ended()
    assert copy.state == "committed"


async def test_two_who_find_the_same_make_one_checkpoint(tmp_path):
    """E5: two pods on one node."""
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    await one.close()
    both = [Next(one), Next(one)]
    found = [await after.ended() for after in both]
    assert {c.state for copies in found for c in copies} <= {"committed"}
    assert [r.progress.boundary for r in one.commits()] == [10]


async def test_a_store_that_is_full_is_said_and_the_last_commit_stands(tmp_path, caplog):
    one = with_node(tmp_path)
    await committed(one, 0, 10)
    await kept(one, 1, 20)
    await one.close()
    one.bucket.faults.append(Fault(Effect.FULL, "create", times=0))
    (copy,) = await Next(one).ended()
    assert (copy.state, "Full" in copy.detail) == ("given-up", True)
    assert "is not finished" in caplog.text
    assert [c.progress.boundary for c in one.commits()] == [10]
    assert [p.save for p in waiting(one)] == [2], "room may be made before the claim, and somebody else may come"


async def test_a_part_that_may_not_be_read_is_said_left_alone_and_hides_no_other(tmp_path, monkeypatch, caplog):
    """Of another user, on a directory that pods of several users share."""
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    node = one.shared.node
    (own,) = waiting(one)
    node.write_pending(replace(own, save=7, progress=replace(own.progress, boundary=70)))
    real = Folder.read

    def read(folder: Folder, key: str, **fields: int) -> bytes:
        if "0000000007/pending-" in key:
            raise Denied("ordered fault: Permission denied")
        return real(folder, key, **fields)

    monkeypatch.setattr(Folder, "read", read)
    await one.close()
    (copy,) = await Next(one).ended()
    assert (copy.state, copy.boundary) == ("committed", 10)
    assert "cannot be read and is left alone" in caplog.text
    monkeypatch.undo()
    assert [p.save for p in waiting(one)] == [7]


async def test_who_has_measured_nothing_expects_what_the_maker_did(tmp_path):
    """E6: the wait of the claim is measured with it, before anything has been sent."""
    one = with_node(tmp_path)
    for _ in range(20):
        one.shared.experience.flushed(logical=8192, sent=8192, seconds=40.0, emergency=True, based=False)
    await kept(one, 0, 10)
    (pending,) = waiting(one)
    assert 30 < pending.store_seconds < 60
    await one.close()
    reached, free = threading.Event(), threading.Event()

    def held(operation: str, key: str) -> None:
        if (operation, "/chunks/" in key) == ("create", True):
            reached.set()
            assert free.wait(60)

    one.bucket.before_call = held
    after = Next(one)
    await in_thread(reached)
    (copy,) = await after.finishing.copies()
    assert 20 < copy.seconds <= pending.store_seconds
    free.set()
    (copy,) = await after.ended()
    assert copy.state == "committed"


def test_time_between_two_arrivals_does_not_look_like_a_store_that_stands_still():
    """Eight chunks of a state that takes 20 s: the claim would give up just before the second arrives."""
    for took in (0.1, 1.0, 2.5, 2.6, 4.9, 5.1, 12.4):
        sent = int(took / 2.5)
        newest = sent * 2.5
        left = seconds_left(took, newest, left=8 - sent, sent=sent, under_way=8 - sent, expected=20.0)
        assert left == pytest.approx(20.0 - took, rel=0.02), took


def test_a_store_that_does_stand_still_is_not_waited_for_for_ever():
    for left in (100, 700):
        found = [
            seconds_left(t, 2.5, left=left, sent=100, under_way=100, expected=20.0) for t in (5.0, 10.0, 40.0, 160.0)
        ]
        assert found == sorted(found)
        assert found[-1] > 50, "although all that is left may be under way"


anything = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)
sizes = st.integers(-1, 1 << 60)


@given(anything, anything, sizes, sizes, sizes, anything)
def test_whatever_the_numbers_say_there_is_an_estimate(took, newest, left, sent, under_way, expected):
    assert seconds_left(took, newest, left=left, sent=sent, under_way=under_way, expected=expected) == pytest.approx(
        seconds_left(took, newest, left=left, sent=sent, under_way=under_way, expected=expected), nan_ok=False
    )


async def test_what_is_told_counts_what_is_under_way(tmp_path):
    one = with_node(tmp_path)
    await kept(one, 0, 10)
    (pending,) = waiting(one)
    await one.close()
    finishing = Next(one).finishing
    began = monotonic() - 4.9
    part = Part(pending, one.shared.node, bytes_to_send=8, bytes_sent=1, began_at=began, newest_at=began + 2.5)
    with part.sending(7):
        assert part.bytes_under_way == 7
        assert finishing._alone(part) == pytest.approx(15.1, abs=1.0), "and not 34"
    assert (part.bytes_under_way, part.bytes_sent) == (0, 8)
    assert finishing._alone(part) == 0.0
