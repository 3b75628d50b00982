"""What a pod and its object show when it is deleted, evicted or driven off its node."""

import json
import subprocess
from typing import Any

import pytest

pytestmark = pytest.mark.cluster


def test_a_deleted_pod_gets_sigterm_and_its_last_words_are_logged(world: Any, ends_slowly: str) -> None:
    world.pod("term", ends_slowly)
    command = [str(world.cluster.bin / "kubectl"), f"--kubeconfig={world.cluster.kubeconfig}", "-n", world.namespace]
    with subprocess.Popen([*command, "logs", "-f", "term"], stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "up\n"
        world.kubectl("delete", "pod", "term")
        assert follower.stdout.read() == "SIGTERM\nsaved\n"


def test_an_eviction_is_refused_by_a_budget_and_otherwise_marks_the_pod(
    world: Any, until: Any, ends_slowly: str, disruption_reason: Any
) -> None:
    world.pod("evicted", ends_slowly, labels={"app": "evicted"})
    budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": "evicted"}}}
    world.create(
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "budget"}, "spec": budget}
    )
    until(lambda: world.get("pdb", "budget")["status"].get("currentHealthy") == 1)
    eviction = json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "evicted"}})
    path = f"/api/v1/namespaces/{world.namespace}/pods/evicted/eviction"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        world.kubectl("create", "--raw", path, "-f", "-", feed=eviction)
    assert "disruption budget" in refused.value.stderr
    world.kubectl("delete", "pdb", "budget")
    world.kubectl("create", "--raw", path, "-f", "-", feed=eviction)
    _, pod = until(lambda: world.marked_for_deletion("evicted"), 5)
    assert disruption_reason(pod) == "EvictionByEvictionAPI"
    until(lambda: world.is_gone("evicted"), 15)


def test_a_no_execute_taint_drives_a_pod_off_after_its_toleration(
    world: Any, until: Any, ends_slowly: str, disruption_reason: Any
) -> None:
    toleration = {"key": "maintenance", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}
    world.pod("driven", ends_slowly, node="n2", tolerations=[toleration])
    world.kubectl("taint", "node", "n2", "maintenance=infra-test:NoExecute")
    waited, pod = until(lambda: world.marked_for_deletion("driven"), 15)
    assert waited > 1
    assert disruption_reason(pod) == "DeletionByTaintManager"
    until(lambda: world.is_gone("driven"), 15)


def test_a_restart_in_place_keeps_what_is_in_a_memory_volume(world: Any, until: Any) -> None:
    counts_its_runs = """
import os, time
path = "/memory/runs"
runs = int(open(path).read()) if os.path.exists(path) else 0
open(path, "w").write(str(runs + 1))
print("run", runs, flush=True)
if runs == 0:
    os._exit(3)
time.sleep(3600)
"""
    memory = {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}
    mount = {"volumeMounts": [{"name": "memory", "mountPath": "/memory"}]}
    world.pod("again", counts_its_runs, wait=False, restartPolicy="OnFailure", volumes=[memory], container=mount)
    until(lambda: "run 1" in world.kubectl("logs", "again"), 30)
    status = world.get("pod", "again")["status"]["containerStatuses"][0]
    assert status["restartCount"] == 1
    assert status["lastState"]["terminated"]["exitCode"] == 3


def test_a_projected_token_is_good_for_its_audience_alone(world: Any) -> None:
    token = {"serviceAccountToken": {"path": "token", "audience": "agent.example", "expirationSeconds": 600}}
    volume = {"name": "token", "projected": {"sources": [token]}}
    world.pod("bearer", volumes=[volume], container={"volumeMounts": [{"name": "token", "mountPath": "/token"}]})
    secret = world.kubectl("exec", "bearer", "--", "cat", "/token/token")

    def review(*audiences: str) -> Any:
        asked = {"token": secret, "audiences": list(audiences)}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": asked}
        return json.loads(world.kubectl("create", "-o", "json", "-f", "-", feed=json.dumps(body)))["status"]

    good = review("agent.example")
    assert good["authenticated"]
    assert good["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["bearer"]
    assert not review("other").get("authenticated")
    assert not review().get("authenticated")
