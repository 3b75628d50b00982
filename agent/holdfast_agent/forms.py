"""Which form the arena takes in the memory there is, and what that form gives up (J6). Pure: no clock, no I/O.

A third form, a ring of chunks through which a save streams with the gate closed, is not built: where not even one slot fits, saving is refused with
the number to set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from holdfast_agent import memory
from holdfast_agent.errors import MemoryTooSmall
from holdfast_agent.memory import MIB, Room

ALIGN = 2 << 20
"""Slots are rounded up to it, so that a plan that grows a little keeps its files."""
HEADROOM = 20
"""Two slots are taken only where they leave a twentieth of the memory limit (or, without one, of what the machine has available): training still
grows after its first step."""


class Form(StrEnum):
    TWO_SLOTS = "two-slots"
    ONE_SLOT = "one-slot"

    @property
    def slots(self) -> int:
        return 2 if self is Form.TWO_SLOTS else 1


GIVES_UP = {
    Form.TWO_SLOTS: "",
    Form.ONE_SLOT: (
        "the next save waits until the one before is stored, and while a state is copied no older one is left in memory"
    ),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Of one rank; the other ranks of the worker are counted as large as the largest that is known, until they say more."""

    form: Form
    slot_bytes: int
    ranks: int
    missing_for_two: str = ""
    """What keeps two slots from fitting and the number to set, in words; empty with two slots."""

    @property
    def words(self) -> str:
        """One sentence or two, for the log and the report."""
        size = f"{-(-self.slot_bytes // MIB)} MiB"
        count = "two slots" if self.form is Form.TWO_SLOTS else "one slot"
        each = f" for each of {self.ranks} ranks" if self.ranks > 1 else ""
        text = f"{count} of {size}{each}"
        if self.form is Form.TWO_SLOTS:
            return text
        return f"{text}: {GIVES_UP[self.form]}. Two slots: {self.missing_for_two}"


def rounded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def choose(
    room: Room, rank: int, images: Mapping[int, int], have: Mapping[tuple[int, int], int], ranks: int, most: int = 2
) -> Choice:
    """The form for `rank`. `images` are the image sizes known so far, its own included; `have` is the size of each (rank, slot) that exists already;
    `ranks` is how many this worker has, `most` how many slots are wanted. Raises MemoryTooSmall with the number to set."""
    slot_bytes = rounded(images[rank])
    for_two = memory.missing(room, *_needs(Form.TWO_SLOTS, images, have, ranks), spare=_spare(room, Form.TWO_SLOTS))
    if most < Form.TWO_SLOTS.slots:
        for_two = f"set slots to 2 (it is {most})"
    if not for_two:
        return Choice(Form.TWO_SLOTS, slot_bytes, ranks)
    for_one = memory.missing(room, *_needs(Form.ONE_SLOT, images, have, ranks))
    if for_one:
        raise MemoryTooSmall(f"not even one slot for each rank fits: {for_one}")
    return Choice(Form.ONE_SLOT, slot_bytes, ranks, for_two)


def _spare(room: Room, form: Form) -> int:
    return (room.limit or room.available or 0) // HEADROOM if form is Form.TWO_SLOTS else 0


def largest(room: Room, form: Form, ranks: int) -> int:
    """Bytes of the largest image of each rank for which this form fits, in whole slots; 0 if none does."""
    low, high = 0, 1 << 24  # in slots' steps of 2 MiB: 32 TiB
    while low < high:
        middle = (low + high + 1) // 2
        total = middle * ALIGN * ranks * form.slots
        low, high = (
            (low, middle - 1) if memory.missing(room, total, total, spare=_spare(room, form)) else (middle, high)
        )
    return low * ALIGN


def _needs(form: Form, images: Mapping[int, int], have: Mapping[tuple[int, int], int], ranks: int) -> tuple[int, int]:
    """Bytes to be allocated (less than 0 if a second slot is given back), and all of the arena."""
    unknown = ranks - len(images)
    wanted = {(r, s): rounded(size) for r, size in images.items() for s in range(form.slots)}
    more = unknown * form.slots * rounded(max(images.values()))
    total = sum(wanted.values()) + more
    kept = {key: size for key, size in have.items() if key[1] < form.slots}
    back = sum(have.values()) - sum(kept.values())
    of_unknown = sum(size for (r, _), size in kept.items() if r not in images)
    new = sum(max(0, size - kept.get(key, 0)) for key, size in wanted.items()) + max(0, more - of_unknown) - back
    return new, total
