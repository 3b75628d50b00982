"""I9: a new layout takes the slots only when nothing reads them any more: what is committed must be what was hashed."""

import asyncio
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from lone import Lone, image, in_thread

from holdfast_agent import layouts, memory
from holdfast_agent.clock import Deadline
from holdfast_agent.memory import MIB, Room
from holdfast_api import ranks as wire
from holdfast_api.messages import BlockedReason, Cause


class Holds:
    """Chunks of each save stand still on their way to the store until the save is let go."""

    def __init__(self, saves: int) -> None:
        self.reached = {n: threading.Event() for n in range(1, saves + 1)}
        self.free = {n: threading.Event() for n in range(1, saves + 1)}

    def __call__(self, operation: str, key: str) -> None:
        if (operation, "/chunks/" in key) == ("create", True):
            save = int(key.partition("/checkpoints/")[2].split("/")[1])
            self.reached[save].set()
            assert self.free[save].wait(60)


class Rank:
    open = True

    def __init__(self) -> None:
        self.told: list[object] = []

    def send(self, message: object) -> None:
        self.told.append(message)


async def test_a_new_layout_waits_for_every_flush_of_a_slot_the_one_that_stepped_aside_and_the_emergencys(tmp_path):
    stuck = Holds(2)
    one = Lone(tmp_path, before_call=stuck)
    one.rank.link = rank = Rank()
    one.capture(0, 10)
    one.offer(10)
    await in_thread(stuck.reached[1])
    await one.periodic.step_aside()
    urgent = asyncio.ensure_future(one.saves.make(10, Cause.SPOT, deadline=Deadline.after(60), emergency=True))
    await in_thread(stuck.reached[2])
    planned = asyncio.ensure_future(
        layouts.make_slots(one.shared, one.writing, one.rank, wire.Plan(2, len(image(0)), ()))
    )
    await asyncio.sleep(0.05)
    stuck.free[1].set()
    await one.until(lambda: one.writing._flushes[1].unread.done())
    await asyncio.sleep(0.1)
    assert not planned.done(), "the emergency's flush reads the slot"
    assert rank.told == []
    stuck.free[2].set()
    await planned
    assert isinstance(rank.told[-1], wire.Slots)
    await asyncio.gather(urgent, return_exceptions=True)
    for record in one.commits():
        for chunk in one.store.read_manifest(record, 0).chunks:
            one.store.get_chunk_into(chunk, memoryview(bytearray(chunk.length)))
    await one.close()


def room(monkeypatch: pytest.MonkeyPatch, *, limit: int) -> None:
    monkeypatch.setattr(memory, "read", lambda folder: Room(limit, 0, 1 << 40, True))


async def test_an_arena_that_is_too_small_is_refused_before_anything_is_allocated_with_the_number_to_set(
    tmp_path, monkeypatch
):
    """G2, J6: the rank hears it and trains on unsaved; the report says what to change."""
    one = Lone(tmp_path)
    one.rank.link = rank = Rank()
    before = one.shared.arena.bytes
    room(monkeypatch, limit=100 * MIB)
    await layouts.make_slots(one.shared, one.writing, one.rank, wire.Plan(2, 400 * MIB, ()))
    (refused,) = rank.told
    assert isinstance(refused, wire.Refused)
    assert "not even one slot for each rank fits" in refused.message
    assert "resources.limits.memory of the trainer container to at least 417Mi" in refused.message
    blocked = one.shared.record.blocked
    assert (blocked.reason, blocked.message) == (BlockedReason.MEMORY_TOO_SMALL, refused.message)
    assert one.shared.arena.bytes == before
    await one.close()


async def test_the_form_of_the_arena_is_reported_when_the_layout_is_known(tmp_path, monkeypatch, caplog):
    """J6: what one slot gives up, and the number to set for two."""
    one = Lone(tmp_path)
    one.rank.link = rank = Rank()
    room(monkeypatch, limit=12 * MIB)
    with caplog.at_level("INFO"):
        await layouts.make_slots(one.shared, one.writing, one.rank, wire.Plan(2, 8 * MIB, ()))
    (slots,) = rank.told
    assert len(slots.paths) == 1
    told = one.shared.record.report().arena
    assert told.startswith("one slot of 8 MiB: the next save waits until the one before is stored")
    assert "set resources.limits.memory" in told
    assert f"the arena has {told}" in caplog.messages
    await one.close()
