"""What a real API server accepts and refuses, with the words that a person reads."""

import copy
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.demo.kube import Kube, KubectlFailed, wait_for
from holdfast_operator.crd.definition import CRD_NAME
from holdfast_operator.crd.v1alpha1 import TrainingJobSpec

pytestmark = pytest.mark.cluster

TOP = Path(__file__).resolve().parents[2]
CRD = TOP / "crds/trainingjobs.yaml"

SHORTEST = """\
apiVersion: holdfast.dev/v1alpha1
kind: TrainingJob
metadata:
  name: bytes-gpt
spec:
  workers: 2
  checkpoint:
    storage: {uri: s3://training/checkpoints, secretName: training-bucket}
  template:
    spec:
      containers:
      - name: trainer
        image: example/bytes-gpt
        command: [python, train.py]
"""

COMMAND = (
    "Holdfast runs the container under its agent and must know the command; add for example command: [python, train.py]"
)


@pytest.fixture(scope="module")
def kubectl(toolchain: Path) -> Iterator[Kube]:
    """kubectl of a cluster that has the definition of this checkout; one that was not there before goes again, or Helm would not take it over."""
    if "KUBECONFIG" not in os.environ:
        pytest.fail("KUBECONFIG is not set: run `make test`, which brings a cluster up and sets it")
    kube = Kube(toolchain / "kubectl", Path(os.environ["KUBECONFIG"]))
    was_there = kube.find("crd", CRD_NAME)
    kube.run("apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", str(CRD))
    wait_for("the definition is served", lambda: kube.run("get", "trainingjobs", "-A", "-o", "json"), timeout=30)
    yield kube
    if not was_there:
        kube.run("delete", "crd", CRD_NAME)


@pytest.fixture(scope="module")
def namespace(kubectl: Kube) -> Iterator[str]:
    name = f"crd-{uuid.uuid4().hex[:8]}"
    kubectl.run("create", "namespace", name)
    yield name
    kubectl.run("delete", "namespace", name, "--wait=false")


def put(kube: Kube, namespace: str, job: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """The object as stored. Raises KubectlFailed with the server's words."""
    command = ("apply", "--server-side", "--validate=strict", "-n", namespace, "-o", "json", *arguments, "-f", "-")
    stored: dict[str, Any] = json.loads(kube.run(*command, stdin=json.dumps(job)))
    return stored


def refusal(kube: Kube, namespace: str, job: dict[str, Any]) -> str:
    with pytest.raises(KubectlFailed) as problem:
        put(kube, namespace, job, "--dry-run=server")
    return str(problem.value)


def a_job(change: Callable[[dict[str, Any]], Any] = lambda job: None) -> dict[str, Any]:
    job = yaml.safe_load(SHORTEST)
    change(job)
    return dict(job)


def container(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return found


def test_the_server_stores_the_definition_as_the_file_says_it(kubectl: Kube) -> None:
    """Where the two differ, `kubectl apply --server-side` and Helm fight over the definition for ever, although they want the same."""
    stored = kubectl.get("crd", CRD_NAME)["spec"]
    assert stored["versions"] == yaml.safe_load(CRD.read_text())["spec"]["versions"]


def test_the_shortest_manifest_is_accepted_and_filled_in(kubectl: Kube, namespace: str) -> None:
    assert len(SHORTEST.splitlines()) < 25
    spec = put(kubectl, namespace, a_job(), "--dry-run=server")["spec"]
    given = a_job()["spec"]
    assert spec["template"] == given["template"]
    assert spec["checkpoint"]["storage"] == given["checkpoint"]["storage"]
    assert TrainingJobSpec.model_validate(spec).checkpoint.every.seconds == 600
    assert spec["checkpoint"]["keep"] == {"last": 3}
    assert spec["validation"] == {"onUnsound": "Continue", "suspect": "PassOver"}
    assert spec["processesPerWorker"] == 1
    assert (spec["suspend"], spec["fresh"]) == (False, False)
    assert spec["budgets"] == {
        "preemptions": {"backoffSeconds": 10},
        "failures": {"max": 3, "backoffSeconds": 10},
        "noProgress": {"max": 20},
    }
    assert spec["notices"] == {"defaultDeadlineSeconds": 120, "nodeLostSeconds": 5}


def test_directory_mode_is_accepted_and_filled_in(kubectl: Kube, namespace: str) -> None:
    job = a_job()
    job["spec"]["workers"] = 1
    job["spec"]["checkpoint"] |= {"source": "directory", "directory": {"path": "/out"}}
    spec = put(kubectl, namespace, job, "--dry-run=server")["spec"]
    assert spec["checkpoint"]["directory"] == {"path": "/out", "quietSeconds": 15, "answerSeconds": 20}


def test_a_job_that_changes_its_size_is_accepted_and_filled_in(kubectl: Kube, namespace: str) -> None:
    job = a_job(lambda job: job["spec"].update(elastic={"minWorkers": 1, "maxWorkers": 4, "globalBatch": 8}))
    spec = put(kubectl, namespace, job, "--dry-run=server")["spec"]
    assert spec["elastic"] == {
        "minWorkers": 1, "maxWorkers": 4, "globalBatch": 8, "waitSeconds": 60, "growAfterSeconds": 600
    }  # fmt: skip
    assert "elastic" not in put(kubectl, namespace, a_job(), "--dry-run=server")["spec"]


@pytest.mark.parametrize("page", ["README.md", "docs/install.md", "docs/placement.md"])
def test_the_manifest_in_the_documentation_is_accepted(kubectl: Kube, namespace: str, page: str) -> None:
    found = re.findall(r"```yaml\n(.*?)```", (TOP / page).read_text(), re.DOTALL)
    assert found
    for text in found:
        assert put(kubectl, namespace, yaml.safe_load(text), "--dry-run=server")["spec"]["workers"] == 2


def test_fields_of_a_pod_that_holdfast_does_not_know_are_kept(kubectl: Kube, namespace: str) -> None:
    """G5."""
    job = a_job()
    job["spec"]["template"]["metadata"] = {"labels": {"team": "nlp"}, "annotations": {"note": "x" * 5000}}
    job["spec"]["template"]["spec"] |= {"nodeSelector": {"gpu": "h200"}, "volumes": [{"name": "v", "emptyDir": {}}]}
    container(job).update(resources={"limits": {"nvidia.com/gpu": 1}}, env=[{"name": "A", "value": "b"}])
    assert put(kubectl, namespace, job, "--dry-run=server")["spec"]["template"] == job["spec"]["template"]


Change = Callable[[dict[str, Any]], Any]

REFUSED: dict[str, tuple[Change, str]] = {
    "a trainer without a command": (
        lambda job: container(job).pop("command"),
        f"spec.template.spec.containers[0].command is missing: {COMMAND}",
    ),
    "a trainer with an empty command": (
        lambda job: container(job).update(command=[]),
        f"spec.template.spec.containers[0].command is missing: {COMMAND}",
    ),
    "a first container, none named trainer, without a command": (
        lambda job: container(job).update(name="main") or container(job).pop("command"),
        f"spec.template.spec.containers[0].command is missing: {COMMAND}",
    ),
    "a trainer that is not the first, without a command": (
        lambda job: (
            container(job).update(name="sidecar")
            or job["spec"]["template"]["spec"]["containers"].append({"name": "trainer", "image": "x"})
        ),
        f"spec.template.spec.containers[name=trainer].command is missing: {COMMAND}",
    ),
    "no containers": (
        lambda job: job["spec"]["template"]["spec"].update(containers=[]),
        "spec.template.spec.containers in body should have at least 1 items",
    ),
    "two containers of one name": (
        lambda job: job["spec"]["template"]["spec"]["containers"].append(dict(container(job))),
        "duplicate entries for key",
    ),
    "a template without a pod": (
        lambda job: job["spec"].update(template={}),
        "spec.template.spec: Required value",
    ),
    "a restart policy that makes the kubelet restart ranks": (
        lambda job: job["spec"]["template"]["spec"].update(restartPolicy="OnFailure"),
        "spec.template.spec.restartPolicy must be Never or absent: "
        "every restart is a new attempt, made by Holdfast and not by the kubelet",
    ),
    "a name of 41 characters": (
        lambda job: job["metadata"].update(name="a" * 41),
        "metadata.name is too long: at most 40 characters, because names of pods are made of it",
    ),
    "a name with a dot": (
        lambda job: job["metadata"].update(name="a.b"),
        "metadata.name must be lower-case letters, digits and dashes, starting with a letter: names of pods and of a Service are made of it",
    ),
    "a name that starts with a digit": (
        lambda job: job["metadata"].update(name="7b"),
        "metadata.name must be lower-case letters, digits and dashes, starting with a letter: names of pods and of a Service are made of it",
    ),
    "a misspelled field": (
        lambda job: job["spec"].update(wrokers=3),
        ".spec.wrokers: field not declared in schema",
    ),
    "no storage": (
        lambda job: job["spec"].update(checkpoint={}),
        "spec.checkpoint.storage: Required value",
    ),
    "a directory without saying that it is the source": (
        lambda job: job["spec"]["checkpoint"].update(directory={"path": "/out"}),
        "spec.checkpoint.directory goes with source: directory: write both, or neither",
    ),
    "a source of files without a directory": (
        lambda job: job["spec"].update(workers=1) or job["spec"]["checkpoint"].update(source="directory"),
        "spec.checkpoint.directory goes with source: directory: write both, or neither",
    ),
    "directory mode with two workers": (
        lambda job: job["spec"]["checkpoint"].update(source="directory", directory={"path": "/out"}),
        "spec.checkpoint.source: directory needs workers: 1 and processesPerWorker: 1",
    ),
    "a directory that would be taken for an option": (
        lambda job: (
            job["spec"].update(workers=1)
            or job["spec"]["checkpoint"].update(source="directory", directory={"path": "--out"})
        ),
        "spec.checkpoint.directory.path in body should match",
    ),
    "another kind of storage": (
        lambda job: job["spec"]["checkpoint"]["storage"].update(uri="ftp://training"),
        "spec.checkpoint.storage.uri must start with s3://, gs://, az:// or file:///, for example s3://my-bucket/checkpoints",
    ),
    "a bucket that cannot exist": (
        lambda job: job["spec"]["checkpoint"]["storage"].update(uri="s3://My_Bucket/x"),
        "spec.checkpoint.storage.uri names no valid bucket: write s3://BUCKET/PREFIX; "
        "bucket names have 3 to 63 lower-case letters, digits, dots and dashes",
    ),
    "a container that cannot exist": (
        lambda job: job["spec"]["checkpoint"]["storage"].update(uri="az://My--Container/x"),
        "spec.checkpoint.storage.uri names no valid container: write az://CONTAINER/PREFIX; "
        "container names have 3 to 63 lower-case letters, digits and single dashes",
    ),
    "a key without the encryption that uses it": (
        lambda job: job["spec"]["checkpoint"]["storage"].update(s3={"kmsKeyId": "k"}),
        "spec.checkpoint.storage.s3.kmsKeyId is only read with encryption: SSE-KMS; add it, or remove the key",
    ),
    "settings of S3 for another store": (
        lambda job: job["spec"]["checkpoint"]["storage"].update(uri="gs://training", s3={"addressing": "Path"}),
        "spec.checkpoint.storage.s3 is only read with an s3:// uri: remove it",
    ),
    "a relative file URI": (
        lambda job: job["spec"]["checkpoint"]["storage"].update(uri="file://data"),
        "spec.checkpoint.storage.uri must start with s3://, gs://, az:// or file:///, for example s3://my-bucket/checkpoints",
    ),
    "checkpoints by steps and by seconds": (
        lambda job: job["spec"]["checkpoint"].update(every={"steps": 5, "seconds": 5}),
        "spec.checkpoint.every needs exactly one of steps and seconds, greater than 0, or auto: {}",
    ),
    "checkpoints by steps and as it sees fit": (
        lambda job: job["spec"]["checkpoint"].update(every={"steps": 5, "auto": {}}),
        "spec.checkpoint.every needs exactly one of steps and seconds, greater than 0, or auto: {}",
    ),
    "checkpoints never": (
        lambda job: job["spec"]["checkpoint"].update(every={}),
        "spec.checkpoint.every needs exactly one of steps and seconds, greater than 0, or auto: {}",
    ),
    "no checkpoint kept": (
        lambda job: job["spec"]["checkpoint"].update(keep={"last": 0}),
        "spec.checkpoint.keep.last in body should be greater than or equal to 1",
    ),
    "one out of each so many steps and so many seconds": (
        lambda job: job["spec"]["checkpoint"].update(keep={"every": {"steps": 10, "seconds": 10}}),
        "spec.checkpoint.keep.every needs exactly one of steps and seconds",
    ),
    "the best by no metric": (
        lambda job: job["spec"]["checkpoint"].update(keep={"best": {"count": 2}}),
        "spec.checkpoint.keep.best.metric: Required value",
    ),
    "a pin that is no name of a checkpoint": (
        lambda job: job["spec"]["checkpoint"].update(keep={"pinned": ["newest"]}),
        "spec.checkpoint.keep.pinned[0] in body should match",
    ),
    "an unknown thing to do about findings": (
        lambda job: job["spec"].update(validation={"onUnsound": "Ignore"}),
        'spec.validation.onUnsound: Unsupported value: "Ignore"',
    ),
    "trust in no checkpoint": (
        lambda job: job["spec"].update(validation={"trusted": ["1/0"]}),
        "spec.validation.trusted[0] in body should match",
    ),
    "a relative directory of the node": (
        lambda job: job["spec"]["checkpoint"].update(local={"hostPath": {"path": "data"}}),
        "spec.checkpoint.local.hostPath.path in body should match",
    ),
    "two kinds of disk on the node": (
        lambda job: job["spec"]["checkpoint"].update(
            local={"hostPath": {"path": "/mnt/x"}, "ephemeral": {"sizeGi": 1}}
        ),
        "spec.checkpoint.local.hostPath and spec.checkpoint.local.ephemeral exclude each other: remove one of them",
    ),
    "a zone that one node is enough for": (
        lambda job: job["spec"].update(placement={"quarantine": {"zoneAfterNodes": 1}}),
        "spec.placement.quarantine.zoneAfterNodes in body should be greater than or equal to 2",
    ),
    "no kind of capacity": (
        lambda job: job["spec"].update(placement={"capacity": {"kinds": []}}),
        "spec.placement.capacity.kinds in body should have at least 1 items",
    ),
    "two kinds of capacity of one name": (
        lambda job: job["spec"].update(placement={"capacity": {"kinds": [{"name": "a"}, {"name": "a"}]}}),
        "duplicate entries for key",
    ),
    "a kind of capacity that nobody knows": (
        lambda job: job["spec"].update(placement={"capacity": {"kinds": [{"name": "a", "preset": "Cheap"}]}}),
        'spec.placement.capacity.kinds[0].preset: Unsupported value: "Cheap"',
    ),
    "a toleration of every value of one value": (
        lambda job: job["spec"].update(
            placement={
                "capacity": {
                    "kinds": [{"name": "a", "tolerations": [{"key": "k", "operator": "Exists", "value": "v"}]}]
                }
            }
        ),
        "spec.placement.capacity.kinds[].tolerations[].value is not read with operator: Exists; remove it",
    ),
    "a toleration of nothing": (
        lambda job: job["spec"].update(
            placement={"capacity": {"kinds": [{"name": "a", "tolerations": [{"value": "v"}]}]}}
        ),
        "spec.placement.capacity.kinds[].tolerations[] needs a key, or operator: Exists to tolerate every taint",
    ),
    "fresh and resumed": (
        lambda job: job["spec"].update(fresh=True, resumeFrom={"checkpoint": "1/2"}),
        "spec.fresh and spec.resumeFrom exclude each other: remove one of them",
    ),
    "a checkpoint that is no name of one": (
        lambda job: job["spec"].update(resumeFrom={"checkpoint": "../1"}),
        "spec.resumeFrom.checkpoint in body should match",
    ),
    "a pin that names no checkpoint": (
        lambda job: job["spec"].update(resumeFrom={"checkpoint": "0/5"}),
        "spec.resumeFrom.checkpoint in body should match",
    ),
    "elastic: minWorkers above workers": (
        lambda job: job["spec"].update(elastic={"minWorkers": 3}),
        "spec.elastic.minWorkers is greater than spec.workers",
    ),
    "elastic: maxWorkers below workers": (
        lambda job: job["spec"].update(elastic={"minWorkers": 1, "maxWorkers": 1}),
        "spec.elastic.maxWorkers is less than spec.workers",
    ),
    "elastic: without minWorkers": (
        lambda job: job["spec"].update(elastic={"globalBatch": 8}),
        "spec.elastic.minWorkers: Required value",
    ),
    "elastic: a global batch without equal shares for all": (
        lambda job: job["spec"].update(elastic={"minWorkers": 1, "globalBatch": 9}),
        "spec.elastic.globalBatch must be a multiple of spec.workers, of minWorkers and of maxWorkers, each times spec.processesPerWorker",
    ),
    "elastic: a global batch without equal shares for the least": (
        lambda job: job["spec"].update(workers=4, processesPerWorker=2, elastic={"minWorkers": 3, "globalBatch": 16}),
        "spec.elastic.globalBatch must be a multiple of spec.workers, of minWorkers and of maxWorkers, each times spec.processesPerWorker",
    ),
    "elastic: a global batch without equal shares for the most": (
        lambda job: job["spec"].update(elastic={"minWorkers": 1, "maxWorkers": 3, "globalBatch": 8}),
        "spec.elastic.globalBatch must be a multiple of spec.workers, of minWorkers and of maxWorkers, each times spec.processesPerWorker",
    ),
    "elastic: directory mode": (
        lambda job: (
            job["spec"].update(workers=1, elastic={"minWorkers": 1})
            or job["spec"]["checkpoint"].update(source="directory", directory={"path": "/out"})
        ),
        "spec.elastic needs the library",
    ),
    "no workers": (
        lambda job: job["spec"].update(workers=0),
        "spec.workers in body should be greater than or equal to 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_words_that_say_what_to_do(kubectl: Kube, namespace: str, case: str) -> None:
    change, words = REFUSED[case]
    assert words in refusal(kubectl, namespace, a_job(change))


UNCHANGEABLE: dict[str, tuple[Change, str]] = {
    "workers": (
        lambda job: job["spec"].update(workers=3),
        "spec.workers cannot be changed: delete the job, whose checkpoints stay, and create it again with another number and its uid as spec.resumeFrom.uid",
    ),
    "processes": (
        lambda job: job["spec"].update(processesPerWorker=2),
        "spec.processesPerWorker cannot be changed: delete the job, whose checkpoints stay, and create it again with another number",
    ),
    "place of the checkpoints": (
        lambda job: job["spec"]["checkpoint"]["storage"].update(uri="s3://elsewhere"),
        "spec.checkpoint.storage.uri cannot be changed: the job would lose its checkpoints; "
        "create a job of another name, or copy the checkpoints and use resumeFrom",
    ),
}


@pytest.fixture(scope="module")
def stored(kubectl: Kube, namespace: str) -> dict[str, Any]:
    """A job that exists. Suspended, so that an operator on the cluster starts nothing for it."""
    job = a_job(lambda job: job["spec"].update(suspend=True))
    put(kubectl, namespace, job)
    return job


@pytest.mark.parametrize("case", UNCHANGEABLE)
def test_cannot_be_changed_in_a_job_that_exists(
    kubectl: Kube, namespace: str, stored: dict[str, Any], case: str
) -> None:
    change, words = UNCHANGEABLE[case]
    job = copy.deepcopy(stored)
    change(job)
    assert words in refusal(kubectl, namespace, job)


@pytest.mark.parametrize("how", [["--server-side"], []], ids=["server-side apply", "client-side apply"])
def test_the_interval_can_be_set_and_turned_from_steps_to_seconds(
    kubectl: Kube, namespace: str, how: list[str]
) -> None:
    """A default that the server had written would stay beside the field that is added, and the two exclude each other."""
    job = a_job(lambda job: job["spec"].update(suspend=True))
    job["metadata"]["name"] = "interval-" + ("server" if how else "client")
    for every in (None, {"steps": 9}, {"seconds": 60}):
        if every:
            job["spec"]["checkpoint"]["every"] = every
        kubectl.run("apply", *how, "-n", namespace, "-f", "-", stdin=json.dumps(job))
    seen = kubectl.get("trainingjob", job["metadata"]["name"], namespace=namespace)
    assert seen["spec"]["checkpoint"]["every"] == {"steps": 0, "seconds": 60}


def test_kubectl_prints_the_columns_by_short_name_and_category(
    kubectl: Kube, namespace: str, stored: dict[str, Any]
) -> None:
    head = kubectl.run("get", "tj", "-n", namespace).split("\n")[0].split()
    assert head == ["NAME", "PHASE", "WORKERS", "ATTEMPT", "STEP", "CHECKPOINT", "PREEMPTED", "RESUME", "AGE"]
    wide = kubectl.run("get", "holdfast", "-n", namespace, "-o", "wide").split("\n")[0].split()
    assert wide == [*head, "FAILURES", "REASON"]
