"""Every key of a job in the object store, and the same names below a directory (protocol, part B).

    <prefix>/<namespace>/<job>-<uid>/
      attempts/<attempt>.json                         the claim (A3)
      attempts/<attempt>.reports/<worker>.json        last report of each agent
      checkpoints/<attempt>/<save>/chunks/<64 hex>    what this save itself wrote; immutable
      checkpoints/<attempt>/<save>/rank-<rank>.json   rank manifest, create-only
      checkpoints/<attempt>/<save>/commit.json        commit record, create-only, last
      checkpoints/<attempt>/<save>/expired.json       tombstone (D2)
      checkpoints/<attempt>/<save>/verdicts/<check>.json
      refs/<branch uid>.json                          someone else builds on a checkpoint here (D6)
      scrub/notes.json                                how far the re-reading of what is stored has come

No key is a prefix of another key plus "/" (B6: some stores keep objects as files). Attempts and saves are written as ten digits, so that the
order of a listing is the order of numbers. Pure functions: nothing here talks to a store.
"""

import re
from dataclasses import dataclass

from holdfast_api.errors import BadName

_SEGMENT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
_UID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9-]{0,62}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_CHECKPOINT = re.compile(r"checkpoints/(\d{10})/(\d{10})/(.+)\Z")
_CLAIM = re.compile(r"attempts/(\d{10})\.json\Z")
MAX_NUMBER = 9_999_999_999


@dataclass(frozen=True, slots=True, order=True)
class CheckpointRef:
    """Names one checkpoint of a job: the attempt that made it and the number of the save within that attempt (B1)."""

    attempt: int
    save: int

    def __post_init__(self) -> None:
        for name in ("attempt", "save"):
            if not 0 < getattr(self, name) <= MAX_NUMBER:
                raise ValueError(f"{name} must be between 1 and {MAX_NUMBER}, not {getattr(self, name)}")

    def __str__(self) -> str:
        return f"{self.attempt}/{self.save}"

    @classmethod
    def parse(cls, text: str) -> "CheckpointRef":
        """Reads what `str` wrote, as people type it: `3/12`."""
        match = re.fullmatch(r"(\d{1,10})/(\d{1,10})", text)
        if not match:
            raise ValueError(f"{text!r} is not ATTEMPT/SAVE, for example 3/12")
        return cls(int(match[1]), int(match[2]))


def job_prefix(namespace: str, job: str, uid: str) -> str:
    """`<namespace>/<job>-<uid>/`, relative to the storage URI. Raises BadName for anything that could leave it (S6)."""
    return f"{segment(namespace)}/{segment(job)}-{checked_uid(uid)}/"


def segment(name: str) -> str:
    """A Kubernetes name, checked to be one path segment that cannot mean something else."""
    if not _SEGMENT.match(name) or ".." in name:
        raise BadName(f"{name!r} is not a Kubernetes name")
    return name


def checked_uid(uid: str) -> str:
    if not _UID.match(uid):
        raise BadName(f"{uid!r} is not a uid")
    return uid


def claim_key(attempt: int) -> str:
    return f"attempts/{_number(attempt)}.json"


def report_key(attempt: int, worker: int) -> str:
    return f"attempts/{_number(attempt)}.reports/{worker}.json"


def checkpoint_prefix(ref: CheckpointRef) -> str:
    return f"checkpoints/{_number(ref.attempt)}/{_number(ref.save)}/"


def chunk_key(ref: CheckpointRef, digest: str) -> str:
    if not _DIGEST.match(digest):
        raise BadName(f"{digest!r} is not a BLAKE3-256 digest in hex")
    return f"{checkpoint_prefix(ref)}chunks/{digest}"


def manifest_key(ref: CheckpointRef, rank: int) -> str:
    return f"{checkpoint_prefix(ref)}rank-{rank}.json"


def commit_key(ref: CheckpointRef) -> str:
    return f"{checkpoint_prefix(ref)}commit.json"


def tombstone_key(ref: CheckpointRef) -> str:
    return f"{checkpoint_prefix(ref)}expired.json"


def pending_key(ref: CheckpointRef, worker: int) -> str:
    """In a node's directory only: beside the images that wait to be finished (E6)."""
    return f"{checkpoint_prefix(ref)}pending-{worker}.json"


def verdict_key(ref: CheckpointRef, check: str) -> str:
    return f"{checkpoint_prefix(ref)}verdicts/{segment(check)}.json"


def branch_key(branch_uid: str) -> str:
    return f"refs/{checked_uid(branch_uid)}.json"


def scrub_key() -> str:
    return "scrub/notes.json"


def parse_claim_key(key: str) -> int | None:
    """The attempt, or None for a key that is no claim."""
    match = _CLAIM.match(key)
    return int(match[1]) if match else None


def parse_checkpoint_key(key: str) -> tuple[CheckpointRef, str] | None:
    """The checkpoint and what follows its prefix (`commit.json`, `chunks/…`), or None for another key."""
    match = _CHECKPOINT.match(key)
    if not match or int(match[1]) == 0 or int(match[2]) == 0:
        return None
    return CheckpointRef(int(match[1]), int(match[2])), match[3]


def _number(value: int) -> str:
    if not 0 < value <= MAX_NUMBER:
        raise BadName(f"{value} is not a number between 1 and {MAX_NUMBER}")
    return f"{value:010d}"
