"""Worlds for decisions: `a_job().with_pods().training(step=40).tainted("n1", "…").seen()`. Refuses worlds that could not exist."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from holdfast_api import names
from holdfast_api.messages import AgentPhase, AgentReport, Cause, CheckpointInfo, ClaimInfo, Notice, Stage
from holdfast_operator.core.actions import Action, Decision
from holdfast_operator.core.decide import decide
from holdfast_operator.core.observed import Heard, JobMeta, NodeCondition, NodeSeen, Observed, PodSeen, Refusal, Taint
from holdfast_operator.core.signal_table import SignalRules
from holdfast_operator.crd.v1alpha1 import (
    AttemptStatus,
    CheckpointStatus,
    MemberStatus,
    Phase,
    TrainingJobSpec,
    TrainingJobStatus,
    WorkerStatus,
)

T0 = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
UID = "0a1b2c3d-0000-4000-8000-000000000001"
TEMPLATE = {"spec": {"containers": [{"name": "trainer", "image": "i", "command": ["python", "train.py"]}]}}


def seconds(n: float) -> timedelta:
    return timedelta(seconds=n)


def spec(**changes: Any) -> TrainingJobSpec:
    fields = {"workers": 2, "checkpoint": {"storage": {"uri": "s3://bucket/prefix"}}, "template": TEMPLATE, **changes}
    return TrainingJobSpec.model_validate(fields)


def a_job(**spec_changes: Any) -> "JobWorld":
    return JobWorld(spec(**spec_changes))


class JobWorld:
    """A job with as many nodes as workers, n0, n1, …, all healthy. Methods change it and return it."""

    def __init__(self, job_spec: TrainingJobSpec) -> None:
        self.spec = job_spec
        self.now = T0
        self.meta = JobMeta("job", "ns", UID)
        self.status = TrainingJobStatus()
        self.pods: dict[str, PodSeen] = {}
        self.nodes = {f"n{i}": NodeSeen(f"n{i}", ready_since=T0 - seconds(3600)) for i in range(job_spec.workers + 1)}
        self.heard: dict[str, Heard] = {}
        self.watching_since = T0 - seconds(3600)
        self.refusals: tuple[Refusal, ...] = ()
        self.children_exist = True
        self.signal_rules = SignalRules()

    # Time

    def after(self, n: float) -> Self:
        self.now += seconds(n)
        return self

    # Pods and nodes

    def with_pods(self, serial: int = 1, **fields: Any) -> Self:
        """One running pod for every worker, worker w on node n<w>, and the plans that belong to them."""
        for worker in range(self.spec.workers):
            self.with_pod(worker, serial, f"n{worker}", **fields)
        return self

    def with_pod(self, worker: int, serial: int = 1, node: str = "", **fields: Any) -> Self:
        if node and node not in self.nodes:
            raise ValueError(f"there is no node {node}")
        name = names.pod_name(self.meta.name, self.meta.uid, worker, serial)
        uid = f"uid-{worker}-{serial}"
        given = {"ip": f"10.0.{worker}.{serial}", "phase": "Running"} if node else {}
        self.pods[uid] = PodSeen(
            name=name, uid=uid, worker=worker, serial=serial, created_at=self.now, node=node, **{**given, **fields}
        )
        planned = tuple(w for w in self.status.workers if (w.worker, w.serial) != (worker, serial))
        entry = WorkerStatus(worker=worker, serial=serial, pod_uid=uid, node=node, since=self.now)
        used = max(serial, self.status.serials_used)
        return self.with_status(workers=(*planned, entry), serials_used=used)

    def change_pod(self, worker: int, serial: int = 1, **fields: Any) -> Self:
        uid = f"uid-{worker}-{serial}"
        self.pods[uid] = replace(self.pods[uid], **fields)
        return self

    def without_pod(self, worker: int, serial: int = 1) -> Self:
        del self.pods[f"uid-{worker}-{serial}"]
        return self

    def deleted_pod(self, worker: int, grace: int = 30) -> Self:
        return self.change_pod(worker, deletion_deadline=self.now + seconds(grace), deletion_grace_seconds=grace)

    def change_node(self, node: str, **fields: Any) -> Self:
        self.nodes[node] = replace(self.nodes[node], **fields)
        return self

    def without_node(self, node: str) -> Self:
        del self.nodes[node]
        return self

    def tainted(self, node: str, key: str, value: str = "", added_at: datetime | None = None) -> Self:
        taints = (*self.nodes[node].taints, Taint(key, value, "NoSchedule", added_at))
        return self.change_node(node, taints=taints)

    def with_condition(self, node: str, kind: str, message: str = "", status: str = "True") -> Self:
        conditions = (*self.nodes[node].conditions, NodeCondition(kind, status, kind, message, self.now))
        return self.change_node(node, conditions=conditions)

    # Status

    def with_status(self, **fields: Any) -> Self:
        self.status = self.status.model_copy(update=fields)
        return self

    def with_spec(self, **changes: Any) -> Self:
        self.spec = self.spec.model_copy(update=changes)
        return self

    def annotated(self, key: str, value: str) -> Self:
        self.meta = replace(self.meta, annotations={**self.meta.annotations, key: value})
        return self

    def attempt(self, number: int = 1, **fields: Any) -> Self:
        """The attempt is recorded with the newest pod of every worker."""
        pods = sorted(self.pods.values(), key=lambda p: (p.worker, p.serial))
        newest = {p.worker: p for p in pods}
        if len(newest) != self.spec.workers:
            raise ValueError("an attempt has a member for every worker")
        members = tuple(
            MemberStatus(worker=p.worker, pod=p.name, pod_uid=p.uid, serial=p.serial, node=p.node)
            for p in newest.values()
        )
        record = AttemptStatus(number=number, members=members, created_at=self.now, **fields)
        return self.with_status(attempt=record, attempts_used=number, phase=Phase.STARTING)

    def training(self, step: int = 40, number: int = 1, parent: str = "fresh", parent_step: int = 0) -> Self:
        """The attempt runs; every agent has reported it."""
        self.attempt(
            number,
            accepted_at=self.now,
            may_claim_at=self.now,
            claimed_at=self.now,
            parent=parent,
            parent_step=parent_step,
            first_step_at=self.now,
        )
        for worker in range(self.spec.workers):
            self.reports(worker, AgentPhase.TRAINING, boundary=step, stages={Stage.FIRST_STEP.value: self.now})
        return self.with_status(phase=Phase.RUNNING, step=step)

    def attempt_of(self, *workers: int, number: int = 1, step: int = 40) -> Self:
        """An attempt of these workers alone runs, with their newest pods."""
        newest = {p.worker: p for p in sorted(self.pods.values(), key=lambda p: p.serial)}
        pods = [newest[w] for w in sorted(workers)]
        members = tuple(
            MemberStatus(worker=p.worker, pod=p.name, pod_uid=p.uid, serial=p.serial, node=p.node) for p in pods
        )
        begun = dict.fromkeys(("created_at", "accepted_at", "may_claim_at", "claimed_at", "first_step_at"), self.now)
        record = AttemptStatus(number=number, members=members, parent="fresh", **begun)
        self.with_status(attempt=record, attempts_used=number, phase=Phase.RUNNING, step=step)
        for place in range(len(members)):
            self.reports(place, AgentPhase.TRAINING, boundary=step, stages={Stage.FIRST_STEP.value: self.now})
        return self

    def waiting(self, worker: int, serial: int) -> Self:
        """The agent of a pod beside the attempt has been heard: it waits for one."""
        uid = f"uid-{worker}-{serial}"
        before = self.heard.get(uid)
        sequence = before.report.sequence + 1 if before else 1
        report = AgentReport(
            job_uid=self.meta.uid, worker=worker, pod_uid=uid, sent_at=self.now, sequence=sequence, attempt=0,
            phase=AgentPhase.WAITING,
        )  # fmt: skip
        self.heard[uid] = Heard(report, self.now)
        return self

    def with_checkpoints(self, *refs: str) -> Self:
        found = tuple(
            CheckpointStatus(name=r, step=10 * (i + 1), cause="periodic", time=self.now) for i, r in enumerate(refs)
        )
        return self.with_status(checkpoints=found, last_checkpoint=found[-1] if found else None)

    # Agents

    def reports(self, worker: int, phase: AgentPhase, **fields: Any) -> Self:
        """A new report of the member of this worker, heard now."""
        assert self.status.attempt is not None
        uid = self.status.attempt.members[worker].pod_uid
        before = self.heard.get(uid)
        known: dict[str, Any] = {}
        if before is not None and before.report.attempt == fields.get("attempt", self.status.attempt.number):
            known = {k: getattr(before.report, k) for k in ("boundary", "stages", "notices", "checkpoints", "claim")}
        sequence = before.report.sequence + 1 if before else 1
        values = {"attempt": self.status.attempt.number, **known, **fields}
        report = AgentReport(
            job_uid=self.meta.uid,
            worker=worker,
            pod_uid=uid,
            sent_at=self.now,
            sequence=sequence,
            phase=phase,
            **values,
        )
        self.heard[uid] = Heard(report, self.now)
        return self

    def all_report(self, phase: AgentPhase, **fields: Any) -> Self:
        for worker in range(self.spec.workers):
            self.reports(worker, phase, **fields)
        return self

    # Decisions

    def seen(self) -> Observed:
        return Observed(
            job=self.meta,
            spec=self.spec,
            status=self.status,
            pods=tuple(sorted(self.pods.values(), key=lambda p: (p.worker, p.serial))),
            nodes=dict(self.nodes),
            heard=dict(self.heard),
            watching_since=self.watching_since,
            children_exist=self.children_exist,
            refusals=self.refusals,
            signal_rules=self.signal_rules,
        )

    def decided(self) -> Decision:
        return decide(self.seen(), self.now)

    def round(self) -> Decision:
        """Decides and takes the status over, as the shell does."""
        decision = self.decided()
        self.status = decision.status
        return decision

    def settled(self) -> Decision:
        """Rounds until the status stays: what the shell does within milliseconds. All rounds' actions together."""
        actions: list[Action] = []
        for _ in range(10):
            decision = self.decided()
            actions.extend(decision.actions)
            if decision.status == self.status:
                return Decision(decision.status, tuple(actions), decision.wake_at)
            self.status = decision.status
        raise AssertionError("the status does not settle")


def checkpoint(ref: str, boundary: int, cause: Cause = Cause.PERIODIC, at: datetime = T0) -> CheckpointInfo:
    attempt, save = ref.split("/")
    return CheckpointInfo(int(attempt), int(save), boundary, cause, at, 100, 50)


def claim(number: int, parent: str = "", boundary: int = 0, at: datetime = T0) -> ClaimInfo:
    attempt, save = (int(x) for x in parent.split("/")) if parent else (0, 0)
    return ClaimInfo(number, f"incarnation-{number}", at, attempt, save, boundary)


def sigterm(worker: int, at: datetime, within: float = 15) -> Notice:
    return Notice("signal:SIGTERM", Cause.SIGTERM, worker, f"n{worker}", at, at + seconds(within))


def of_type(decision: Decision, kind: type) -> list[Any]:
    return [a for a in decision.actions if isinstance(a, kind)]


def condition(status: TrainingJobStatus, kind: str) -> Any:
    return next(c for c in status.conditions if c.type == kind)
