"""What a decision may ask for: frozen, complete, past any ambiguity. Each may be carried out twice without harm."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from holdfast_api.messages import AttemptOrder, CheckpointOrder, CollectOrder, EndOrder, NoticeOrder
from holdfast_operator.crd.v1alpha1 import QueueStatus, ShunStatus, TrainingJobStatus


@dataclass(frozen=True, slots=True)
class PodAddress:
    """Where an agent is."""

    name: str
    uid: str
    ip: str


@dataclass(frozen=True, slots=True)
class EnsureChildren:
    """Service, Secret and NetworkPolicy of the job; existing ones of the same owner are left as they are."""


@dataclass(frozen=True, slots=True)
class CreatePod:
    worker: int
    serial: int
    avoid_nodes: tuple[str, ...] = ()
    prefer_nodes: tuple[str, ...] = ()
    queue: QueueStatus | None = None
    avoid_zones: tuple[str, ...] = ()
    capacity: str = ""
    shun: ShunStatus | None = None


@dataclass(frozen=True, slots=True)
class CheckTemplate:
    """A dry run of a worker's pod: a mistake in spec.template is found when it is made, not when a node has just been taken (G5)."""


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Graceful: the kubelet sends SIGTERM and waits for the pod's grace."""

    name: str
    uid: str
    """Precondition: a later pod of the same name is left alone."""
    why: str


@dataclass(frozen=True, slots=True)
class ReleaseQuota:
    """Removes Kueue's Workload of a pod group of which nothing runs or will run (queueing.py)."""

    group: str


@dataclass(frozen=True, slots=True)
class SendAttempt:
    pod: PodAddress
    order: AttemptOrder


@dataclass(frozen=True, slots=True)
class SendNotice:
    pod: PodAddress
    order: NoticeOrder


@dataclass(frozen=True, slots=True)
class SendCheckpoint:
    pod: PodAddress
    order: CheckpointOrder


@dataclass(frozen=True, slots=True)
class SendCollect:
    pod: PodAddress
    order: CollectOrder


@dataclass(frozen=True, slots=True)
class SendEnd:
    pod: PodAddress
    order: EndOrder


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """An Event on the job. `warning` says a person may have to do something."""

    reason: str
    message: str
    warning: bool = False


Send: TypeAlias = SendAttempt | SendNotice | SendCheckpoint | SendCollect | SendEnd
Action: TypeAlias = EnsureChildren | CheckTemplate | CreatePod | DeletePod | ReleaseQuota | Send | EmitEvent


@dataclass(frozen=True, slots=True)
class Decision:
    """`status` is written first, with compare-and-swap; `actions` follow only if that worked (A1)."""

    status: TrainingJobStatus
    actions: tuple[Action, ...] = ()
    wake_at: datetime | None = None
    """Look again at this time even if nothing happens."""
