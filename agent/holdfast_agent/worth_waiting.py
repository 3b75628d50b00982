"""Whether the claim waits for what members are still bringing into the store from their nodes (E6). Pure and total: no clock, no I/O, any numbers."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import UnfinishedCopy

LAST_SECONDS = 1.0
"""From the last part to the commit record, and until the lead has seen it."""
UNDER_WAY = frozenset({"sending", "stored"})


@dataclass(frozen=True, slots=True)
class Wait:
    """What is waited for. `seconds` as expected now; `worth_seconds`: what the steps that it saves would take."""

    ref: CheckpointRef
    boundary: int
    steps: int
    seconds: float
    worth_seconds: float


def choose(
    copies: Iterable[UnfinishedCopy],
    *,
    claimed: int,
    world_size: int,
    committed_boundary: int,
    step_seconds: float,
    waited_seconds: float,
) -> Wait | None:
    """The newest save of attempt `claimed`, the one of the newest claim, that will be whole sooner than its steps can be done again; None: claim now.

    It is waited for no longer, in all, than it is worth: an estimate may be wrong, again and again. `step_seconds` and `world_size`: where
    no copy says it.
    """
    saves: defaultdict[CheckpointRef, list[UnfinishedCopy]] = defaultdict(list)
    for copy in copies:
        if copy.attempt == claimed and copy.state in UNDER_WAY and copy.boundary > committed_boundary:
            saves[copy.ref].append(copy)
    for ref in sorted(saves, reverse=True):
        found = saves[ref]
        if not is_covered(found, max(c.world_size for c in found) or world_size):
            continue
        parts: dict[int, float] = {}
        for copy in found:  # two who hold the same part: the faster one counts
            parts[copy.worker] = min(copy.seconds, parts.get(copy.worker, copy.seconds))
        steps = found[0].boundary - committed_boundary
        worth = steps * (max(c.step_seconds for c in found) or step_seconds)
        seconds = max(parts.values()) + LAST_SECONDS
        if seconds < worth and waited_seconds < worth:
            return Wait(ref, found[0].boundary, steps, seconds, worth)
    return None


def is_covered(copies: Iterable[UnfinishedCopy], world_size: int) -> bool:
    """Each rank's part is in the store or with somebody who brings it there: what one lacks nobody waits for."""
    ranks = {rank for copy in copies for rank in (*copy.ranks, *copy.there) if 0 <= rank < world_size}
    return len(ranks) >= world_size
