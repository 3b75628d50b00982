"""What a decision may use, all of it: one job with its pods, nodes and agents, as frozen values.

The shell translates API objects into these; nothing here keeps a reference to a live object. Times are UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from holdfast_api.messages import AgentReport
from holdfast_operator.core.signal_table import NO_RULES, SignalRules
from holdfast_operator.crd.v1alpha1 import TrainingJobSpec, TrainingJobStatus


@dataclass(frozen=True, slots=True)
class JobMeta:
    name: str
    namespace: str
    uid: str
    generation: int = 1
    resource_version: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Taint:
    key: str
    value: str = ""
    effect: str = ""
    added_at: datetime | None = None
    """Kubernetes sets it for NoExecute taints only."""


@dataclass(frozen=True, slots=True)
class NodeCondition:
    type: str
    status: str
    reason: str = ""
    message: str = ""
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """An Event about a node. It announces for as long as the API server keeps it, and is never taken back."""

    reason: str
    message: str = ""
    at: datetime | None = None
    """Of the last time that it was told."""


@dataclass(frozen=True, slots=True)
class NodeSeen:
    name: str
    ready: bool = True
    ready_since: datetime | None = None
    """Last change of Ready, whichever way."""
    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()
    conditions: tuple[NodeCondition, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    deleting_since: datetime | None = None
    events: tuple[NodeEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class PodSeen:
    name: str
    uid: str
    worker: int
    serial: int
    created_at: datetime
    node: str = ""
    ip: str = ""
    phase: str = "Pending"
    """Of the pod: Pending, Running, Succeeded, Failed, Unknown."""
    reason: str = ""
    """`status.reason`: Evicted, NodeShutdown, …"""
    message: str = ""
    deletion_deadline: datetime | None = None
    """`metadata.deletionTimestamp`: when the kubelet kills it at the latest (F1)."""
    deletion_grace_seconds: int | None = None
    disruption: str = ""
    """Reason of the condition DisruptionTarget (or TerminationTarget), empty unless True."""
    disruption_message: str = ""
    disruption_since: datetime | None = None
    waiting_reason: str = ""
    """Of the trainer container: ImagePullBackOff, CreateContainerConfigError, …"""
    waiting_message: str = ""
    exit_code: int | None = None
    """Of the trainer container, once it has ended for good; None while the kubelet is about to start it again in place (G1)."""
    exit_reason: str = ""
    """OOMKilled, StartError, ContainerCannotRun, Error, …"""
    exit_message: str = ""
    restarted_after: str = ""
    """Why the trainer container's life before this one ended: OOMKilled, Error, …; empty if this is its first."""
    report: AgentReport | None = None
    """Last report, read from the termination message (H4)."""
    unschedulable: str = ""
    """The scheduler's message, empty unless it found no node."""
    gates: tuple[str, ...] = ()
    """Scheduling gates that it still has: no scheduler looks at it before all are taken away."""
    queue_group: str = ""
    """Kueue's pod group that it says it belongs to."""
    queue_managed: bool = False
    """Kueue has taken charge of it."""
    scheduled_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def terminal(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @property
    def ended(self) -> bool:
        """The trainer has ended for good. The pod need not be: another container of it may run on."""
        return self.terminal or self.exit_code is not None

    @property
    def deleting(self) -> bool:
        return self.deletion_deadline is not None


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest report of a pod's agent, and when the operator last heard anything from it (the operator's clock)."""

    report: AgentReport
    at: datetime
    ahead_seconds: float = 0.0
    """Of its last reports: how far its machine's clock is ahead of the operator's; negative: behind. A report takes time, so the one that travelled fastest
    counts."""


class RefusalKind(StrEnum):
    """Why the API server did not make an object."""

    INVALID = "invalid"
    """The pod is wrong: spec.template must be changed (G5)."""
    FORBIDDEN = "forbidden"
    """Quota or admission: may pass later (F5)."""
    TAKEN = "taken"
    """The name belongs to another owner (A9)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    kind: RefusalKind
    what: str
    """The object: `pod bytes-gpt-1a2b3c4d-0-1`."""
    message: str
    at: datetime
    times: int = 1
    """In a row."""
    beside: int = 0
    """Pods of the job that lived then."""


@dataclass(frozen=True, slots=True)
class Observed:
    job: JobMeta
    spec: TrainingJobSpec
    status: TrainingJobStatus
    pods: tuple[PodSeen, ...] = ()
    nodes: Mapping[str, NodeSeen] = field(default_factory=dict)
    heard: Mapping[str, Heard] = field(default_factory=dict)
    """Pod uid -> newest report."""
    watching_since: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    """Since when this operator process could hear agents: silence counts from here at the earliest (I9)."""
    children_exist: bool = True
    """Service, Secret and NetworkPolicy have been made or found lately."""
    template_checked: bool = True
    """The API server has seen a pod of this generation's spec.template, for real or as a dry run."""
    refusals: tuple[Refusal, ...] = ()
    """What the API server refused and has not taken since."""
    signal_rules: SignalRules = NO_RULES
    """What the operator was told at its start about announcements."""
    spec_error: str = ""
    """The stored spec cannot be read (an older CRD): names the field."""

    @property
    def living(self) -> int:
        """Pods of the job that count against a quota."""
        return sum(not p.terminal for p in self.pods)
