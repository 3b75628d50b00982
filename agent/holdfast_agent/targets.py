"""Into which slot of a rank a checkpoint is fetched (C3, E4). Pure: from what the slots are believed to hold to a number.

What lies in a slot may be the newest state of the same pod that there is. So a prefetch, which decides nothing, only ever overwrites what is older than
what it brings; the restore itself, after the claim, overwrites what is worth least.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast_api.layout import CheckpointRef


@dataclass(frozen=True, slots=True)
class Content:
    """What a slot was last known to hold."""

    job_uid: str
    ref: CheckpointRef


def choose(
    slots: Mapping[int, Content | None], wanted: Content, *, begun: int | None = None, spare_newer: bool = False
) -> int | None:
    """The slot to fetch `wanted` into. `slots`: those that exist, None where nothing is known of the content. `begun`: the one that already holds parts
    of it, or of a checkpoint like it. With `spare_newer` None if every slot holds something that is not older.

    Slots 0 and 1 are possible; a slot that does not exist is made last, because it costs memory.
    """
    holding = next((s for s, content in sorted(slots.items()) if content == wanted), None)
    if holding is not None:
        return holding
    if begun is not None:
        return begun
    free = [s for s, content in sorted(slots.items()) if not _is_newer(content, wanted)]
    if free:
        return min(free, key=lambda s: (_age(slots[s], wanted), s))
    missing = next((s for s in (0, 1) if s not in slots), None)
    if not slots or (spare_newer and missing is not None):
        return missing
    return None if spare_newer else min(slots, key=lambda s: (_age(slots[s], wanted), s))


def _is_newer(content: Content | None, wanted: Content) -> bool:
    """Of another job counts as newer: nothing is known about which is worth more."""
    return content is not None and (content.job_uid != wanted.job_uid or content.ref > wanted.ref)


def _age(content: Content | None, wanted: Content) -> tuple[int, int, int]:
    """Worth least first: unknown, then older, then newer, then another job's."""
    if content is None:
        return 0, 0, 0
    return (1 if content.job_uid == wanted.job_uid else 2), content.ref.attempt, content.ref.save
