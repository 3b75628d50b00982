"""The JSON objects of one job: read strictly, checked against the key they lie under, written once.

Here bytes become values. What cannot be read is Corrupt; what a newer release wrote is Misconfigured, because the remedy is an upgrade and not another
checkpoint. A commit record carries a digest of its own bytes, which is checked here and nowhere else.
"""

import re
from dataclasses import replace
from typing import Any, TypeVar

from holdfast_api import codec, layout
from holdfast_api.errors import ContractError, WrongSchema
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import (
    MAX_CHUNK_BYTES,
    MAX_IMAGE_BYTES,
    MAX_MANIFEST_BYTES,
    BranchRef,
    Claim,
    CommitRecord,
    Pending,
    RankEntry,
    RankManifest,
    Tombstone,
)
from holdfast_store.bound import Bound
from holdfast_store.bucket import Bucket
from holdfast_store.chunks import digest
from holdfast_store.errors import Absent, Corrupt, Misconfigured

T = TypeVar("T")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class Records:
    """Reads and writes below one job's prefix. Thread-safe; holds no state."""

    def __init__(self, bucket: Bucket, prefix: str, job_uid: str) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.job_uid = job_uid

    def read(self, cls: type[T], key: str, *, max_bytes: int = codec.MAX_MESSAGE_BYTES) -> T:
        """One object as a `cls`. Absent, Corrupt, Misconfigured (newer format)."""
        return parse(cls, self.prefix + key, self.bucket.get(self.prefix + key, max_bytes=max_bytes))

    def create(self, key: str, data: bytes, *, bound: Bound | None = None) -> None:
        self.bucket.create(self.prefix + key, data, bound=bound)

    def exists(self, key: str) -> bool:
        try:
            self.bucket.head(self.prefix + key)
        except Absent:
            return False
        return True

    def claim(self, attempt: int) -> Claim:
        key = layout.claim_key(attempt)
        data = self.bucket.get(self.prefix + key, max_bytes=codec.MAX_MESSAGE_BYTES)
        claim = replace(parse_claim(self.prefix + key, data), check="")
        self._same(key, (claim.job_uid, claim.attempt), (self.job_uid, attempt))
        if claim.parent and claim.parent.job_uid == self.job_uid and claim.parent.attempt >= attempt:
            raise Corrupt(
                self.prefix + key, f"claims to continue attempt {claim.parent.attempt}, which is not an earlier one"
            )
        return claim

    def commit(self, ref: CheckpointRef) -> tuple[CommitRecord, str]:
        """The record and its exact text."""
        key = layout.commit_key(ref)
        data = self.bucket.get(self.prefix + key, max_bytes=MAX_MANIFEST_BYTES)
        record = parse_commit(self.prefix + key, data)
        self._same(key, (record.job_uid, record.ref), (self.job_uid, ref))
        return record, data.decode()

    def manifest(self, record: CommitRecord, rank: int) -> RankManifest:
        """Verified against the digest in the record (B3), and consistent with itself and with the record."""
        entry = next((e for e in record.ranks if e.rank == rank), None)
        if entry is None:
            raise ValueError(f"checkpoint {record.ref} has ranks 0 to {len(record.ranks) - 1}, not {rank}")
        key = self.prefix + layout.manifest_key(record.ref, rank)
        data = self.bucket.get(key, max_bytes=MAX_MANIFEST_BYTES)
        if digest(data) != entry.manifest_digest:
            raise Corrupt(key, "the digest is not the one in the commit record")
        return check_manifest(key, parse(RankManifest, key, data, max_bytes=MAX_MANIFEST_BYTES), record, entry)

    def unproved_manifest(self, ref: CheckpointRef, rank: int) -> RankManifest:
        """A manifest whose commit record is gone: only to learn what a deletion that was cut short still has to look at."""
        return self.manifest_alone(ref, rank)[0]

    def manifest_alone(self, ref: CheckpointRef, rank: int) -> tuple[RankManifest, str]:
        """A manifest that no commit record names, with the digest of its bytes as stored: whoever writes the record proves it (E6)."""
        key = self.prefix + layout.manifest_key(ref, rank)
        data = self.bucket.get(key, max_bytes=MAX_MANIFEST_BYTES)
        return parse(RankManifest, key, data, max_bytes=MAX_MANIFEST_BYTES), digest(data)

    def tombstone(self, ref: CheckpointRef) -> Tombstone:
        return self.read(Tombstone, layout.tombstone_key(ref))

    def branches(self) -> dict[str, BranchRef]:
        """Everything below refs/ (D6). One that cannot be read raises: what it protects is unknown."""
        found = {}
        for info in self.bucket.list(self.prefix + "refs/"):
            key = info.key.removeprefix(self.prefix)
            found[key] = self.read(BranchRef, key)
        return found

    def _same(self, key: str, found: tuple[object, ...], expected: tuple[object, ...]) -> None:
        if found != expected:
            raise Corrupt(
                self.prefix + key, f"speaks of {' '.join(map(str, found))}, not of {' '.join(map(str, expected))}"
            )


def parse(cls: type[T], key: str, data: bytes, *, max_bytes: int = codec.MAX_MESSAGE_BYTES) -> T:
    try:
        return _from_plain(cls, key, codec.parse(data, max_bytes=max_bytes))
    except ContractError as e:
        raise Corrupt(key, str(e)) from e


def _from_plain(cls: type[T], key: str, plain: Any) -> T:
    try:
        return codec.from_plain(cls, plain)
    except WrongSchema as e:
        schema = plain.get("schema")
        if type(schema) is int and schema > getattr(cls, "SCHEMA", 0):
            raise Misconfigured(
                f"{key} is of a newer format ({e}): use the image of the release that wrote it, or a newer one"
            ) from e
        raise


def entry_of(manifest: RankManifest) -> RankEntry:
    """What a commit record says of it."""
    return RankEntry(manifest.rank, digest(codec.to_json(manifest)), manifest.image_bytes)


def self_proving(record: CommitRecord | Claim | Pending) -> bytes:
    """The bytes to store: the record with the digest of itself in `check`."""
    bare = codec.to_json(replace(record, check=""))
    return codec.to_json(replace(record, check=digest(bare)))


def parse_commit(key: str, data: bytes) -> CommitRecord:
    """Reads a commit record and proves it against its own digest, which every format of it has: only then its format is looked at."""
    record = _parse_proved(CommitRecord, key, data, max_bytes=MAX_MANIFEST_BYTES, may_lack=False)
    if not record.ranks or [e.rank for e in record.ranks] != list(range(len(record.ranks))):
        raise Corrupt(key, "the ranks are not 0 to n-1 in order")
    return record


def parse_claim(key: str, data: bytes) -> Claim:
    """The same of a claim; those of older releases carry no digest."""
    return _parse_proved(Claim, key, data, max_bytes=codec.MAX_MESSAGE_BYTES, may_lack=True)


def parse_pending(key: str, data: bytes) -> Pending:
    """The same of what waits on a node."""
    pending = _parse_proved(Pending, key, data, max_bytes=MAX_MANIFEST_BYTES, may_lack=False)
    ranks = [e.rank for e in pending.ranks]
    if not ranks or ranks != sorted(set(ranks)) or not 0 <= ranks[0] <= ranks[-1] < pending.world_size:
        raise Corrupt(key, f"speaks of ranks {ranks[:8]} of {pending.world_size}")
    return pending


def _parse_proved(cls: type[T], key: str, data: bytes, *, max_bytes: int, may_lack: bool) -> T:
    try:
        plain = codec.parse(data, max_bytes=max_bytes)
        check = plain.get("check", "" if may_lack else None) if isinstance(plain, dict) else None
        if not isinstance(check, str) or not (_proves(check, data) or (may_lack and not check)):
            raise Corrupt(key, "the record does not fit the digest that it carries")
        return _from_plain(cls, key, plain)
    except ContractError as e:
        raise Corrupt(key, str(e)) from e


def _proves(check: str, data: bytes) -> bool:
    """Whether `check` is the digest of `data` with the value of its last "check" emptied."""
    before, found, after = data.rpartition(b'"check":"' + check.encode() + b'"')
    return bool(check and found) and digest(before + b'"check":""' + after) == check


def check_manifest(key: str, manifest: RankManifest, record: CommitRecord, entry: RankEntry) -> RankManifest:
    """Fits the commit record, and its chunks lie where the record says that chunks lie (B3)."""
    found = (
        manifest.job_uid,
        manifest.attempt,
        manifest.save,
        manifest.rank,
        manifest.world_size,
        manifest.image_bytes,
        manifest.boundary,
    )
    world, boundary = len(record.ranks), record.progress.boundary
    expected = (record.job_uid, record.attempt, record.save, entry.rank, world, entry.image_bytes, boundary)
    if found != expected:
        raise Corrupt(key, f"speaks of {found}, the commit record of {expected}")
    problem = manifest_problem(manifest)
    stray = {c.at for c in manifest.chunks} - {record.ref, *record.refers_to}
    stray |= {c.at for c in manifest.chunks if c.at > record.ref}  # a base is always older (B4)
    if problem or stray:
        raise Corrupt(
            key, problem or f"refers to {', '.join(map(str, sorted(stray)))}, where the commit record has no chunk lie"
        )
    return manifest


def manifest_problem(manifest: RankManifest) -> str:
    """What is wrong with a manifest in itself, or "". Bounds every length before anything is allocated by it (S3)."""
    if manifest.image_bytes < 0 or manifest.chunk_bytes <= 0:
        return "negative sizes"
    if manifest.image_bytes > MAX_IMAGE_BYTES or manifest.chunk_bytes > MAX_CHUNK_BYTES:
        return f"{manifest.image_bytes} bytes in chunks of {manifest.chunk_bytes}, where {MAX_IMAGE_BYTES} in chunks of {MAX_CHUNK_BYTES} are the most"
    if sum(c.length for c in manifest.chunks) != manifest.image_bytes:
        return "the chunks do not add up to the image"
    if any(c.length != manifest.chunk_bytes for c in manifest.chunks[:-1]):
        return "a chunk that is not the last has another length than chunk_bytes"
    if manifest.chunks and not 0 < manifest.chunks[-1].length <= manifest.chunk_bytes:
        return "the last chunk has an impossible length"
    if any(not _DIGEST.match(c.digest) for c in manifest.chunks):
        return "a chunk whose name is no digest"
    for tensor in manifest.tensors:
        if (
            tensor.offset_bytes < 0
            or tensor.length_bytes < 0
            or tensor.offset_bytes + tensor.length_bytes > manifest.image_bytes
        ):
            return f"the tensor {tensor.name[:100]!r} lies outside of the image"
    return ""
