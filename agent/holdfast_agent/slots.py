"""Which slot of a rank holds what, and which may be overwritten (E4, A8). Pure bookkeeping over messages; the bytes lie in arena.py's files.

A slot is the agent's from its capture until the save of its boundary has ended, one way or the other, or a newer boundary is held by *all* ranks.
The rank itself overwrites the slot with the older content first, so the newest clean one stays in memory although both may be free.
"""

from dataclasses import dataclass, field

from holdfast_agent.errors import ProtocolBroken
from holdfast_api.ranks import CapturedSlot


@dataclass(slots=True)
class Held:
    """A slot that is the agent's until SlotFree."""

    captured: CapturedSlot
    readers: int = 0
    """Flushes that read it now; it is never freed while there is one."""
    committed: bool = False


@dataclass(slots=True)
class SlotBook:
    """The slots of one rank under one plan."""

    count: int
    held: dict[int, Held] = field(default_factory=dict)
    freed: dict[int, Held] = field(default_factory=dict)
    """What was given back and not handed over again: its bytes lie in the slot until the rank captures into it."""

    def take(self, message: CapturedSlot) -> None:
        """The rank hands a slot over. Raises ProtocolBroken for a slot that does not exist or is not the rank's.

        The same boundary again is fine: a newer round has found the rank standing at it, and nothing was copied.
        """
        if not 0 <= message.slot < self.count:
            raise ProtocolBroken(f"slot {message.slot} of {self.count} was captured")
        held = self.held.get(message.slot)
        if held is None:
            self.freed.pop(message.slot, None)
            self.held[message.slot] = Held(message)
        elif held.captured.boundary == message.boundary:
            held.captured = message
        else:
            raise ProtocolBroken(f"slot {message.slot} was captured while it belongs to the agent")

    def free(self, slot: int) -> Held:
        """Gives a slot back to the rank."""
        self.freed[slot] = self.held.pop(slot)
        return self.freed[slot]

    def reclaim(self, boundary: int) -> bool:
        """The rank has ended its loop at `boundary` and captures no more: a slot that was given back with it holds it still."""
        for slot, freed in self.freed.items():
            if freed.captured.boundary == boundary and slot not in self.held:
                self.held[slot] = freed
                del self.freed[slot]
                return True
        return False

    def at(self, boundary: int) -> tuple[int, Held] | None:
        for slot, held in self.held.items():
            if held.captured.boundary == boundary:
                return slot, held
        return None

    @property
    def boundaries(self) -> frozenset[int]:
        return frozenset(h.captured.boundary for h in self.held.values())

    @property
    def has_free(self) -> bool:
        return len(self.held) < self.count

    def mark_committed(self, boundary: int) -> None:
        for held in self.held.values():
            if held.captured.boundary == boundary:
                held.committed = True


def freed_by_newer(book: SlotBook, boundary: int) -> list[int]:
    """All ranks hold `boundary` clean: older slots that nobody reads may go (E4)."""
    return sorted(s for s, h in book.held.items() if h.captured.boundary < boundary and not h.readers)


def freed_by_end(book: SlotBook, boundary: int) -> list[int]:
    """The save of `boundary` is committed or given up: its slot and older ones go."""
    return sorted(s for s, h in book.held.items() if h.captured.boundary <= boundary and not h.readers)


def freed_by_open(book: SlotBook, wanted: frozenset[int]) -> list[int]:
    """A round is over: what was captured for it and belongs to no save goes. `wanted` are boundaries of saves that are not over."""
    return sorted(
        s
        for s, h in book.held.items()
        if h.captured.kind == "round" and h.captured.boundary not in wanted and not h.readers
    )


def is_last_state(book: SlotBook, slot: int, done_at: int | None) -> bool:
    """The rank has ended its loop and the slot holds its last boundary, not committed: there is no newer one that could make up for it."""
    held = book.held[slot]
    return held.captured.boundary == done_at and not held.committed


def sacrificed_for_round(book: SlotBook, pinned: int = 0) -> int | None:
    """Boundary whose slot must be given up, its save abandoned, so that a round can capture (A8); None if a slot is free anyway. takeover.py says
    when. `pinned` is held by every rank of the job: a newer one that others do not hold is worth less, and goes first (E4)."""
    if book.has_free or not book.held:
        return None
    return min(book.boundaries - {pinned}, default=min(book.boundaries))
