"""A rank's layout is fixed, or fixed anew (I9): its slots are made, as many as memory allows (J6), or the rank hears why not (G2)."""

import asyncio
import logging

from holdfast_agent.crew import Rank
from holdfast_agent.errors import MemoryTooSmall
from holdfast_agent.forms import Choice, Form
from holdfast_agent.shared import Shared
from holdfast_agent.slots import SlotBook
from holdfast_agent.writing import Writing
from holdfast_api import ranks as wire
from holdfast_api.messages import Blocked, BlockedReason

log = logging.getLogger(__name__)


async def make_slots(shared: Shared, writing: Writing, rank: Rank, message: wire.Plan) -> None:
    """A new plan starts with empty slots: what they hold belongs to the plan before."""
    s = shared
    if rank.book is not None:
        for slot, held in list(rank.book.held.items()):
            while reading := writing.abandon(held.captured.boundary):  # another one may have begun meanwhile
                await asyncio.wait(reading)
            rank.book.held.pop(slot, None)
    images = {r.number: r.plan.image_bytes for r in s.crew if r.plan is not None} | {rank.number: message.image_bytes}
    try:
        choice = await s.threads.call(s.arena.make, rank.number, images, len(s.crew.ranks), s.settings.config.slots)
    except (MemoryTooSmall, OSError) as e:
        text = str(e) if isinstance(e, MemoryTooSmall) else f"the slots in {s.arena.folder} cannot be made: {e}"
        s.record.block(Blocked(BlockedReason.MEMORY_TOO_SMALL, text))
        rank.send(wire.Refused(text))
        return
    rank.plan, rank.book = message, SlotBook(choice.form.slots)
    _report(s, choice)
    paths = tuple(str(s.arena.path(rank.number, slot)) for slot in range(choice.form.slots))
    rank.send(wire.Slots(message.plan, paths, message.image_bytes))


def _report(shared: Shared, choice: Choice) -> None:
    """Of several ranks the form that gives up most counts."""
    s = shared
    books = [r.book for r in s.crew if r.book is not None]
    s.metrics.arena_bytes.set(s.arena.bytes)
    s.metrics.arena_slots.set(min(b.count for b in books))
    if choice.form is Form.TWO_SLOTS and any(b.count == 1 for b in books):
        return
    if choice.words != s.record.arena:
        (log.info if choice.form is Form.TWO_SLOTS else log.warning)("the arena has %s", choice.words)
        s.record.arena = choice.words
        s.record.changed()
