"""The node's copy beside the store's, as a worker keeps it: neither waits for the other, slots are free only when both have read them, room is kept."""

import asyncio
import errno
import os
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lone import UID, Lone, image, in_thread

from holdfast_agent import flush, writing
from holdfast_agent.arena import Arena
from holdfast_agent.clock import Deadline, monotonic
from holdfast_agent.forms import Form
from holdfast_agent.mappings import Mappings
from holdfast_api.messages import Cause
from holdfast_store.folders import SPARE, NewFile
from holdfast_store.local import LocalTier
from tests.store.on_node import images_on


def with_node(folder: Path) -> Lone:
    one = Lone(folder)
    (folder / "node").mkdir()
    one.shared.node = LocalTier(folder / "node", "ns", "job", UID)
    return one


def soon() -> Deadline:
    return Deadline.after(60)


class Gate:
    """Every write of an image waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        real = NewFile.write

        def write(file: NewFile, view: memoryview, at: int) -> None:
            self.reached.set()
            assert self.open.wait(60)
            real(file, view, at)

        monkeypatch.setattr(NewFile, "write", write)


def kept(one: Lone) -> list[tuple[int, bool]]:
    assert one.shared.node is not None
    return [(i.ref.save, i.committed) for i in images_on(one.shared.node)]


async def saved(one: Lone, slot: int, boundary: int, cause: Cause = Cause.PERIODIC) -> None:
    one.capture(slot, boundary)
    await one.saves.make(boundary, cause, deadline=soon())
    await one.writing._node_work


async def test_the_node_keeps_the_newest_checkpoint_and_the_room_of_the_one_before(tmp_path):
    one = with_node(tmp_path)
    await saved(one, 0, 10)
    first = images_on(one.shared.node)[0].path
    inode = first.stat().st_ino
    await saved(one, 1, 20)
    assert kept(one) == [(2, True)]
    assert [p.stat().st_ino for p in tmp_path.rglob(f"{SPARE}*")] == [inode]
    await saved(one, 0, 30)
    newest = images_on(one.shared.node)[0].path
    assert (newest.stat().st_ino, newest.read_bytes()) == (inode, image(30))
    await one.close()


async def test_after_the_last_save_no_room_is_kept(tmp_path):
    one = with_node(tmp_path)
    await saved(one, 0, 10)
    await saved(one, 1, 20, Cause.FINAL)
    assert kept(one) == [(2, True)]
    assert not list(tmp_path.rglob(f"{SPARE}*"))
    await one.close()


async def test_a_slow_disk_holds_up_no_commit_and_its_slot_is_given_back_when_it_has_read_it(tmp_path, monkeypatch):
    one = with_node(tmp_path)
    disk = Gate(monkeypatch)
    one.capture(0, 10)
    await one.saves.make(10, Cause.PERIODIC, deadline=soon())
    assert [r.progress.boundary for r in one.commits()] == [10]
    assert one.rank.book.at(10) is not None, "the node still reads it"
    disk.open.set()
    await one.until(lambda: one.rank.book.at(10) is None, "the slot is given back")
    await one.writing._node_work
    assert kept(one) == [(1, True)]
    await one.close()


async def test_the_next_periodic_save_does_not_end_a_slow_disks_copy_of_a_checkpoint(tmp_path, monkeypatch):
    """Else a disk that is slower than the saves come would never have one."""
    one = with_node(tmp_path)
    disk = Gate(monkeypatch)
    one.capture(0, 10)
    await one.saves.make(10, Cause.PERIODIC, deadline=soon())
    one.capture(1, 20)
    await one.saves.make(20, Cause.PERIODIC, deadline=soon())
    copied = [f.written.on_node for f in one.writing._flushes.values()]
    disk.open.set()
    assert all(at is not None for at in await asyncio.gather(*copied))
    await one.writing._node_work
    assert kept(one) == [(2, True)]
    await one.close()


async def test_an_emergency_has_the_disk_for_itself(tmp_path, monkeypatch):
    one = with_node(tmp_path)
    disk = Gate(monkeypatch)
    one.capture(0, 10)
    await one.saves.make(10, Cause.PERIODIC, deadline=soon())
    one.capture(1, 20, "round")
    urgent = asyncio.ensure_future(one.saves.make(20, Cause.SPOT, deadline=soon(), emergency=True))
    await one.until(lambda: len(one.writing._flushes) == 2)
    assert one.writing._flushes[1].stop.wanted
    disk.open.set()
    await urgent
    await one.writing._node_work
    assert kept(one) == [(2, True)]
    await one.close()


async def test_a_slot_that_a_round_needs_is_free_when_the_disk_has_let_go(tmp_path, monkeypatch):
    one = with_node(tmp_path)
    disk = Gate(monkeypatch)
    one.capture(0, 10)
    await one.saves.make(10, Cause.PERIODIC, deadline=soon())
    await in_thread(disk.reached)
    [unread] = one.writing.abandon(10)
    await asyncio.sleep(0.05)
    assert not unread.done()
    disk.open.set()
    await asyncio.wait_for(unread, 30)
    assert one.writing.abandon(10) == []
    await one.close()


async def test_a_full_disk_is_said_once_and_taken_back_when_an_image_is_there_again(tmp_path, monkeypatch, caplog):
    """Fault 12: training goes on, and so do the saves."""
    one = with_node(tmp_path)
    await saved(one, 0, 10)
    real = os.posix_fallocate

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "ordered fault")

    monkeypatch.setattr(os, "posix_fallocate", full)
    await saved(one, 1, 20)
    await saved(one, 0, 30)
    report = one.shared.record.report()
    assert report.local is not None
    assert report.local.reason == "LocalStorageFull"
    assert "node" in report.local.message
    assert "two images of each rank" in report.local.message
    assert sum("LocalStorageFull" in r.message for r in caplog.records) == 1
    assert [r.progress.boundary for r in one.commits()] == [10, 20, 30]
    assert b'holdfast_agent_local_failures_total{reason="LocalStorageFull"} 2.0' in one.shared.metrics.page()
    monkeypatch.setattr(os, "posix_fallocate", real)
    await saved(one, 1, 40)
    assert one.shared.record.report().local is None
    assert kept(one) == [(4, True)]
    await one.close()


async def test_a_node_that_has_not_the_newest_keeps_the_last_that_it_has(tmp_path, monkeypatch):
    one = with_node(tmp_path)
    await saved(one, 0, 10)

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "ordered fault")

    monkeypatch.setattr(os, "fdatasync", broken)
    await saved(one, 1, 20)
    assert one.shared.record.report().local.reason == "LocalStorageFailed"
    assert kept(one) == [(1, True)]
    await one.close()


async def test_bytes_are_told_logical_sent_and_stored(tmp_path):
    one = with_node(tmp_path)
    await saved(one, 0, 10)
    await saved(one, 1, 20)
    whole, half = len(image(0)), len(image(0)) // 2
    told = [(r.bytes_logical, r.bytes_sent, r.bytes_stored) for r in one.commits()]
    assert told == [(whole, whole, whole), (whole, half, half)]
    last = one.shared.record.report().checkpoints[-1]
    assert (last.bytes_logical, last.bytes_sent, last.bytes_stored) == told[-1]
    page = one.shared.metrics.page().decode()
    for name, value in (("logical", 2 * whole), ("sent", whole + half), ("stored", whole + half)):
        assert f"holdfast_agent_checkpoint_{name}_bytes_total {float(value)}" in page
    await one.close()


# ---- slots that stay mapped


def test_a_slot_stays_mapped_and_what_is_read_is_what_is_in_it_now(tmp_path: Path) -> None:
    path, slots = tmp_path / "slot", Mappings()
    path.write_bytes(b"1" * 8192)
    first = slots.read(path, 8192)
    with path.open("r+b") as file:
        file.write(b"2" * 8192)
    second = slots.read(path, 4096)
    assert bytes(second.view) == b"2" * 4096
    assert first._mapping is second._mapping
    first.close()
    second.close()
    assert slots.read(path, 8192)._mapping is first._mapping


def test_a_slot_that_was_made_anew_or_has_grown_is_mapped_anew_and_nothing_is_pulled_away(tmp_path: Path) -> None:
    path, slots = tmp_path / "slot", Mappings()
    path.write_bytes(b"1" * 4096)
    old = slots.read(path, 4096)
    path.unlink()
    path.write_bytes(b"2" * 8192)
    new = slots.read(path, 8192)
    assert (bytes(old.view[:1]), bytes(new.view[:1])) == (b"1", b"2")
    old.close()
    with path.open("ab") as file:
        file.write(b"3" * 4096)
    grown = slots.read(path, 12288)
    assert bytes(grown.view[-1:]) == b"3"
    assert bytes(new.view[:1]) == b"2"


def test_a_slot_that_is_too_short_or_not_there_is_refused(tmp_path: Path) -> None:
    path, slots = tmp_path / "slot", Mappings()
    with pytest.raises(OSError):
        slots.read(path, 1)
    path.write_bytes(b"1")
    with pytest.raises(OSError):
        slots.read(path, 2)


def test_a_slot_that_is_gone_keeps_no_memory(tmp_path: Path) -> None:
    gone, other, slots = tmp_path / "gone", tmp_path / "other", Mappings()
    for path in (gone, other):
        path.write_bytes(b"1" * 4096)
    reading = slots.read(gone, 4096)
    mapped = reading._mapping.mapped
    reading.close()
    gone.unlink()
    slots.read(other, 4096).close()
    with pytest.raises(ValueError):
        mapped.view[:1].tobytes()


def test_what_a_restore_has_mapped_the_first_save_finds_mapped_and_cannot_write(tmp_path: Path) -> None:
    path, slots = tmp_path / "slot", Mappings()
    path.write_bytes(b"1" * 8192)
    writing = slots.write(path, 8192)
    writing.view[:4096] = b"2" * 4096
    reading = slots.read(path, 4096)
    assert reading._mapping is writing._mapping
    assert bytes(reading.view) == b"2" * 4096 == path.read_bytes()[:4096]
    with pytest.raises(TypeError):
        reading.view[0] = 0
    writing.close()
    assert bytes(reading.view[:1]) == b"2"


def test_what_was_only_read_is_mapped_anew_to_be_written_and_nothing_is_pulled_away(tmp_path: Path) -> None:
    path, slots = tmp_path / "slot", Mappings()
    path.write_bytes(b"1" * 4096)
    reading = slots.read(path, 4096)
    writing = slots.write(path, 4096)
    writing.view[:1] = b"2"
    assert bytes(reading.view[:1]) == b"2"
    reading.close()
    assert bytes(writing.view[:2]) == b"21"


def test_a_mapped_slot_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path, slots = tmp_path / "slot", Mappings()
    path.write_bytes(b"1" * 8192)
    slots.write(path, 8192).close()
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="4096 bytes where 8192"):
        slots.write(path, 8192)
    slots.write(path, 4096).close()


def test_a_slot_that_is_given_back_is_let_go_before_its_memory_is_used_again(tmp_path: Path) -> None:
    """J6: what a restore keeps mapped must not count twice when the plan has room for one slot only."""
    slots = Mappings()
    arena = Arena(tmp_path, slots.tidy)
    mib = 1 << 20
    arena.ensure({(0, 0): mib, (0, 1): mib})
    use = slots.write(arena.path(0, 1), mib)
    mapped = use._mapping.mapped
    use.close()
    assert arena.make(0, {0: mib}, 1, most=1).form is Form.ONE_SLOT
    assert not arena.path(0, 1).exists()
    with pytest.raises(ValueError):
        mapped.view[:1].tobytes()


async def test_a_disk_that_hangs_keeps_one_slot_and_not_training(tmp_path, monkeypatch):
    """Fault 13, without an error: the copy that has not begun is given up once a rank stands still for want of a slot."""
    monkeypatch.setattr(writing, "STANDS_SECONDS", 0.1)
    monkeypatch.setattr(flush, "LOOK_SECONDS", 0.05)
    one = with_node(tmp_path)
    disk = Gate(monkeypatch)
    one.capture(0, 10)
    await one.saves.make(10, Cause.PERIODIC, deadline=soon())
    await in_thread(disk.reached)
    for boundary in (20, 30, 40):
        one.capture(1, boundary)
        one.rank.passed_at = monotonic()
        await one.saves.make(boundary, Cause.PERIODIC, deadline=soon())
        await one.until(lambda: one.rank.book.has_free, "the rank can capture again")
        assert one.rank.book.at(10) is not None, "the disk reads it"
    disk.open.set()
    await one.until(lambda: not one.rank.book.held)
    await one.writing._node_work
    assert kept(one) == [(1, True)]
    await saved(one, 0, 50)
    assert kept(one) == [(5, True)], "the disk is back"
    await one.close()
