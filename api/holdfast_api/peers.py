"""What agents say to each other (protocol, part E): one round stops every rank at one boundary, one save turns what they captured into a checkpoint.

    POST /v1/peer/round      RoundRequest   to the coordinator: please evacuate or save now      -> RoundAnswer
    POST /v1/peer/close      CloseGates     coordinator to all: shut the gates                   -> GateVotes
    POST /v1/peer/release    ReleaseGates   coordinator to all: run up to the target, capture    -> Captured
    POST /v1/peer/open       OpenGates      coordinator to all: the round is over                -> 204
    POST /v1/peer/offer      SaveOffer      to the lead: my ranks hold boundary b, clean         -> 204
    POST /v1/peer/flush      FlushOrder     coordinator to all: write your ranks' part           -> Flushed
    POST /v1/peer/committed  Committed      coordinator to all: this save is committed or given up -> 204
    POST /v1/peer/unfinished Unfinished     lead to all, before it claims: what do you finish?   -> UnfinishedCopies
    POST /v1/peer/rescue     RescueOrder    coordinator to a survivor: take that worker's part  -> Rescued
    POST /v1/peer/part       PartWanted     a survivor to that worker: what is it made of?       -> Part
    POST /v1/peer/resolved   Resolved       lead to all: claimed, fetch (and, once all have it, load) this -> Fetched
    POST /v1/peer/suspected  HangSuspected  to the lead: a rank of mine passes no boundary       -> 204
    POST /v1/peer/ranks      LookAtRanks    lead to all: what do your ranks do, and where?       -> RanksSeen
    POST /v1/peer/rejected   CheckpointRejected  to the lead: a rank found it bad while loading  -> 204
    GET  /v1/peer/chunks/<digest>            to a worker that holds the same: what lies in its slots -> the chunk's bytes, 404, or 503: not known yet

An agent that needs longer than a few seconds for an answer says 202; the sender repeats the request.

Requests carry `attempt`; an agent refuses every attempt but its own (409 with its AgentReport). A round is named by (attempt, number,
coordinator's pod uid); agents obey only the greatest number they have seen (E1). All are idempotent.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import MetricPoint, ParentRef, RankEntry
from holdfast_api.messages import Cause, CheckpointInfo, Rejection, UnfinishedCopy


@dataclass(frozen=True, slots=True)
class RoundRequest:
    SCHEMA: ClassVar[int] = 1
    attempt: int
    cause: Cause
    evacuate: bool
    """True: ranks stay stopped after the commit. False: training goes on."""
    deadline: datetime | None
    doomed: tuple[int, ...] = ()
    worker: int = -1
    """Who asks: its newest deadline counts, also if it is later than the one it gave before (F3). -1: not said."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class CloseGates:
    SCHEMA: ClassVar[int] = 1
    attempt: int
    round: int
    coordinator: str
    lease_seconds: float
    """The gate opens by itself after it, unless a copy is running (E4)."""
    vote_seconds: float = 5.0
    """How long the ranks' answers are waited for; a rank that hangs must not use up a short deadline."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds that something takes: at best, as a rule, and with the confidence that a plan relies on. At most 10^9, which stands for "not known"."""

    best: float
    likely: float
    sure: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a worker expects of its own part of an emergency save, from what it has measured. The coordinator plans with the slowest worker."""

    boundary: int
    """The last boundary that all its ranks are known to have passed."""
    since_seconds: float
    """For how long they have been under way from there."""
    step: Span
    """From one boundary to the next."""
    copy: Span
    """Of all that its ranks hold into their slots."""
    store: Span
    """To write a slot that is captured into the store, manifests included."""
    node: Span | None
    """To write it to the node's directory; None where there is none."""
    commit: Span
    """Of the commit record."""
    volume: str = "pod"
    """What the node's directory lives as long as: `AgentConfig.local_volume` (F4)."""
    beside: Span | None = None
    """Like `store`, for a save beside training, from its begin."""
    part_bytes: int = 0
    """Of its ranks' images. 0: not said."""
    takes_bytes: int = 0
    """Room for another worker's part, beside its own."""
    take: Span | None = None
    """To take a part as large as its own from another worker's memory, verified and durable. None: never measured."""
    finishes: bool = False
    """This agent understands `FlushOrder.to_store`, and its successor on the node finishes what is left there (E6)."""


@dataclass(frozen=True, slots=True)
class GateVotes:
    """Each local rank's e (E2): the boundary that will end the window in progress, else the last one passed; for a loop that can be copied at a
    boundary only, the next one it will pass. `done_at` is the last boundary of a rank that has finished (E3)."""

    SCHEMA: ClassVar[int] = 1
    votes: dict[str, int]
    """Rank (as text) -> e."""
    done_at: dict[str, int] = field(default_factory=dict)
    highest_save: int = 0
    """Greatest save number of the attempt that this agent has heard of (B1)."""
    clean: tuple[int, ...] = ()
    """Boundaries that every local rank holds in a clean slot: what is left if the ranks do not arrive (E3)."""
    keeps: bool = False
    """This agent understands `OpenGates.keep`. Where one does not, gates are opened after the save only."""
    outlook: Outlook | None = None
    """What it expects of a save; None before there is a plan of its ranks' state, and from an agent that does not say it."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class ReleaseGates:
    """All ranks below `target` may run until they have passed it; there each captures into a slot and stops."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    round: int
    coordinator: str
    target: int
    deadline: datetime | None
    evacuate: bool = True
    """False: training goes on after the round, so a save in flight need not give its slot up."""
    pinned: int = 0
    """The newest boundary that every rank of the job holds clean: its slots are what is left if the ranks do not arrive (E3, E4). 0 for none."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Captured:
    """Answered when every local rank holds the boundary `boundary` in a clean slot, or with `error`."""

    SCHEMA: ClassVar[int] = 1
    boundary: int
    error: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class OpenGates:
    SCHEMA: ClassVar[int] = 1
    attempt: int
    round: int
    coordinator: str
    keep: int = 0
    """The boundary that was captured and is being saved while training goes on: its slots stay the agent's. 0: none."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class SaveOffer:
    """A worker's ranks have captured a periodic boundary, which all ranks reach without being told."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    worker: int
    boundary: int
    schema: int = 1


@dataclass(frozen=True, slots=True)
class FlushOrder:
    """Write the slot that holds `boundary` as save `save`; chunks of `base` need not be sent again (B4)."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    save: int
    boundary: int
    base: CheckpointRef | None
    cause: Cause
    emergency: bool
    deadline: datetime | None
    """Said again with another deadline, the same order takes it over: a deadline may prove to be later, or earlier, while the flush runs (F1, F3)."""
    to_node: bool = True
    """False: the node's copy would cost time that the store needs."""
    full_speed: bool = False
    """Beside training, but at the speed of an emergency: a job's first save, which shows what an emergency can rely on."""
    to_store: bool = True
    """False: on the node alone, to be finished by whoever returns there before the next claim (E6); no request goes to the store."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class ReplicaDigest:
    """What a rank holds as a copy, in short (J4): ranks of the same group with the same table must tell the same content."""

    rank: int
    group: str
    """As TensorEntry's."""
    table: str
    """BLAKE3-256 of which tensors these are, and where they lie."""
    content: str
    """BLAKE3-256 of the digests of their bytes."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """The worker's ranks are in the store, manifests included (`ranks`), or `error` says why not. For an order without `to_store`: on the node, durable."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    save: int
    ranks: tuple[RankEntry, ...]
    refers_to: tuple[CheckpointRef, ...] = ()
    bytes_logical: int = 0
    bytes_sent: int = 0
    bytes_stored: int = 0
    updates: int = 0
    epoch: int = 0
    samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    run: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    history: tuple[MetricPoint, ...] = ()
    local_durable_at: datetime | None = None
    error: str = ""
    replicas: tuple[ReplicaDigest, ...] = ()
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Committed:
    """How a save ended. `record` is the commit record's exact text, for the local tier; empty when the save was given up."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    save: int
    record: str
    info: CheckpointInfo | None = None
    sealed: bool = False
    """The round was an evacuation and is over: ranks stay stopped."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class RescueOrder:
    """Take what `worker` holds of save `save`, which cannot be in the store in time, from its memory, and keep it (E6)."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    save: int
    boundary: int
    worker: int
    deadline: datetime | None
    """Of that worker. Said again with another one, the same order takes it over."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Rescued:
    """All of it is verified and durable here, beside what says so, or `error` says why not. It is no checkpoint until somebody has finished it."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    save: int
    worker: int
    """Who took it."""
    error: str = ""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class PartWanted:
    """What does your part of this save consist of? Answered once all of it has been hashed."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    save: int
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """`pending` names the manifests by digest, the manifests name the chunks: all of it is read as `/v1/peer/chunks/<digest>`."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    save: int
    worker: int
    pending: str
    """The text of a `Pending`, which proves itself, as it would lie on a node. Empty: it has none, and will not have one."""
    manifest_bytes: tuple[int, ...] = ()
    """Of each manifest, in the order of `pending.ranks`."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The lead, which may claim and has not: what of the attempt before lies on your node, and when will it be in the store (E6)? A member that does not
    know the message has nothing."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    schema: int = 1


@dataclass(frozen=True, slots=True)
class UnfinishedCopies:
    SCHEMA: ClassVar[int] = 1
    attempt: int
    worker: int
    copies: tuple[UnfinishedCopy, ...] = ()
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Resolved:
    """The lead has claimed the attempt and found what it continues (A3, C2); None is a fresh start (C1)."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    incarnation: str
    parent: ParentRef | None
    commit: str
    """The commit record's exact text, so that every member loads the same one; empty for a fresh start."""
    load: bool = True
    """False: fetch and verify only. The lead says True when all members have every byte, so that no rank loads what another must reject (C3)."""
    choice: int = 0
    """Grows with each choice of the lead. The same checkpoint under another number is to be tried anew: it may have been mended since it was refused."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Prefetch:
    """The lead, which has not claimed yet: this checkpoint would be continued now. A member may fetch its part ahead; it decides nothing, and only
    `Resolved` counts. Best effort: a member that does not know the message loses time and nothing else."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    parent: ParentRef
    commit: str
    """The commit record's exact text."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Fetched:
    """Answer to `Resolved`: every byte that the local ranks need is verified, or `rejection` says what is wrong with the checkpoint."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    worker: int
    rejection: Rejection | None = None
    schema: int = 1


@dataclass(frozen=True, slots=True)
class CheckpointRejected:
    """A local rank could not use the checkpoint although its bytes verified (C4): the lead picks the next older one for all."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    worker: int
    rejection: Rejection
    schema: int = 1


@dataclass(frozen=True, slots=True)
class RoundAnswer:
    """The coordinator has taken the request in; it does the rest by itself."""

    SCHEMA: ClassVar[int] = 1
    round: int
    schema: int = 1


@dataclass(frozen=True, slots=True)
class HangSuspected:
    """A local rank has passed no boundary for longer than it may. Repeated while that is so."""

    SCHEMA: ClassVar[int] = 1
    attempt: int
    worker: int
    schema: int = 1


@dataclass(frozen=True, slots=True)
class LookAtRanks:
    SCHEMA: ClassVar[int] = 1
    attempt: int
    stacks: bool
    """With what their threads are doing: costs each rank a signal."""
    schema: int = 1


@dataclass(frozen=True, slots=True)
class RankSeen:
    """What an agent knows of one of its ranks."""

    rank: int
    boundary: int
    doing: str
    """As the rank says (holdfast_api.ranks.Doing); empty: it does not say."""
    idle_seconds: float
    """Since it passed a boundary, or since its clock began; without time in which the agent itself stood still."""
    patience_seconds: float
    """How long that may be, for what it is doing; 0: for ever."""
    warn_seconds: float = 0.0
    """After which it is worth a word; 0: never."""
    ended: bool = False
    """Its process is over, or it has said that it is done."""
    state: str = ""
    stack: str = ""


@dataclass(frozen=True, slots=True)
class RanksSeen:
    SCHEMA: ClassVar[int] = 1
    ranks: tuple[RankSeen, ...] = ()
    schema: int = 1
