"""What operator and agents, and agents among themselves, say to each other by HTTP (design.md, section 6; protocol E, F, H).

    operator -> agent   POST /v1/attempt     AttemptOrder      -> AgentReport
                        POST /v1/notice      NoticeOrder       -> AgentReport
                        POST /v1/checkpoint  CheckpointOrder   -> AgentReport
                        POST /v1/collect     CollectOrder      -> AgentReport
                        POST /v1/end         EndOrder          -> AgentReport
                        GET  /v1/status                        -> AgentReport
    agent -> operator   POST /v1/reports     AgentReport       -> 204
    agent -> agent      POST /v1/peer/...    see holdfast_api.peers

Orders are level-triggered: they may be lost, repeated and reordered, and saying one twice changes nothing. All times are UTC, sizes `_bytes`,
durations `_seconds`.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from holdfast_api.layout import CheckpointRef


class Cause(StrEnum):
    """Why a checkpoint was made, a worker goes or an attempt ended. Also the `cause` label of the metrics."""

    PERIODIC = "periodic"
    MANUAL = "manual"
    DRILL = "drill"
    FINAL = "final"
    SPOT = "spot"
    REBALANCE = "rebalance"
    MAINTENANCE = "maintenance"
    SCALE_DOWN = "scale-down"
    DRAIN = "drain"
    CORDON = "cordon"
    EVICTION = "eviction"
    PRIORITY = "priority"
    NODE_PRESSURE = "node-pressure"
    NODE_SHUTDOWN = "node-shutdown"
    NODE_LOST = "node-lost"
    DELETION = "deletion"
    SIGTERM = "sigterm"
    SUSPEND = "suspend"
    FAILURE = "failure"
    ROLLBACK = "rollback"
    """The job goes back to an older checkpoint because something was found in a newer one (`spec.validation.onUnsound`). Never sent to agents."""
    RESIZE = "resize"
    """The job goes on with more workers (`spec.elastic`). Never sent to agents, nor written into commit records: older readers do not know it."""
    HUNG = "hung"
    """The ranks passed no boundary for far longer than usual and were started again. Of an attempt's end; never of a checkpoint, and never sent to agents."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Member:
    """A worker of an attempt (A2). `address` is the pod's IP, or empty while it has none."""

    worker: int
    pod_name: str
    pod_uid: str
    serial: int
    node: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """One announcement that a worker will go, from one source (F1)."""

    source: str
    """What said so: `taint:aws-node-termination-handler/spot-itn`, `condition:PreemptionScheduled`, `pod:DisruptionTarget`, `signal:SIGTERM`."""
    cause: Cause
    worker: int
    node: str
    noticed_at: datetime
    deadline: datetime | None = None
    acting: bool = True
    """False is preparing: save now, go on training (F2)."""
    revocable: bool = False
    withdrawn: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OfJob:
    """A checkpoint of the job with this uid: of this one, or of another whose checkpoints are continued (A9, D6)."""

    job_uid: str
    attempt: int
    save: int


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """Which checkpoints may be used: says what is excluded, so that a commit the operator has not heard of is found (C2, D3)."""

    excluded: tuple[CheckpointRef, ...] = ()
    """Quarantined or expired, above the horizon."""
    horizon: CheckpointRef | None = None
    """At or below it everything that is not in `retained` is excluded (D3)."""
    retained: tuple[CheckpointRef, ...] = ()
    pinned: CheckpointRef | None = None
    """Use exactly this one (rollback), or nothing."""
    pinned_after: int = -1
    """Attempts above it were started under this pin: once one of them has claimed it, it is carried out, whether or not the operator has heard of it (A7).
    -1: not said, by an older operator."""
    fresh: bool = False
    """The user said that starting from nothing is meant (C1, A9)."""
    resume_from_uid: str = ""
    """Continue the checkpoints of another uid of the same namespace and job name (A9)."""
    excluded_of: tuple[OfJob, ...] = ()
    """Excluded like `excluded`, each with the job that it belongs to: numbers of different jobs have nothing to do with each other."""
    own_only: bool = False
    """`excluded` speaks of the job's own checkpoints. False: an older operator, which did not tell them from another job's."""
    trusted: tuple[CheckpointRef, ...] = ()
    """Of the job's own, those that a person has looked at and found good: they count as sound, and no verdict speaks against them. Every byte is verified."""
    accept_suspect: bool = False
    """Copies that differ do not matter to this job: suspect checkpoints count as sound (J4)."""


@dataclass(frozen=True, slots=True)
class HangLimits:
    """For how long a rank may pass no boundary before it is taken for hung, by what it is doing: the most of these seconds, `factor` times the usual step,
    and twice the longest that it has ever taken. 0: never."""

    action: str = "restart"
    """`restart`: stacks, the newest state saved if it can be, the attempt fails; `report`: stacks and the word; `ignore`: nothing."""
    factor: int = 10
    step_seconds: int = 1800
    """Forward, backward, an optimizer's step, and whatever the script does that nobody can tell from these, as saving files of its own."""
    data_seconds: int = 3600
    """Waiting for a batch; or for a device, before a state is copied."""
    evaluation_seconds: int = 7200
    """A registered module is in `eval()`."""
    start_seconds: int = 7200
    """From the start of the process, or from its state's being there, to the first boundary, and to the second; without what the agent needs to fetch the
    state."""


@dataclass(frozen=True, slots=True)
class AttemptOrder:
    """Attempt `attempt` is on, with these members. Sent until the agent's report shows it; sent again with `may_claim` when A3 allows the claim."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    attempt: int
    members: tuple[Member, ...]
    processes_per_worker: int
    may_claim: bool
    restore: RestoreOrder
    interruptions: int = 0
    """Of the job so far: whatever ended an attempt."""
    interruptions_caught: int = 0
    """Of them, those that lost no step."""
    trained_seconds: float = 0.0
    """In all attempts before this one, from the first step to the end."""
    global_batch: int = 0
    """Samples of an update, of all ranks together, that training code is told (`spec.elastic.globalBatch`). 0: not said."""
    hangs: HangLimits = field(default_factory=HangLimits)
    schema: int = 1

    @property
    def world_size(self) -> int:
        return len(self.members) * self.processes_per_worker

    def ranks_of(self, worker: int) -> range:
        """The ranks of a worker: members are counted in the order of their numbers, which have gaps where a job goes on with fewer workers."""
        first = sum(m.worker < worker for m in self.members) * self.processes_per_worker
        return range(first, first + self.processes_per_worker)


@dataclass(frozen=True, slots=True)
class NoticeOrder:
    """All notices of the attempt that the operator knows, merged by nobody: the agent applies F1 over these and its own."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    attempt: int
    notices: tuple[Notice, ...]
    schema: int = 1


@dataclass(frozen=True, slots=True)
class CheckpointOrder:
    """Save now (manual, drill, suspend). `request_id` makes saying it twice harmless."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    attempt: int
    request_id: str
    cause: Cause
    then_stop: bool = False
    """After the commit the ranks stay stopped and the agent ends (suspend)."""
    deadline: datetime | None = None
    schema: int = 1


@dataclass(frozen=True, slots=True)
class CollectOrder:
    """Delete these checkpoints (D2). Sent to the lead of a claimed attempt only (D1)."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    attempt: int
    expired: tuple[CheckpointRef, ...]
    schema: int = 1


class AgentPhase(StrEnum):
    """Where an agent is with its attempt."""

    WAITING = "waiting"
    """No attempt yet."""
    STARTING = "starting"
    """Ranks are started; the claim or the bytes are still awaited."""
    RESTORING = "restoring"
    TRAINING = "training"
    EVACUATING = "evacuating"
    SEALED = "sealed"
    """The evacuation's checkpoint is committed, or nothing more can be; ranks are stopped."""
    FINISHED = "finished"
    FAILED = "failed"
    BLOCKED = "blocked"
    """Cannot go on without a person: see `blocked`."""


@dataclass(frozen=True, slots=True)
class EndOrder:
    """No attempt comes after this one, which has failed here: end, so that the pod ends by itself and keeps its log."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    attempt: int
    schema: int = 1


class BlockedReason(StrEnum):
    """Why an agent waits for a person. Each becomes the reason of a condition."""

    STORAGE_MISCONFIGURED = "StorageMisconfigured"
    STORAGE_DENIED = "StorageDenied"
    STORAGE_UNREACHABLE = "StorageUnreachable"
    EARLIER_JOB = "EarlierJobHasCheckpoints"
    NO_USABLE_CHECKPOINT = "NoUsableCheckpoint"
    LIBRARY_NOT_USED = "LibraryNotUsed"
    MEMORY_TOO_SMALL = "MemoryTooSmall"
    STATE_MISMATCH = "StateMismatch"


@dataclass(frozen=True, slots=True)
class Blocked:
    reason: BlockedReason
    message: str
    """Names the field, the value and the remedy."""


@dataclass(frozen=True, slots=True)
class LocalTrouble:
    """Why the node's directory holds no copy of the newest checkpoint. Training goes on, and the store has everything."""

    reason: str
    """LocalStorageFull, LocalStorageReadOnly or LocalStorageFailed; the reason of a condition. A word, not an enum: a later agent may know more."""
    message: str
    """Names the directory and the remedy."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A committed checkpoint, as status shows it."""

    attempt: int
    save: int
    boundary: int
    cause: Cause
    committed_at: datetime
    bytes_logical: int = 0
    bytes_sent: int = 0
    bytes_stored: int = 0
    """Of the chunks that lie under this checkpoint itself: what it costs beside its base."""
    durable: bool = True
    """In the object store; False where only the node's NVMe has it."""
    metrics: dict[str, float] = field(default_factory=dict)
    finite: bool | None = None
    """Whether trained parameters and optimizer state are finite. None: nobody looked, as in an emergency."""
    not_finite: tuple[str, ...] = ()
    """The first tensors that are not, by name."""
    suspect: str = ""
    """In words, where ranks that hold copies of one state did not hold the same bytes: which ranks, which tensors (J4)."""
    weights_only: bool = False
    """It holds weights alone, no state to resume."""

    @property
    def ref(self) -> CheckpointRef:
        return CheckpointRef(self.attempt, self.save)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A checkpoint that was tried and refused (C3, C4)."""

    attempt: int
    save: int
    reason: str
    of_checkpoint: bool
    """True for a failure of the checkpoint itself (it is quarantined); False for any other (it is suspended at most once)."""
    at: datetime
    job_uid: str = ""
    """Of the job whose checkpoint it is; empty: this one's own."""


@dataclass(frozen=True, slots=True)
class ClaimInfo:
    """What the lead claimed. `parent_*` are 0 for a fresh start."""

    attempt: int
    incarnation: str
    claimed_at: datetime
    parent_attempt: int = 0
    parent_save: int = 0
    parent_boundary: int = 0
    parent_job_uid: str = ""
    """Uid of the job that made the parent, if it is another one (A9, D6)."""


class Exit(StrEnum):
    """How an agent ended; the value of `names.EXIT_CODES` is its exit code."""

    FINISHED = "finished"
    PREEMPTED_SEALED = "preempted-sealed"
    PREEMPTED_NOTHING_NEW = "preempted-nothing-new"
    TRAINER_FAILED = "trainer-failed"
    CONFIGURATION_WRONG = "configuration-wrong"
    SUPERSEDED = "superseded"


class Stage(StrEnum):
    """Moments an agent reports with their time, each at most once per attempt; time to resume is made of them (operator, core/resume.py).

    NOTICED..SEALED belong to the attempt that ends, the rest to the one that begins. A moment of several ranks is that of the last one.
    """

    NOTICED = "noticed"
    QUIESCED = "quiesced"
    """All local ranks have captured the agreed boundary."""
    LOCAL_DURABLE = "local-durable"
    SEALED = "sealed"
    """Commit record acknowledged by the store, or the evacuation given up."""
    AGENT_STARTED = "agent-started"
    ATTEMPT_ACCEPTED = "attempt-accepted"
    RANKS_STARTED = "ranks-started"
    PREFETCHED = "prefetched"
    """What would be continued is in the arena and verified, before the claim; of the first checkpoint for which that is true."""
    CLAIMED = "claimed"
    FETCHED = "fetched"
    """Every byte the local ranks need is in the arena and verified."""
    LIBRARY_READY = "library-ready"
    """All local ranks have imported torch, built the model and asked for the restore."""
    LOADED = "loaded"
    FIRST_STEP = "first-step"
    """All local ranks have passed their first new boundary."""
    FAILED = "failed"
    """A local rank has ended badly, or the attempt cannot go on for another reason that is not the machine's."""


@dataclass(frozen=True, slots=True)
class EarlierReport:
    """What the last report of an agent in an earlier attempt said: found in the store by the next lead, and forwarded, because the pod that wrote it may be
    gone, and its termination message with it (H4)."""

    attempt: int
    worker: int
    pod_uid: str
    sequence: int
    """As in that report: one that was heard directly and is not older says more."""
    phase: AgentPhase
    boundary: int = 0
    stages: dict[str, datetime] = field(default_factory=dict)
    exit: Exit | None = None
    exit_detail: str = ""
    """Its end, at most 500 characters."""


@dataclass(frozen=True, slots=True)
class PlanOption:
    """One thing that could have been done about an evacuation, and what was expected of it when the choice was made."""

    choice: str
    """`live`, `store-only`, `clean-slot`, `node-only`, `peer-rescue` or `nothing-new`."""
    boundary: int
    likely_seconds: float
    sure_seconds: float
    slack_seconds: float
    """Between the likely end and the last moment for it; negative: it would be late."""
    chance: float
    """Of being done in time, 0 to 1."""


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A choice of the planner, by the coordinator of a round, and what became of it."""

    round: int
    choice: str
    """As in PlanOption."""
    boundary: int
    at: datetime
    deadline: datetime
    likely_seconds: float
    slack_seconds: float
    """As expected."""
    chance: float
    """The plan's own confidence, 0 to 1."""
    why: str
    """One line in words."""
    options: tuple[PlanOption, ...] = ()
    """Everything that was considered."""
    outcome: str = ""
    """`committed`, `on-node`, `rescued`, `late`, `failed`, `fell-back`, `replaced`, `withdrawn`, `nothing`; empty while it is carried out."""
    took_seconds: float = 0.0
    left_seconds: float = 0.0
    """Until the last moment for a commit record, when it ended."""


@dataclass(frozen=True, slots=True)
class UnfinishedCopy:
    """One worker's part of a save of an earlier attempt that lies whole in the directory of this agent's node, and is being brought into the store (E6)."""

    attempt: int
    save: int
    worker: int
    """Whose part it is: who returns to a node may have another number than who left it."""
    boundary: int
    ranks: tuple[int, ...]
    state: str
    """`sending`; `stored`, manifests included, so that only those of others are waited for; `committed`; `given-up`, and `detail` says why."""
    seconds: float = 0.0
    """Until it is stored, as expected now."""
    there: tuple[int, ...] = ()
    """Ranks of the job whose manifests were seen in the store."""
    step_seconds: float = 0.0
    """From one boundary to the next, when it was made; 0: not known."""
    world_size: int = 0
    """Of the attempt that made it: so many ranks' parts make it whole, however many there are now. 0: not said."""
    detail: str = ""

    @property
    def ref(self) -> CheckpointRef:
        return CheckpointRef(self.attempt, self.save)


@dataclass(frozen=True, slots=True)
class FlushEstimate:
    """What a worker expects its part of an emergency save to take, were it asked for now. Seconds as a rule; what follows on the other adds up."""

    bytes: int
    """What its ranks hold."""
    sent_bytes: int
    """Of which it would send so many; the rest is in the store already (B4)."""
    step_seconds: float
    """From one boundary to the next: so long ranks are waited for at most."""
    copy_seconds: float
    store_seconds: float
    commit_seconds: float
    sure_seconds: float
    """The whole, with the chance from which on a plan does not give the newest state up for an older one (0.8)."""
    node_seconds: float | None = None
    """To write the copied state to the node's directory; None where there is none."""
    measured: bool = False
    """Steps, copies and the store's speed have been seen. False: at least one of them is guessed."""


@dataclass(frozen=True, slots=True)
class RankStack:
    """What one rank was doing when it was looked at because nothing went on."""

    rank: int
    worker: int
    boundary: int
    doing: str
    """As the library says: `step`, `data`, `evaluation`, `start`, `save`, `slot`, `gate`, `finish`."""
    idle_seconds: float
    """Since it passed a boundary."""
    state: str = ""
    """Of its main thread, for the kernel: `R`, `S`, `D`, `T` (stopped by a signal), `Z`."""
    stack: str = ""
    """Of its threads, innermost frame first, the main thread's last; cut. Empty if there was no way to get it."""


@dataclass(frozen=True, slots=True)
class HangReport:
    """Of the lead: no rank that another one could be waiting for has passed a boundary for long."""

    at: datetime
    idle_seconds: float
    boundary: int
    """The newest that every rank has passed."""
    culprits: tuple[int, ...]
    """Ranks that the others wait for, as far as anybody can tell; empty: that cannot be told."""
    workers: tuple[int, ...]
    """Of the culprits."""
    why: str
    """One line in words: which ranks, where they are, and why these."""
    restarts: bool
    """The limit has passed and the ranks are to be started again; False: a word in time."""
    saved: str = ""
    """What has become of the newest state, in words; empty while nothing was tried."""
    stacks: tuple[RankStack, ...] = ()
    """The culprits' first, at most 8."""


@dataclass(frozen=True, slots=True)
class RankPace:
    """How long one rank takes, as moving averages in seconds; 0: not known."""

    rank: int
    step_seconds: float
    """From one boundary to the next: the same for all where they wait for each other."""
    busy_seconds: float = 0.0
    """Of these, the main thread has computed: without waits for other ranks. Known where it trains on the processor only."""
    update_seconds: float = 0.0
    """From the entrance of the update window to the boundary."""
    data_seconds: float = 0.0
    """Waiting for a batch."""


@dataclass(frozen=True, slots=True)
class AgentReport:
    """An agent's whole state: pushed when something changes, answered to every order, kept in the store and the termination message (H4)."""

    SCHEMA: ClassVar[int] = 1
    job_uid: str
    worker: int
    pod_uid: str
    sent_at: datetime
    sequence: int
    """Grows within a pod's life; older reports are ignored. A restarted agent starts above by using microseconds since 1970."""
    attempt: int
    """0 while the agent has none."""
    phase: AgentPhase
    boundary: int = 0
    """Newest boundary that all local ranks have passed."""
    step_seconds: float = 0.0
    """EWMA of the time between boundaries."""
    claim: ClaimInfo | None = None
    """Of the lead only."""
    restored: CheckpointInfo | None = None
    fresh: bool = False
    checkpoints: tuple[CheckpointInfo, ...] = ()
    """Commits of this attempt that this agent knows of, newest last, at most 20."""
    rejections: tuple[Rejection, ...] = ()
    expired: tuple[CheckpointRef, ...] = ()
    """Deletions that were carried out (D2)."""
    kept: tuple[CheckpointRef, ...] = ()
    """Deletions refused because something refers to the checkpoint."""
    notices: tuple[Notice, ...] = ()
    stages: dict[str, datetime] = field(default_factory=dict)
    """Stage -> when, for the current attempt."""
    bytes_fetched: int = 0
    fetched_from: dict[str, int] = field(default_factory=dict)
    """Source (arena, local, store) -> bytes."""
    done_requests: tuple[str, ...] = ()
    """`request_id`s of CheckpointOrders that ended, newest last, at most 20."""
    blocked: Blocked | None = None
    blocked_since: datetime | None = None
    """Since when for this reason."""
    exit: Exit | None = None
    exit_detail: str = ""
    superseded_by: int = 0
    storage_note: str = ""
    """What the probe found (B8), for the condition."""
    joined: int = 0
    """Greatest attempt that this pod has joined in any life of its agent. Above `attempt`: the agent was restarted in place and refuses that attempt (A1)."""
    saving: Blocked | None = None
    """Why the newest saves could not be stored; None again once one is committed."""
    local: LocalTrouble | None = None
    """None again once an image is on the node."""
    earlier: tuple[EarlierReport, ...] = ()
    """Of the lead: the newest report of each worker in the attempts before its own, at most one a worker; sent until one report with it is taken."""
    plans: tuple[PlanReport, ...] = ()
    """Of the coordinator: what it chose in evacuations of this attempt, newest last, at most 5."""
    stray: tuple[CheckpointRef, ...] = ()
    """Of the lead: committed checkpoints of this job that no attempt can reach, or that lie at or below the horizon and are not retained (D3), oldest
    first, at most 64. Found once after the claim; one that was ordered to be deleted is left out. Nothing is deleted without an order (D1, D2)."""
    interval_seconds: int = 0
    """Of the lead, with `every: auto`: between the begins of two periodic saves; 0 where it is not chosen."""
    interval_reason: str = ""
    arena: str = ""
    """Form and size of the slots in words, what that form gives up and the number to set for a better one (J6); empty until a layout is fixed."""
    unfinished: tuple[UnfinishedCopy, ...] = ()
    """What this agent has found on its node of the attempt before, and finishes (E6); newest first, at most 8."""
    on_node: CheckpointRef | None = None
    """The newest save of this attempt of which the local ranks' part lies whole on the node and that is not known to be committed: no checkpoint, but it
    may become one if a pod returns to the node before the next claim (E6)."""
    on_node_boundary: int = 0
    holds_of: tuple[int, ...] = ()
    """Workers that go, whose parts of `on_node` this one has taken: it finishes them with its own when the next attempt is joined (E6)."""
    damaged: dict[str, str] | None = None
    """Of the lead: ATTEMPT/SAVE -> what a scrub has found in the store's copy and nobody has mended, at most 64. None: it has not looked yet."""
    flush: FlushEstimate | None = None
    """None before the size of the state is known."""
    hang: HangReport | None = None
    """Of the lead; None again once a boundary is passed."""
    pace: tuple[RankPace, ...] = ()
    """Of the local ranks, at most 64."""
    schema: int = 1
