"""TrainingJob v1alpha1: the only source of the CRD, the chart's copy and docs/api.md.

Frozen models with camelCase aliases. `json_schema_extra` carries what Kubernetes adds to JSON schema (CEL rules, list types); render.py turns the
rest into a structural schema. The CRD is additive: fields are added, never renamed, removed or tightened.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, computed_field
from pydantic.alias_generators import to_camel

Name = Annotated[str, Field(max_length=253)]
Message = Annotated[str, Field(max_length=4096)]
CheckpointName = Annotated[str, Field(max_length=32)]
"""ATTEMPT/SAVE."""


class Model(BaseModel):
    """Base of all parts: immutable, read and written in camelCase, unknown fields ignored (the API server prunes them)."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", use_attribute_docstrings=True
    )

    def to_wire(self) -> dict[str, Any]:
        """As the API server stores it: camelCase, absent instead of null."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def rule(expression: str, message: str, **extra: Any) -> dict[str, Any]:
    """One CEL validation rule. The message names the field and says what to do."""
    return {"rule": expression, "message": message, **extra}


def validations(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"x-kubernetes-validations": list(rules)}


# ---- spec


class S3Addressing(StrEnum):
    PATH = "Path"
    VIRTUAL = "Virtual"


class S3Encryption(StrEnum):
    SSE_S3 = "SSE-S3"
    SSE_KMS = "SSE-KMS"


class S3(Model):
    """What only s3:// has."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule(
                "!has(self.kmsKeyId) || self.kmsKeyId == '' || (has(self.encryption) && self.encryption == 'SSE-KMS')",
                "spec.checkpoint.storage.s3.kmsKeyId is only read with encryption: SSE-KMS; add it, or remove the key",
            ),
        )
    )
    addressing: S3Addressing | None = None
    """Path: https://endpoint/bucket. Virtual: https://bucket.endpoint. Absent: Virtual on AWS, Path with an endpoint of one's own."""
    encryption: S3Encryption | None = None
    """How the store is asked to encrypt each object (SSE-S3 or SSE-KMS). Absent: what the bucket does by default."""
    kms_key_id: Annotated[str, Field(max_length=2048)] = ""
    """Key for SSE-KMS: id or ARN. Empty: the account's own key for S3."""


class Storage(Model):
    """Where checkpoints go."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule(
                "self.uri.startsWith('s3://') || self.uri.startsWith('gs://') || self.uri.startsWith('az://') || self.uri.startsWith('file:///')",
                "spec.checkpoint.storage.uri must start with s3://, gs://, az:// or file:///, for example s3://my-bucket/checkpoints",
            ),
            rule(
                "!self.uri.startsWith('s3://') || self.uri.matches('^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$')",
                "spec.checkpoint.storage.uri names no valid bucket: write s3://BUCKET/PREFIX; "
                "bucket names have 3 to 63 lower-case letters, digits, dots and dashes",
            ),
            rule(
                "!self.uri.startsWith('gs://') || self.uri.matches('^gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?$')",
                "spec.checkpoint.storage.uri names no valid bucket: write gs://BUCKET/PREFIX; "
                "bucket names have lower-case letters, digits, dots, dashes and underscores",
            ),
            rule(
                "!self.uri.startsWith('az://') || self.uri.matches('^az://[a-z0-9](-?[a-z0-9]){2,62}(/.*)?$')",
                "spec.checkpoint.storage.uri names no valid container: write az://CONTAINER/PREFIX; "
                "container names have 3 to 63 lower-case letters, digits and single dashes",
            ),
            rule(
                "!has(self.s3) || self.uri.startsWith('s3://')",
                "spec.checkpoint.storage.s3 is only read with an s3:// uri: remove it",
            ),
            rule(
                "self.uri == oldSelf.uri",
                "spec.checkpoint.storage.uri cannot be changed: the job would lose its checkpoints; "
                "create a job of another name, or copy the checkpoints and use resumeFrom",
            ),
        )
    )
    uri: Annotated[str, Field(min_length=1, max_length=1024)]
    """`s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, or `file:///directory` that every worker mounts."""
    secret_name: Name = ""
    """Secret of the job's namespace whose keys become environment variables of the trainer container: AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, GOOGLE_SERVICE_ACCOUNT_KEY, AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY and so on. Empty:
    workload identity or the node's own."""
    endpoint: Annotated[str, Field(max_length=1024)] = ""
    """Endpoint of an S3-compatible store, unless the Secret names one; for gs:// and az:// another than the service's own."""
    region: Annotated[str, Field(max_length=64)] = ""
    """Region of the bucket, unless the Secret or the machine names one."""
    s3: S3 | None = None
    """What only s3:// has: addressing, encryption."""


class AutoEvery(Model):
    """The interval is chosen from what a save costs this job and how often it is interrupted (Young and Daly), within these limits."""

    max_loss_seconds: Annotated[int, Field(ge=10, le=86_400 * 7)] = 3600
    """Work that an interruption without notice may cost at most: the recovery-point objective."""
    max_overhead_percent: Annotated[int, Field(ge=1, le=100)] = 5
    """Share of the time that saving may take, unless `maxLossSeconds` needs more."""


class Every(Model):
    """How often a periodic checkpoint is taken."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule(
                "[has(self.steps) && self.steps > 0, has(self.seconds) && self.seconds > 0, has(self.auto)].filter(x, x).size() == 1",
                "spec.checkpoint.every needs exactly one of steps and seconds, greater than 0, or auto: {}",
            )
        )
    )
    steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """A checkpoint each time the boundary number is a multiple of it. 0: by seconds."""
    seconds: Annotated[int, Field(ge=0, le=86_400 * 7)] = 0
    """A checkpoint each time that many seconds have passed since the last one. 0: by steps."""
    auto: AutoEvery | None = None
    """The interval is chosen, and chosen anew while the job trains; `status.interval` says which and why."""


class Goal(StrEnum):
    """Which values of a metric are good."""

    LOWEST = "Lowest"
    HIGHEST = "Highest"


class KeepBest(Model):
    """Those with the best values of a metric."""

    metric: Annotated[str, Field(min_length=1, max_length=64)]
    """Name of the metric, as the script gives it to `step()`."""
    count: Annotated[int, Field(ge=1, le=100)] = 1
    """How many."""
    goal: Goal = Goal.LOWEST
    """Which values are good."""


class KeepEvery(Model):
    """One out of each stretch of training, for ever."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule(
                "[has(self.steps), has(self.seconds)].filter(x, x).size() == 1",
                "spec.checkpoint.keep.every needs exactly one of steps and seconds",
            )
        )
    )
    steps: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """The first sound checkpoint of each so many boundaries."""
    seconds: Annotated[int, Field(ge=1, le=86_400 * 366)] | None = None
    """The first sound checkpoint of each so many seconds."""


class WeightsOnly(StrEnum):
    """What becomes of checkpoints that hold weights alone."""

    LIKE_OTHERS = "LikeOthers"
    FOREVER = "Forever"


PinnedName = Annotated[str, Field(max_length=32, pattern=r"^[1-9][0-9]{0,9}/[1-9][0-9]{0,9}$")]


class Keep(Model):
    """Which checkpoints are kept: what any of the rules keeps, and always the newest usable one, the newest sound one and the newest one proved good (C5)."""

    last: Annotated[int, Field(ge=1, le=1000)] = 3
    """The newest so many are kept."""
    best: KeepBest | None = None
    """Those with the best values of a metric are kept too."""
    every: KeepEvery | None = None
    """One out of each stretch of training is kept too."""
    younger_than_seconds: Annotated[int, Field(ge=1, le=86_400 * 366 * 10)] | None = None
    """Whatever is not so old yet is kept too."""
    weights_only: WeightsOnly | None = None
    """Forever: what holds weights alone is never given up. Absent, LikeOthers: by the other rules."""
    pinned: Annotated[
        tuple[PinnedName, ...], Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = ()
    """Checkpoints (ATTEMPT/SAVE) that are kept as long as they are named here."""
    max_bytes: Annotated[int, Field(ge=1, le=1 << 53)] | None = None
    """Limit of what is kept in the store, in bytes; shared chunks count once. The oldest of what the rules keep goes first; what is pinned or always kept
    stays, and the condition RetentionMet says so where that is more."""


class LocalHostPath(Model):
    """A directory of the node (opt-in: refused by the baseline and restricted pod security levels)."""

    path: Annotated[str, Field(min_length=2, max_length=1024, pattern=r"^/[^\x00]*$")]
    """Absolute path of a directory on every node; it is made where it is missing."""


class LocalEphemeral(Model):
    """A volume that Kubernetes makes for each pod and removes with it: for node-local disks that a storage class offers."""

    storage_class_name: Annotated[str, Field(max_length=253)] = ""
    """Class of the volume. Empty: the cluster's default."""
    size_gi: Annotated[int, Field(ge=1, le=1 << 20)]
    """Size of the volume in GiB: at least two images of all ranks of a worker."""


class Local(Model):
    """The node-local tier. Without it an emptyDir is used, which lives as long as the pod (F4)."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule(
                "!(has(self.hostPath) && has(self.ephemeral))",
                "spec.checkpoint.local.hostPath and spec.checkpoint.local.ephemeral exclude each other: remove one of them",
            ),
        )
    )
    host_path: LocalHostPath | None = None
    """A directory of the node instead of an emptyDir: checkpoints in it outlive the pod, as long as the node stays."""
    ephemeral: LocalEphemeral | None = None
    """A volume of its own for each pod instead of an emptyDir. It goes with the pod, as an emptyDir does (F4)."""


class Source(StrEnum):
    """Who writes the state."""

    LIBRARY = "library"
    DIRECTORY = "directory"


class Directory(Model):
    """Where a script that does not use the library writes its own checkpoints, and how it is known that one is whole."""

    path: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^/?[^/\x00-][^\x00]*$")]
    """Directory in the trainer container. It need not outlive the pod: the newest whole checkpoint is put back before the script starts."""
    pattern: Annotated[str, Field(max_length=256)] = ""
    """Regular expression for the whole name of a checkpoint in `path`; its first group is the step. Empty: a name that ends with digits, as of
    Transformers, DeepSpeed, Megatron, Orbax, and Lightning's `.ckpt` files."""
    marker: Annotated[str, Field(max_length=256)] = ""
    """A checkpoint is whole when it holds this file. Empty: when a pointer file (`latest`) names it, or when nothing in it has changed for
    `quietSeconds`."""
    quiet_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    """Where there is neither marker nor pointer file: a checkpoint is whole when nothing in it has changed for so long."""
    signal: Annotated[str, Field(max_length=16, pattern=r"^([A-Z][A-Z0-9]*)?$")] = ""
    """Makes the script write a checkpoint, for example USR1; sent when the pod is to go. Empty: the script cannot be told, and what it wrote last
    is what is kept."""
    answer_seconds: Annotated[int, Field(ge=1, le=86_400)] = 20
    """How long the script takes to write a checkpoint when it is told to."""


class Checkpoint(Model):
    """What is saved, where, how often, and what is kept."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule(
                "(self.source == 'directory') == has(self.directory)",
                "spec.checkpoint.directory goes with source: directory: write both, or neither",
            ),
            rule(
                "self.source == oldSelf.source",
                "spec.checkpoint.source cannot be changed: neither can read the other's checkpoints; create a job of another name",
            ),
        )
    )
    source: Source = Source.LIBRARY
    """Who writes the state: the script through the library, or the script in its own way into a directory."""
    directory: Directory | None = None
    """Where a script that does not use the library writes its own checkpoints (`source: directory`)."""
    storage: Storage
    """The store that holds what must outlive the nodes."""
    # The API server must not write this default: it would stay beside the `steps` that a later apply adds, and both are refused.
    every: Annotated[Every, Field(json_schema_extra={"default": None})] = Every(seconds=600)
    """How often a periodic checkpoint is taken: in steps, in seconds, or `auto: {}`. Absent: every 600 seconds. Evacuations and manual checkpoints
    come on top."""
    keep: Keep = Keep()
    """Which checkpoints are kept. The newest usable one and the newest one proved good are always kept (C5)."""
    local: Local = Local()
    """The node-local tier, read before the store. By default an emptyDir, which lives as long as the pod (F4)."""
    chunk_mi_b: Annotated[int, Field(ge=1, le=64)] = 16
    """Size of a chunk in MiB (J3)."""
    background_bytes_per_second: Annotated[int, Field(ge=1, le=1 << 40)] | None = None
    """What each worker may send to the store beside training, in bytes per second on average. Absent: no limit. It never applies to an emergency, to the
    last state of a job, nor to the first save of a pod, which shows what an emergency can rely on; and it gives way where a save could not be written in
    its time or a rank waits for it. A change applies to pods that are made afterwards."""
    memory_mi_b: Annotated[int, Field(ge=0, le=16 << 20)] = 0
    """Size limit of the memory volume that holds the arena, in MiB. 0: the pod's memory limit bounds it."""


class PreemptionBudget(Model):
    """How often the job may be preempted."""

    max: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """The job fails at the next preemption after so many. Absent: without limit."""
    backoff_seconds: Annotated[int, Field(ge=0, le=3600)] = 10
    """Attempts that are preempted are followed at once. After more than three in a row of which nothing durable is left: so many seconds later; doubles each
    time, at most 300."""


class FailureBudget(Model):
    """How many failures in a row without a new durable checkpoint end the job."""

    max: Annotated[int, Field(ge=0, le=1000)] = 3
    """The job fails after so many failures in a row; a new durable checkpoint starts the count anew."""
    backoff_seconds: Annotated[int, Field(ge=0, le=3600)] = 10
    """Seconds before the second try; doubles each time, at most 300."""


class NoProgressBudget(Model):
    """How many attempts in a row may leave nothing durable, whatever ended them."""

    max: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    """The job fails after so many attempts in a row without a new durable checkpoint. 0: without limit."""


class Budgets(Model):
    """How much the job may suffer before it is given up. Preemptions and failures are counted apart."""

    preemptions: PreemptionBudget = PreemptionBudget()
    """How often the job may be preempted: the machine was taken away, the training code is not to blame."""
    failures: FailureBudget = FailureBudget()
    """How many failures in a row without a new durable checkpoint end the job."""
    no_progress: NoProgressBudget = NoProgressBudget()
    """How many attempts in a row may leave nothing durable, whatever ended them: a job that only goes round in circles stops."""


class Notices(Model):
    """How announcements and losses of a worker are read."""

    default_deadline_seconds: Annotated[int, Field(ge=5, le=3600)] = 120
    """Seconds that an acting notice without a deadline is taken to leave (F2)."""
    node_lost_seconds: Annotated[int, Field(ge=0, le=3600)] = 5
    """Seconds that a worker must be unheard of, with its node not Ready, before it counts as lost (A3)."""


class CapacityPreset(StrEnum):
    """Kinds of nodes that the labels of the clouds tell apart."""

    SPOT = "Spot"
    ON_DEMAND = "OnDemand"


class TolerationOperator(StrEnum):
    """As of a pod's toleration."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """As of a node's taint."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Model):
    """As of a pod."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule(
                "!(has(self.operator) && self.operator == 'Exists') || !has(self.value) || self.value == ''",
                "spec.placement.capacity.kinds[].tolerations[].value is not read with operator: Exists; remove it",
            ),
            rule(
                "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
                "spec.placement.capacity.kinds[].tolerations[] needs a key, or operator: Exists to tolerate every taint",
            ),
        )
    )
    key: Annotated[str, Field(max_length=316)] = ""
    """Of the taint."""
    operator: TolerationOperator | None = None
    """Equal or Exists; absent: Equal."""
    value: Annotated[str, Field(max_length=63)] = ""
    """Of the taint, with Equal."""
    effect: TaintEffect | None = None
    """NoSchedule, PreferNoSchedule or NoExecute; absent: all."""


class CapacityKind(Model):
    """Nodes of one kind."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """For status and events."""
    preset: CapacityPreset | None = None
    """Spot: nodes with one of the labels that the clouds, Karpenter and the managed node groups give spot nodes, and their taints are tolerated. OnDemand:
    nodes with none of them. Absent: any."""
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Labels that the nodes have, beside those of the template."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that are tolerated, beside those of the template."""
    after_seconds: Annotated[int, Field(ge=10, le=86_400 * 7)] = 600
    """How long a pod of this kind may find no node before one of the next kind is made in its place. Of the last kind: no matter."""


class Capacity(Model):
    """Which kind of nodes is wanted first, and which when that is not to be had."""

    kinds: Annotated[
        tuple[CapacityKind, ...],
        Field(
            min_length=1,
            max_length=8,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    """In the order of preference."""
    minimum_stay_seconds: Annotated[int, Field(ge=0, le=86_400 * 30)] = 3600
    """A worker that had to take another kind comes back to the first when its pod has to be made anew, but not within so many seconds."""


class PlaceMode(StrEnum):
    """How much a pod keeps away."""

    PREFER = "Prefer"
    REQUIRE = "Require"


class PlaceQuarantine(Model):
    """Nodes and zones that pods keep away from for a while, because workers were lost there."""

    seconds: Annotated[int, Field(ge=0, le=86_400 * 7)] = 1800
    """How long an incident counts. 0: new pods keep away only from what is announced to go or not Ready."""
    zone_after_nodes: Annotated[int, Field(ge=2, le=1000)] = 2
    """A zone is kept away from when so many different nodes of it were lost or taken back within `seconds`."""
    mode: PlaceMode = PlaceMode.PREFER
    """Prefer: a pod goes there where there is no other room. Require: it waits for other room, for a minute."""


class Placement(Model):
    """On which nodes pods are made (docs/placement.md)."""

    quarantine: PlaceQuarantine = PlaceQuarantine()
    """Nodes and zones that pods keep away from for a while, because workers were lost there."""

    capacity: Capacity | None = None
    """Spot nodes, say, and others after a while. Absent: whatever the template allows."""


class OnHang(StrEnum):
    """What is done about ranks that pass no boundary."""

    RESTART = "Restart"
    REPORT = "Report"
    IGNORE = "Ignore"


class Hangs(Model):
    """When ranks that pass no boundary are taken for hung. How long one may take depends on what it does: the most of the seconds set here, `factor` times
    the usual step, and twice the longest that it has taken in this attempt. 0 seconds: for ever. A quarter of a step's time is worth a word (condition
    StepsPass). A change applies from the next attempt on."""

    action: OnHang = OnHang.RESTART
    """Restart: the stacks of all ranks go to the logs, the newest state is saved if that can be done without the ranks that hang, and the ranks are started
    again in their pods; it counts as a failure. Report: stacks and the condition only. Ignore: nobody looks."""
    factor: Annotated[int, Field(ge=1, le=1000)] = 10
    """Times the step that nearly all stay below."""
    step_seconds: Annotated[int, Field(ge=0, le=604800)] = 1800
    """In forward, backward and update, and in whatever of the script's own cannot be told from these, as writing files of its own."""
    data_seconds: Annotated[int, Field(ge=0, le=604800)] = 3600
    """Waiting for a batch, or for a device before a state is copied."""
    evaluation_seconds: Annotated[int, Field(ge=0, le=604800)] = 7200
    """While a registered module is in eval()."""
    start_seconds: Annotated[int, Field(ge=0, le=604800)] = 7200
    """From the start of the process, or from its state's being in memory, to its first step, compilation included, and to the second; what fetching takes
    does not count."""


class OnUnsound(StrEnum):
    """What is done about a checkpoint in which something was found."""

    CONTINUE = "Continue"
    ROLL_BACK = "RollBack"
    STOP = "Stop"


class Suspect(StrEnum):
    """What copies that differ mean to a start."""

    PASS_OVER = "PassOver"  # noqa: S105  a policy, not a secret
    ACCEPT = "Accept"


class Scrub(Model):
    """What is stored is read again, so that damage is found before anybody needs the bytes."""

    bytes_per_second: Annotated[int, Field(ge=1, le=1 << 40)] = 10_000_000
    """What the lead reads beside training, on average."""
    every_seconds: Annotated[int, Field(ge=60, le=86_400 * 366)] = 86_400 * 7
    """From the end of one round to the begin of the next."""


class Validation(Model):
    """What is done about checkpoints in which something was found (docs/operator.md). They are kept like any other, and no start continues one while a better
    one is left."""

    on_unsound: OnUnsound = OnUnsound.CONTINUE
    """When a checkpoint of the running attempt holds NaN or infinite values, or copies of one state in it differ. Continue: training goes on, and the next
    start goes back. RollBack: a new attempt goes back to the newest sound checkpoint at once; after three such attempts from one checkpoint the job stops.
    Stop: a last checkpoint, then nothing runs until a person has decided."""
    suspect: Suspect = Suspect.PASS_OVER
    """PassOver: a start continues a checkpoint whose copies differ only where nothing sound is left. Accept: it is continued like any other; for training code
    in which ranks hold different state on purpose."""
    scrub: Scrub | None = None
    """The lead re-reads every stored checkpoint at this pace, mends what it can and reports the rest (condition StoredIntact). Absent: only `holdfast scrub`
    does. A change applies to pods that are made afterwards."""
    trusted: Annotated[
        tuple[PinnedName, ...], Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = ()
    """Checkpoints (ATTEMPT/SAVE) that a person has looked at and found good. Each leaves quarantine when it is first named here, counts as sound, and is not
    given up while it is named. Every byte is verified all the same; one that is refused again is quarantined again."""


class ResumeFrom(Model):
    """Continue an earlier job's checkpoints (A9), or go back to one of this job's own (A7)."""

    uid: Annotated[str, Field(max_length=63)] = ""
    """Uid of an earlier job of the same namespace and name. Empty: this job."""
    checkpoint: Annotated[str, Field(max_length=32, pattern=r"^([1-9][0-9]{0,9}/[1-9][0-9]{0,9})?$")] = ""
    """ATTEMPT/SAVE; empty: the newest that validates."""


class Elastic(Model):
    """With how many workers the job trains where it cannot have `workers` of them, and how the global batch stays the same (docs/operator.md)."""

    min_workers: Annotated[int, Field(ge=1, le=1024)]
    """It goes on with as few workers as that, rather than wait."""
    max_workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """It grows to as many where there is room. Absent: to `workers`."""
    global_batch: Annotated[int, Field(ge=1, le=1 << 30)] | None = None
    """Samples of an update, of all ranks together. Only numbers of workers whose ranks divide it are used, and training code is told it
    (`holdfast.batch_share()`). Absent: every number is used, and the script holds its batch by itself."""
    wait_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60
    """How long training stands still, at most, for a replacement that no machine has room for, before it goes on with fewer workers."""
    grow_after_seconds: Annotated[int, Field(ge=10, le=86_400 * 7)] = 600
    """How long an attempt trains, at least, before it is ended to go on with more workers."""


_IN_A_NEW_JOB = (
    "spec.{} cannot be changed: delete the job, whose checkpoints stay, and create it again with another number and its uid as spec.resumeFrom.uid: "
    "any number of ranks can load them"
)
"""Checkpoints are loaded by any number of ranks; what an attempt's members are is settled when the job is made."""


class WarmStart(StrEnum):
    """Whether training processes wait ready for the next start."""

    OFF = "Off"
    ON = "On"


class TrainingJobSpec(Model):
    """What a person asks for."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            rule("self.workers == oldSelf.workers", _IN_A_NEW_JOB.format("workers")),
            rule("self.processesPerWorker == oldSelf.processesPerWorker", _IN_A_NEW_JOB.format("processesPerWorker")),
            rule(
                "self.checkpoint.source != 'directory' || (self.workers == 1 && self.processesPerWorker == 1)",
                "spec.checkpoint.source: directory needs workers: 1 and processesPerWorker: 1; let the script start its processes itself "
                "(torchrun --standalone --nproc-per-node N train.py)",
            ),
            rule(
                "!has(self.elastic) || self.elastic.minWorkers <= self.workers",
                "spec.elastic.minWorkers is greater than spec.workers: it is the number below which the job waits; write one from 1 to spec.workers",
            ),
            rule(
                "!has(self.elastic) || !has(self.elastic.maxWorkers) || self.elastic.maxWorkers >= self.workers",
                "spec.elastic.maxWorkers is less than spec.workers: raise it, or leave it out, and spec.workers is the most",
            ),
            rule(
                "!has(self.elastic) || !has(self.elastic.globalBatch) || (self.elastic.globalBatch % (self.workers * self.processesPerWorker) == 0"
                " && self.elastic.globalBatch % (self.elastic.minWorkers * self.processesPerWorker) == 0 && (!has(self.elastic.maxWorkers)"
                " || self.elastic.globalBatch % (self.elastic.maxWorkers * self.processesPerWorker) == 0))",
                "spec.elastic.globalBatch must be a multiple of spec.workers, of minWorkers and of maxWorkers, each times spec.processesPerWorker: "
                "every rank has the same share of it",
            ),
            rule(
                "!has(self.elastic) || self.checkpoint.source != 'directory'",
                "spec.elastic needs the library: with spec.checkpoint.source: directory nobody knows which part of the data is left; remove one of them",
            ),
            rule(
                "!(self.fresh && has(self.resumeFrom))",
                "spec.fresh and spec.resumeFrom exclude each other: remove one of them",
            ),
        )
    )
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Pods of the job. A later job of the same name may go on from its checkpoints with another number (`resumeFrom.uid`)."""
    processes_per_worker: Annotated[int, Field(ge=1, le=64)] = 1
    """Training processes (ranks) in each pod."""
    suspend: bool = False
    """True: take a checkpoint, then run nothing until it is False again."""
    fresh: bool = False
    """Start from nothing although checkpoints of an earlier job of this name exist (A9)."""
    resume_from: ResumeFrom | None = None
    """Continue an earlier job's checkpoints (A9), or go back to one of this job's own (A7)."""
    checkpoint: Checkpoint
    """What is saved, where, how often, and what is kept."""
    budgets: Budgets = Budgets()
    """How much the job may suffer before it is given up."""
    notices: Notices = Notices()
    """How announcements and losses of a worker are read."""
    placement: Placement | None = None
    """On which nodes pods are made, beside what the template says."""
    elastic: Elastic | None = None
    """With how many workers the job trains where it cannot have `workers` of them. Absent: it waits for all."""
    hangs: Hangs = Hangs()
    """When ranks that pass no boundary are taken for hung, and what is done then."""
    validation: Validation = Validation()
    """What is done about checkpoints in which something was found: NaN, copies that differ, damage."""
    warm_start: WarmStart = WarmStart.OFF
    """On: Python and torch are imported before an attempt needs them, in a pod that waits for its attempt and beside ranks that train, for the next start in
    place. Costs the memory of one idle process with torch imported for each rank. Only for commands of the form `python SCRIPT.py …`, and for scripts that set
    no environment variable that torch reads when it is imported. A change applies to pods that are made afterwards."""
    template: Annotated[
        dict[str, Any],
        Field(json_schema_extra={"x-holdfast-template": True}),
    ]
    """Pod template. The container named `trainer`, else the first, is run under the agent; it must have `command`."""


# ---- status


class Phase(StrEnum):
    """Where the job stands, for people to read. Programs read the conditions."""

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
    """Ready, Reconciling and Stalled as kstatus reads them, and Holdfast's own."""
    status: Annotated[str, Field(json_schema_extra={"enum": ["True", "False", "Unknown"]})]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=1024)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """For people: what is so, and what to do about it."""
    last_transition_time: datetime
    """When `status` last changed."""
    observed_generation: int = 0
    """The `metadata.generation` that it speaks of."""


class CheckpointStatus(Model):
    """A committed checkpoint."""

    name: Annotated[str, Field(max_length=32)]
    """ATTEMPT/SAVE."""
    step: int
    """Boundary number (I1)."""
    cause: Annotated[str, Field(max_length=32)]
    """Why it was taken."""
    time: datetime
    """When it was committed."""
    bytes: int = 0
    """Size of the state that it holds."""
    bytes_sent: int = 0
    """What was written for it; the rest was already in the store (B4)."""
    bytes_held: int = 0
    """What counts with it in the store: what it has written, and what given-up ones before it have and it may refer to. Chunks count once."""
    metrics: Annotated[dict[str, float], Field(max_length=16)] = Field(default_factory=dict)
    """What the script said of it: the metric of `keep.best`, and the first few others."""
    weights_only: bool = False
    """It holds weights alone, no state to resume."""
    finite: bool | None = None
    """Whether trained parameters and optimizer state are finite. Absent: unknown, as of emergency checkpoints from which nothing has started yet."""
    not_finite: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=5)] = ()
    """The first tensors that hold NaN or infinite values."""
    suspect: Annotated[str, Field(max_length=512)] = ""
    """Set if ranks that hold copies of one state did not hold the same bytes: which ranks, which tensors."""
    damaged: Annotated[str, Field(max_length=512)] = ""
    """Set while a scrub's finding stands that bytes of it in the store are not what they were."""


class ShunStatus(Model):
    """Where workers were lost lately."""

    nodes: Annotated[tuple[Name, ...], Field(max_length=32)] = ()
    """Nodes that the pod keeps away from."""
    zones: Annotated[tuple[Name, ...], Field(max_length=32)] = ()
    """Zones that the pod keeps away from."""
    required: bool = False
    """False: it may go there where there is no other room."""


class QueueStatus(Model):
    """The pod group of Kueue's that a pod belongs to."""

    name: Name
    """Of the queue."""
    founded: int
    """Serial of the pods that the group was made of; part of its name."""
    size: int
    """How many pods it has."""


class WorkerStatus(Model):
    """The pod that is, or will be, a worker. `serial` is written here before the pod is created, so no name is used twice (A2)."""

    worker: int
    """Number of the worker, from 0."""
    serial: int
    """Number of the pod; part of its name, never used twice."""
    pod_uid: Name = ""
    """Empty until the pod has been seen; set and the pod gone means it is lost."""
    node: Name = ""
    """Where the pod runs."""
    avoid_nodes: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    """Nodes that the pod must not be scheduled to, because they will go."""
    prefer_nodes: Annotated[tuple[Name, ...], Field(max_length=8)] = ()
    """Nodes that the pod had better be scheduled to: what they hold of the job is found nowhere else, or fetched from there sooner."""
    avoid_zones: Annotated[tuple[Name, ...], Field(max_length=16)] = ()
    """Zones that the pod had better not be scheduled to: their capacity is being taken back, or most of their nodes are gone."""
    since: datetime
    """When this pod was planned."""
    made_from: Annotated[str, Field(max_length=16)] = ""
    """Digest of the parts of the spec that it was planned from; a correction of them makes a new pod while the attempt has not claimed."""
    renewed: int = 0
    """How often in a row it was made anew because its credentials were refused."""
    shun: ShunStatus | None = None
    """Places that the pod keeps away from because workers were lost there; absent: none."""
    capacity: Annotated[str, Field(max_length=63)] = ""
    """Kind of capacity (`spec.placement.capacity.kinds`) that the pod is made for."""
    capacity_since: datetime | None = None
    """Since when the worker is of this kind."""
    waiting_since: datetime | None = None
    """Since when the scheduler looks for a node in vain."""
    queue: QueueStatus | None = None
    """The pod group of Kueue's that it belongs to; absent: it is in no queue."""
    gates: Annotated[tuple[Annotated[str, Field(max_length=316)], ...], Field(max_length=16)] = ()
    """Scheduling gates that hold the pod."""
    fruitless: int = 0
    """How many pods of this worker in a row came to nothing before they took part; the pause before the next one grows with it."""
    thrown_away_at: datetime | None = None
    """When a replacement of this pod was last thrown away, because the notice was withdrawn."""


class MemberStatus(Model):
    """A pod that takes part in an attempt."""

    worker: int
    """Number of the worker, from 0."""
    pod: Name
    """Name of the pod."""
    pod_uid: Name
    """Uid of the pod."""
    serial: int
    """Serial of the pod."""
    node: Name = ""
    """Where the pod runs."""
    zone: Name = ""
    """Where the node is, kept after it is gone."""


class AttemptStatus(Model):
    """The current attempt (A1, A2): written before any agent is told of it."""

    number: int
    """Given once, never again (A1)."""
    members: Annotated[tuple[MemberStatus, ...], Field(max_length=1024)] = ()
    """The pods that take part, one for each worker."""
    created_at: datetime
    """When the attempt was decided."""
    accepted_at: datetime | None = None
    """All members have acknowledged the attempt."""
    may_claim_at: datetime | None = None
    """When the lead was allowed to claim (A3)."""
    claimed_at: datetime | None = None
    """When the lead reported the claim."""
    incarnation: Annotated[str, Field(max_length=64)] = ""
    """Identity of the claim (A4)."""
    parent: Annotated[str, Field(max_length=128)] = ""
    """Checkpoint that the attempt continues; `fresh` for none; empty until claimed."""
    parent_step: int = 0
    """Boundary number of the parent (I1)."""
    first_step_at: datetime | None = None
    """When every rank had taken a new step."""


class Confidence(StrEnum):
    """How sure it is that a worker goes, whenever that is."""

    CERTAIN = "Certain"
    LIKELY = "Likely"
    POSSIBLE = "Possible"


class NoticeStatus(Model):
    """One notice (F1), kept after pod and node are gone."""

    worker: int
    """The worker that will go."""
    source: Annotated[str, Field(max_length=316)]
    """Who announced it: a taint, a condition, a deletion timestamp and so on."""
    cause: Annotated[str, Field(max_length=32)]
    """Why it will go."""
    node: Name = ""
    """Where the worker runs."""
    noticed_at: datetime
    """When it was first seen."""
    deadline: datetime | None = None
    """When the worker goes; absent: unknown."""
    acting: bool = True
    """True: evacuate. False: save now and go on training (F2)."""
    revocable: bool = False
    """It may still be taken back by its source."""
    withdrawn: bool = False
    """It has been taken back by its source."""
    confidence: Confidence = Confidence.LIKELY
    """How sure it is that the worker goes."""
    detail: Message = ""
    """What the source said."""


class PhaseDuration(Model):
    """One phase of a time to resume."""

    name: Annotated[str, Field(max_length=32)]
    """Name of the phase; docs/metrics.md lists them."""
    milliseconds: int
    """How long it took."""


class PreemptionStatus(Model):
    """One interruption and how the job came out of it."""

    attempt: int
    """The attempt that it ended."""
    cause: Annotated[str, Field(max_length=32)]
    """Why the workers went."""
    source: Annotated[str, Field(max_length=316)] = ""
    """Who announced it; empty for a loss without notice."""
    workers: Annotated[tuple[int, ...], Field(max_length=1024)] = ()
    """The workers that went."""
    nodes: Annotated[tuple[Name, ...], Field(max_length=1024)] = ()
    """Where they ran."""
    noticed_at: datetime
    """When it was noticed: the notice, or without one the loss."""
    deadline: datetime | None = None
    """The earliest deadline of its notices (F1)."""
    quiesced_at: datetime | None = None
    """When every rank held the agreed boundary; absent where nothing was saved."""
    sealed_at: datetime | None = None
    """When the emergency checkpoint was committed."""
    ended_at: datetime | None = None
    """When the attempt was over: sealed, past its deadline, or lost (A3). Absent while it is being evacuated."""
    step_at_notice: int = 0
    """Boundary number at the notice."""
    resumed_from: Annotated[str, Field(max_length=128)] = ""
    """Checkpoint that the next attempt continued."""
    resumed_step: int = 0
    """Boundary number of that checkpoint."""
    steps_lost: int = 0
    """Steps that had to be done again."""
    fell_back: Annotated[tuple[Message, ...], Field(max_length=16)] = ()
    """Checkpoints that were tried and refused, newest first, with the reason."""
    resumed_at: datetime | None = None
    """When the first new step ended."""
    phases: Annotated[tuple[PhaseDuration, ...], Field(max_length=16)] = ()
    """What the time was spent on, in order."""
    total_milliseconds: int = 0
    """Notice (or loss) to the first new step. The phases add up to it."""


class IncidentStatus(Model):
    """A worker that was lost, or crashed."""

    node: Name
    """Where it ran."""
    zone: Name = ""
    """Where the node is."""
    cause: Annotated[str, Field(max_length=32)]
    """Why."""
    attempt: int
    """The attempt that it ended."""
    at: datetime
    """When it was over."""


class Place(StrEnum):
    """What a pod can keep away from."""

    NODE = "Node"
    ZONE = "Zone"


class AvoidedStatus(Model):
    """A place that new pods keep away from."""

    kind: Place
    """Node or Zone."""
    name: Name
    """Of the node or zone."""
    until: datetime
    """It ends by itself."""
    reason: Annotated[str, Field(max_length=1024)]
    """What happened there."""


class PartStatus(Model):
    """One worker's part of a state that lies on nodes only."""

    worker: int
    """The worker that left it."""
    node: Name
    """Where it lies."""
    kept_by: int | None = None
    """The worker that stays and has taken it, if one has."""


class UnfinishedStatus(Model):
    """The newest state, where it lies on nodes and nowhere else (E6): no checkpoint, unless pods come to these nodes before the next attempt has claimed."""

    checkpoint: CheckpointName
    """ATTEMPT/SAVE that it would become."""
    step: int
    """Boundary number (I1)."""
    parts: Annotated[tuple[PartStatus, ...], Field(max_length=1024)] = ()
    """Who left it, and where."""
    whole: bool = False
    """Every worker has left its part: only then it can be finished."""
    since: datetime
    """When the operator heard of it."""
    worth_until: datetime | None = None
    """When its steps could have been done again: so long it is worth waiting for the nodes. Absent: unknown."""


class SuspicionState(StrEnum):
    """What became of a checkpoint from which starts have failed."""

    WATCHED = "Watched"
    SUSPENDED = "Suspended"
    REINSTATED = "Reinstated"


class SuspicionStatus(Model):
    """A checkpoint from which a start has failed for a reason that is not known to be the checkpoint's own (C4)."""

    checkpoint: CheckpointName
    """ATTEMPT/SAVE."""
    failures: int
    """Failed starts from it, in a row."""
    state: SuspicionState = SuspicionState.WATCHED
    """Suspended: the next start leaves it out. Reinstated: a start from an older one failed too, so it was not the checkpoint."""


class QuarantineStatus(Model):
    """Why a checkpoint is used no more (C4)."""

    checkpoint: CheckpointName
    """ATTEMPT/SAVE."""
    reason: Annotated[str, Field(max_length=512)]
    """What was found in it."""
    at: datetime
    """When it was refused."""
    by_attempt: int
    """The attempt that refused it."""


class TrustedStatus(Model):
    """A name in `spec.validation.trusted` that has been acted on."""

    checkpoint: CheckpointName
    """ATTEMPT/SAVE."""
    after_attempt: int
    """Attempts up to this one refused it before a person had looked; a later one that refuses it quarantines it again."""


class RollBackStatus(Model):
    """Going back from checkpoints in which something was found."""

    to: CheckpointName
    """The checkpoint that the job went back to."""
    times: int
    """How often in a row."""


class StopStatus(Model):
    """Why nothing runs until a person has decided."""

    checkpoint: CheckpointName
    """The checkpoint in which something was found."""
    since: datetime
    """When."""
    policy: OnUnsound
    """`spec.validation.onUnsound` at that time: another one is a decision."""
    order: Annotated[str, Field(max_length=128)] = ""
    """The `fresh` or `resumeFrom` of the spec at that time: another one is a decision."""
    message: Message = ""
    """What was found, and what to do about it."""


class Counts(Model):
    """What the budgets are compared with."""

    preemptions: int = 0
    """Of all attempts."""
    failures: int = 0
    """Of all attempts."""
    failures_in_a_row: int = 0
    """Without a new durable checkpoint between them."""
    fruitless_in_a_row: int = 0
    """Attempts without a new durable checkpoint, whatever ended them."""
    caught: int = 0
    """Of both, those whose last state was saved: no step had to be done again."""
    trained_seconds: int = 0
    """From the first step of an attempt to its end, in all attempts that are over."""


class IntervalStatus(Model):
    """How often periodic checkpoints are taken, with `every.auto`."""

    seconds: int
    """From the begin of one to the begin of the next."""
    reason: Message = ""
    """What it follows from."""


class FlushGrade(StrEnum):
    """Whether an emergency save is done in the time that there is."""

    FITS = "Fits"
    TIGHT = "Tight"
    TOO_SLOW = "TooSlow"


class FlushStatus(Model):
    """What an emergency save takes, of the slowest worker. Numbers stay as they are until they have changed by a quarter."""

    worker: int = 0
    """The slowest."""
    seconds: float
    """As a rule, from the notice to the commit record."""
    sure_seconds: float
    """With the chance from which on a plan does not give the newest state up for an older one (0.8)."""
    step_seconds: float = 0.0
    """Of `seconds`: until the ranks are at a boundary."""
    copy_seconds: float = 0.0
    """Of `seconds`: to copy the state."""
    store_seconds: float = 0.0
    """Of `seconds`: to send it to the store."""
    node_seconds: float | None = None
    """To write it to the node's directory; absent where there is none."""
    bytes: int = 0
    """What the worker holds."""
    sent_bytes: int = 0
    """Of which so many would be sent."""
    measured: bool = False
    """False: estimated."""
    available_seconds: int
    """The least of what could be announced: pods' grace, shutdown of a node, notice of the cloud, the job's own default."""
    grade: FlushGrade
    """What follows for the condition FlushFits. It gets better only with a fifth to spare, unless the time that there is has changed."""


def in_words(milliseconds: int) -> str:
    """A duration for a narrow column: 3.4s, 2m05s, 1h02m."""
    tenths = round(milliseconds / 100)
    seconds = round(milliseconds / 1000)
    if tenths < 600:
        return f"{tenths // 10}.{tenths % 10}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


class StragglerStatus(Model):
    """A rank that takes longer than the others for what is its own (core/stragglers.py)."""

    rank: int
    """The slowest."""
    worker: int
    """Its worker."""
    node: Annotated[str, Field(max_length=253)] = ""
    """Where that runs."""
    part: Annotated[str, Field(max_length=16)]
    """Of what: `data` (waiting for a batch), `busy` (computing on the processor), `update` (in the update window), `step` (boundary to boundary)."""
    percent: int
    """How much longer than the median of all ranks it takes, in coarse steps."""
    since: datetime
    """When that was first seen."""
    lasting: bool = False
    """It has been so for long enough to be told (condition RanksKeepPace)."""


class TrainingJobStatus(Model):
    """What the operator has seen and decided. All its memory is here, on pods, or in the bucket (design.md, section 5)."""

    observed_generation: int = 0
    """The `metadata.generation` that this status speaks of."""
    phase: Phase | None = None
    """Where the job stands, for people to read. Programs read the conditions."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=32, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = ()
    """Ready, Reconciling and Stalled, which tools wait for, and Holdfast's own."""
    attempt: AttemptStatus | None = None
    """The current attempt (A1, A2): written before any agent is told of it."""
    attempts_used: int = 0
    """Greatest attempt number ever given; never given again (A1)."""
    serials_used: int = 0
    """Greatest pod serial ever given; never given again, so that no pod name is used twice (A2)."""
    workers: Annotated[tuple[WorkerStatus, ...], Field(max_length=2048)] = ()
    """The pods that are, or will be, workers."""
    step: int = 0
    """Boundary number last reported (I1)."""
    last_checkpoint: CheckpointStatus | None = None
    """The newest committed checkpoint."""
    checkpoints: Annotated[tuple[CheckpointStatus, ...], Field(max_length=1100)] = ()
    """Retained checkpoints, newest last (D3)."""
    expiring: Annotated[tuple[CheckpointName, ...], Field(max_length=256)] = ()
    """Given up (D1), not yet reported deleted."""
    quarantined: Annotated[tuple[CheckpointName, ...], Field(max_length=256)] = ()
    """Refused for what is in them (C4)."""
    quarantine: Annotated[tuple[QuarantineStatus, ...], Field(max_length=64)] = ()
    """Why, of the newest of `quarantined`; `spec.validation.trusted` takes one out again."""
    trusted: Annotated[tuple[TrustedStatus, ...], Field(max_length=64)] = ()
    """What of `spec.validation.trusted` has been acted on."""
    quarantined_elsewhere: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=64)] = ()
    """Of another job that is continued, as UID:ATTEMPT/SAVE: its numbers have nothing to do with this job's own (A9, D6)."""
    horizon: Annotated[str, Field(max_length=32)] = ""
    """At or below it everything that is not in `checkpoints` is excluded (D3)."""
    notices: Annotated[tuple[NoticeStatus, ...], Field(max_length=256)] = ()
    """Notices about the current workers (F1)."""
    preemptions: Annotated[tuple[PreemptionStatus, ...], Field(max_length=10)] = ()
    """The last ten, newest last."""
    incidents: Annotated[tuple[IncidentStatus, ...], Field(max_length=64)] = ()
    """Where workers were lost lately; each counts for `spec.placement.quarantine.seconds`."""
    avoiding: Annotated[tuple[AvoidedStatus, ...], Field(max_length=32)] = ()
    """What follows from them: nodes and zones that new pods keep away from."""
    last_resume_milliseconds: int | None = None
    """Time to resume of the last preemption: notice (or loss) to the first new step."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def last_resume(self) -> Annotated[str, Field(max_length=16)] | None:
        """`lastResumeMilliseconds` for people, as `kubectl get` prints it."""
        return None if self.last_resume_milliseconds is None else in_words(self.last_resume_milliseconds)

    counts: Counts = Counts()
    """What the budgets are compared with."""
    interval: IntervalStatus | None = None
    """How often periodic checkpoints are taken, with `every.auto`."""
    flush: FlushStatus | None = None
    """What an emergency save takes, and whether there is time for it; absent while nothing is known."""
    retry_at: datetime | None = None
    """No attempt is started before it (back-off)."""
    checkpoint_request: Annotated[str, Field(max_length=64)] = ""
    """Value of the checkpoint-now annotation that has been carried out."""
    start_order: Annotated[str, Field(max_length=128)] = ""
    """The `fresh` or `resumeFrom` that an attempt has claimed under: a later attempt does not start over again (A7, A9)."""
    start_order_asked: Annotated[str, Field(max_length=128)] = ""
    """The `fresh` or `resumeFrom` of the spec that was seen last."""
    start_order_after: int = 0
    """Attempts above it were started under `startOrderAsked`."""
    unfinished: UnfinishedStatus | None = None
    """The newest state, where it lies on nodes only; gone once an attempt has claimed."""
    suspicion: SuspicionStatus | None = None
    """The checkpoint from which the last starts failed; gone with the first step."""
    roll_back: RollBackStatus | None = None
    """The last return from a checkpoint in which something was found (`onUnsound: RollBack`)."""
    straggler: StragglerStatus | None = None
    """The rank that holds the others up, if one does."""
    stop: StopStatus | None = None
    """Why nothing runs until a person has decided (`onUnsound`)."""
