"""Whether a round may take a slot that still holds an older boundary (A8, E3, J6). Pure.

With two slots the other one keeps the newer state meanwhile. A rank with one slot has nothing else in memory, so its slot is taken late (the rank stands
at the target and waits for it) and only in an emergency; a round that training survives waits for the save in flight.
"""

from enum import Enum

from holdfast_agent.slots import SlotBook

FORGOTTEN_SECONDS = 30.0
"""A rank with one slot stands and waits for it, and no save reads it: the save was given up, and this worker has not heard of it."""


class Take(Enum):
    NOTHING = "a slot is free"
    NOW = "the oldest boundary gives its slot up"
    LATER = "not yet: what the slot holds may be all that can be saved"


def waits(book: SlotBook, *, boundary: int, every: int, target: int | None = None) -> bool:
    """Whether a rank that has passed `boundary` stands there because it has no slot: at a round's target, or where a periodic capture is due."""
    if book.has_free or boundary in book.boundaries:
        return False
    return (target is not None and boundary >= target) or (every > 0 and boundary > 0 and boundary % every == 0)


def decide(book: SlotBook, *, emergency: bool, arrived: bool) -> Take:
    """`arrived`: the rank stands still until it gets the slot (`waits`)."""
    if book.has_free or not book.held:
        return Take.NOTHING
    if book.count > 1 or (emergency and arrived):
        return Take.NOW
    return Take.LATER
