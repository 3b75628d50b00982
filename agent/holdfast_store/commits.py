"""Making a checkpoint exist: chunks and manifests create-only, then one commit record, after every look that a rule asks for (A4-A8, B1-B4)."""

import logging

from holdfast_api import codec, layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import CommitRecord, RankEntry, RankManifest
from holdfast_store import inventory
from holdfast_store.bound import Bound
from holdfast_store.chunks import digest
from holdfast_store.errors import Absent, AlreadyExists, NotOnRecord, Superseded
from holdfast_store.records import Records, manifest_problem, self_proving

log = logging.getLogger(__name__)


def create_manifest(records: Records, manifest: RankManifest, *, bound: Bound | None = None) -> RankEntry:
    """Writes `rank-<r>.json`. The same manifest again is fine (a lost answer); another one under the same save is AlreadyExists."""
    if manifest.job_uid != records.job_uid:
        raise ValueError(f"the manifest is of job {manifest.job_uid}, the store of {records.job_uid}")
    if problem := manifest_problem(manifest):
        raise ValueError(f"manifest of rank {manifest.rank}: {problem}")
    key = layout.manifest_key(CheckpointRef(manifest.attempt, manifest.save), manifest.rank)
    data = codec.to_json(manifest)
    create_same(records, key, data, bound=bound)
    return RankEntry(manifest.rank, digest(data), manifest.image_bytes)


def commit(records: Records, record: CommitRecord, *, incarnation: str | None) -> str:
    """Looks, then writes `commit.json` create-only; returns its exact text. See `JobStore.commit`."""
    _check_record(records, record)
    look_for_claims(records, record.attempt, incarnation)
    look_for_newer(records, record.ref)
    if inventory.state(records, record.ref).expired:
        raise NotOnRecord(f"checkpoint {record.ref} is expired: its tombstone stays (D2)")
    _check_base(records, record)
    text = self_proving(record)
    create_same(records, layout.commit_key(record.ref), text)
    return text.decode()


def create_same(records: Records, key: str, data: bytes, *, bound: Bound | None = None) -> None:
    """Creates an object, or finds exactly these bytes there: then an earlier try of ours went through and its answer was lost."""
    try:
        records.create(key, data, bound=bound)
    except AlreadyExists:
        # No more than one byte longer than ours is read: enough to see that it is another.
        if records.bucket.head(records.prefix + key).size != len(data):
            raise
        if records.bucket.get(records.prefix + key, max_bytes=len(data)) != data:
            raise
        log.info("%s was there already, with the same content", key)


def _check_record(records: Records, record: CommitRecord) -> None:
    if record.job_uid != records.job_uid:
        raise ValueError(f"the commit record is of job {record.job_uid}, the store of {records.job_uid}")
    if not record.ranks or [e.rank for e in record.ranks] != list(range(len(record.ranks))):
        raise ValueError("a commit record lists the ranks 0 to n-1 in order, each once")
    if record.refers_to and record.base is None:
        raise ValueError("a save refers to earlier chunks only through its base (B4)")
    if record.ref in record.refers_to or record.base == record.ref:
        raise ValueError("refers_to names other checkpoints than the save itself (B3)")


def look_for_newer(records: Records, save: CheckpointRef) -> None:
    """A8."""
    for ref in inventory.saves(records, save.attempt):
        if ref.save > save.save and inventory.state(records, ref).committed:
            raise NotOnRecord(f"save {save} is abandoned: {ref} has been committed (A8)")


def look_for_claims(records: Records, attempt: int, incarnation: str | None) -> None:
    """A5, A6, and A4 where the caller knows the incarnation that has claimed."""
    claimed = inventory.claimed(records)
    if claimed and claimed[-1] > attempt:
        raise Superseded(records.claim(claimed[-1]))
    if attempt not in claimed:
        raise NotOnRecord(f"attempt {attempt} has not claimed yet; no commit before the claim (A6)")
    if incarnation is not None and (claim := records.claim(attempt)).incarnation != incarnation:
        raise Superseded(claim)


def _check_base(records: Records, record: CommitRecord) -> None:
    """B4: the base exists, and everything else that is referred to is referred to through it."""
    if record.base is None:
        return
    if not inventory.state(records, record.base).exists:
        raise NotOnRecord(
            f"the base {record.base} of save {record.ref} does not exist any more (B4): write the save anew"
        )
    further = set(record.refers_to) - {record.base}
    if not further:
        return
    try:
        base = records.commit(record.base)[0]
    except Absent as e:
        raise NotOnRecord(f"the base {record.base} of save {record.ref} does not exist any more (B4)") from e
    if stray := further - set(base.refers_to):
        raise NotOnRecord(
            f"save {record.ref} refers to {', '.join(map(str, sorted(stray)))}, which its base does not (B4)"
        )
