"""TrainingJob v1alpha1: the only source of the CRD, the chart's copy and docs/api.md.

Frozen models with camelCase aliases. `json_schema_extra` carries what Kubernetes adds to JSON schema (CEL rules, list types); render.py turns the
rest into a structural schema. The CRD is additive: fields are added, never renamed, removed or tightened.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Name = Annotated[str, Field(max_length=253)]
Message = Annotated[str, Field(max_length=4096)]


class Model(BaseModel):
    """Base of all parts: immutable, read and written in camelCase, unknown fields ignored (the API server prunes them)."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", use_attribute_docstrings=True)

    def to_wire(self) -> dict[str, Any]:
        """As the API server stores it: camelCase, absent instead of null."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def rule(expression: str, message: str, **extra: Any) -> dict[str, Any]:
    """One CEL validation rule. The message names the field and says what to do."""
    return {"rule": expression, "message": message, **extra}


def validations(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"x-kubernetes-validations": list(rules)}


# ---- spec


class Storage(Model):
    """Where checkpoints go."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule(
                "self.uri.startsWith('s3://') || self.uri.startsWith('file:///')",
                "spec.checkpoint.storage.uri must start with s3:// or file:///, for example s3://my-bucket/checkpoints",
            ),
            rule(
                "!self.uri.startsWith('s3://') || self.uri.matches('^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$')",
                "spec.checkpoint.storage.uri names no valid bucket: write s3://BUCKET/PREFIX; "
                "bucket names have 3 to 63 lower-case letters, digits, dots and dashes",
            ),
            rule(
                "self.uri == oldSelf.uri",
                "spec.checkpoint.storage.uri cannot be changed: the job would lose its checkpoints; "
                "create a job of another name, or copy the checkpoints and use resumeFrom",
            ),
        )
    )
    uri: Annotated[str, Field(min_length=1, max_length=1024)]
    """`s3://bucket/prefix`, or `file:///directory` that every worker mounts."""
    secret_name: Name = ""
    """Secret of the job's namespace whose keys become environment variables of the trainer container: AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and so on. Empty: workload identity or the node's own."""
    endpoint: Annotated[str, Field(max_length=1024)] = ""
    """Endpoint of an S3-compatible store, unless the Secret names one."""
    region: Annotated[str, Field(max_length=64)] = ""


class Every(Model):
    """How often a periodic checkpoint is taken."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule(
                "(has(self.steps) && self.steps > 0) != (has(self.seconds) && self.seconds > 0)",
                "spec.checkpoint.every needs exactly one of steps and seconds, greater than 0",
            )
        )
    )
    steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    seconds: Annotated[int, Field(ge=0, le=86_400 * 7)] = 0


class Keep(Model):
    """Which checkpoints are kept. The newest usable one and the newest one proved good are always kept (C5)."""

    last: Annotated[int, Field(ge=1, le=1000)] = 3


class ReclaimPolicy(StrEnum):
    RETAIN = "Retain"
    DELETE = "Delete"


class LocalHostPath(Model):
    """A directory of the node (opt-in: refused by the baseline and restricted pod security levels)."""

    path: Annotated[str, Field(min_length=2, max_length=1024, pattern=r"^/[^\x00]*$")]


class Local(Model):
    """The node-local tier. Without it an emptyDir is used, which lives as long as the pod (F4)."""

    host_path: LocalHostPath | None = None


class Checkpoint(Model):
    """What is saved, where, how often, and what is kept."""

    storage: Storage
    every: Every = Every(seconds=600)
    keep: Keep = Keep()
    local: Local = Local()
    chunk_mi_b: Annotated[int, Field(ge=1, le=64)] = 16
    """Size of a chunk in MiB (J3)."""
    memory_mi_b: Annotated[int, Field(ge=0, le=16 << 20)] = 0
    """Size limit of the memory volume that holds the arena, in MiB. 0: the pod's memory limit bounds it."""


class PreemptionBudget(Model):
    """How often the job may be preempted. Absent `max`: without limit."""

    max: Annotated[int, Field(ge=0, le=1_000_000)] | None = None


class FailureBudget(Model):
    """How many failures in a row without a new durable checkpoint end the job."""

    max: Annotated[int, Field(ge=0, le=1000)] = 3
    backoff_seconds: Annotated[int, Field(ge=0, le=3600)] = 10
    """Wait before the second try; doubles each time, at most 300."""


class Budgets(Model):
    preemptions: PreemptionBudget = PreemptionBudget()
    failures: FailureBudget = FailureBudget()


class Notices(Model):
    default_deadline_seconds: Annotated[int, Field(ge=5, le=3600)] = 120
    """Deadline of an acting notice that has none (F2)."""
    node_lost_seconds: Annotated[int, Field(ge=0, le=3600)] = 5
    """How long a worker must be unheard of, with its node not Ready, before it counts as lost (A3)."""


class ResumeFrom(Model):
    """Continue an earlier job's checkpoints (A9), or go back to one of this job's own (A7)."""

    uid: Annotated[str, Field(max_length=63)] = ""
    """Uid of an earlier job of the same namespace and name."""
    checkpoint: Annotated[str, Field(max_length=32, pattern=r"^([0-9]+/[0-9]+)?$")] = ""
    """ATTEMPT/SAVE; empty: the newest that validates."""


class TrainingJobSpec(Model):
    """What a person asks for."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule("self.workers == oldSelf.workers", "spec.workers cannot be changed: create a job of another name"),
            rule(
                "self.processesPerWorker == oldSelf.processesPerWorker",
                "spec.processesPerWorker cannot be changed: create a job of another name",
            ),
            rule(
                "!(self.fresh && has(self.resumeFrom))",
                "spec.fresh and spec.resumeFrom exclude each other: remove one of them",
            ),
        )
    )
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Pods of the job."""
    processes_per_worker: Annotated[int, Field(ge=1, le=64)] = 1
    """Training processes (ranks) in each pod."""
    suspend: bool = False
    """True: take a checkpoint, then run nothing until it is False again."""
    fresh: bool = False
    """Start from nothing although checkpoints of an earlier job of this name exist (A9)."""
    resume_from: ResumeFrom | None = None
    checkpoint: Checkpoint
    budgets: Budgets = Budgets()
    notices: Notices = Notices()
    template: Annotated[
        dict[str, Any],
        Field(json_schema_extra={"x-holdfast-template": True}),
    ]
    """Pod template. The container named `trainer`, else the first, is run under the agent; it must have `command`."""


# ---- status


class Phase(StrEnum):
    """For people. Conditions are for machines (design.md, section 5)."""

    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    EVACUATING = "Evacuating"
    RECOVERING = "Recovering"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Condition(Model):
    """As `metav1.Condition`."""

    type: Annotated[str, Field(max_length=316)]
    status: Annotated[str, Field(json_schema_extra={"enum": ["True", "False", "Unknown"]})]
    reason: Annotated[str, Field(max_length=1024)]
    message: Annotated[str, Field(max_length=32768)] = ""
    last_transition_time: datetime
    observed_generation: int = 0


class CheckpointStatus(Model):
    """A committed checkpoint."""

    name: Annotated[str, Field(max_length=32)]
    """ATTEMPT/SAVE."""
    step: int
    """Boundary number (I1)."""
    cause: Annotated[str, Field(max_length=32)]
    time: datetime
    bytes: int = 0
    bytes_sent: int = 0


class WorkerStatus(Model):
    """The pod that is, or will be, a worker. `serial` is written here before the pod is created, so no name is used twice (A2)."""

    worker: int
    serial: int
    pod_uid: Name = ""
    """Empty until the pod has been seen; set and the pod gone means it is lost."""
    node: Name = ""
    avoid_nodes: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    since: datetime


class MemberStatus(Model):
    worker: int
    pod: Name
    pod_uid: Name
    serial: int
    node: Name = ""


class AttemptStatus(Model):
    """The current attempt (A1, A2): written before any agent is told of it."""

    number: int
    members: Annotated[tuple[MemberStatus, ...], Field(max_length=1024)] = ()
    created_at: datetime
    accepted_at: datetime | None = None
    """All members have acknowledged the attempt."""
    may_claim_at: datetime | None = None
    claimed_at: datetime | None = None
    incarnation: Annotated[str, Field(max_length=64)] = ""
    parent: Annotated[str, Field(max_length=128)] = ""
    """Checkpoint that the attempt continues; `fresh` for none; empty until claimed."""
    parent_step: int = 0
    first_step_at: datetime | None = None


class NoticeStatus(Model):
    """One notice (F1), kept after pod and node are gone."""

    worker: int
    source: Annotated[str, Field(max_length=316)]
    cause: Annotated[str, Field(max_length=32)]
    node: Name = ""
    noticed_at: datetime
    deadline: datetime | None = None
    acting: bool = True
    revocable: bool = False
    withdrawn: bool = False
    detail: Message = ""


class PhaseDuration(Model):
    """One phase of a time to resume."""

    name: Annotated[str, Field(max_length=32)]
    milliseconds: int


class PreemptionStatus(Model):
    """One interruption and how the job came out of it."""

    attempt: int
    """The attempt that it ended."""
    cause: Annotated[str, Field(max_length=32)]
    source: Annotated[str, Field(max_length=316)] = ""
    workers: Annotated[tuple[int, ...], Field(max_length=1024)] = ()
    nodes: Annotated[tuple[Name, ...], Field(max_length=1024)] = ()
    noticed_at: datetime
    deadline: datetime | None = None
    sealed_at: datetime | None = None
    step_at_notice: int = 0
    resumed_from: Annotated[str, Field(max_length=128)] = ""
    resumed_step: int = 0
    steps_lost: int = 0
    fell_back: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    """Checkpoints that were tried and refused, newest first, with the reason."""
    resumed_at: datetime | None = None
    phases: Annotated[tuple[PhaseDuration, ...], Field(max_length=16)] = ()
    total_milliseconds: int = 0
    """Notice (or loss) to the first new step. The phases add up to it."""


class Counts(Model):
    preemptions: int = 0
    failures: int = 0
    """Of all attempts."""
    failures_in_a_row: int = 0
    """Without a new durable checkpoint between them."""


class TrainingJobStatus(Model):
    """What the operator has seen and decided. All its memory is here, on pods, or in the bucket (design.md, section 5)."""

    observed_generation: int = 0
    phase: Phase | None = None
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = ()
    attempt: AttemptStatus | None = None
    attempts_used: int = 0
    """Greatest attempt number ever given; never given again (A1)."""
    workers: Annotated[tuple[WorkerStatus, ...], Field(max_length=2048)] = ()
    step: int = 0
    last_checkpoint: CheckpointStatus | None = None
    checkpoints: Annotated[tuple[CheckpointStatus, ...], Field(max_length=1100)] = ()
    """Retained checkpoints, newest last (D3)."""
    expiring: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    """Given up (D1), not yet reported deleted."""
    quarantined: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    """Refused for what is in them (C4)."""
    horizon: Annotated[str, Field(max_length=32)] = ""
    """At or below it everything that is not in `checkpoints` is excluded (D3)."""
    notices: Annotated[tuple[NoticeStatus, ...], Field(max_length=256)] = ()
    preemptions: Annotated[tuple[PreemptionStatus, ...], Field(max_length=10)] = ()
    """The last ten, newest last."""
    last_resume_milliseconds: int | None = None
    counts: Counts = Counts()
    retry_at: datetime | None = None
    """No attempt is started before it (back-off)."""
    checkpoint_request: Annotated[str, Field(max_length=64)] = ""
    """Value of the checkpoint-now annotation that has been carried out."""
