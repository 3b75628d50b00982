"""Lineage (A7): which commits an attempt may build on. Pure walks over claims; reading them is the caller's.

The lineage of attempt n is: the commits of n; those of the attempt of n's parent, up to the parent; and so on. What a superseded attempt commits later
lies above the bound that its successor's claim has set, so it is on no lineage: ignored, never loaded, harmless.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim, ParentRef


@dataclass(frozen=True, slots=True)
class Span:
    """The saves of one attempt that are on a lineage: all up to `last_save`, or all (None)."""

    job_uid: str
    attempt: int
    last_save: int | None

    def holds(self, job_uid: str, ref: CheckpointRef) -> bool:
        return (job_uid, ref.attempt) == (self.job_uid, self.attempt) and (
            self.last_save is None or ref.save <= self.last_save
        )


@dataclass(frozen=True, slots=True)
class Stretch:
    """The part of a lineage that one attempt has made: its saves up to `last_save`, or all (None), and when it was claimed."""

    attempt: int
    last_save: int | None
    claimed_at: datetime


def spans(
    job_uid: str, attempt: int, last_save: int | None, claim_of: Callable[[str, int], Claim | None]
) -> Iterator[Span]:
    """The lineage from `attempt` backwards, newest span first. `claim_of(job uid, attempt)` is None where no claim lies.

    Ends at a fresh start, at a claim that does not exist, and after as many steps as attempts can be (claims that point in a circle between jobs).
    """
    span: Span | None = Span(job_uid, attempt, last_save)
    met: set[tuple[str, int]] = set()
    while span and (span.job_uid, span.attempt) not in met:
        yield span
        met.add((span.job_uid, span.attempt))
        claim = claim_of(span.job_uid, span.attempt)
        span = from_parent(claim.parent) if claim and claim.parent else None


def from_parent(parent: ParentRef) -> Span:
    return Span(parent.job_uid, parent.attempt, parent.save)


def protected(newest_first: list[tuple[CheckpointRef, CheckpointRef | None]]) -> frozenset[CheckpointRef]:
    """Of the usable commits of one lineage, as (checkpoint, base), those that must not be deleted whatever was ordered (D5).

    The newest; the one before it; and everything from the newest one's base up to it: a save that is still open was started after the newest one was,
    so its base (B4) is the newest commit of that moment, which lies between the newest commit's own base and that commit.
    """
    if not newest_first:
        return frozenset()
    newest, base = newest_first[0]
    kept = {ref for ref, _ in newest_first[:2]}
    if base is not None:
        kept |= {ref for ref, _ in newest_first if base <= ref <= newest}
        kept.add(base)
    return frozenset(kept)
