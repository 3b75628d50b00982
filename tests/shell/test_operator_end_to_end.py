"""The whole operator (kopf, watches, servers) against a fake API server and fake agents: what it writes, creates, sends and is allowed to do."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_agents import FakeAgent
from fake_apiserver import FakeApiServer

from holdfast_api.messages import AttemptOrder, NoticeOrder
from holdfast_operator.shell.app import Operator
from holdfast_operator.shell.kube import Access
from holdfast_operator.shell.permissions import PERMISSIONS
from holdfast_operator.shell.settings import Settings

NS = "team"
STAYS = {"key": "cloud.google.com/maintenance-window-started", "effect": "NoSchedule"}
"""An acting notice after which nobody takes the pods away."""
SPEC = {
    "workers": 2,
    "checkpoint": {"storage": {"uri": "s3://bucket/prefix", "secretName": "bucket"}, "every": {"steps": 10}},
    "template": {"spec": {"containers": [{"name": "trainer", "image": "i", "command": ["python", "train.py"]}]}},
}


async def eventually(what: str, test: Callable[[], Any], within: float = 20) -> Any:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if found := test():
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what}: not within {within} s")


class Stage:
    """A cluster of three nodes whose kubelets run every pod as a fake agent."""

    def __init__(self, api: FakeApiServer) -> None:
        self.api = api
        self.told: dict[str, Any] = {}
        """Settings of the operator beside the usual ones."""
        self.agents: dict[str, FakeAgent] = {}
        self.port = 0
        self.operator: Operator | None = None
        self._task: asyncio.Task[None] | None = None
        for name in ("n0", "n1", "n2"):
            ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            api.put("nodes", {"metadata": {"name": name}, "spec": {}, "status": {"conditions": [ready]}})

    async def start_operator(self) -> None:
        if not self.port:
            probe = FakeAgent("x", 0, "x", b"0" * 32)
            self.port = await probe.start("127.0.0.1", 0)
            await probe.stop()
        settings = Settings(
            namespace="holdfast-system", watch_namespace="", report_url="http://unused", identity="me",
            report_port=0, metrics_port=0, health_port=0, agent_port=self.port, **self.told,
        )  # fmt: skip
        self.operator = Operator(settings, Access(self.api.url, True))
        self._task = asyncio.create_task(self.operator.run())

    async def stop_operator(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def master(self) -> bytes:
        secret = self.api.get("secrets", "holdfast-master-key", "holdfast-system")
        assert secret is not None
        return base64.b64decode(secret["data"]["key"])

    def job(self) -> dict[str, Any]:
        found = self.api.get("trainingjobs", "small", NS)
        assert found is not None
        return found

    def status(self) -> dict[str, Any]:
        return self.job().get("status") or {}

    def preemption(self) -> dict[str, Any]:
        return (self.status().get("preemptions") or [{}])[-1]

    async def run_pods(self, *nodes: str) -> None:
        """The kubelet: every pod without a node gets the next one, and an agent."""
        todo = list(nodes)
        while todo:
            waiting = await eventually(
                "a pod to run", lambda: [p for p in self.api.all("pods") if not p["spec"].get("nodeName")]
            )
            for pod in waiting[: len(todo)]:
                await self._run(pod, todo.pop(0))

    async def _run(self, pod: dict[str, Any], node: str) -> None:
        ip = f"127.0.1.{len(self.agents) + 1}"
        labels, uid = pod["metadata"]["labels"], pod["metadata"]["uid"]
        agent = FakeAgent(labels["holdfast.dev/job-uid"], int(labels["holdfast.dev/worker"]), uid, self.master())
        await agent.start(ip, self.port)
        self.agents[uid] = agent

        def running(item: dict[str, Any]) -> None:
            item["spec"]["nodeName"] = node
            item["status"] = {"phase": "Running", "podIP": ip}

        self.api.change("pods", pod["metadata"]["name"], NS, running)

    async def close(self) -> None:
        await self.stop_operator()
        for agent in self.agents.values():
            await agent.stop()


@pytest.fixture
async def stage(api: FakeApiServer, kubeconfig: Path) -> AsyncIterator[Stage]:
    found = Stage(api)
    await found.start_operator()
    yield found
    await found.close()


async def to_running(stage: Stage) -> list[FakeAgent]:
    stage.api.put("trainingjobs", {"metadata": {"name": "small"}, "spec": SPEC}, NS)
    await stage.run_pods("n0", "n1")
    agents = sorted(stage.agents.values(), key=lambda a: a.report.worker)
    await eventually(
        "the claim", lambda: (stage.status().get("attempt") or {}).get("mayClaimAt") and agents[0].report.claim
    )
    for agent in agents:
        agent.trains(12)
    await eventually("Running", lambda: stage.status().get("phase") == "Running")
    return agents


def taint(item: dict[str, Any]) -> None:
    item["spec"]["taints"] = [{"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}]


async def test_a_job_starts_is_moved_at_a_notice_and_measured(stage: Stage) -> None:
    first, second = await to_running(stage)
    attempt = stage.status()["attempt"]
    assert [m["podUid"] for m in attempt["members"]] == [first.report.pod_uid, second.report.pod_uid]
    assert not next(o.may_claim for o in first.orders if isinstance(o, AttemptOrder)), "told first, allowed later (A3)"
    stage.api.change("nodes", "n1", "", taint)
    await eventually(
        "the notice at both agents",
        lambda: all(any(isinstance(o, NoticeOrder) for o in a.orders) for a in (first, second)),
    )
    await eventually("the replacement", lambda: len(stage.api.all("pods")) == 3)
    first.say(checkpoints=first.trains(13, "1/2").checkpoints)
    first.seals()
    second.seals()
    await stage.run_pods("n2")
    third = list(stage.agents.values())[-1]
    await eventually("attempt 2", lambda: first.report.attempt == 2 and third.report.attempt == 2)
    await eventually(
        "the claim of attempt 2", lambda: first.report.claim is not None and first.report.claim.attempt == 2
    )
    first.trains(14)
    third.trains(14)
    await eventually("resumed", lambda: stage.preemption().get("resumedAt"))
    entry = stage.preemption()
    assert (entry["cause"], entry["workers"], entry["nodes"]) == ("spot", [1], ["n1"])
    assert sum(p["milliseconds"] for p in entry["phases"]) == entry["totalMilliseconds"]
    await eventually("the doomed pod is told to go", lambda: _deleting(stage, second.report.pod_uid))
    assert not any(a.forged for a in stage.agents.values())
    assert _sample(stage, "holdfast_time_to_resume_seconds_count", phase="total", cause="spot") == 1
    assert _sample(stage, "holdfast_preemptions_total", cause="spot") == 1


async def test_nothing_is_used_that_is_not_granted_and_nothing_is_written_into_the_object(stage: Stage) -> None:
    await to_running(stage)
    granted = {(verb, group, resource, scope) for group, resource, verbs, scope in PERMISSIONS for verb in verbs}
    for verb, group, resource, namespace in set(stage.api.requests):
        scopes = {"cluster"} | ({"own-namespace"} if namespace == "holdfast-system" else set())
        assert any((verb, group, resource, scope) in granted for scope in scopes), (verb, group, resource, namespace)
    meta = stage.job()["metadata"]
    assert "finalizers" not in meta, "deletion never waits for the operator (D7)"
    assert not meta.get("annotations")
    assert stage.job()["spec"] == SPEC


async def test_children_belong_to_the_job_and_the_secret_holds_derived_keys_only(stage: Stage) -> None:
    await to_running(stage)
    uid = stage.job()["metadata"]["uid"]
    name = f"small-{uid[:8]}"
    for plural in ("services", "secrets", "networkpolicies"):
        child = stage.api.get(plural, name, NS)
        assert child is not None, plural
        assert child["metadata"]["ownerReferences"][0]["uid"] == uid
        assert child["metadata"]["ownerReferences"][0]["blockOwnerDeletion"] is False
    keys = stage.api.get("secrets", name, NS)
    assert keys is not None
    assert sorted(keys["stringData"]) == ["operator", "peer"]
    assert stage.master().hex() not in str(keys)


async def test_an_operator_that_restarts_in_the_middle_finishes_what_was_begun(stage: Stage) -> None:
    first, second = await to_running(stage)
    stage.api.change("nodes", "n1", "", taint)
    await eventually("Evacuating", lambda: stage.status().get("phase") == "Evacuating")
    await stage.stop_operator()
    first.seals()
    second.seals()
    await stage.start_operator()
    await stage.run_pods("n2")
    third = list(stage.agents.values())[-1]
    await eventually("attempt 2", lambda: third.report.attempt == 2 and first.report.claim is not None)
    first.trains(14)
    third.trains(14)
    await eventually("resumed", lambda: stage.preemption().get("resumedAt"))
    assert stage.status()["counts"]["preemptions"] == 1
    assert [p["attempt"] for p in stage.status()["preemptions"]] == [1]


async def test_somebody_elses_write_is_not_overwritten(stage: Stage) -> None:
    await to_running(stage)
    assert stage.operator is not None

    def annotate(item: dict[str, Any]) -> None:
        item["metadata"]["annotations"] = {"holdfast.dev/checkpoint-now": "one"}
        item["status"]["step"] = 5

    stage.api.change("trainingjobs", "small", NS, annotate)
    stage.api.change("nodes", "n1", "", taint)
    await eventually("Evacuating", lambda: stage.status().get("phase") == "Evacuating")
    assert stage.job()["metadata"]["annotations"] == {"holdfast.dev/checkpoint-now": "one"}


async def test_a_name_that_is_somebody_elses_is_waited_for_with_a_condition(stage: Stage) -> None:
    job = stage.api.put(
        "trainingjobs", {"metadata": {"name": "small", "uid": "0a1b2c3d-0000-4000-8000-00000000000f"}, "spec": SPEC}, NS
    )
    stage.api.put("services", {"metadata": {"name": f"small-{job['metadata']['uid'][:8]}"}}, NS)
    await eventually("NameTaken", lambda: _reason(stage) in ("NameTaken", "Starting"))
    await eventually("pods wait", lambda: _reason(stage) == "NameTaken" or stage.api.all("pods"))
    assert not stage.api.all("pods")
    stage.api.remove("services", f"small-{job['metadata']['uid'][:8]}", NS)
    await eventually("pods", lambda: len(stage.api.all("pods")) == 2)


async def test_a_template_that_the_server_refuses_becomes_a_condition_in_its_words(stage: Stage) -> None:
    words = "spec.containers[0].image: Required value"
    stage.api.refuse = lambda method, path: (
        (422, "Invalid", words) if method == "POST" and path.endswith("/pods") else None
    )
    stage.api.put("trainingjobs", {"metadata": {"name": "small"}, "spec": SPEC}, NS)
    await eventually("TemplateInvalid", lambda: _reason(stage) == "TemplateInvalid")
    (stalled,) = [c for c in stage.status()["conditions"] if c["type"] == "Stalled"]
    assert words in stalled["message"]


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (400, "BadRequest", 'admission webhook "policy.example" denied the request: not on Fridays'),
        (422, "Invalid", "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: not on Fridays"),
        (
            403,
            "Forbidden",
            'pods "x" is forbidden: exceeded quota: gpus, requested: pods=1, used: pods=2, limited: pods=2',
        ),
    ],
    ids=["webhook", "policy", "quota"],
)
async def test_what_somebody_denies_is_no_mistake_of_the_template(
    stage: Stage, code: int, reason: str, words: str
) -> None:
    stage.api.refuse = lambda method, path: (
        (code, reason, words) if method == "POST" and path.endswith("/pods") else None
    )
    stage.api.put("trainingjobs", {"metadata": {"name": "small"}, "spec": SPEC}, NS)
    await eventually("Refused", lambda: _reason(stage) == "Refused")
    conditions = {c["type"]: c for c in stage.status()["conditions"]}
    assert conditions["Stalled"]["status"] == "False"
    assert words in conditions["Ready"]["message"]
    stage.api.refuse = lambda method, path: None
    await stage.run_pods("n0", "n1")
    assert {p["metadata"]["labels"]["holdfast.dev/serial"] for p in stage.api.all("pods")} == {"1"}


async def test_where_a_quota_has_room_for_one_of_the_two_the_old_pod_gives_way_and_the_new_one_comes(
    stage: Stage,
) -> None:
    """F5: no handover; nobody has to do anything. The node is only announced to go, so nobody else ends the old pod."""
    first, second = await to_running(stage)
    words = "exceeded quota: gpus"
    tries: list[float] = []

    def refuse(method: str, path: str) -> tuple[int, str, str] | None:
        full = sum(not p["metadata"].get("deletionTimestamp") for p in stage.api.all("pods")) >= 2
        if method == "POST" and path.endswith("/pods") and full:
            tries.append(time.monotonic())
            return 403, "Forbidden", words
        return None

    stage.api.refuse = refuse
    stage.api.change("nodes", "n1", "", lambda item: item["spec"].update(taints=[STAYS]))
    await eventually("Refused", lambda: _reason(stage) == "Refused")
    assert not _deleting(stage, second.report.pod_uid), "not while it saves (A3)"
    first.say(checkpoints=first.trains(13, "1/2").checkpoints)
    first.seals()
    second.seals()
    await eventually("the old pod is told to go", lambda: _deleting(stage, second.report.pod_uid))
    name = next(p["metadata"]["name"] for p in stage.api.all("pods") if p["metadata"]["uid"] == second.report.pod_uid)
    stage.api.remove("pods", name, NS)
    await stage.run_pods("n2")
    third = list(stage.agents.values())[-1]
    await eventually("attempt 2", lambda: first.report.attempt == 2 and third.report.attempt == 2)
    assert len(tries) < 20, "and nobody was stormed"


async def test_a_template_is_tried_when_it_is_edited_and_not_only_when_a_pod_is_next_needed(stage: Stage) -> None:
    """G5: else the mistake would be found at the moment when a node has just been taken."""
    await to_running(stage)
    words = "spec.containers[0].imagePullPolicy: Unsupported value"
    stage.api.refuse = lambda method, path: (
        (422, "Invalid", words) if method == "POST" and path.endswith("/pods") else None
    )
    pods = {p["metadata"]["uid"] for p in stage.api.all("pods")}

    def edit(item: dict[str, Any]) -> None:
        item["metadata"]["generation"] = item["metadata"].get("generation", 1) + 1

    stage.api.change("trainingjobs", "small", NS, edit)
    await eventually("TemplateInvalid", lambda: _reason(stage) == "TemplateInvalid")
    conditions = {c["type"]: c for c in stage.status()["conditions"]}
    assert words in conditions["Stalled"]["message"]
    assert conditions["Ready"]["status"] == "True", "training goes on"
    assert {p["metadata"]["uid"] for p in stage.api.all("pods")} == pods
    stage.api.refuse = lambda method, path: None
    stage.api.change("trainingjobs", "small", NS, edit)
    await eventually("Running", lambda: _reason(stage) == "Running")


async def test_a_job_of_a_namespace_that_is_being_terminated_is_left_alone(stage: Stage) -> None:
    words = "unable to create new content in namespace team because it is being terminated"
    stage.api.refuse = lambda method, path: (
        (403, "Forbidden", words) if method == "POST" and f"/{NS}/" in path else None
    )
    stage.api.put("trainingjobs", {"metadata": {"name": "small"}, "spec": SPEC}, NS)
    await eventually("the plan", lambda: stage.status().get("workers"))
    await asyncio.sleep(1)
    version = stage.job()["metadata"]["resourceVersion"]
    stage.api.change("nodes", "n1", "", taint)
    await asyncio.sleep(1)
    assert stage.job()["metadata"]["resourceVersion"] == version
    assert not any(c["reason"] == "Refused" for c in stage.status()["conditions"])


async def test_events_are_on_the_job_and_say_what_happened(stage: Stage) -> None:
    await to_running(stage)
    found = await eventually("events", lambda: [e for e in stage.api.all("events") if e["reason"] == "Running"])
    assert found[0]["involvedObject"]["uid"] == stage.job()["metadata"]["uid"]
    assert {"Starting", "AttemptStarted", "AttemptClaimed", "Running"} <= {e["reason"] for e in stage.api.all("events")}


def _reason(stage: Stage) -> str:
    return next((c["reason"] for c in stage.status().get("conditions", []) if c["type"] == "Ready"), "")


def _deleting(stage: Stage, uid: str) -> bool:
    return any(p["metadata"]["uid"] == uid and "deletionTimestamp" in p["metadata"] for p in stage.api.all("pods"))


def _sample(stage: Stage, name: str, **labels: str) -> float | None:
    assert stage.operator is not None
    return stage.operator.metrics.registry.get_sample_value(name, labels)
