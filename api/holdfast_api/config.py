"""What the operator tells an agent when its pod is made: the environment variable `names.ENV_CONFIG`, one JSON object.

Only what cannot change during a pod's life stands here; attempts, notices and restore orders come as messages.
"""

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """Where checkpoints go. Credentials are never here: they come from the environment by the store's own chain."""

    uri: str
    """`s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `file:///directory`."""
    endpoint: str = ""
    region: str = ""
    addressing: str = ""
    """s3:// only: `path` or `virtual` (the bucket is part of the host's name); empty: path with an endpoint of one's own, virtual on AWS."""
    encryption: str = ""
    """s3:// only: `AES256` or `aws:kms`, asked for with every object; empty: what the bucket does by default."""
    kms_key_id: str = ""
    """With `aws:kms`: the key; empty: the account's own."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    SCHEMA: ClassVar[int] = 1
    namespace: str
    job: str
    job_uid: str
    worker: int
    serial: int
    workers: int
    processes_per_worker: int
    storage: StorageConfig
    every_steps: int = 0
    every_seconds: int = 0
    chunk_bytes: int = 16 << 20
    grace_seconds: int = 120
    """terminationGracePeriodSeconds of the pod."""
    sigterm_floor_seconds: int = 15
    """What a bare SIGTERM is assumed to leave (F3), if the pod's grace is not smaller."""
    notice_seconds: int = 120
    """Deadline of an acting notice that has none (F2)."""
    operator_url: str = ""
    """Where reports go; empty outside Kubernetes (A10)."""
    slots: int = 2
    """Per rank at most; one is used where two do not fit (J6)."""
    memory_dir: str = "/var/run/holdfast/arena"
    local_dir: str = "/var/lib/holdfast"
    local_volume: str = "pod"
    """What `local_dir` lives as long as (F4): `pod` (an emptyDir), `node` (a host path), or `network` (a volume that any node can mount)."""
    labels: dict[str, str] = field(default_factory=dict)
    every_auto: bool = False
    """The lead chooses the interval by itself, from what it measures (agent/interval.py); steps and seconds are 0 then."""
    max_loss_seconds: int = 3600
    """`every_auto`: work that an interruption without notice may cost at most."""
    max_overhead_percent: int = 5
    """`every_auto`: share of the time that saving may take."""
    background_bytes_per_second: int = 0
    """What this agent may send to the store beside training; never in an emergency, nor of the last state. 0: no limit."""
    image: str = ""
    """The trainer container's, as its template names it; for commit records."""
    scrub_bytes_per_second: int = 0
    """At which the lead re-reads what is stored, beside training; 0: it does not."""
    scrub_every_seconds: int = 7 * 86_400
    """From the end of one round to the begin of the next."""
    warm_start: bool = False
    """Training processes are started, and import torch, before their attempt is known (agent/standby.py)."""
    schema: int = 1
