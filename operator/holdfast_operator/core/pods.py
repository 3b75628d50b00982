"""From the spec to a worker's pod (part G). Pure: a template goes in, a manifest comes out; what the user wrote stays unless a rule says otherwise."""

import copy
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from holdfast_api import codec, names
from holdfast_api.config import AgentConfig, StorageConfig
from holdfast_operator.core import capacity, kueue, presets, sizes
from holdfast_operator.core.observed import JobMeta
from holdfast_operator.crd.v1alpha1 import (
    S3,
    AutoEvery,
    CapacityKind,
    QueueStatus,
    S3Encryption,
    ShunStatus,
    Storage,
    TrainingJobSpec,
    WarmStart,
)

Manifest = dict[str, Any]

DEFAULT_GRACE_SECONDS = 120
NOT_READY_SECONDS = 30
"""Toleration of not-ready and unreachable nodes. The operator decides after notices.nodeLostSeconds that a worker is lost and replaces it under another
name; the taint manager only cleans up behind it. 0 would end workers of a node that comes back within seconds and that agents still answer from; the
default of 300 would leave zombies for minutes."""
TOKEN_SECONDS = 3600
ARENA_DIR = "/var/run/holdfast/arena"
LOCAL_DIR = "/var/lib/holdfast"
ZONE = "topology.kubernetes.io/zone"
ZONE_WEIGHT = 50
"""Against 100 for the node where state lies and for being alone on a node."""
SHUN_WEIGHT = 100
_VOLUME = "holdfast-"

# Sidecar proxies cut the upload at SIGTERM, because they end first; the docs say how to opt in (G3).
_NO_MESH = {
    "sidecar.istio.io/inject": "false",
    "linkerd.io/inject": "disabled",
    "consul.hashicorp.com/connect-inject": "false",
    "kuma.io/sidecar-injection": "disabled",
}


@dataclass(frozen=True, slots=True)
class PodContext:
    """What of the operator itself goes into a pod."""

    operator_url: str
    """Where agents report."""
    restart_rules: bool = False
    """The server knows container restart rules (G1)."""


def worker_pod(
    job: JobMeta,
    spec: TrainingJobSpec,
    worker: int,
    serial: int,
    avoid_nodes: tuple[str, ...],
    context: PodContext,
    prefer_nodes: tuple[str, ...] = (),
    queue: QueueStatus | None = None,
    avoid_zones: tuple[str, ...] = (),
    capacity_kind: str = "",
    shun: ShunStatus | None = None,
) -> Manifest:
    """The pod of one worker. `spec.template` holds at least one container, and the trainer has a command (the schema sees to it)."""
    template = copy.deepcopy(spec.template)
    pod = template.setdefault("spec", {})
    name = names.pod_name(job.name, job.uid, worker, serial)
    pod["restartPolicy"] = "Never"
    pod.setdefault("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
    pod["hostname"] = name
    pod["subdomain"] = names.child_name(job.name, job.uid)
    pod.setdefault("automountServiceAccountToken", False)
    pod.setdefault("enableServiceLinks", False)
    _wrap_trainer(pod, job, spec, worker, serial, context)
    _add_volumes(pod, job, spec)
    _add_tolerations(pod)
    _add_capacity(pod, capacity.kind_named(spec, capacity_kind))
    _add_affinity(pod, job, worker, avoid_nodes, prefer_nodes)
    _keep_from_zones(pod, avoid_zones)
    _shun(pod, shun or ShunStatus())
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(template.get("metadata") or {}, job, name, worker, serial, queue),
        "spec": pod,
    }


def made_from(spec: TrainingJobSpec) -> str:
    """A short digest of everything in the spec that goes into a pod: two pods of the same digest are made alike."""
    parts = spec.model_dump(
        mode="json", include={"template", "checkpoint", "notices"}, exclude={"checkpoint": {"keep"}}
    )
    if spec.placement is not None and spec.placement.capacity is not None:
        parts["capacity"] = spec.placement.capacity.model_dump(mode="json")
    if spec.warm_start is WarmStart.ON:
        parts["warmStart"] = spec.warm_start.value
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def owner(job: JobMeta) -> Manifest:
    """Deletion of the job takes its children with it; without blocking it, so no permission on finalizers is needed."""
    return {
        "apiVersion": f"{names.GROUP}/{names.VERSION}",
        "kind": names.KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def labels(job: JobMeta) -> dict[str, str]:
    """On every child; the operator finds pods by them."""
    return {names.LABEL_JOB: job.name, names.LABEL_JOB_UID: job.uid, names.LABEL_MANAGED: names.MANAGED_BY}


def grace_seconds(spec: TrainingJobSpec) -> int:
    """Of every pod of the job."""
    given = (spec.template.get("spec") or {}).get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
    return given if isinstance(given, int) and given >= 0 else DEFAULT_GRACE_SECONDS


def trainer_of(pod_spec: Manifest) -> Manifest:
    """The container named `trainer`, else the first (G3)."""
    containers: list[Manifest] = pod_spec["containers"]
    return next((c for c in containers if c.get("name") == names.TRAINER_CONTAINER), containers[0])


def _metadata(
    template: Manifest, job: JobMeta, name: str, worker: int, serial: int, queue: QueueStatus | None
) -> Manifest:
    own = {**labels(job), names.LABEL_WORKER: str(worker), names.LABEL_SERIAL: str(serial)}
    notes = {**_NO_MESH, **(template.get("annotations") or {})}
    if queue is not None:
        own, notes = {**kueue.labels(job, queue), **own}, {**notes, **kueue.annotations(queue)}
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": {**(template.get("labels") or {}), **own},
        "annotations": notes,
        "ownerReferences": [owner(job)],
    }


def _wrap_trainer(
    pod: Manifest, job: JobMeta, spec: TrainingJobSpec, worker: int, serial: int, context: PodContext
) -> None:
    container = trainer_of(pod)
    container["command"] = ["holdfast-agent", "run", "--", *_directory_mode(spec), *container.get("command", [])]
    container["env"] = [*_environment(pod, job, spec, worker, serial, context), *container.get("env", [])]
    secret = spec.checkpoint.storage.secret_name
    if secret:
        container["envFrom"] = [*container.get("envFrom", []), {"secretRef": {"name": secret}}]
    # The agent's last report is a file, never the tail of a log that may hold anything (H4).
    container["terminationMessagePolicy"] = "File"
    container["terminationMessagePath"] = names.TERMINATION_PATH
    container["ports"] = [
        *container.get("ports", []),
        {"name": "holdfast", "containerPort": names.AGENT_PORT, "protocol": "TCP"},
    ]
    container["volumeMounts"] = [*container.get("volumeMounts", []), *_mounts(container)]
    if context.restart_rules:
        container["restartPolicy"] = "Never"
        container["restartPolicyRules"] = [{"action": "Restart", "exitCodes": {"operator": "In", "values": [137]}}]


def _directory_mode(spec: TrainingJobSpec) -> list[str]:
    """What stands before a command that writes its own checkpoints (holdfast_directory)."""
    d = spec.checkpoint.directory
    if d is None:
        return []
    options = [("--pattern", d.pattern), ("--marker", d.marker), ("--signal", d.signal)]
    given = [f"{name}={value}" for name, value in options if value]
    times = [f"--quiet-seconds={d.quiet_seconds}", f"--answer-seconds={d.answer_seconds}"]
    return ["holdfast-directory", d.path, *given, *times, "--"]


def _environment(
    pod: Manifest, job: JobMeta, spec: TrainingJobSpec, worker: int, serial: int, context: PodContext
) -> list[Manifest]:
    config = codec.to_json(_config(pod, job, spec, worker, serial, context)).decode()
    fields = {
        names.ENV_POD_NAME: "metadata.name",
        names.ENV_POD_UID: "metadata.uid",
        names.ENV_POD_IP: "status.podIP",
        names.ENV_NODE: "spec.nodeName",
    }
    downward = [{"name": n, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": p}}} for n, p in fields.items()]
    return [{"name": names.ENV_CONFIG, "value": config}, *downward]


def _config(
    pod: Manifest, job: JobMeta, spec: TrainingJobSpec, worker: int, serial: int, context: PodContext
) -> AgentConfig:
    checkpoint = spec.checkpoint
    return AgentConfig(
        namespace=job.namespace,
        job=job.name,
        job_uid=job.uid,
        worker=worker,
        serial=serial,
        workers=sizes.most(spec),
        processes_per_worker=spec.processes_per_worker,
        storage=_storage(checkpoint.storage),
        every_steps=checkpoint.every.steps,
        every_seconds=checkpoint.every.seconds,
        **_automatic(checkpoint.every.auto),
        chunk_bytes=checkpoint.chunk_mi_b << 20,
        background_bytes_per_second=checkpoint.background_bytes_per_second or 0,
        **_scrub(spec),
        grace_seconds=int(pod["terminationGracePeriodSeconds"]),
        notice_seconds=spec.notices.default_deadline_seconds,
        operator_url=context.operator_url,
        memory_dir=ARENA_DIR,
        local_dir=LOCAL_DIR,
        local_volume="node" if checkpoint.local.host_path else "pod",
        warm_start=spec.warm_start is WarmStart.ON,
        image=str(trainer_of(pod).get("image", "")),
    )


def _automatic(auto: AutoEvery | None) -> dict[str, Any]:
    if auto is None:
        return {}
    return {
        "every_auto": True,
        "max_loss_seconds": auto.max_loss_seconds,
        "max_overhead_percent": auto.max_overhead_percent,
    }


def _scrub(spec: TrainingJobSpec) -> dict[str, Any]:
    scrub = spec.validation.scrub
    if scrub is None:
        return {}
    return {"scrub_bytes_per_second": scrub.bytes_per_second, "scrub_every_seconds": scrub.every_seconds}


def _storage(storage: Storage) -> StorageConfig:
    s3 = storage.s3 or S3()
    addressing = s3.addressing.lower() if s3.addressing else ""
    encryption = (
        {S3Encryption.SSE_S3: "AES256", S3Encryption.SSE_KMS: "aws:kms"}[s3.encryption] if s3.encryption else ""
    )
    return StorageConfig(storage.uri, storage.endpoint, storage.region, addressing, encryption, s3.kms_key_id)


def _mounts(container: Manifest) -> list[Manifest]:
    taken = {m.get("mountPath") for m in container.get("volumeMounts", [])}
    wanted: list[Manifest] = [
        {"name": f"{_VOLUME}arena", "mountPath": ARENA_DIR},
        {"name": f"{_VOLUME}local", "mountPath": LOCAL_DIR},
        {"name": f"{_VOLUME}shm", "mountPath": "/dev/shm"},  # noqa: S108  the loader workers' shared memory
        {"name": f"{_VOLUME}token", "mountPath": names.TOKEN_PATH.rsplit("/", 1)[0], "readOnly": True},
        {"name": f"{_VOLUME}keys", "mountPath": names.KEYS_DIR, "readOnly": True},
    ]
    return [m for m in wanted if m["mountPath"] not in taken]


def _add_volumes(pod: Manifest, job: JobMeta, spec: TrainingJobSpec) -> None:
    arena: Manifest = {"medium": "Memory"}
    if spec.checkpoint.memory_mi_b:
        arena["sizeLimit"] = f"{spec.checkpoint.memory_mi_b}Mi"
    token = {"path": "token", "audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS}
    pod["volumes"] = [
        *pod.get("volumes", []),
        {"name": f"{_VOLUME}arena", "emptyDir": arena},
        {"name": f"{_VOLUME}local", **_local(job, spec)},
        {"name": f"{_VOLUME}shm", "emptyDir": {"medium": "Memory"}},
        {"name": f"{_VOLUME}token", "projected": {"defaultMode": 0o444, "sources": [{"serviceAccountToken": token}]}},
        # Readable by whatever user the container runs as; agent and training code are one trust domain (H3).
        {"name": f"{_VOLUME}keys", "secret": {"secretName": names.child_name(job.name, job.uid), "defaultMode": 0o444}},
    ]


def _local(job: JobMeta, spec: TrainingJobSpec) -> Manifest:
    """An emptyDir, a volume made for the pod, or a directory of this job below the one that the user named on the node (opt-in)."""
    host_path, ephemeral = spec.checkpoint.local.host_path, spec.checkpoint.local.ephemeral
    if ephemeral is not None:
        wanted: Manifest = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{ephemeral.size_gi}Gi"}},
        }
        if ephemeral.storage_class_name:
            wanted["storageClassName"] = ephemeral.storage_class_name
        return {"ephemeral": {"volumeClaimTemplate": {"spec": wanted}}}
    if host_path is None:
        return {"emptyDir": {}}
    return {"hostPath": {"path": f"{host_path.path.rstrip('/')}/{job.uid}", "type": "DirectoryOrCreate"}}


def _add_tolerations(pod: Manifest) -> None:
    own = [_toleration("node.kubernetes.io/not-ready"), _toleration("node.kubernetes.io/unreachable")]
    given = pod.get("tolerations", [])
    keys = {t.get("key") for t in given if t.get("effect") in (None, "", "NoExecute")}
    pod["tolerations"] = [*given, *(t for t in own if t["key"] not in keys)]


def _toleration(key: str) -> Manifest:
    return {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NOT_READY_SECONDS}


def _add_capacity(pod: Manifest, kind: CapacityKind | None) -> None:
    """The nodes must be what the template says and of this kind: every term of the one with every term of the other."""
    if kind is None:
        return
    if kind.node_selector:
        pod["nodeSelector"] = {**pod.get("nodeSelector", {}), **kind.node_selector}
    given = [t.to_wire() for t in kind.tolerations]
    preset = presets.tolerations(kind.preset) if kind.preset is not None else []
    pod["tolerations"] = [*pod["tolerations"], *({k: v for k, v in t.items() if v} for t in given), *preset]
    if kind.preset is None:
        return
    node = pod.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = node.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    required["nodeSelectorTerms"] = [
        {**copy.deepcopy(own), "matchExpressions": [*own.get("matchExpressions", []), *expressions]}
        for expressions in presets.terms(kind.preset)
        for own in required.get("nodeSelectorTerms") or [{}]
    ]


def _add_affinity(
    pod: Manifest, job: JobMeta, worker: int, avoid_nodes: tuple[str, ...], prefer_nodes: tuple[str, ...]
) -> None:
    affinity = pod.setdefault("affinity", {})
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    if avoid_nodes:
        node = affinity.setdefault("nodeAffinity", {})
        required = node.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
        # Terms are alternatives, so each of them must keep away from the nodes.
        terms = required.setdefault("nodeSelectorTerms", [])
        if not terms:
            terms.append({})
        for term in terms:
            fields = term.setdefault("matchFields", [])
            # One name to a field requirement is all that the API allows; matchFields of a term must all hold.
            fields.extend({"key": "metadata.name", "operator": "NotIn", "values": [n]} for n in avoid_nodes)
    others: Manifest = {"matchLabels": {names.LABEL_JOB_UID: job.uid}}
    if prefer_nodes:
        node = affinity.setdefault("nodeAffinity", {})
        wanted = [
            {"weight": 100, "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [n]}]}}
            for n in prefer_nodes
        ]
        node[preferred] = [*node.get(preferred, []), *wanted]
        # What is left of the worker's own last pod is on that very node, and no reason to stay away from it.
        own = {"key": names.LABEL_WORKER, "operator": "NotIn", "values": [str(worker)]}
        others["matchExpressions"] = [own]
    spread = {
        "weight": 100,
        "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": others},
    }
    anti = affinity.setdefault("podAntiAffinity", {})
    anti[preferred] = [*anti.get(preferred, []), spread]


def _keep_from_zones(pod: Manifest, zones: tuple[str, ...]) -> None:
    """A preference: what the template requires stands, and what it prefers by more than ZONE_WEIGHT decides."""
    if not zones:
        return
    node = pod["affinity"].setdefault("nodeAffinity", {})
    elsewhere = {"key": ZONE, "operator": "NotIn", "values": list(zones)}
    term = {"weight": ZONE_WEIGHT, "preference": {"matchExpressions": [elsewhere]}}
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    node[preferred] = [*node.get(preferred, []), term]


def _shun(pod: Manifest, shun: ShunStatus) -> None:
    """Away from where workers were lost: in every term that must hold, or by a preference that is worth as much as the node where state lies."""
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [n]} for n in shun.nodes]
    expressions = [{"key": ZONE, "operator": "NotIn", "values": list(shun.zones)}] if shun.zones else []
    if not fields and not expressions:
        return
    node = pod["affinity"].setdefault("nodeAffinity", {})
    if shun.required:
        required = node.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
        required["nodeSelectorTerms"] = required.get("nodeSelectorTerms") or [{}]
        for term in required["nodeSelectorTerms"]:
            for key, wanted in (("matchFields", fields), ("matchExpressions", expressions)):
                if wanted:
                    term[key] = [*term.get(key, []), *wanted]
        return
    preferences: list[Manifest] = [{"matchFields": fields}] if fields else []
    preferences += [{"matchExpressions": expressions}] if expressions else []
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    node[preferred] = [*node.get(preferred, []), *({"weight": SHUN_WEIGHT, "preference": p} for p in preferences)]
