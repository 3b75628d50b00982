"""A rank's layout is fixed, or fixed anew (I9): its slots are made, or the rank hears why not (G2)."""

import asyncio

from holdfast_agent.crew import Rank
from holdfast_agent.errors import MemoryTooSmall
from holdfast_agent.shared import Shared
from holdfast_agent.slots import SlotBook
from holdfast_agent.writing import Writing
from holdfast_api import ranks as wire
from holdfast_api.messages import Blocked, BlockedReason


async def make_slots(shared: Shared, writing: Writing, rank: Rank, message: wire.Plan, count: int) -> None:
    """A new plan starts with empty slots: what they hold belongs to the plan before."""
    s = shared
    if rank.book is not None:
        for slot, held in list(rank.book.held.items()):
            if (task := writing.abandon(held.captured.boundary)) is not None:
                await asyncio.wait([task])
            rank.book.held.pop(slot, None)
    try:
        await s.threads.call(s.arena.ensure, {(rank.number, slot): message.image_bytes for slot in range(count)})
    except (MemoryTooSmall, OSError) as e:
        text = str(e) if isinstance(e, MemoryTooSmall) else f"the slots in {s.arena.folder} cannot be made: {e}"
        s.record.block(Blocked(BlockedReason.MEMORY_TOO_SMALL, text))
        rank.send(wire.Refused(text))
        return
    rank.plan, rank.book = message, SlotBook(count)
    paths = tuple(str(s.arena.path(rank.number, slot)) for slot in range(count))
    rank.send(wire.Slots(message.plan, paths, message.image_bytes))
