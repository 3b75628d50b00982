"""What a deletion removes, and what it keeps and why (D2, D4, D5, D6): pure, over what was read from the store.

`collect` reads, and deletes exactly what is decided here; `foretell` reads the same and prints it (`holdfast expire --dry-run`). So the two cannot differ, but
for what others write in between.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from holdfast_api.layout import CheckpointRef
from holdfast_store.inventory import Lying
from holdfast_store.lineage import Span

Place = tuple[CheckpointRef, str]
"""A chunk: the checkpoint that it lies under, and its digest."""

ABANDONED = "bury"
LEFT_OVER = "sweep"
LEFT_ALONE = ""


@dataclass(slots=True)
class Held:
    """Chunks that other commits refer to, with one of those commits each, and whole saves of which that cannot be known."""

    chunks: dict[Place, CheckpointRef] = field(default_factory=dict)
    saves: dict[CheckpointRef, CheckpointRef] = field(default_factory=dict)
    """Save -> a commit of which a manifest cannot be read."""
    everything: CheckpointRef | None = None
    """A commit record that cannot be read: it may refer to anything."""

    def holder(self, place: Place) -> CheckpointRef | None:
        """The commit because of which the chunk stays, or None."""
        return self.everything or self.saves.get(place[0]) or self.chunks.get(place)


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides whether a checkpoint may go."""

    committed: bool
    expired: bool
    in_use: bool = False
    protected: bool = False
    best: bool = False
    """The one that a start would continue: the newest of those with which the least is known to be wrong (soundness.py)."""
    branch: str = ""
    """The branch that builds on it, or ""."""


@dataclass(frozen=True, slots=True)
class Removal:
    """The objects of one save that go, in the order in which they go, and the chunks that stay."""

    chunks: tuple[Place, ...]
    others: tuple[str, ...]
    """By what follows the save's prefix: manifests, verdicts."""
    chunk_bytes: int
    other_bytes: int
    kept: Mapping[Place, CheckpointRef] = field(default_factory=dict)
    """Chunk -> the commit that refers to it, or of which that cannot be known."""


def why_kept(facts: Facts) -> str:
    """Why an order to delete is not carried out; empty if it is."""
    if not facts.committed and not facts.expired:
        return "it has no commit record, so nothing says what it is (D5)"
    if facts.committed and facts.in_use:
        return "it is in use (D5)"
    if facts.committed and facts.protected:
        return "it is among the newest usable ones, or a base that an open save may lean on (D5)"
    if facts.committed and facts.best:
        return "it is the newest one with which the least is known to be wrong: no NaN, no copies that differ (D5)"
    if facts.committed and not facts.expired and facts.branch:
        return kept_for(facts.branch)
    return ""


def kept_for(branch: str) -> str:
    return f"the branch {branch} builds on it (D6)"


def removal(
    ref: CheckpointRef, referred: Collection[Place], found: Mapping[CheckpointRef, Lying], held: Held
) -> Removal:
    """Everything that goes with `ref`: of the chunks that it refers to, wherever they lie, and that lie under it, those that no commit needs; its records."""
    own = found.get(ref, Lying())
    wanted = {*referred, *((ref, digest) for digest in own.chunks)}
    there = sorted(p for p in wanted if p[0] in found and p[1] in found[p[0]].chunks)
    kept = {place: holder for place in there if (holder := held.holder(place)) is not None}
    chunks = tuple(place for place in there if place not in kept)
    freed = sum(found[at].chunks[digest] for at, digest in chunks)
    return Removal(chunks, tuple(own.others), freed, sum(own.others.values()), kept)


def leftover(
    ref: CheckpointRef, lying: Lying, attempt: int, lineage: list[Span], committed: Iterable[CheckpointRef]
) -> str:
    """What may be done under the claim of `attempt` with a save without a commit (D4): LEFT_ALONE; LEFT_OVER: it is swept; ABANDONED: it is buried first,
    because a late commit of it would be on the lineage.
    """
    if lying.expired:
        return LEFT_OVER
    if ref.attempt > attempt:
        return LEFT_ALONE
    if ref.attempt == attempt:
        last = max((r.save for r in committed if r.attempt == attempt), default=0)
        return ABANDONED if ref.save < last else LEFT_ALONE  # A8: a newer one has committed, so this one never will
    span = next((s for s in lineage if (s.job_uid, s.attempt) == (lineage[0].job_uid, ref.attempt)), None)
    if span is None or span.last_save is None or ref.save > span.last_save:
        return LEFT_OVER
    return ABANDONED if ref.save < span.last_save else LEFT_ALONE


WHY_SWEPT = {
    LEFT_OVER: "it has no commit record, and no claim can reach it any more (D4)",
    ABANDONED: "it was abandoned: a newer save is committed, so it never will be (A8, D4)",
}
