"""Deletion (D2, D4, D5): in an order in which a stop at any point leaves nothing that exists and lacks something.

Expiring: look for branches; tombstone; look for branches again; commit record; list every commit; chunks that nobody else refers to; manifests. The
tombstone stays, so that a repeated commit cannot revive the checkpoint. Sweeping removes what no commit has, or can have any more. Whoever cannot
explain something keeps it.
"""

import logging
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim, CommitRecord, RankManifest, Tombstone
from holdfast_store import inventory
from holdfast_store.errors import Absent, AlreadyExists, Corrupt
from holdfast_store.inventory import Lying
from holdfast_store.lineage import Span, protected
from holdfast_store.records import Records

log = logging.getLogger(__name__)
_READERS = 8


@dataclass(frozen=True, slots=True)
class Expiry:
    """How an order to delete ended. `kept_because` is empty if and only if the checkpoint no longer exists."""

    deleted: bool
    kept_because: str
    bytes_freed: int


@dataclass(frozen=True, slots=True)
class SweepResult:
    objects_deleted: int
    bytes_freed: int
    finished: tuple[CheckpointRef, ...]
    """Deletions that had been cut short and were brought to their end."""
    off_lineage: tuple[CheckpointRef, ...]
    """Commits that no claim can reach. Left alone: only an order deletes a commit."""
    committed: tuple[CheckpointRef, ...] = ()
    """Every checkpoint that exists, those included."""


@dataclass(slots=True)
class Held:
    """Chunks that other commits refer to, and whole saves of which that cannot be known."""

    chunks: set[tuple[CheckpointRef, str]] = field(default_factory=set)
    saves: set[CheckpointRef] = field(default_factory=set)
    everything: bool = False

    def holds(self, ref: CheckpointRef, digest: str) -> bool:
        return self.everything or ref in self.saves or (ref, digest) in self.chunks


def expire(
    records: Records,
    ref: CheckpointRef,
    *,
    lineage: Iterable[Span],
    by_attempt: int,
    reason: str,
    in_use: Collection[CheckpointRef],
) -> Expiry:
    """D2, in its order. `lineage` is that of the claim under which the order was given; `in_use`: bases of open saves, what is being restored (D5).

    May be repeated after a stop at any point; goes on where the other left off.
    """
    state = inventory.state(records, ref)
    if not state.committed and not state.expired:
        return _kept("it has no commit record, so nothing says what it is (D5)")
    if state.committed and (why := _in_the_way(records, ref, lineage, in_use)):
        return _kept(why)
    if state.exists and (branch := _branch_on(records, ref)):
        # Before the tombstone too: a restore in the moment until it is taken back would take an older checkpoint.
        return _kept(f"the branch {branch} builds on it (D6)")
    _bury(records, ref, by_attempt, reason)
    if state.committed and (branch := _branch_or_exhumed(records, ref)):
        return _kept(f"the branch {branch} builds on it (D6)")
    chunks = _referred_chunks(records, ref, state)
    records.bucket.delete([records.prefix + layout.commit_key(ref)])
    found = inventory.scan(records)
    lying = found.get(ref, Lying())
    freed = _delete_chunks(records, chunks | {(ref, digest) for digest in lying.chunks}, found)
    _delete_others(records, ref, lying)
    return Expiry(True, "", freed)


def sweep(records: Records, attempt: int, *, lineage: list[Span]) -> SweepResult:
    """Removes what D4 allows under the claim of `attempt`. Saves of the attempt that are newer than its newest commit may be in the making: untouched."""
    found = inventory.scan(records)
    committed = {ref for ref, lying in found.items() if lying.committed}
    finished = []
    for ref in sorted(r for r in committed if found[r].expired):
        result = expire(records, ref, lineage=lineage, by_attempt=attempt, reason="deletion was cut short", in_use=())
        if result.deleted:
            finished.append(ref)
    doomed = []
    for ref, lying in found.items():
        verdict = "" if lying.committed or lying.empty else _leftover(ref, lying, attempt, lineage, committed)
        if verdict == "bury":
            _bury(records, ref, attempt, "abandoned save")
        if verdict:
            doomed.append(ref)
    objects, freed = _delete_leftovers(records, doomed)
    exist = sorted(r for r in committed if not found[r].expired)
    gone_off = (r for r in exist if not any(s.holds(records.job_uid, r) for s in lineage))
    return SweepResult(objects, freed, tuple(finished), tuple(gone_off), tuple(exist))


def _leftover(
    ref: CheckpointRef, lying: Lying, attempt: int, lineage: list[Span], committed: set[CheckpointRef]
) -> str:
    """What may be done with a save without a commit: "" nothing, "sweep", or "bury" it first, because a late commit of it would be on the lineage."""
    if lying.expired:
        return "sweep"
    if ref.attempt > attempt:
        return ""
    if ref.attempt == attempt:
        last = max((r.save for r in committed if r.attempt == attempt), default=0)
        return "bury" if ref.save < last else ""  # A8: a newer one has committed, so this one never will
    span = next((s for s in lineage if (s.job_uid, s.attempt) == (_own(lineage), ref.attempt)), None)
    if span is None or span.last_save is None or ref.save > span.last_save:
        return "sweep"
    return "bury" if ref.save < span.last_save else ""


def _own(lineage: list[Span]) -> str:
    return lineage[0].job_uid


def _in_the_way(
    records: Records, ref: CheckpointRef, lineage: Iterable[Span], in_use: Collection[CheckpointRef]
) -> str:
    if ref in in_use:
        return "it is in use (D5)"
    if ref in protected(_newest_usable(records, lineage)):
        return "it is among the newest usable ones, or a base that an open save may lean on (D5)"
    return ""


def _newest_usable(records: Records, lineage: Iterable[Span]) -> list[tuple[CheckpointRef, CheckpointRef | None]]:
    """(checkpoint, base) newest first: the newest two that can be read, and on to the base of the newest."""
    usable: list[tuple[CheckpointRef, CheckpointRef | None]] = []
    for span in lineage:
        if span.job_uid != records.job_uid:
            break
        for ref in inventory.saves(records, span.attempt):
            if not span.holds(records.job_uid, ref) or not inventory.state(records, ref).exists:
                continue
            if len(usable) >= 2 and (usable[0][1] is None or ref < usable[0][1]):
                return usable
            try:
                usable.append((ref, records.commit(ref)[0].base))
            except (Corrupt, Absent):
                continue
    return usable


def _bury(records: Records, ref: CheckpointRef, by_attempt: int, reason: str) -> None:
    stone = Tombstone(records.job_uid, ref.attempt, ref.save, by_attempt, reason[:500], datetime.now(UTC))
    try:
        records.create(layout.tombstone_key(ref), codec.to_json(stone))
    except AlreadyExists:
        log.debug("checkpoint %s has its tombstone already", ref)


def _branch_on(records: Records, ref: CheckpointRef) -> str:
    """The branch that builds on the checkpoint, or ""."""
    return next((b.branch_uid for b in records.branches().values() if b.checkpoint == ref), "")


def _branch_or_exhumed(records: Records, ref: CheckpointRef) -> str:
    """As `_branch_on`, after the tombstone: if there is one, and if that cannot be learnt, the tombstone is taken back."""
    branch, known = "", False
    try:
        branch = _branch_on(records, ref)
        known = True
    finally:
        if branch or not known:
            records.bucket.delete([records.prefix + layout.tombstone_key(ref)])
    return branch


def _referred_chunks(
    records: Records, ref: CheckpointRef, state: inventory.SaveState
) -> set[tuple[CheckpointRef, str]]:
    """Every chunk that the doomed checkpoint refers to, wherever it lies. What cannot be read is left to a later sweep."""
    record: CommitRecord | None = None
    if state.committed:
        try:
            record = records.commit(ref)[0]
        except (Corrupt, Absent):
            log.warning("the commit record of %s cannot be read; only its own chunks are collected", ref)
            return set()
    chunks = set()
    for rank in state.ranks:
        try:
            manifest = records.manifest(record, rank) if record else records.unproved_manifest(ref, rank)
        except (Corrupt, Absent, ValueError):
            continue
        # A chunk never lies under a later save than the one that refers to it: a bent manifest cannot point at a save in the making.
        chunks |= {(c.at, c.digest) for c in manifest.chunks if c.at <= ref}
    return chunks


def _held(records: Records, commits: Iterable[CheckpointRef], places: set[CheckpointRef]) -> Held:
    """What the remaining commits refer to below `places`. The list in each commit record spares reading most manifests (B3)."""
    held = Held()
    for ref in commits:
        try:
            record = records.commit(ref)[0]
        except Absent:
            continue  # deleted meanwhile, by somebody who lists commits as well
        except Corrupt:
            held.everything = True
            return held
        touched = places & {record.ref, *record.refers_to}
        if touched:
            _hold(records, record, touched, held)
    return held


def _hold(records: Records, record: CommitRecord, touched: set[CheckpointRef], held: Held) -> None:
    try:
        for manifest in read_manifests(records, record):
            held.chunks |= {(c.at, c.digest) for c in manifest.chunks if c.at in touched}
    except (Corrupt, Absent):
        held.saves |= touched


def read_manifests(records: Records, record: CommitRecord, ranks: Collection[int] | None = None) -> list[RankManifest]:
    """Manifests of all ranks, or of some, in order, a few requests at a time."""
    wanted = [e.rank for e in record.ranks if ranks is None or e.rank in ranks]
    if len(wanted) <= 1:
        return [records.manifest(record, rank) for rank in wanted]
    with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="manifest") as pool:
        return [*pool.map(lambda rank: records.manifest(record, rank), wanted)]


def _delete_chunks(records: Records, chunks: set[tuple[CheckpointRef, str]], found: dict[CheckpointRef, Lying]) -> int:
    """Deletes those of `chunks` that no commit in `found` refers to, and takes them out of `found`; returns their bytes."""
    remaining = [ref for ref, lying in found.items() if lying.committed]
    held = _held(records, remaining, {ref for ref, _ in chunks})
    free = [(r, d) for r, d in sorted(chunks) if r in found and d in found[r].chunks and not held.holds(r, d)]
    records.bucket.delete([records.prefix + layout.chunk_key(ref, digest) for ref, digest in free])
    return sum(found[ref].chunks.pop(digest) for ref, digest in free)


def _delete_others(records: Records, ref: CheckpointRef, lying: Lying) -> int:
    """Manifests and verdicts, after the chunks: they say which chunks there are, should this be cut short."""
    prefix = records.prefix + layout.checkpoint_prefix(ref)
    records.bucket.delete([prefix + name for name in lying.others])
    return sum(lying.others.values())


def _delete_leftovers(records: Records, doomed: list[CheckpointRef]) -> tuple[int, int]:
    """Objects and bytes. Lists anew: a commit that has appeared since then is no leftover, and holds what it refers to."""
    if not doomed:
        return 0, 0
    found = inventory.scan(records)
    still = [ref for ref in doomed if ref in found and (found[ref].expired or not found[ref].committed)]
    before = sum(len(found[ref].chunks) for ref in still)
    freed = _delete_chunks(records, {(ref, digest) for ref in still for digest in found[ref].chunks}, found)
    objects = before - sum(len(found[ref].chunks) for ref in still)
    for ref in still:
        objects += len(found[ref].others)
        freed += _delete_others(records, ref, found[ref])
    return objects, freed


def _kept(why: str) -> Expiry:
    return Expiry(False, why, 0)


def may_collect(newest: Claim | None, attempt: int) -> str:
    """Why the attempt may not delete now: nothing is deleted between the creation of an attempt and its claim (D1)."""
    if newest is None or newest.attempt < attempt:
        return f"attempt {attempt} has not claimed yet (D1)"
    return ""
