"""What lies below a job's prefix, read from listings only. Two ways: level by level (few requests when few saves matter) and everything at once."""

from dataclasses import dataclass, field

from holdfast_api import layout
from holdfast_api.layout import CheckpointRef
from holdfast_store.records import Records

_COMMIT, _TOMBSTONE, _CHUNKS = "commit.json", "expired.json", "chunks/"


@dataclass(frozen=True, slots=True)
class SaveState:
    """One save's own level: `committed` and `expired` are those of one listing, so they belong together."""

    ref: CheckpointRef
    committed: bool
    expired: bool
    ranks: tuple[int, ...]
    """Of the rank manifests that lie there."""
    has_verdicts: bool

    @property
    def exists(self) -> bool:
        """A checkpoint exists if and only if it is committed and has no tombstone (B2)."""
        return self.committed and not self.expired


@dataclass(slots=True)
class Lying:
    """Everything below one save's prefix, with sizes."""

    chunks: dict[str, int] = field(default_factory=dict)
    """By digest."""
    others: dict[str, int] = field(default_factory=dict)
    """By what follows the prefix: manifests, verdicts, commit record. The tombstone is not here: it stays for ever (D2)."""
    expired: bool = False

    @property
    def committed(self) -> bool:
        return _COMMIT in self.others

    @property
    def empty(self) -> bool:
        """Nothing is left, or nothing but the tombstone."""
        return not self.chunks and not self.others


def claimed(records: Records) -> list[int]:
    """Numbers of the attempts that have a claim, ascending."""
    level = records.bucket.list_level(records.prefix + "attempts/")
    numbers = (layout.parse_claim_key(info.key.removeprefix(records.prefix)) for info in level.objects)
    return sorted(n for n in numbers if n)


def attempts(records: Records) -> list[int]:
    """Attempts with anything below checkpoints/, newest first."""
    return _numbers(records.bucket.list_folders(records.prefix + "checkpoints/"))


def saves(records: Records, attempt: int) -> list[CheckpointRef]:
    """Saves of an attempt of which anything lies there, newest first."""
    prefix = layout.checkpoint_prefix(CheckpointRef(attempt, 1)).rsplit("/", 2)[0]
    return [CheckpointRef(attempt, n) for n in _numbers(records.bucket.list_folders(f"{records.prefix}{prefix}/"))]


def state(records: Records, ref: CheckpointRef) -> SaveState:
    prefix = records.prefix + layout.checkpoint_prefix(ref)
    level = records.bucket.list_level(prefix)
    names = {info.key.removeprefix(prefix) for info in level.objects}
    ranks = sorted(int(n[5:-5]) for n in names if n.startswith("rank-") and n.endswith(".json") and n[5:-5].isdecimal())
    return SaveState(ref, _COMMIT in names, _TOMBSTONE in names, tuple(ranks), "verdicts" in level.folders)


def scan(records: Records) -> dict[CheckpointRef, Lying]:
    """Every object of every save: one listing of all chunks, for deletion and for people."""
    found: dict[CheckpointRef, Lying] = {}
    for info in records.bucket.list(records.prefix + "checkpoints/"):
        parsed = layout.parse_checkpoint_key(info.key.removeprefix(records.prefix))
        if not parsed:
            continue
        lying, name = found.setdefault(parsed[0], Lying()), parsed[1]
        if name == _TOMBSTONE:
            lying.expired = True
        elif name.startswith(_CHUNKS):
            lying.chunks[name.removeprefix(_CHUNKS)] = info.size
        else:
            lying.others[name] = info.size
    return found


def _numbers(folders: list[str]) -> list[int]:
    return sorted((int(name) for name in folders if name.isdecimal() and len(name) == 10 and int(name)), reverse=True)
