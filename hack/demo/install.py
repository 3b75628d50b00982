"""Puts Holdfast and a bucket on a cluster, the way a user does: the chart through the real helm program, a Secret, a namespace.

Shared by the demo and the cluster tests, so that both run what people run.
"""

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hack.demo.kube import Kube, wait_for

TOP = Path(__file__).resolve().parents[2]
EXAMPLE = TOP / "examples/01-bytes-gpt/train.py"
SYSTEM = "holdfast-system"
RELEASE = "holdfast"
OPERATOR_IMAGE = "localhost/holdfast-operator:dev"
TRAINER_IMAGE = "localhost/holdfast-trainer:dev"


class HelmFailed(Exception):
    """helm said no; the message is what it said."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a training Secret needs."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    name: str


def image_values(image: str) -> list[str]:
    """The chart's values for an image name with a tag, a digest or both. Pure."""
    name, _, digest = image.partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # the colon of a registry's port, or none
        repository, tag = name, ""
    values = {"repository": repository, "tag": tag or ("" if digest else "latest"), "digest": digest}
    return [f"image.{key}={value}" for key, value in values.items() if value]


def install_chart(kube: Kube, helm: Path, *values: str, image: str = OPERATOR_IMAGE, timeout: int = 120) -> None:
    """`helm upgrade --install` of charts/holdfast from this checkout, waiting until the operator is ready."""
    settings = [*image_values(image), "image.pullPolicy=IfNotPresent", *values]
    # The tag stays "dev" whatever is in the image: without this a new build would not replace the running operator.
    settings.append(f"podAnnotations.holdfast\\.dev/build=b{source_digest()}")
    command = [
        str(helm), "upgrade", "--install", RELEASE, str(TOP / "charts/holdfast"), "--kubeconfig", str(kube.kubeconfig),
        "--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", f"{timeout}s",
    ]  # fmt: skip
    for s in settings:
        command += ["--set", s]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout + 60, check=False)
    if done.returncode:
        raise HelmFailed(done.stderr.strip() or done.stdout.strip())


@dataclass(frozen=True, slots=True)
class Before:
    """What of Holdfast a cluster had before we came."""

    release: bool
    namespace: bool


def look(kube: Kube, helm: Path) -> Before:
    """To be asked before `install_chart`."""
    status = [str(helm), "status", RELEASE, "--kubeconfig", str(kube.kubeconfig), "--namespace", SYSTEM]
    release = subprocess.run(status, capture_output=True, timeout=60, check=False).returncode == 0
    return Before(release, kube.find("namespace", SYSTEM) is not None)


def remove_chart(kube: Kube, helm: Path, before: Before) -> None:
    """The opposite of `install_chart`; what was there before stays (a namespace may hold the key of an earlier release), and so does the definition of
    TrainingJob, as the chart keeps it."""
    if before.release:
        return
    command = [str(helm), "uninstall", RELEASE, "--kubeconfig", str(kube.kubeconfig), "--namespace", SYSTEM, "--wait"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        raise HelmFailed(done.stderr.strip() or done.stdout.strip())
    if not before.namespace:
        kube.run("delete", "namespace", SYSTEM, "--ignore-not-found", "--wait=false")


def source_digest() -> str:
    """Changes when anything changes that goes into the operator's image."""
    digest = hashlib.sha256()
    files = [
        TOP / "Dockerfile",
        TOP / "requirements-operator.lock",
        *sorted(TOP.glob("api/**/*.py")),
        *sorted(TOP.glob("operator/**/*.py")),
    ]
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def prepare_namespace(kube: Kube, namespace: str, bucket: Bucket, *, script: Path = EXAMPLE) -> None:
    """A namespace with the bucket's Secret and a training script in a ConfigMap."""
    meta = {"namespace": namespace}
    kube.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "training-bucket", **meta},
            "stringData": {
                "AWS_ACCESS_KEY_ID": bucket.access_key,
                "AWS_SECRET_ACCESS_KEY": bucket.secret_key,
                "AWS_ENDPOINT_URL": bucket.endpoint,
                "AWS_REGION": bucket.region,
            },
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "train-script", **meta},
            "data": {"train.py": script.read_text()},
        },
    )
    wait_for(
        "service account of the namespace",
        lambda: kube.find("serviceaccount", "default", namespace=namespace),
        timeout=30,
    )


def training_job(
    name: str,
    namespace: str,
    uri: str,
    *,
    torch_path: str,
    image: str = TRAINER_IMAGE,
    arguments: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    spec: dict[str, Any] | None = None,
    command: tuple[str, ...] = ("python", "/script/train.py"),
    every: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Example 01 as a TrainingJob for a cluster where torch lies in a directory of the nodes (`torch_path`; empty: in the image)."""
    env = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **(environment or {})}
    mounts = [{"name": "script", "mountPath": "/script"}]
    volumes: list[dict[str, Any]] = [{"name": "script", "configMap": {"name": "train-script"}}]
    if torch_path:
        env["PYTHONPATH"] = torch_path
        mounts.append({"name": "torch", "mountPath": torch_path})
        volumes.append({"name": "torch", "hostPath": {"path": torch_path}})
    container = {
        "name": "trainer",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [*command, *arguments],
        "env": [{"name": k, "value": v} for k, v in env.items()],
        "volumeMounts": mounts,
    }
    return {
        "apiVersion": "holdfast.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "workers": 2,
            "processesPerWorker": 2,
            "checkpoint": {"storage": {"uri": uri, "secretName": "training-bucket"}, "every": every or {"steps": 10}},
            "template": {"spec": {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 30}},
            **(spec or {}),
        },
    }


def pods_of(kube: Kube, namespace: str, job: str) -> list[dict[str, Any]]:
    """The job's pods, by worker and serial."""
    items: list[dict[str, Any]] = kube.get("pods", namespace=namespace, selector=f"holdfast.dev/job={job}")["items"]
    return sorted(
        items, key=lambda p: json.dumps([p["metadata"]["labels"].get("holdfast.dev/worker"), p["metadata"]["name"]])
    )
