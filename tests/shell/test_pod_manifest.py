"""The worker's pod, whole, against a sample that people can read; and the rules of part G one by one."""

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast_api import codec, names
from holdfast_api.config import AgentConfig
from holdfast_operator.core import children
from holdfast_operator.core.observed import JobMeta
from holdfast_operator.core.pods import PodContext, made_from, worker_pod
from holdfast_operator.crd.v1alpha1 import TrainingJobSpec, WarmStart

GOLDEN = Path(__file__).parent / "golden" / "worker-pod.json"
JOB = JobMeta("bytes-gpt", "team", "0a1b2c3d-0000-4000-8000-000000000001")
CONTEXT = PodContext("http://holdfast-operator.holdfast-system.svc:8470")


def spec(template: dict[str, Any] | None = None, **checkpoint: Any) -> TrainingJobSpec:
    container = {"name": "trainer", "image": "example/bytes-gpt", "command": ["python", "train.py"], "args": ["--fast"]}
    storage = {"uri": "s3://training/checkpoints", "secretName": "training-bucket", "region": "eu-central-1"}
    return TrainingJobSpec.model_validate({
        "workers": 2,
        "processesPerWorker": 2,
        "checkpoint": {"storage": storage, "every": {"steps": 500}, **checkpoint},
        "template": template or {"spec": {"containers": [container]}},
    })  # fmt: skip


def pod(
    job_spec: TrainingJobSpec | None = None, avoid: tuple[str, ...] = (), context: PodContext = CONTEXT
) -> dict[str, Any]:
    return worker_pod(JOB, job_spec or spec(), 1, 3, avoid, context)


def test_the_pod_is_the_one_of_the_sample() -> None:
    assert pod(avoid=("n1",)) == json.loads(GOLDEN.read_text())


def test_the_agent_runs_the_command_and_keeps_the_arguments() -> None:
    (container,) = pod()["spec"]["containers"]
    assert container["command"] == ["holdfast-agent", "run", "--", "python", "train.py"]
    assert container["args"] == ["--fast"]


def test_the_agent_is_told_to_keep_ranks_ready_and_a_pod_made_before_is_another() -> None:
    def config(job_spec: TrainingJobSpec) -> AgentConfig:
        (container,) = pod(job_spec)["spec"]["containers"]
        return codec.from_json(AgentConfig, next(e["value"] for e in container["env"] if e["name"] == names.ENV_CONFIG).encode())  # fmt: skip

    on = spec().model_copy(update={"warm_start": WarmStart.ON})
    assert (config(spec()).warm_start, config(on).warm_start) == (False, True)
    assert made_from(on) != made_from(spec())


def test_a_script_that_writes_its_own_checkpoints_runs_in_directory_mode() -> None:
    directory = {"path": "out", "pattern": "--odd-(.*)", "signal": "USR1"}
    (container,) = pod(spec(source="directory", directory=directory))["spec"]["containers"]
    mode = [
        "holdfast-directory",
        "out",
        "--pattern=--odd-(.*)",
        "--signal=USR1",
        "--quiet-seconds=15",
        "--answer-seconds=20",
        "--",
    ]
    assert container["command"] == ["holdfast-agent", "run", "--", *mode, "python", "train.py"]
    assert container["args"] == ["--fast"]


def test_the_container_named_trainer_is_wrapped_wherever_it_stands() -> None:
    both = [{"name": "side", "image": "s", "command": ["x"]}, {"name": "trainer", "image": "i", "command": ["y"]}]
    side, trainer = pod(spec({"spec": {"containers": both}}))["spec"]["containers"]
    assert side == both[0]
    assert trainer["command"][-1] == "y"
    assert trainer["command"][0] == "holdfast-agent"


def test_the_agents_configuration_can_be_read_by_the_agent() -> None:
    env = {e["name"]: e for e in pod()["spec"]["containers"][0]["env"]}
    config = codec.from_json(AgentConfig, env[names.ENV_CONFIG]["value"].encode())
    assert (config.worker, config.serial, config.workers, config.processes_per_worker) == (1, 3, 2, 2)
    assert (config.every_steps, config.every_seconds, config.grace_seconds) == (500, 0, 120)
    assert config.every_auto is False
    assert config.operator_url == CONTEXT.operator_url
    assert config.storage.region == "eu-central-1"


def test_the_nodes_copy_can_lie_on_a_volume_that_is_made_for_the_pod() -> None:
    job_spec = spec(local={"ephemeral": {"sizeGi": 400, "storageClassName": "local-nvme"}})
    (volume,) = [v for v in pod(job_spec)["spec"]["volumes"] if v["name"] == "holdfast-local"]
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "local-nvme",
        "resources": {"requests": {"storage": "400Gi"}},
    }


def test_settings_of_s3_reach_the_agent() -> None:
    s3 = {"addressing": "Virtual", "encryption": "SSE-KMS", "kmsKeyId": "key-1"}
    job_spec = spec(storage={"uri": "s3://b/p", "s3": s3})
    env = {e["name"]: e for e in pod(job_spec)["spec"]["containers"][0]["env"]}
    storage = codec.from_json(AgentConfig, env[names.ENV_CONFIG]["value"].encode()).storage
    assert (storage.addressing, storage.encryption, storage.kms_key_id) == ("virtual", "aws:kms", "key-1")
    plain = pod(spec(storage={"uri": "s3://b/p", "s3": {"encryption": "SSE-S3"}}))["spec"]["containers"][0]["env"]
    storage = codec.from_json(
        AgentConfig, next(e for e in plain if e["name"] == names.ENV_CONFIG)["value"].encode()
    ).storage
    assert (storage.addressing, storage.encryption, storage.kms_key_id) == ("", "AES256", "")


def test_the_limit_of_background_uploads_reaches_the_agent_and_there_is_none_by_default() -> None:
    found = []
    for more in ({}, {"backgroundBytesPerSecond": 5_000_000}):
        job_spec = TrainingJobSpec.model_validate(
            spec().model_dump(by_alias=True, mode="json", exclude_none=True)
            | {"checkpoint": spec().checkpoint.model_dump(by_alias=True, mode="json", exclude_none=True) | more}
        )
        env = {e["name"]: e for e in pod(job_spec)["spec"]["containers"][0]["env"]}
        found.append(codec.from_json(AgentConfig, env[names.ENV_CONFIG]["value"].encode()).background_bytes_per_second)
    assert found == [0, 5_000_000]


def test_the_pace_of_the_scrub_reaches_the_agent_and_there_is_none_by_default() -> None:
    found = []
    for more in ({}, {"validation": {"scrub": {"bytesPerSecond": 7}}}, {"validation": {"scrub": {}}}):
        given = spec().model_dump(by_alias=True, mode="json", exclude_none=True) | more
        env = {e["name"]: e for e in pod(TrainingJobSpec.model_validate(given))["spec"]["containers"][0]["env"]}
        config = codec.from_json(AgentConfig, env[names.ENV_CONFIG]["value"].encode())
        found.append((config.scrub_bytes_per_second, config.scrub_every_seconds))
    assert found == [(0, 604_800), (7, 604_800), (10_000_000, 604_800)]


def test_what_the_user_wrote_stays_and_the_template_is_not_changed() -> None:
    template = {
        "metadata": {"labels": {"team": "x"}, "annotations": {"sidecar.istio.io/inject": "true"}},
        "spec": {
            "terminationGracePeriodSeconds": 300,
            "automountServiceAccountToken": True,
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 7}],
            "volumes": [{"name": "data", "emptyDir": {}}],
            "containers": [
                {
                    "name": "trainer", "image": "i", "command": ["x"], "env": [{"name": "A", "value": "1"}],
                    "volumeMounts": [{"name": "data", "mountPath": "/dev/shm"}],
                }
            ],
        },
    }  # fmt: skip
    job_spec = spec(template)
    before = json.dumps(job_spec.template)
    made = pod(job_spec)
    assert json.dumps(job_spec.template) == before
    assert made["metadata"]["labels"]["team"] == "x"
    assert made["metadata"]["annotations"]["sidecar.istio.io/inject"] == "true", "the user may opt in to a mesh (G3)"
    assert made["spec"]["terminationGracePeriodSeconds"] == 300
    assert made["spec"]["automountServiceAccountToken"] is True
    assert made["spec"]["tolerations"][0]["tolerationSeconds"] == 7
    assert [t["key"] for t in made["spec"]["tolerations"]].count("node.kubernetes.io/not-ready") == 1
    mounts = [m["mountPath"] for m in made["spec"]["containers"][0]["volumeMounts"]]
    assert mounts.count("/dev/shm") == 1
    assert {"name": "A", "value": "1"} in made["spec"]["containers"][0]["env"]


def test_a_directory_of_the_node_is_used_below_the_jobs_uid_only_if_asked_for() -> None:
    volumes = {v["name"]: v for v in pod(spec(local={"hostPath": {"path": "/mnt/local/"}}))["spec"]["volumes"]}
    assert volumes["holdfast-local"]["hostPath"]["path"] == f"/mnt/local/{JOB.uid}"
    assert all("hostPath" not in v for v in pod()["spec"]["volumes"])


def test_the_memory_volume_has_a_limit_only_if_one_is_set() -> None:
    limited = {v["name"]: v for v in pod(spec(memoryMiB=2048))["spec"]["volumes"]}
    assert limited["holdfast-arena"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2048Mi"}


def test_doomed_nodes_are_kept_away_from_in_every_term_that_the_user_wrote() -> None:
    terms = [
        {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]},
        {"matchExpressions": [{"key": "tpu", "operator": "Exists"}]},
    ]
    container = {"name": "trainer", "image": "i", "command": ["x"]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    made = pod(spec({"spec": {"containers": [container], "affinity": affinity}}), avoid=("n1", "n2"))
    found = made["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert [t["matchExpressions"] for t in found] == [t["matchExpressions"] for t in terms]
    assert all([f["values"] for f in t["matchFields"]] == [["n1"], ["n2"]] for t in found)


def test_restart_rules_only_where_the_server_knows_them_and_only_for_a_killed_agent() -> None:
    assert "restartPolicyRules" not in pod()["spec"]["containers"][0]
    container = pod(context=PodContext("u", restart_rules=True))["spec"]["containers"][0]
    assert container["restartPolicyRules"] == [{"action": "Restart", "exitCodes": {"operator": "In", "values": [137]}}]


def test_the_training_code_has_no_api_token_but_the_one_for_the_operator() -> None:
    made = pod()
    assert made["spec"]["automountServiceAccountToken"] is False
    (token,) = [v for v in made["spec"]["volumes"] if "projected" in v]
    assert token["projected"]["sources"][0]["serviceAccountToken"]["audience"] == names.TOKEN_AUDIENCE


@pytest.mark.parametrize("secret", ["", "training-bucket"])
def test_credentials_are_referenced_and_never_copied(secret: str) -> None:
    job_spec = spec(storage={"uri": "s3://b/p", "secretName": secret})
    container = pod(job_spec)["spec"]["containers"][0]
    assert container.get("envFrom", []) == ([{"secretRef": {"name": secret}}] if secret else [])


def test_only_the_jobs_pods_and_the_operators_namespace_reach_a_worker() -> None:
    policy = children.network_policy(JOB, "holdfast-system")
    peers, operator = policy["spec"]["ingress"]
    assert peers["from"][0]["podSelector"]["matchLabels"] == {names.LABEL_JOB_UID: JOB.uid}
    assert operator["ports"] == [{"port": names.AGENT_PORT, "protocol": "TCP"}]


def test_the_namespace_of_prometheus_reaches_the_agents_port_and_nothing_else() -> None:
    _, callers = children.network_policy(JOB, "holdfast-system", "monitoring")["spec"]["ingress"]
    found = [c["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for c in callers["from"]]
    assert found == ["holdfast-system", "monitoring"]
    assert callers["ports"] == [{"port": names.AGENT_PORT, "protocol": "TCP"}]


def test_the_longest_job_name_still_gives_a_host_name() -> None:
    job = JobMeta("j" * names.MAX_JOB_NAME, "team", JOB.uid)
    made = worker_pod(job, spec(), 1023, 999_999, (), CONTEXT)
    assert len(made["spec"]["hostname"]) <= 63


def test_a_preferred_node_is_preferred_and_never_required() -> None:
    """E6: beside what the user wrote, and not against the pod's own predecessor, which stands on that very node."""
    given = {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [given]}}
    container = {"name": "trainer", "image": "i", "command": ["python"]}
    wanted = spec({"spec": {"containers": [container], "affinity": affinity}})
    made = worker_pod(JOB, wanted, 1, 3, (), CONTEXT, ("n1",))["spec"]["affinity"]
    assert made["nodeAffinity"] == {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            given,
            {
                "weight": 100,
                "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
            },
        ]
    }
    (spread,) = made["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    selector = spread["podAffinityTerm"]["labelSelector"]
    assert selector["matchExpressions"] == [{"key": names.LABEL_WORKER, "operator": "NotIn", "values": ["1"]}]
    assert wanted.template["spec"]["affinity"] == affinity, "the spec is not touched"


def test_zones_are_kept_away_from_by_preference_and_never_by_rule() -> None:
    """F5: a zone with the only room left is better than no pod; and what the template requires or prefers more stands."""
    given = {"weight": 100, "preference": {"matchExpressions": [{"key": "rack", "operator": "Exists"}]}}
    required = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]}
    affinity = {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [given],
            "requiredDuringSchedulingIgnoredDuringExecution": required,
        }
    }
    container = {"name": "trainer", "image": "i", "command": ["python"]}
    wanted = spec({"spec": {"containers": [container], "affinity": affinity}})
    node = worker_pod(JOB, wanted, 1, 3, (), CONTEXT, avoid_zones=("a", "b"))["spec"]["affinity"]["nodeAffinity"]
    assert node["requiredDuringSchedulingIgnoredDuringExecution"] == required
    first, ours = node["preferredDuringSchedulingIgnoredDuringExecution"]
    assert first == given
    assert ours["weight"] < 100
    assert ours["preference"]["matchExpressions"] == [
        {"key": "topology.kubernetes.io/zone", "operator": "NotIn", "values": ["a", "b"]}
    ]
