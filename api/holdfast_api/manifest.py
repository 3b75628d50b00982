"""What a checkpoint is made of, as it lies in the store: claims, rank manifests, commit records, tombstones, verdicts, branch references.

docs/format.md specifies these in prose; protocol parts A and B give the rules. Only the serialized form is the promise.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import Cause, Member

MAX_MANIFEST_BYTES = 256 << 20
"""Bound of a rank manifest or commit record; a 16 TiB image in 64 MiB chunks stays below it."""

MAX_IMAGE_BYTES = 1 << 44
MAX_CHUNK_BYTES = 1 << 30
"""Bounds of what a manifest may ask a reader to allocate. A chunk is read as a whole."""

REPLICAS, SUSPECT = "replicas", "SUSPECT: "
"""The run fact of a commit record: `agree`, or `SUSPECT: ` and what differs. Absent: no two ranks hold copies that can be compared."""
INTACT = "intact"
"""The check of the scrub: every byte in the store is what it was."""
NOT_FINITE_NAMED = 5
"""Tensors named at most where some are not finite: the first ones say enough, and every later save would list most of the model."""


class CheckpointKind(StrEnum):
    """What a checkpoint holds."""

    FULL = "full"
    WEIGHTS_ONLY = "weights-only"


@dataclass(frozen=True, slots=True)
class ParentRef:
    """The checkpoint that an attempt continues. `job_uid` is another job's uid for a branch or a resume from an earlier job (A9, D6)."""

    job_uid: str
    attempt: int
    save: int

    @property
    def ref(self) -> CheckpointRef:
        return CheckpointRef(self.attempt, self.save)


@dataclass(frozen=True, slots=True)
class Claim:
    """`attempts/<n>.json`, create-only (A3): whoever wrote it is the attempt."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    attempt: int
    incarnation: str
    """Random, made by the claiming process; a 412 is our own success only if the stored one equals it (A4)."""
    members: tuple[Member, ...]
    parent: ParentRef | None
    """None only for a fresh start (C1)."""
    created_at: datetime
    schema: int = 1
    check: str = ""
    """As `CommitRecord.check`: a digit that turns over in `parent` would continue something older, and nobody would know. Empty in claims of older releases."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a rank's image: `length` bytes whose BLAKE3-256 is `digest`, lying under the checkpoint `at`."""

    digest: str
    length: int
    at: CheckpointRef


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A named range of the image. `dtype` is the true dtype as torch names it ("bfloat16"), also where the image's header says U8 (J1)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    """From the start of the image (header included)."""
    length_bytes: int
    tied_to: str | None = None
    """Another entry that holds the bytes; then offset and length are that entry's."""
    global_shape: tuple[int, ...] = ()
    """Of a part of a larger tensor (DTensor): the whole's shape; `shape` is this rank's part. Empty: the entry is a whole tensor."""
    global_offset: tuple[int, ...] = ()
    """Where the part begins in the whole, along each axis."""
    group: str = ""
    """Ranks (`0-3,6`) of which those with the same name and `global_offset` hold equal bytes, if nothing is wrong (J4). Empty: this rank's own."""


@dataclass(frozen=True, slots=True)
class LooseDigest:
    """Bytes of a replicated tensor that share a chunk with what is not replicated, so that the chunk's digest does not tell whether copies agree (J4)."""

    name: str
    offset_bytes: int
    """From the start of the image, as TensorEntry's."""
    length_bytes: int
    digest: str
    """The first 32 hex digits of their BLAKE3-256."""


@dataclass(frozen=True, slots=True)
class RankManifest:
    """`rank-<rank>.json`: one rank's part of one checkpoint. The image is exactly a `.safetensors` file of `image_bytes` bytes (J1)."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    attempt: int
    save: int
    rank: int
    world_size: int
    boundary: int
    image_bytes: int
    chunk_bytes: int
    """Every chunk but the last has this length."""
    chunks: tuple[Chunk, ...]
    """In image order; lengths add up to `image_bytes`."""
    tensors: tuple[TensorEntry, ...] = ()
    loose: tuple[LooseDigest, ...] = ()
    schema: int = 1


@dataclass(frozen=True, slots=True)
class RankEntry:
    """One rank in a commit record."""

    rank: int
    manifest_digest: str
    """BLAKE3-256 of the manifest's bytes as stored (B3)."""
    image_bytes: int
    finite: bool | None = None
    """Whether trained parameters and optimizer state were finite when they were saved. None: nobody looked, as in an emergency."""
    not_finite: tuple[str, ...] = ()
    """The first tensors that are not, by name."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stood. The identity is `boundary` (I1); the rest is for people and schedules."""

    boundary: int
    updates: int = 0
    epoch: int = 0
    samples: int = 0


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """What the metrics were at a boundary."""

    boundary: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """`commit.json`: its existence makes the checkpoint exist (B2). Written last, once, never changed."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    namespace: str
    job: str
    attempt: int
    save: int
    kind: CheckpointKind
    cause: Cause
    created_at: datetime
    progress: Progress
    ranks: tuple[RankEntry, ...]
    """One for each rank, 0..world_size-1, in order."""
    base: CheckpointRef | None
    """The checkpoint this save leans on (B4)."""
    refers_to: tuple[CheckpointRef, ...]
    """Every other checkpoint under which a chunk of this one lies (B3)."""
    bytes_logical: int = 0
    """Of the ranks' images."""
    bytes_sent: int = 0
    """To the store, in requests that it has carried out."""
    bytes_stored: int = 0
    """Of the chunks that lie under this checkpoint itself: what it costs beside its base."""
    metrics: dict[str, float] = field(default_factory=dict)
    run: dict[str, str] = field(default_factory=dict)
    """Run id, git commit, dirty flag, image, package versions, device, dataset fingerprint: strings only. What could not be found out says so:
    "missing: " and why."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    config: dict[str, str] = field(default_factory=dict)
    """The user's hyper-parameters by dotted name, each value as JSON."""
    history: tuple[MetricPoint, ...] = ()
    """The tail of the metrics of the run so far, oldest first."""
    check: str = ""
    """BLAKE3-256 of the record's own bytes with this value empty; the store fills it in. Manifests and chunks are named by digest, the record is
    the root that names them: without this a flipped bit in it would go unseen (S4)."""
    schema: int = 1

    @property
    def ref(self) -> CheckpointRef:
        return CheckpointRef(self.attempt, self.save)

    @property
    def finite(self) -> bool | None:
        """False if a rank holds trained values that are not finite, True if all are known to be; None: unknown."""
        found = {entry.finite for entry in self.ranks}
        return False if False in found else None if None in found else True

    @property
    def not_finite(self) -> tuple[str, ...]:
        """The first tensors that are not, by name; ranks that hold the same parameters name the same."""
        return tuple(dict.fromkeys(name for entry in self.ranks for name in entry.not_finite))[:NOT_FINITE_NAMED]

    @property
    def suspect(self) -> str:
        """What differs between copies of one state, in words; "" if nothing does, or nothing was compared (J4)."""
        said = self.run.get(REPLICAS)
        return said.removeprefix(SUSPECT) if isinstance(said, str) and said.startswith(SUSPECT) else ""


@dataclass(frozen=True, slots=True)
class Pending:
    """`pending-<worker>.json`, in a node's directory and never in a store: one worker's part of a save that lies there whole, manifests beside it, and is
    not known to be committed (E6). Written last (B9). It is no checkpoint: only the store's commit record makes one (B2)."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    attempt: int
    save: int
    worker: int
    incarnation: str
    """Of the claim under which it was made (A4)."""
    world_size: int
    base: CheckpointRef | None
    cause: Cause
    progress: Progress
    ranks: tuple[RankEntry, ...]
    """Of this worker; the digests prove the manifests beside it."""
    created_at: datetime
    step_seconds: float = 0.0
    """From one boundary to the next: what it is worth to wait for it. 0: not known."""
    store_seconds: float = 0.0
    """To bring this part into the store, as whoever left it expected. A pod that is new to a node has measured nothing yet. 0: not said."""
    metrics: dict[str, float] = field(default_factory=dict)
    run: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    history: tuple[MetricPoint, ...] = ()
    check: str = ""
    """As `CommitRecord.check`."""
    schema: int = 1

    @property
    def ref(self) -> CheckpointRef:
        return CheckpointRef(self.attempt, self.save)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """`expired.json`: the checkpoint no longer exists, whatever else lies there (D2). Stays for ever."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    attempt: int
    save: int
    by_attempt: int
    reason: str
    created_at: datetime
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """`verdicts/<check>.json`: what one check found."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    attempt: int
    save: int
    check: str
    passed: bool
    detail: str
    created_at: datetime
    schema: int = 1


@dataclass(frozen=True, slots=True)
class DamagedChunk:
    """A stored chunk that is not what its name says, and could not be mended."""

    at: CheckpointRef
    digest: str
    problem: str


@dataclass(frozen=True, slots=True)
class ScrubNotes:
    """`scrub/notes.json`: how far the re-reading of stored checkpoints has come. Overwritten; whoever cannot read it begins anew."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    begun_at: datetime
    done: tuple[CheckpointRef, ...] = ()
    """Of this round, read to their ends."""
    current: CheckpointRef | None = None
    chunks: int = 0
    """Of `current`, as far as its manifests could be read."""
    chunks_done: int = 0
    """Of them, in the order of ranks and images, each chunk once."""
    damaged: tuple[DamagedChunk, ...] = ()
    """Found in this round."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class BranchRef:
    """`refs/<branch uid>.json` in the *source* prefix: a checkpoint that another job builds on (D6)."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    """Of the source."""
    branch_uid: str
    checkpoint: CheckpointRef
    created_at: datetime
    schema: int = 1
