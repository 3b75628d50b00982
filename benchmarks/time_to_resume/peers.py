"""What Holdfast is compared with: the same training on the same cluster, into the same store, restarted from the newest checkpoint.

*job*: an Indexed Job whose pods run torchrun. The Job makes the evicted pod anew as soon as it is leaving; torchrun on the other pod ends its ranks, waits for
the newcomer and starts ranks again. Its keep-alive is set to the least it takes, so that it notices sooner than by default (5 s, three times).
*gang*: what JobSet does (failure policy Recreate): as soon as one pod is leaving all are deleted and made anew, at once. No JobSet controller runs here:
`Gang` does what it does, and reads the API ten times a second, where a controller would have a watch.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.ground import Ground
from benchmarks.time_to_resume.pods import Pods, is_leaving
from hack.demo import install
from hack.demo.kube import wait_for

Object = dict[str, Any]
PORT = 29400
KEEP_ALIVE = "keep_alive_interval=1,keep_alive_max_attempt=3"
SETTLED_STEPS = 14
"""Past the first checkpoint, so that there is one to restart from."""


@dataclass(slots=True)
class Resumed:
    """One restart: milliseconds from the eviction."""

    total_ms: float
    caught_up_ms: float
    """Until the step that had been reached before."""
    steps_lost: int
    phases_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the training."""

    workers: int
    ranks: int
    """Of each worker."""
    every: int
    batch: int
    context: int


def script(ground: Ground, sources: dict[str, str]) -> None:
    meta = {"name": "peer-script", "namespace": ground.namespace}
    ground.kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": sources})


def pod_spec(ground: Ground, name: str, shape: Shape, rendezvous: str) -> Object:
    """As Holdfast's own workers are: image, torch, store, half a core, kept apart where that can be."""
    torch_path = ground.cluster.torch_path_in_pod
    run = (
        f"exec python -m torch.distributed.run --nnodes={shape.workers} --nproc-per-node={shape.ranks} --monitor-interval=0.1 {rendezvous} "
        f"/script/train_dcp.py s3://benchmarks/{ground.namespace}/{name}"
    )
    env = {
        "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "EVERY": str(shape.every), "BATCH": str(shape.batch), "CONTEXT": str(shape.context), "ACCUMULATE": "2",
        **({"PYTHONPATH": torch_path} if torch_path else {}),
    }  # fmt: skip
    mounts = [{"name": "script", "mountPath": "/script"}, {"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[Object] = [
        {"name": "script", "configMap": {"name": "peer-script"}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    if torch_path:
        mounts.append({"name": "torch", "mountPath": torch_path})
        volumes.append({"name": "torch", "hostPath": {"path": torch_path}})
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"peer": name}}}
    apart = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
    return {
        "restartPolicy": "Never",
        "subdomain": name,
        "terminationGracePeriodSeconds": 30,
        "affinity": {"podAntiAffinity": apart},
        "containers": [
            {
                "name": "trainer",
                "image": install.TRAINER_IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", run],
                "env": [{"name": k, "value": v} for k, v in env.items()],
                "envFrom": [{"secretRef": {"name": "training-bucket"}}],
                "resources": {"requests": {"cpu": "500m"}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def service(ground: Ground, name: str) -> Object:
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"peer": name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": ground.namespace}, "spec": spec}  # fmt: skip


class PlainJob:
    """(a): `with PlainJob(...) as peer: peer.preempt()`."""

    TITLE = "Kubernetes Job + torchrun + DCP"

    def __init__(self, ground: Ground, pods: Pods, name: str, shape: Shape) -> None:
        self._ground, self._pods, self._name, self._shape = ground, pods, name, shape

    def __enter__(self) -> "PlainJob":
        # The index is in the environment of the pod; the first pod holds the rendezvous.
        rendezvous = (
            f"--max-restarts=1000 --rdzv-backend=c10d --rdzv-id={self._name} --rdzv-endpoint={self._name}-0.{self._name}:{PORT} "
            f"--rdzv-conf={KEEP_ALIVE},is_host=$([ $JOB_COMPLETION_INDEX = 0 ] && echo true || echo false)"
        )
        spec = pod_spec(self._ground, self._name, self._shape, rendezvous)
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": self._name, "namespace": self._ground.namespace},
            "spec": {
                "completionMode": "Indexed",
                "completions": self._shape.workers,
                "parallelism": self._shape.workers,
                "backoffLimit": 1000,
                "template": {"metadata": {"labels": {"peer": self._name}}, "spec": spec},
            },
        }
        self._ground.kube.apply(service(self._ground, self._name), job)
        trains(self._pods, self._name, 0.0, SETTLED_STEPS)
        return self

    def __exit__(self, *_: object) -> None:
        self._ground.kube.run("delete", "job", self._name, "-n", self._ground.namespace, "--cascade=foreground", "--grace-period=1", timeout=90)  # fmt: skip
        self._ground.kube.run("delete", "service", self._name, "-n", self._ground.namespace)
        gone(self._pods, self._name)

    def preempt(self) -> Resumed:
        victim = next(
            p for p in self._pods.find(f"peer={self._name}")
            if p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == "1" and not is_leaving(p)
        )  # fmt: skip
        before = newest_step(self._pods, self._name)
        at = time.time()
        self._pods.evict(victim["metadata"]["name"])
        return resumed(self._pods, self._name, at, before)


class Gang:
    """(b): what JobSet does with its pods, written out."""

    TITLE = "JobSet-like gang recreation + torchrun + DCP"

    def __init__(self, ground: Ground, pods: Pods, name: str, shape: Shape) -> None:
        self._ground, self._pods, self._name, self._shape = ground, pods, name, shape
        self._round = 0

    def __enter__(self) -> "Gang":
        self._ground.kube.apply(service(self._ground, self._name))
        self._make()
        trains(self._pods, self._name, 0.0, SETTLED_STEPS)
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self._pods.find(f"peer={self._name}"):
            self._pods.delete(pod["metadata"]["name"], grace=1)
        self._ground.kube.run("delete", "service", self._name, "-n", self._ground.namespace)
        gone(self._pods, self._name)

    def preempt(self) -> Resumed:
        victim = next(
            p for p in self._pods.find(f"peer={self._name},round={self._round}")
            if p["metadata"]["labels"]["index"] == "1"
        )  # fmt: skip
        before = newest_step(self._pods, self._name)
        at = time.time()
        self._pods.evict(victim["metadata"]["name"])
        wait_for("a pod of the gang is leaving", self._one_is_leaving, timeout=30, every=0.1)
        for pod in self._pods.find(f"peer={self._name},round={self._round}"):
            self._pods.delete(pod["metadata"]["name"])
        self._make()
        return resumed(self._pods, self._name, at, before)

    def _one_is_leaving(self) -> bool:
        found = self._pods.find(f"peer={self._name},round={self._round}")
        return len(found) < self._shape.workers or any(is_leaving(p) for p in found)

    def _make(self) -> None:
        self._round += 1
        first = f"{self._name}-{self._round}-0"
        for index in range(self._shape.workers):
            pod = f"{self._name}-{self._round}-{index}"
            rendezvous = (
                f"--node-rank={index} --rdzv-backend=static --master-addr={first}.{self._name} --master-port={PORT}"
            )
            labels = {"peer": self._name, "round": str(self._round), "index": str(index)}
            spec = {"hostname": pod, **pod_spec(self._ground, self._name, self._shape, rendezvous)}
            self._pods.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": labels}, "spec": spec})  # fmt: skip


# ---- what their output says


def marks(pods: Pods, name: str, *, since: float = 0.0) -> list[Object]:
    """Of all pods that are there, by time."""
    found = [m for p in pods.find(f"peer={name}") for m in pods.lines(p["metadata"]["name"])]
    return sorted((m for m in found if m["at"] >= since), key=lambda m: m["at"])


def newest_step(pods: Pods, name: str) -> int:
    return max((m["step"] for m in marks(pods, name) if m["mark"] == "step"), default=0)


def trains(pods: Pods, name: str, since: float, step: int) -> None:
    def reached() -> bool:
        return any(m["mark"] == "step" and m["step"] >= step for m in marks(pods, name, since=since))

    wait_for(f"{name} is at step {step}", reached, timeout=180, every=1.0)


def gone(pods: Pods, name: str) -> None:
    wait_for(f"pods of {name} are gone", lambda: not pods.find(f"peer={name}"), timeout=90, every=0.5)


def resumed(pods: Pods, name: str, at: float, before: int) -> Resumed:
    """Waits until it has caught up, and takes the moments of rank 0 and of the last rank to have started."""

    def caught_up() -> list[Object] | None:
        found = after(marks(pods, name, since=at))
        return found if any(m["mark"] == "step" and m["step"] > before for m in found) else None

    found: list[Object] = wait_for(f"{name} trains again", caught_up, timeout=240, every=0.5)
    return restart(found, at, before)


def after(found: list[Object]) -> list[Object]:
    """From the last load on there are steps of the new start alone: the old ranks may have taken one more. Pure."""
    loads = [n for n, m in enumerate(found) if m["mark"] == "loaded"]
    return [m for n, m in enumerate(found) if loads and (m["mark"] != "step" or n > loads[0])]


def restart(found: list[Object], at: float, before: int) -> Resumed:
    """Of the marks of the new start. The whole is from the eviction to rank 0's first step, as Holdfast's is to its first new step. Pure."""
    latest = {name: max(m["at"] for m in found if m["mark"] == name) for name in ("start", "imported", "joined", "loaded")}  # fmt: skip
    steps = [m for m in found if m["mark"] == "step" and m["rank"] == 0]
    first = steps[0]
    caught_up = next(m for m in steps if m["step"] > before)
    moments = [at, *latest.values(), first["at"]]
    names = ("pods and launcher", "import", "process group", "load", "first step")
    each = {n: (b - a) * 1000 for n, a, b in zip(names, moments, moments[1:], strict=False)}
    return Resumed((first["at"] - at) * 1000, (caught_up["at"] - at) * 1000, max(0, before - first["step"] + 1), each)
