"""Deletion (D2, D4, D5): in an order in which a stop at any point leaves nothing that exists and lacks something.

Expiring: look for branches; tombstone; look for branches again; commit record; list every commit; chunks that nobody else refers to; manifests. The
tombstone stays, so that a repeated commit cannot revive the checkpoint. Sweeping removes what no commit has, or can have any more. Whoever cannot
explain something keeps it. What goes is decided in `deletion`, from what is read here.
"""

import logging
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from holdfast_api import codec, layout, soundness
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim, CommitRecord, RankManifest, Tombstone
from holdfast_api.soundness import Grade
from holdfast_store import deletion, inventory, verdicts
from holdfast_store.deletion import ABANDONED, LEFT_ALONE, Facts, Held, Place, Removal
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
    if why := deletion.why_kept(facts_about(records, state, lineage, in_use)):
        return _kept(why)
    ours = _bury(records, ref, by_attempt, reason)
    if state.committed and (branch := _branch_or_exhumed(records, ref, ours=ours)):
        return _kept(deletion.kept_for(branch))
    chunks = referred_chunks(records, ref, state)
    records.bucket.delete([records.prefix + layout.commit_key(ref)])
    found = inventory.scan(records)
    return Expiry(True, "", _remove(records, ref, removal(records, ref, chunks, found)).chunk_bytes)


def removal(records: Records, ref: CheckpointRef, referred: set[Place], found: dict[CheckpointRef, Lying]) -> Removal:
    """What goes with `ref`, whose commit counts no longer. Reads the other commits of `found`, and those of their manifests that matter."""
    own = found.get(ref, Lying())
    places = {at for at, _ in referred} | ({ref} if own.chunks else set())
    held = _held(records, [r for r, lying in found.items() if lying.committed and r != ref], places)
    return deletion.removal(ref, referred, found, held)


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
        if lying.committed or lying.empty:
            continue
        verdict = deletion.leftover(ref, lying, attempt, lineage, committed)
        if verdict == ABANDONED:
            _bury(records, ref, attempt, "abandoned save")
        if verdict != LEFT_ALONE:
            doomed.append(ref)
    objects, freed = _delete_leftovers(records, doomed)
    exist = sorted(r for r in committed if not found[r].expired)
    gone_off = (r for r in exist if not any(s.holds(records.job_uid, r) for s in lineage))
    return SweepResult(objects, freed, tuple(finished), tuple(gone_off), tuple(exist))


def facts_about(
    records: Records, state: inventory.SaveState, lineage: Iterable[Span], in_use: Collection[CheckpointRef]
) -> Facts:
    """Read only as far as it matters: each question costs requests."""
    facts = Facts(state.committed, state.expired, in_use=state.ref in in_use)
    if deletion.why_kept(facts) or not state.committed:
        return facts
    usable, best = _newest_usable(records, lineage)
    facts = replace(facts, protected=state.ref in protected(usable), best=state.ref in best)
    if deletion.why_kept(facts) or state.expired:
        return facts
    # Before the tombstone too: a restore in the moment until it is taken back would take an older checkpoint.
    return replace(facts, branch=branch_on(records, state.ref))


def _newest_usable(
    records: Records, lineage: Iterable[Span]
) -> tuple[list[tuple[CheckpointRef, CheckpointRef | None]], frozenset[CheckpointRef]]:
    """(checkpoint, base) newest first: the newest two that can be read, and on to the base of the newest. And what a start would continue, whether or not
    the job accepts copies that differ: usually one of those two."""
    usable: list[tuple[CheckpointRef, CheckpointRef | None]] = []
    best: tuple[Grade, CheckpointRef] | None = None
    finite: CheckpointRef | None = None
    for state in _existing(records, lineage):
        ref = state.ref
        if len(usable) >= 2 and best is not None and best[0] is Grade.SOUND and _is_past_base(usable[0], ref):
            break
        try:
            record = records.commit(ref)[0]
        except (Corrupt, Absent):
            continue
        usable.append((ref, record.base))
        found = soundness.grade(record, damaged=bool(verdicts.damage(records, state)))
        best = (found, ref) if best is None or found < best[0] else best
        finite = ref if finite is None and record.finite is not False else finite
    return usable, frozenset(r for r in (best[1] if best is not None else None, finite) if r is not None)


def _existing(records: Records, lineage: Iterable[Span]) -> Iterator[inventory.SaveState]:
    """The job's own checkpoints on the lineage, newest first."""
    for span in lineage:
        if span.job_uid != records.job_uid:
            return
        for ref in inventory.saves(records, span.attempt):
            if span.holds(records.job_uid, ref) and (state := inventory.state(records, ref)).exists:
                yield state


def _is_past_base(newest: tuple[CheckpointRef, CheckpointRef | None], ref: CheckpointRef) -> bool:
    return newest[1] is None or ref < newest[1]


def _bury(records: Records, ref: CheckpointRef, by_attempt: int, reason: str) -> bool:
    """True if the tombstone is ours, False if it was there already."""
    stone = Tombstone(records.job_uid, ref.attempt, ref.save, by_attempt, reason[:500], datetime.now(UTC))
    try:
        records.create(layout.tombstone_key(ref), codec.to_json(stone))
    except AlreadyExists:
        log.debug("checkpoint %s has its tombstone already", ref)
        return False
    return True


def branch_on(records: Records, ref: CheckpointRef) -> str:
    """The branch that builds on the checkpoint, or ""."""
    return next((b.branch_uid for b in records.branches().values() if b.checkpoint == ref), "")


def _branch_or_exhumed(records: Records, ref: CheckpointRef, *, ours: bool) -> str:
    """As `branch_on`, after the tombstone: if there is one, and if that cannot be learnt, the tombstone is taken back.

    One that was there already may be that of a deletion that has been carried out, whose commit record has arrived once more: it is taken back only if
    nothing is missing.
    """
    branch, known = "", False
    try:
        branch = branch_on(records, ref)
        known = True
    finally:
        if (branch or not known) and (ours or (known and _is_whole(records, ref))):
            records.bucket.delete([records.prefix + layout.tombstone_key(ref)])
    return branch


def _is_whole(records: Records, ref: CheckpointRef) -> bool:
    """Whether all that the checkpoint refers to lies there, by a listing."""
    found = inventory.scan(records)
    try:
        manifests = read_manifests(records, records.commit(ref)[0])
    except (Corrupt, Absent):
        return False
    return all(found.get(c.at, Lying()).chunks.get(c.digest) == c.length for m in manifests for c in m.chunks)


def referred_chunks(records: Records, ref: CheckpointRef, state: inventory.SaveState) -> set[Place]:
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
            held.everything = ref
            return held
        touched = places & {record.ref, *record.refers_to}
        if touched:
            _hold(records, record, touched, held)
    return held


def _hold(records: Records, record: CommitRecord, touched: set[CheckpointRef], held: Held) -> None:
    try:
        for manifest in read_manifests(records, record):
            held.chunks |= {(c.at, c.digest): record.ref for c in manifest.chunks if c.at in touched}
    except (Corrupt, Absent):
        held.saves |= dict.fromkeys(touched, record.ref)


def read_manifests(records: Records, record: CommitRecord) -> list[RankManifest]:
    """Manifests of all ranks, in order, a few requests at a time."""
    wanted = [e.rank for e in record.ranks]
    if len(wanted) <= 1:
        return [records.manifest(record, rank) for rank in wanted]
    with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="manifest") as pool:
        return [*pool.map(lambda rank: records.manifest(record, rank), wanted)]


def _remove(records: Records, ref: CheckpointRef, gone: Removal) -> Removal:
    """Chunks first, then manifests and verdicts: they say which chunks there are, should this be cut short."""
    records.bucket.delete([records.prefix + layout.chunk_key(at, digest) for at, digest in gone.chunks])
    prefix = records.prefix + layout.checkpoint_prefix(ref)
    records.bucket.delete([prefix + name for name in gone.others])
    return gone


def _delete_leftovers(records: Records, doomed: list[CheckpointRef]) -> tuple[int, int]:
    """Objects and bytes. Lists anew: a commit that has appeared since then is no leftover, and holds what it refers to."""
    if not doomed:
        return 0, 0
    found = inventory.scan(records)
    still = [ref for ref in doomed if ref in found and (found[ref].expired or not found[ref].committed)]
    remaining = [ref for ref, lying in found.items() if lying.committed]
    held = _held(records, remaining, set(still))
    objects = freed = 0
    for ref in still:
        gone = _remove(records, ref, deletion.removal(ref, (), found, held))
        objects += len(gone.chunks) + len(gone.others)
        freed += gone.chunk_bytes + gone.other_bytes
    return objects, freed


def discard(records: Records, ref: CheckpointRef, *, sent: bool) -> int:
    """Bytes freed of a save that was given up. Nothing refers to what lies under it: a base is a committed checkpoint (B4). If its commit record is there all
    the same, it is a checkpoint and left alone. `sent`: the record may still arrive, so a tombstone goes before (D2), and it is looked at again after:
    one that arrived in between may be the parent of the next claim by now."""
    state = inventory.state(records, ref)
    if state.committed:
        return 0
    if sent and not state.expired:
        ours = _bury(records, ref, ref.attempt, "given up: it did not fit")
        if inventory.state(records, ref).committed:
            if ours:
                records.bucket.delete([records.prefix + layout.tombstone_key(ref)])
            return 0
    prefix = records.prefix + layout.checkpoint_prefix(ref)
    stone = records.prefix + layout.tombstone_key(ref)
    found = [info for info in records.bucket.list(prefix) if info.key != stone]
    records.bucket.delete([info.key for info in found])
    return sum(info.size for info in found)


def _kept(why: str) -> Expiry:
    return Expiry(False, why, 0)


def may_collect(newest: Claim | None, attempt: int) -> str:
    """Why the attempt may not delete now: nothing is deleted between the creation of an attempt and its claim (D1)."""
    if newest is None or newest.attempt < attempt:
        return f"attempt {attempt} has not claimed yet (D1)"
    return ""
