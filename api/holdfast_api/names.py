"""Every name that two processes, or a process and a person, must spell the same way. docs/api.md, docs/metrics.md and docs/wire.md list them for users."""

from holdfast_api.messages import Exit

GROUP = "holdfast.dev"
VERSION = "v1alpha1"
KIND = "TrainingJob"
PLURAL = "trainingjobs"
SHORT = "tj"

# Labels and annotations. The operator writes them on what it creates; pods are found by them.
LABEL_JOB = "holdfast.dev/job"
LABEL_JOB_UID = "holdfast.dev/job-uid"
LABEL_WORKER = "holdfast.dev/worker"
LABEL_SERIAL = "holdfast.dev/serial"
LABEL_MANAGED = "app.kubernetes.io/managed-by"
MANAGED_BY = "holdfast"
ANNOTATION_CHECKPOINT_NOW = "holdfast.dev/checkpoint-now"
"""On a TrainingJob: any new value asks for a manual checkpoint."""
LABEL_NODE_SHUTDOWN = "holdfast.dev/node-shutdown-seconds"
"""On a Node: what its kubelet leaves ordinary pods when it shuts the node down. For kubelets' own --node-labels, node pools and whatever else makes nodes."""
ANNOTATION_PAUSED = "holdfast.dev/reconcile"
"""On a TrainingJob: the value `paused` makes the operator leave the job alone."""

# Environment of the trainer container (set by the operator) and of the ranks (set by the agent).
ENV_CONFIG = "HOLDFAST_AGENT_CONFIG"
ENV_POD_NAME = "HOLDFAST_POD_NAME"
ENV_POD_UID = "HOLDFAST_POD_UID"
ENV_POD_IP = "HOLDFAST_POD_IP"
ENV_NODE = "HOLDFAST_NODE"
ENV_SOCKET = "HOLDFAST_SOCKET"
"""Of the ranks: path of the agent's Unix socket. Absent: no agent, nothing is saved."""
ENV_ATTEMPT = "HOLDFAST_ATTEMPT"
ENV_GLOBAL_BATCH = "HOLDFAST_GLOBAL_BATCH"
"""Of the ranks: samples of an update, of all ranks together (`spec.elastic.globalBatch`). Absent: the script knows it."""
ENV_SIDE_STREAM = "HOLDFAST_SIDE_STREAM"
"""Of the ranks, set by a person: `off` has every save of tensors on a GPU wait for the copy."""
ENV_MID_STEP = "HOLDFAST_MID_STEP"
"""Of the ranks, set by a person: `off` has every loop copied at boundaries only."""
ENV_RUN_ID = "HOLDFAST_RUN_ID"
"""Of the ranks, set by a person: the run's id elsewhere, for commit records."""
ENV_GIT_COMMIT = "HOLDFAST_GIT_COMMIT"
"""Of the ranks, set by a person or an image's build: the commit of the code, where no .git lies beside it. Ends in `-dirty` if it was changed."""
ENV_IMAGE_DIGEST = "HOLDFAST_IMAGE_DIGEST"
"""Of the trainer container, set by a person: the image's digest, where its name holds none."""

# Paths in the trainer container.
TOKEN_PATH = "/var/run/holdfast/token/token"  # noqa: S105  a path, not a secret
KEYS_DIR = "/var/run/holdfast/keys"
"""One file per role of `signing.Role`, 32 bytes in hex."""
TERMINATION_PATH = "/dev/termination-log"
TOKEN_AUDIENCE = "holdfast.dev/operator"  # noqa: S105
TRAINER_CONTAINER = "trainer"

# Ports.
AGENT_PORT = 8471
"""Agent: /v1/…, /metrics, /healthz."""
OPERATOR_REPORT_PORT = 8470
OPERATOR_METRICS_PORT = 8472
OPERATOR_HEALTH_PORT = 8473
NOTIFIER_PORT = 8474
"""Notifier: /healthz, /readyz, /metrics; on the node itself where it runs in the network of its host."""
RENDEZVOUS_PORT = 29500
RENDEZVOUS_PORTS = 512
"""Attempt n uses RENDEZVOUS_PORT + n % RENDEZVOUS_PORTS: a straggler of another attempt cannot join the new group."""

MAX_JOB_NAME = 40

EXIT_CODES: dict[Exit, int] = {
    Exit.FINISHED: 0,
    Exit.TRAINER_FAILED: 70,
    Exit.CONFIGURATION_WRONG: 71,
    Exit.PREEMPTED_SEALED: 72,
    Exit.PREEMPTED_NOTHING_NEW: 73,
    Exit.SUPERSEDED: 74,
}
"""Exit codes of the agent; 127, 128 and 137 are the runtime's own (G2, G4)."""


def uid8(job_uid: str) -> str:
    """The 8 hex digits of the job's uid that every child's name contains (A9)."""
    return job_uid.replace("-", "")[:8]


def child_name(job: str, job_uid: str) -> str:
    """Service and Secret of a job."""
    return f"{job}-{uid8(job_uid)}"


def pod_name(job: str, job_uid: str, worker: int, serial: int) -> str:
    """Pods are named by job, uid, worker and serial, not by attempt (A2)."""
    return f"{child_name(job, job_uid)}-{worker}-{serial}"


def rendezvous_port(attempt: int) -> int:
    return RENDEZVOUS_PORT + attempt % RENDEZVOUS_PORTS
