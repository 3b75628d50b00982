"""One loop per job: wait for a wake-up or the time that the last decision named, observe, decide, write status, act.

Wake-ups only say that something may have changed. A job's rounds never overlap; rounds of different jobs do. Between the write and the actions nothing
is decided: the write is compare-and-swap, and where it fails the round ends and everything is observed again.
"""

import asyncio
import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from holdfast_api import names
from holdfast_api.messages import AgentPhase
from holdfast_operator.core.actions import CreatePod, DeletePod, PodAddress, SendNotice
from holdfast_operator.core.decide import decide
from holdfast_operator.core.observed import JobMeta, NodeSeen, Observed, PodSeen
from holdfast_operator.core.signal_table import NO_RULES, SignalRules
from holdfast_operator.crd.v1alpha1 import Phase, TrainingJobSpec, TrainingJobStatus
from holdfast_operator.shell import translate
from holdfast_operator.shell.agents import AgentClient
from holdfast_operator.shell.execute import Executor, JobMemory
from holdfast_operator.shell.kube import ApiError, Kube
from holdfast_operator.shell.metrics import Metrics
from holdfast_operator.shell.reportbook import ReportBook

log = logging.getLogger("holdfast.jobs")
Object = dict[str, Any]
Reading = tuple[JobMeta, TrainingJobSpec | None, TrainingJobStatus | None, str]

RESYNC_SECONDS = 30.0
STEP_SECONDS = (0.5, 30.0)
"""A status that differs in `step` alone is written at most this often, from a young attempt to an old one: people watch the first steps, and training must
not write to etcd at every boundary."""
_REACTIONS = (SendNotice, CreatePod, DeletePod)


class World(Protocol):
    """Where a round finds pods and nodes."""

    def pods_of(self, job_uid: str) -> tuple[PodSeen, ...]: ...
    def nodes(self) -> dict[str, NodeSeen]: ...


@dataclass(slots=True)
class Shared:
    """What all loops use."""

    kube: Kube
    world: World
    book: ReportBook
    agents: AgentClient
    executor: Executor
    metrics: Metrics
    started_at: datetime
    signal_rules: SignalRules = NO_RULES
    last_round: float = field(default_factory=time.monotonic)
    """Monotonic time of the last completed round of any job, for /healthz."""


class JobGone(Exception):
    """The object is gone, or another one has its name; the watch may not have told, or not yet."""


class JobLoop:
    """One job from the time it is seen until it is gone. `ended` is called with its uid when the loop finds that out by itself."""

    def __init__(self, shared: Shared, item: Object, ended: Callable[[str], None] = lambda uid: None) -> None:
        self._ended = ended
        self._shared = shared
        self._item = item
        self._wake = asyncio.Event()
        self._wake.set()
        self._memory = JobMemory()
        self._step_written = 0.0
        self._event_seen: float | None = None
        self._again: float | None = None
        self._read: tuple[Object, Reading] | None = None
        self.task = asyncio.create_task(
            self._run(), name=f"job {item['metadata']['namespace']}/{item['metadata']['name']}"
        )

    @property
    def item(self) -> Object:
        return self._item

    def offer(self, item: Object) -> None:
        """A version of the object from the watch: taken if it is newer than the one we have or wrote."""
        if _version(item) > _version(self._item):
            self._item = item
            self.wake()

    def wake(self, *, node_or_pod: bool = False) -> None:
        """Something may have changed. Called in the event loop."""
        if node_or_pod and self._event_seen is None:
            self._event_seen = time.monotonic()
        self._wake.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._wait()
            try:
                self._again = await self._round()
                failures = 0
            except JobGone:
                log.info("%s is gone", self.task.get_name())
                return self._ended(self._item["metadata"]["uid"])
            except ApiError as e:
                failures += 1
                self._again = min(15.0, 0.2 * 2.0 ** min(failures, 7))
                log.warning("%s: %s; again in %.1f s", self.task.get_name(), e, self._again)
            except Exception:  # a bug in one round must not end the job's supervision
                failures += 1
                self._again = min(60.0, 2.0 ** min(failures, 6))
                log.exception("%s: the round failed; again in %.1f s", self.task.get_name(), self._again)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(RESYNC_SECONDS if self._again is None else self._again):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _round(self) -> float | None:
        """Seconds until the next look, None for the usual resync."""
        began = time.monotonic()
        seen = None if self._memory.namespace_ends() else self._observe()
        if seen is None:
            return RESYNC_SECONDS
        now = datetime.now(UTC)
        event, self._event_seen = self._event_seen, None  # a change that comes from here on is the next round's
        decision = decide(seen, now)
        written = self._must_write(seen.status, decision.status)
        if written:
            if not await self._write(seen, decision.status):
                self._event_seen = event or self._event_seen
                return 0.0
            self._wake.set()  # what was decided is acted on when it is read back (A2)
        retry = await self._shared.executor.run(seen, decision.actions, self._memory)
        if event is not None and any(isinstance(a, _REACTIONS) for a in decision.actions):
            self._shared.metrics.reaction.observe(time.monotonic() - event)
        elif event is not None and written:
            self._event_seen = event  # the action may follow in the next round
        self._shared.last_round = time.monotonic()
        self._shared.metrics.reconcile.observe(time.monotonic() - began)
        ahead = (decision.wake_at - now).total_seconds() if decision.wake_at else RESYNC_SECONDS
        if decision.status.phase is Phase.RUNNING:
            ahead = min(ahead, step_seconds(decision.status, now))
        return max(0.0, min(ahead, retry if retry is not None else RESYNC_SECONDS, RESYNC_SECONDS))

    def reading(self) -> Reading:
        """The object as values, read once per version."""
        if self._read is None or self._read[0] is not self._item:
            self._read = (self._item, translate.job(self._item))
        return self._read[1]

    def _observe(self) -> Observed | None:
        meta, spec, status, error = self.reading()
        if status is None:
            log.error("%s is left alone: %s", self.task.get_name(), error)
            return None
        self._memory.forget_stale(meta, status)
        pods = self._shared.world.pods_of(meta.uid)
        uids = {p.uid for p in pods} | ({m.pod_uid for m in status.attempt.members} if status.attempt else set())
        return Observed(
            job=meta,
            spec=spec or translate.unreadable_spec(),
            status=status,
            pods=pods,
            nodes=self._shared.world.nodes(),
            heard=self._shared.book.of(uids),
            watching_since=self._shared.started_at,
            children_exist=self._memory.children_exist(),
            template_checked=self._memory.template_is_checked(datetime.now(UTC)),
            refusals=tuple(self._memory.refusals.values()),
            signal_rules=self._shared.signal_rules,
            spec_error=error,
        )

    def _must_write(self, before: TrainingJobStatus, after: TrainingJobStatus) -> bool:
        if before == after:
            return False
        only_step = before.model_copy(update={"step": after.step}) == after
        pause = step_seconds(after, datetime.now(UTC))
        return not only_step or time.monotonic() - self._step_written >= pause

    async def _write(self, seen: Observed, status: TrainingJobStatus) -> bool:
        """Full replace of the status, if nobody else has changed the object since it was read (A1). False: observe again."""
        meta = self._item["metadata"]
        body = copy.copy(self._item)
        body["status"] = status.to_wire()
        path = f"/apis/{names.GROUP}/{names.VERSION}/namespaces/{meta['namespace']}/{names.PLURAL}/{meta['name']}"
        try:
            written = await self._shared.kube.replace(f"{path}/status", body)
        except ApiError as e:
            if e.status == 404:
                raise JobGone from e
            if e.status != 409:
                raise
            self._shared.metrics.conflicts.inc()
            self._item = await self._read_again(path)
            return False
        self._step_written = time.monotonic()
        self._item = written
        self._shared.metrics.written(meta["namespace"], meta["name"], seen.status, status)
        return True

    async def _read_again(self, path: str) -> Object:
        try:
            found = await self._shared.kube.get(path)
        except ApiError as e:
            if e.status == 404:
                raise JobGone from e
            raise
        if found["metadata"]["uid"] != self._item["metadata"]["uid"]:
            raise JobGone  # a job of the same name: it has a loop of its own
        return found


def step_seconds(status: TrainingJobStatus, now: datetime) -> float:
    """How often `status.step` is brought up to date: a twentieth of the time that the attempt has trained."""
    attempt = status.attempt
    trained = (now - attempt.first_step_at).total_seconds() if attempt and attempt.first_step_at else 0.0
    return min(max(trained / 20, STEP_SECONDS[0]), STEP_SECONDS[1])


class Jobs:
    """All jobs: their loops, who is woken by what, and who is asked for a report."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._loops: dict[str, JobLoop] = {}

    def knows(self, uid: str) -> bool:
        return uid in self._loops

    def offer(self, item: Object) -> None:
        uid = item["metadata"]["uid"]
        if uid in self._loops:
            self._loops[uid].offer(item)
        else:
            self._loops[uid] = JobLoop(self._shared, item, self._forget)

    def remove(self, uid: str) -> None:
        loop = self._loops.pop(uid, None)
        if loop is not None:
            loop.task.cancel()

    def _forget(self, uid: str) -> None:
        self._loops.pop(uid, None)

    async def close(self) -> None:
        """Ends all loops; a round in progress is cut where it waits, which every round survives."""
        tasks = [loop.task for loop in self._loops.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self, uid: str, *, node_or_pod: bool = False) -> None:
        if uid in self._loops:
            self._loops[uid].wake(node_or_pod=node_or_pod)

    def wake_node(self, node: str) -> None:
        """Every job with a pod on it, by cache or by status: the pod may be gone already."""
        for uid, loop in self._loops.items():
            workers = (loop.item.get("status") or {}).get("workers") or []
            if any(w.get("node") == node for w in workers) or any(
                p.node == node for p in self._shared.world.pods_of(uid)
            ):
                loop.wake(node_or_pod=True)

    def statuses(self) -> list[tuple[str, str, TrainingJobStatus]]:
        found = []
        for loop in self._loops.values():
            meta, _, status, _ = loop.reading()
            if status is not None:
                found.append((meta.namespace, meta.name, status))
        return found

    async def ask_silent_agents(self) -> None:
        """For ever: asks agents that have not been heard of for a while, sooner where something is going on."""
        asked: dict[str, float] = {}
        while True:
            await asyncio.sleep(0.5)
            now, clock = datetime.now(UTC), time.monotonic()
            due = [
                (uid, attempt, address)
                for uid, loop in self._loops.items()
                for attempt, address, seconds in self._reachable(uid, loop)
                if _age(self._shared.book, address.uid, now) > seconds and clock - asked.get(address.uid, 0.0) > seconds
            ]
            for uid, attempt, address in due[:200]:
                asked[address.uid] = clock
                self._shared.executor.background.start(self._shared.agents.ask(uid, attempt, address))
            if len(asked) > 20_000:
                asked.clear()

    def _reachable(self, uid: str, loop: JobLoop) -> list[tuple[int, PodAddress, float]]:
        """(attempt, address, seconds of silence after which to ask). Agents report at least every 10 s; the lead of a young attempt is asked how far it is."""
        _, _, status, _ = loop.reading()
        if status is None:
            return []
        pods = self._shared.world.pods_of(uid)
        heard = self._shared.book.of({p.uid for p in pods})
        crashed = any(
            h.report.phase is AgentPhase.FAILED for h in heard.values()
        )  # the others' word decides (core/blame.py)
        quiet = status.phase is Phase.RUNNING and not crashed
        attempt = status.attempt.number if status.attempt else 0
        step = step_seconds(status, datetime.now(UTC))
        nodes = self._shared.world.nodes()
        found = []
        for pod in pods:
            node = nodes.get(pod.node)
            if pod.ip and pod.phase == "Running":
                calm = quiet and node is not None and node.ready and not pod.deleting
                patience = 15.0 if pod.worker else min(15.0, step)
                found.append((attempt, PodAddress(pod.name, pod.uid, pod.ip), patience if calm else min(2.0, patience)))
        return found


def _age(book: ReportBook, pod_uid: str, now: datetime) -> float:
    at = book.heard_at(pod_uid)
    return float("inf") if at is None else (now - at).total_seconds()


def _version(item: Object) -> int:
    text = item["metadata"].get("resourceVersion", "0")
    return int(text) if text.isdigit() else 0
