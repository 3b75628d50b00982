"""A cluster, its kubelets, its agents and a store, in steps of a quarter second, with faults to order. The operator in it is the real `decide`.

What is simulated is what the operator meets: pods that take time, agents that answer or do not, reports that are lost or late, nodes that die or are
announced to go, an operator that restarts or loses a race in any round; and who does not let a pod in: a quota, a webhook, a queue that deletes or holds what
is too many, a cluster without room, a scheduler that preempts. The store counts commits and keeps claims create-only, as the real one does.
"""

import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from holdfast_api import names, soundness
from holdfast_api.messages import (
    AgentPhase,
    AgentReport,
    AttemptOrder,
    Cause,
    CheckpointInfo,
    ClaimInfo,
    Exit,
    Notice,
    Stage,
)
from holdfast_operator.core import actions as act
from holdfast_operator.core import phases, sizes, wake
from holdfast_operator.core.decide import decide
from holdfast_operator.core.observed import (
    Heard,
    JobMeta,
    NodeSeen,
    Observed,
    PodSeen,
    Refusal,
    RefusalKind,
    Taint,
)
from holdfast_operator.crd.v1alpha1 import AttemptStatus, Phase, TrainingJobSpec, TrainingJobStatus

TICK = timedelta(seconds=0.25)
PERIOD = 8
NODE_GRACE = timedelta(seconds=6)
MANY_IN = timedelta(seconds=20)
MANY = 6
"""More new pods of one worker within MANY_IN are a storm (F5)."""
MANY_TRIES = 16
"""More refused creations of one pod within a minute are one too."""
IDLE_TICKS = 120
"""So long a pod that nobody needs may live while the job trains: reports and orders get lost."""


@dataclass
class Doors:
    """Who lets how many pods in; None: as many as there are."""

    quota: int | None = None
    """Pods that live; the API server answers 403 to more."""
    webhook: bool = False
    """Somebody's admission webhook denies everything."""
    queue: int | None = None
    """A queue that deletes pods above its count."""
    gates: int | None = None
    """A queue that holds pods above its count with a scheduling gate."""
    room: int | None = None
    """Pods of one node."""


@dataclass
class Store:
    """Claims and commits. `commits` is in the order of time: (attempt, save, boundary)."""

    claims: dict[int, ClaimInfo] = field(default_factory=dict)
    commits: list[CheckpointInfo] = field(default_factory=list)
    flipped: dict[int, int] = field(default_factory=dict)
    """Attempt -> the boundary from which on copies of one state differ in it (J4). So they do in whatever continues that."""

    def newest_on_lineage(self, excluded: set[tuple[int, int]]) -> CheckpointInfo | None:
        """Commits of the newest claim, then of its parent's attempt up to the parent, and so on (A7)."""
        attempt, limit = max(self.claims, default=0), 10**9
        line: list[CheckpointInfo] = []
        while attempt:
            found = [
                c
                for c in self.commits
                if c.attempt == attempt and c.save <= limit and (c.attempt, c.save) not in excluded
            ]
            line += sorted(found, key=lambda c: c.save, reverse=True)
            parent = self.claims[attempt]
            attempt, limit = parent.parent_attempt, parent.parent_save
        return soundness.best(line)

    def suspect(self, attempt: int, boundary: int) -> str:
        claim = self.claims.get(attempt)
        parents = [
            c for c in self.commits if claim and (c.attempt, c.save) == (claim.parent_attempt, claim.parent_save)
        ]
        differ = any(c.suspect for c in parents) or boundary >= self.flipped.get(attempt, 10**9)
        return "rank 1 is not like rank 0" if differ else ""

    def commit(self, attempt: int, boundary: int, cause: Cause, now: datetime) -> bool:
        if attempt < max(self.claims, default=0):
            return False  # superseded (A5)
        save = 1 + max((c.save for c in self.commits if c.attempt == attempt), default=0)
        odd = self.suspect(attempt, boundary)
        self.commits.append(CheckpointInfo(attempt, save, boundary, cause, now, suspect=odd))
        return True


@dataclass
class Agent:
    """One pod's agent and ranks."""

    worker: int
    uid: str
    grace: float
    order: AttemptOrder | None = None
    phase: AgentPhase = AgentPhase.WAITING
    boundary: int = 0
    notices: dict[str, Notice] = field(default_factory=dict)
    stages: dict[str, datetime] = field(default_factory=dict)
    exit: Exit | None = None
    mute: bool = False
    sequence: int = 0
    sealing_since: datetime | None = None
    done: tuple[str, ...] = ()
    stop_request: str = ""

    def deadline(self, default: float) -> datetime | None:
        acting = [n for n in self.notices.values() if n.acting and not n.withdrawn]
        return min((n.deadline or n.noticed_at + timedelta(seconds=default) for n in acting), default=None)


class SimulatedCluster:
    """Drive it with `run(until)`. Faults are methods; `rng` decides which reports and rounds are lost."""

    def __init__(
        self,
        spec: TrainingJobSpec,
        *,
        nodes: int,
        steps: int,
        seed: int,
        faults: float = 0.0,
    ) -> None:
        self.spec, self.steps, self.rng, self.faults = spec, steps, random.Random(seed), faults
        self.now = datetime.fromisoformat("2026-03-01T12:00:00+00:00")
        self.job = JobMeta("job", "ns", "0a1b2c3d-0000-4000-8000-000000000001")
        self.status = TrainingJobStatus()
        self.nodes = {f"n{i}": NodeSeen(f"n{i}", ready_since=self.now) for i in range(nodes)}
        self.dead_nodes: dict[str, datetime] = {}
        self.pods: dict[str, PodSeen] = {}
        self.agents: dict[str, Agent] = {}
        self.heard: dict[str, Heard] = {}
        self.started_at = self.now
        self.store = Store()
        self.decided_attempts: list[int] = []
        self.had: list[tuple[datetime, int]] = []
        """When each attempt was decided, and with how many members."""
        self.named: set[tuple[int, int]] = set()
        self.events: list[act.EmitEvent] = []
        self.sealed: set[int] = set()
        """Attempts of which a worker has sealed."""
        self.wrong: list[str] = []
        self.resumed: list[int] = []
        self.doors = Doors()
        self.refusals: dict[str, Refusal] = {}
        self.tries: list[tuple[datetime, str]] = []
        """Creations that were refused."""
        self.created: list[tuple[datetime, int, int]] = []
        """(when, worker, serial)"""
        self.idle = 0
        """Ticks in a row in which a pod lived that nobody needed."""

    # Faults

    def in_zones(self, count: int) -> None:
        """Node n<i> is in zone z<i modulo count>."""
        for i, name in enumerate(sorted(self.nodes)):
            labels = {"topology.kubernetes.io/zone": f"z{i % count}"}
            self.nodes[name] = replace(self.nodes[name], labels=labels)

    def preempt(self, uid: str) -> None:
        """By the scheduler, for somebody of a higher priority."""
        pod = self.pods.get(uid)
        if pod is not None and not pod.terminal:
            why = {"disruption": "PreemptionByScheduler", "disruption_since": self.now}
            self.pods[uid] = replace(pod, **why)
            self.delete_pod(uid)

    def announce(self, node: str, key: str = "aws-node-termination-handler/spot-itn") -> None:
        self.nodes[node] = replace(self.nodes[node], taints=(*self.nodes[node].taints, Taint(key, "", "NoSchedule")))

    def withdraw(self, node: str) -> None:
        if node in self.nodes:
            self.nodes[node] = replace(self.nodes[node], taints=())

    def power_off(self, node: str) -> None:
        if node in self.nodes:
            self.dead_nodes[node] = self.now

    def bring_node(self, node: str) -> None:
        self.dead_nodes.pop(node, None)
        before = self.nodes.get(node)
        self.nodes[node] = NodeSeen(node, ready_since=self.now, labels=before.labels if before else {})

    def delete_pod(self, uid: str) -> None:
        pod = self.pods.get(uid)
        if pod is not None and not pod.deleting:
            grace = 10
            self.pods[uid] = replace(
                pod, deletion_deadline=self.now + timedelta(seconds=grace), deletion_grace_seconds=grace
            )

    def crash(self, uid: str) -> None:
        agent = self.agents.get(uid)
        if agent is not None and agent.exit is None and agent.order is not None:
            agent.phase = AgentPhase.FAILED

    def restart_operator(self) -> None:
        self.heard.clear()
        self.started_at = self.now

    def cordon(self, node: str, *, back: bool = False) -> None:
        """No pod finds room there any more, or again. Pods that are there stay."""
        if node in self.nodes:
            self.nodes[node] = replace(self.nodes[node], unschedulable=not back)

    # Running

    def run(self, until: timedelta) -> None:
        end = self.now + until
        while self.now < end and self.status.phase not in phases.TERMINAL:
            self.tick()

    def tick(self) -> None:
        self.now += TICK
        self._kubelets()
        for uid, agent in list(self.agents.items()):
            self._agent(uid, agent)
        self._hear()
        for _ in range(3):
            if not self._operator_round():
                break
        self._check_idle()

    def live(self, agent: Agent) -> bool:
        pod = self.pods.get(agent.uid)
        return pod is not None and not pod.terminal and pod.node not in self.dead_nodes and pod.node in self.nodes

    # The operator

    def _operator_round(self) -> bool:
        """True if there should be another at once."""
        seen = self._observed()
        decision = decide(seen, self.now)
        self._check_decision(seen, decision)
        if self.rng.random() < self.faults:
            self.restart_operator()  # killed before the write
            return False
        changed = decision.status != self.status
        if changed and self.rng.random() < self.faults:
            return True  # somebody was faster: nothing is done, everything is observed again
        before, self.status = self.status, TrainingJobStatus.model_validate(decision.status.to_wire())
        self._check_step(before, self.status)
        if self.rng.random() < self.faults:
            self.restart_operator()  # killed between the write and the actions
            return True
        for action in decision.actions:
            if self.rng.random() >= self.faults:
                self._execute(action)
                changed |= isinstance(action, act.CreatePod)  # the shell has it in its cache at once
        return changed

    def _observed(self) -> Observed:
        return Observed(
            job=self.job,
            spec=self.spec,
            status=self.status,
            pods=tuple(sorted(self.pods.values(), key=lambda p: (p.worker, p.serial))),
            nodes=dict(self.nodes),
            heard=dict(self.heard),
            watching_since=self.started_at,
            refusals=self._refused_now(),
        )

    def _refused_now(self) -> tuple[Refusal, ...]:
        planned = {names.pod_name(self.job.name, self.job.uid, w.worker, w.serial) for w in self.status.workers}
        self.refusals = {n: r for n, r in self.refusals.items() if n in planned}
        return tuple(self.refusals.values())

    def _living(self) -> int:
        return sum(not p.terminal for p in self.pods.values())

    def _refuses(self, name: str) -> bool:
        """As the API server and the shell do it between them: what was refused is not asked for again at once."""
        before, words = self.refusals.get(name), ""
        if before is not None and self.now < wake.refused_until(before, self._living()):
            return True
        if self.doors.webhook:
            words = 'admission webhook "x" denied the request'
        elif self.doors.quota is not None and self._living() >= self.doors.quota:
            words = "exceeded quota: pods"
        if not words:
            self.refusals.pop(name, None)
            return False
        times = before.times + 1 if before is not None and self._living() >= before.beside else 1
        self.refusals[name] = Refusal(RefusalKind.FORBIDDEN, f"pod {name}", words, self.now, times, self._living())
        self.tries.append((self.now, name))
        lately = [n for at, n in self.tries if n == name and self.now - at < timedelta(seconds=60)]
        if len(lately) > MANY_TRIES:
            self.wrong.append(f"pod {name} was refused {len(lately)} times within a minute")
        return True

    def _execute(self, action: act.Action) -> None:
        match action:
            case act.CreatePod():
                self._create(action)
            case act.DeletePod():
                self.delete_pod(action.uid)
            case act.SendAttempt() | act.SendNotice() | act.SendCheckpoint() | act.SendCollect():
                self._deliver(action)
            case act.EmitEvent():
                self.events.append(action)

    def _create(self, action: act.CreatePod) -> None:
        name = names.pod_name(self.job.name, self.job.uid, action.worker, action.serial)
        if any(p.name == name for p in self.pods.values()) or self._refuses(name):
            return
        if (action.worker, action.serial) in self.named:
            self.wrong.append(f"pod name {name} is used twice")
        self.named.add((action.worker, action.serial))
        self.created.append((self.now, action.worker, action.serial))
        lately = [s for at, w, s in self.created if w == action.worker and self.now - at < MANY_IN]
        if len(lately) > MANY:
            self.wrong.append(f"pods {lately} of worker {action.worker} were made within {MANY_IN}")
        uid = f"uid-{action.worker}-{action.serial}"
        self.pods[uid] = PodSeen(
            name=name,
            uid=uid,
            worker=action.worker,
            serial=action.serial,
            created_at=self.now,
            message=",".join(action.avoid_nodes),
        )

    def _deliver(self, action: act.Send) -> None:
        agent = self.agents.get(action.pod.uid)
        if agent is None or agent.mute or not self.live(agent) or agent.exit is not None:
            return
        match action:
            case act.SendAttempt():
                self._take_attempt(agent, action.order)
            case act.SendNotice() if agent.order is not None and action.order.attempt == agent.order.attempt:
                for n in action.order.notices:
                    agent.notices[f"{n.worker}/{n.source}"] = n
            case act.SendCheckpoint() if agent.order is not None and action.order.attempt == agent.order.attempt:
                if action.order.then_stop:
                    agent.stop_request = action.order.request_id
            case _:
                pass
        self._report(agent)

    def _take_attempt(self, agent: Agent, order: AttemptOrder) -> None:
        if agent.order is not None and order.attempt < agent.order.attempt:
            return
        if agent.order is None or order.attempt > agent.order.attempt:
            agent.phase, agent.boundary, agent.notices = AgentPhase.STARTING, 0, {}
            agent.stages = {Stage.ATTEMPT_ACCEPTED.value: self.now}
            agent.sealing_since = None
        agent.order = order

    # Kubelets and scheduler

    def _kubelets(self) -> None:
        for node, since in list(self.dead_nodes.items()):
            if node in self.nodes and self.nodes[node].ready and self.now - since > NODE_GRACE:
                self.nodes[node] = replace(self.nodes[node], ready=False, ready_since=self.now)
        for uid, pod in list(self.pods.items()):
            if pod.terminal:
                if pod.deleting:
                    del self.pods[uid]
                continue
            if not pod.node:
                self._schedule(uid, pod)
            elif pod.node in self.dead_nodes or pod.node not in self.nodes:
                continue
            elif not pod.ip and self.now - pod.created_at > timedelta(seconds=1):
                self.pods[uid] = replace(pod, ip=f"10.{pod.worker}.{pod.serial}.1", phase="Running")
                self.agents[uid] = Agent(pod.worker, uid, 10)
            if uid in self.pods:
                self._stop(uid, self.pods[uid])

    def _schedule(self, uid: str, pod: PodSeen) -> None:
        let_in = sum(bool(p.node) and not p.terminal for p in self.pods.values())
        if pod.deleting or (self.doors.queue is not None and let_in >= self.doors.queue):
            del self.pods[uid]
            return
        if self.doors.gates is not None and let_in >= self.doors.gates:
            self.pods[uid] = replace(pod, gates=("held",))
            return
        avoid = set(pod.message.split(","))
        load = {n: sum(p.node == n and not p.terminal for p in self.pods.values()) for n in self.nodes}
        most = self.doors.room or len(self.pods)
        fit = [
            n
            for n, node in sorted(self.nodes.items())
            if node.ready and not node.taints and not node.unschedulable and n not in avoid and load[n] < most
        ]
        if fit:
            pod = replace(pod, gates=())
            self.pods[uid] = replace(pod, node=min(fit, key=lambda n: (load[n], n)), unschedulable="")
        else:
            self.pods[uid] = replace(pod, gates=(), unschedulable="0/3 nodes are available")

    def _stop(self, uid: str, pod: PodSeen) -> None:
        """The kubelet of a live node: SIGTERM at the deletion, SIGKILL at its deadline, and the end of a container whose agent has ended."""
        agent = self.agents.get(uid)
        if pod.node in self.dead_nodes:
            return
        if pod.deleting:
            assert pod.deletion_deadline is not None
            if agent is None or agent.order is None or self.now >= pod.deletion_deadline:
                self.pods.pop(uid, None)
                return
            source = f"{pod.worker}/signal:SIGTERM"
            if source not in agent.notices:
                agent.notices[source] = Notice(
                    "signal:SIGTERM", Cause.SIGTERM, pod.worker, pod.node, self.now, pod.deletion_deadline - TICK
                )
        if agent is not None and agent.exit is not None:
            ok = agent.exit is Exit.FINISHED
            self.pods[uid] = replace(
                pod,
                phase="Succeeded" if ok else "Failed",
                exit_code=names.EXIT_CODES[agent.exit],
                finished_at=self.now,
                report=self._as_report(agent),
            )
            if pod.deleting:
                del self.pods[uid]

    # Agents

    def _agent(self, uid: str, agent: Agent) -> None:
        if agent.order is None or agent.exit is not None or not self.live(agent):
            return
        number = agent.order.attempt
        team = self._team(agent.order)
        if number < max(self.store.claims, default=0):
            agent.exit = Exit.SUPERSEDED
        elif agent.phase is AgentPhase.STARTING:
            self._start(agent, number)
        elif agent.phase is AgentPhase.RESTORING:
            agent.phase, agent.boundary = AgentPhase.TRAINING, self.store.claims[number].parent_boundary
        self._train(agent, number, team)
        self._evacuate(agent, number, team)

    def _team(self, order: AttemptOrder) -> list[Agent]:
        return [self.agents[m.pod_uid] for m in order.members if m.pod_uid in self.agents]

    def _start(self, agent: Agent, number: int) -> None:
        assert agent.order is not None
        if self._leads(agent) and agent.order.may_claim and number not in self.store.claims:
            self._check_claim(number)
            excluded = {(r.attempt, r.save) for r in agent.order.restore.excluded}
            parent = self.store.newest_on_lineage(excluded)
            self.store.claims[number] = ClaimInfo(
                number,
                f"i{number}",
                self.now,
                *((parent.attempt, parent.save, parent.boundary) if parent else (0, 0, 0)),
            )
        if number in self.store.claims:
            agent.phase = AgentPhase.RESTORING

    @staticmethod
    def _leads(agent: Agent) -> bool:
        return agent.order is not None and agent.worker == min(m.worker for m in agent.order.members)

    def _train(self, agent: Agent, number: int, team: list[Agent]) -> None:
        assert agent.order is not None
        if not self._leads(agent) or len(team) != len(agent.order.members):
            return
        if not all(a.phase is AgentPhase.TRAINING and self.live(a) and a.sealing_since is None for a in team):
            return
        for a in team:
            a.boundary += 1
            a.stages.setdefault(Stage.FIRST_STEP.value, self.now)
        if agent.boundary >= self.steps:
            self.store.commit(number, agent.boundary, Cause.FINAL, self.now)
            for a in team:
                a.phase, a.exit = AgentPhase.FINISHED, Exit.FINISHED
        elif agent.boundary % PERIOD == 0:
            self.store.commit(number, agent.boundary, Cause.PERIODIC, self.now)

    def _evacuate(self, agent: Agent, number: int, team: list[Agent]) -> None:
        deadline = agent.deadline(self.spec.notices.default_deadline_seconds)
        if agent.phase is AgentPhase.SEALED:
            ending = [n for n in agent.notices.values() if n.worker == agent.worker and n.acting and not n.withdrawn]
            if any(n.cause in (Cause.SIGTERM, Cause.DELETION) for n in ending):  # else it may be withdrawn still
                agent.exit = Exit.PREEMPTED_SEALED
            elif deadline is None and not agent.stop_request:
                agent.phase, agent.sealing_since = AgentPhase.TRAINING, None
            return
        if agent.stop_request and agent.phase in (AgentPhase.TRAINING, AgentPhase.EVACUATING):
            deadline = self.now + timedelta(seconds=60)
        if deadline is None:
            if agent.phase is AgentPhase.EVACUATING:
                agent.phase, agent.sealing_since = AgentPhase.TRAINING, None
            return
        if agent.sealing_since is None:
            agent.sealing_since = self.now
            agent.stages.setdefault(Stage.QUIESCED.value, self.now)
            if agent.phase is AgentPhase.TRAINING:
                agent.phase = AgentPhase.EVACUATING
            for a in team:  # the round reaches the others
                for key, n in agent.notices.items():
                    a.notices.setdefault(key, n)
        if self.now - agent.sealing_since >= timedelta(seconds=1) or self.now >= deadline:
            self._seal(agent, number, team, deadline)

    def _seal(self, agent: Agent, number: int, team: list[Agent], deadline: datetime) -> None:
        assert agent.order is not None
        whole = len(team) == len(agent.order.members) and all(
            self.live(a) and a.phase in (AgentPhase.EVACUATING, AgentPhase.TRAINING) for a in team
        )
        if whole and self.now < deadline:
            boundary = max(a.boundary for a in team)
            cause = Cause.SUSPEND if agent.stop_request else Cause.SPOT
            if self.store.commit(number, boundary, cause, self.now):
                for a in team:
                    a.boundary = boundary
                    self._sealed(a)
                    if agent.stop_request:
                        a.exit, a.done = Exit.PREEMPTED_SEALED, (agent.stop_request,)
                return
        if agent.phase is not AgentPhase.FAILED:
            self._sealed(agent)

    def _sealed(self, agent: Agent) -> None:
        assert agent.order is not None
        self.sealed.add(agent.order.attempt)
        agent.phase = AgentPhase.SEALED
        agent.stages.setdefault(Stage.SEALED.value, self.now)

    # Reports

    def _hear(self) -> None:
        for agent in self.agents.values():
            if (
                self.live(agent)
                and agent.exit is None
                and not agent.mute
                and self.rng.random() >= max(self.faults, 0.2)
            ):
                self._report(agent)

    def _report(self, agent: Agent) -> None:
        self.heard[agent.uid] = Heard(self._as_report(agent), self.now)

    def _as_report(self, agent: Agent) -> AgentReport:
        agent.sequence += 1
        number = agent.order.attempt if agent.order else 0
        return AgentReport(
            job_uid=self.job.uid,
            worker=agent.worker,
            pod_uid=agent.uid,
            sent_at=self.now,
            sequence=agent.sequence,
            attempt=number,
            phase=agent.phase,
            boundary=agent.boundary,
            claim=self.store.claims.get(number) if self._leads(agent) else None,
            checkpoints=tuple(c for c in self.store.commits if c.attempt == number)[-20:],
            notices=tuple(agent.notices.values()),
            stages=dict(agent.stages),
            done_requests=agent.done,
            exit=agent.exit,
            superseded_by=max(self.store.claims, default=0) if agent.exit is Exit.SUPERSEDED else 0,
        )

    # What must always hold

    def _check_decision(self, seen: Observed, decision: act.Decision) -> None:
        known = seen.status.attempt
        for a in decision.actions:
            if isinstance(a, act.SendAttempt) and (known is None or a.order.attempt != known.number):
                self.wrong.append(f"attempt {a.order.attempt} is told before it is written")
            if isinstance(a, act.CreatePod) and (a.worker, a.serial) not in {
                (w.worker, w.serial) for w in seen.status.workers
            }:
                self.wrong.append("a pod is created before it is written")
            if isinstance(a, act.DeletePod):
                self._check_delete(seen, a)

    def _check_idle(self) -> None:
        """Nobody pays for a replacement that nobody needs (F5)."""
        attempt = self.status.attempt
        uids = {m.pod_uid for m in attempt.members} if attempt is not None else set()
        beside = sizes.beside(self.spec, attempt) if attempt is not None else frozenset()
        waits = {(w.worker, w.serial) for w in self.status.workers if w.worker in beside}
        others = [p for p in self.pods.values() if p.uid not in uids and (p.worker, p.serial) not in waits]
        needless = [p.name for p in others if not p.terminal and not p.deleting]
        calm = self.status.phase is Phase.RUNNING and not any(n.acting and not n.withdrawn for n in self.status.notices)
        self.idle = self.idle + 1 if calm and needless else 0
        if self.idle == IDLE_TICKS:
            self.wrong.append(f"{needless} live on, and nobody needs them")

    def _check_delete(self, seen: Observed, action: act.DeletePod) -> None:
        agent = self.agents.get(action.uid)
        attempt = seen.status.attempt
        if agent is None or attempt is None or self.spec.suspend or not self.live(agent):
            return
        trains = agent.phase in (AgentPhase.TRAINING, AgentPhase.EVACUATING) and agent.exit is None
        over = any(p.attempt == attempt.number and p.ended_at is not None for p in seen.status.preemptions)
        current = agent.order is not None and agent.order.attempt == attempt.number and not over
        noticed = any(
            n.acting and not n.withdrawn and not n.revocable and n.worker == agent.worker for n in seen.status.notices
        )
        if trains and current and not noticed:
            self.wrong.append(f"pod {action.name} is deleted while it trains: {action.why}")

    def _check_claim(self, number: int) -> None:
        """A3: nobody of an older attempt may still be about to commit, unless its deadline has passed or it was lost.

        A lost one may come back in the very moment of the claim: a zombie, which A5 and A7 make harmless. A commit needs all workers, so none is
        about to be made once one of them has sealed.
        """
        lost = {(p.attempt, w) for p in self.status.preemptions if p.cause == Cause.NODE_LOST.value for w in p.workers}
        for a in self.agents.values():
            if a.order is None or a.order.attempt in self.sealed or (a.order.attempt, a.worker) in lost:
                continue
            if (
                a.order.attempt < number
                and self.live(a)
                and a.exit is None
                and a.phase in (AgentPhase.TRAINING, AgentPhase.EVACUATING)
            ):
                deadline = a.deadline(self.spec.notices.default_deadline_seconds)
                if deadline is not None and self.now < deadline and not a.mute:
                    self.wrong.append(
                        f"attempt {number} claims while worker {a.worker} of {a.order.attempt} can still commit"
                    )

    def _check_size(self, attempt: AttemptStatus) -> None:
        """As many workers as are allowed, each once, none that is not a worker of the job."""
        workers = [m.worker for m in attempt.members]
        self.had.append((self.now, len(workers)))
        elastic = self.spec.elastic
        least, most = (elastic.min_workers, elastic.max_workers or 0) if elastic is not None else (self.spec.workers, 0)
        if not least <= len(workers) <= max(most, self.spec.workers) or workers != sorted(set(workers)):
            self.wrong.append(f"attempt {attempt.number} has workers {workers}")
        if elastic is not None and (elastic.global_batch or 0) % (len(workers) * self.spec.processes_per_worker):
            self.wrong.append(f"{len(workers)} workers have no equal shares of {elastic.global_batch} samples")

    def _check_step(self, before: TrainingJobStatus, after: TrainingJobStatus) -> None:
        if after.attempts_used < before.attempts_used or after.serials_used < before.serials_used:
            self.wrong.append("a counter goes back")
        if after.attempt and after.attempt.number != (before.attempt.number if before.attempt else 0):
            self.decided_attempts.append(after.attempt.number)
            self._check_size(after.attempt)
        rows = {r.phase: r.may_follow for r in phases.TABLE}
        if before.phase and after.phase != before.phase and after.phase not in rows[before.phase]:
            self.wrong.append(f"{before.phase} -> {after.phase} is not in the table")
        for p in after.preemptions:
            if p.resumed_at is not None and sum(x.milliseconds for x in p.phases) != p.total_milliseconds:
                self.wrong.append("phases do not add up")
        was = {p.attempt for p in before.preemptions if p.resumed_at is not None}
        self.resumed += [p.attempt for p in after.preemptions if p.resumed_at is not None and p.attempt not in was]
        bounds = {"workers": 2 * sizes.most(self.spec), "notices": 256, "preemptions": 10, "checkpoints": 1100}
        for name, most in bounds.items():
            if len(getattr(after, name)) > most:
                self.wrong.append(f"status.{name} has {len(getattr(after, name))} entries")


def simulate(
    spec: TrainingJobSpec,
    *,
    seed: int,
    faults: float,
    script: Any,
    nodes: int = 4,
    steps: int = 60,
    limit: float = 900,
) -> SimulatedCluster:
    """Runs `script(cluster, rng)` as a generator that is resumed at every tick, until the job ends or `limit` seconds have passed."""
    cluster = SimulatedCluster(spec, nodes=nodes, steps=steps, seed=seed, faults=faults)
    acting = script(cluster, random.Random(seed + 1))
    end = cluster.now + timedelta(seconds=limit)
    while cluster.now < end and cluster.status.phase not in (Phase.SUCCEEDED, Phase.FAILED):
        cluster.tick()
        next(acting, None)
    return cluster
