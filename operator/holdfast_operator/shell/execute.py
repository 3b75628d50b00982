"""Carries out actions. Each may be repeated: what exists already and is ours is success, what is somebody else's is remembered as a refusal (A9)."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from holdfast_api import codec, names
from holdfast_operator.core import capacity, children
from holdfast_operator.core.actions import (
    Action,
    CheckTemplate,
    CreatePod,
    DeletePod,
    EmitEvent,
    EnsureChildren,
    ReleaseQuota,
)
from holdfast_operator.core.observed import JobMeta, Observed, Refusal, RefusalKind
from holdfast_operator.core.pods import PodContext, worker_pod
from holdfast_operator.core.wake import REFUSED_AGAIN, refused_until
from holdfast_operator.crd.v1alpha1 import TrainingJobStatus
from holdfast_operator.shell.agents import AgentClient
from holdfast_operator.shell.background import Background
from holdfast_operator.shell.kube import ApiError, Kube

log = logging.getLogger("holdfast.execute")
CHILDREN_FRESH_SECONDS = 60.0
NAMESPACE_ENDS_SECONDS = 60.0
WORKLOADS = ("v1beta2", "v1beta1")
"""Versions of Kueue's API; what a server does not serve is a 404, as what is gone is."""
FAILED_SECONDS = 15.0
"""The longest pause between two tries to make a pod while nobody can say whether it may be made."""
_TEMPLATE = "the pod that spec.template describes"


@dataclass(slots=True)
class JobMemory:
    """What the shell remembers of a job between rounds. Losing it costs time, never correctness."""

    refusals: dict[str, Refusal] = field(default_factory=dict)
    children_at: float = 0.0
    """Monotonic time at which Service, Secret and NetworkPolicy were last known to exist."""

    failures: dict[str, tuple[int, float]] = field(default_factory=dict)
    """What could not be made because the API server, or a webhook of somebody's, is away: (times in a row, monotonic time before which it is left alone)."""
    generation: int = 0
    template_checked: bool = False
    """A pod of this generation's template has been tried (G5)."""
    namespace_ends_at: float = 0.0
    """Monotonic time at which the API server last said that the namespace is being terminated."""

    def template_is_checked(self, now: datetime) -> bool:
        """One that was refused is tried again: what refused it may have been a policy that is mended since."""
        refused = self.refusals.get(_TEMPLATE)
        return self.template_checked and (refused is None or now - refused.at < REFUSED_AGAIN)

    def namespace_ends(self) -> bool:
        """Then nothing is done for the job: its pods go before it does, and replacing them is refused."""
        return self.namespace_ends_at > 0 and time.monotonic() - self.namespace_ends_at < NAMESPACE_ENDS_SECONDS

    def forget_stale(self, job: JobMeta, status: TrainingJobStatus) -> None:
        """What was refused for an earlier spec, or for a pod that is planned no more, is no trouble any more."""
        if job.generation != self.generation:
            self.generation = job.generation
            self.template_checked = False
            self.refusals.clear()
        planned = {f"pod {names.pod_name(job.name, job.uid, w.worker, w.serial)}" for w in status.workers}
        for known in (self.refusals, self.failures):
            for what in [w for w in known if w.startswith("pod ") and w not in planned]:
                del known[what]

    def failed(self, what: str) -> float:
        """Seconds until it is tried again."""
        times = self.failures.get(what, (0, 0.0))[0] + 1
        wait = min(0.5 * 2.0 ** min(times, 6), FAILED_SECONDS)
        self.failures[what] = (times, time.monotonic() + wait)
        return wait

    def children_exist(self) -> bool:
        return self.children_at > 0 and time.monotonic() - self.children_at < CHILDREN_FRESH_SECONDS


@dataclass(frozen=True, slots=True)
class Executor:
    kube: Kube
    agents: AgentClient
    context: PodContext
    master: bytes
    operator_namespace: str
    scrape_namespace: str
    """From where Prometheus scrapes the agents; empty: from the operator's own namespace only."""
    identity: str
    background: Background
    pod_made: Callable[[dict[str, Any]], None]
    """A pod that was created or found: into the cache at once, or the next round would create it again."""

    async def run(self, seen: Observed, actions: tuple[Action, ...], memory: JobMemory) -> float | None:
        """Orders go to all agents at the same time, API calls too; nobody waits for events. Returns when to come back (seconds), if something failed."""
        if any(isinstance(a, EnsureChildren) for a in actions) and not await self._ensure_children(seen.job, memory):
            actions = tuple(a for a in actions if not isinstance(a, CreatePod))
        work = [self._one(seen, a, memory) for a in actions if not isinstance(a, EnsureChildren | EmitEvent)]
        waits = [w for w in await asyncio.gather(*work) if w is not None]
        if events := [a for a in actions if isinstance(a, EmitEvent)]:
            self.background.start(self._tell(seen.job, events))
        return min(waits, default=None)

    async def _tell(self, job: JobMeta, events: list[EmitEvent]) -> None:
        for event in events:
            await self._attempt(self._event(job, event))

    async def _one(self, seen: Observed, action: Action, memory: JobMemory) -> float | None:
        match action:
            case CreatePod():
                return await self._create_pod(seen, action, memory)
            case CheckTemplate():
                return await self._check_template(seen, memory)
            case DeletePod():
                log.info("deleting pod %s: %s", action.name, action.why, extra={"job": seen.job.name})
                path = f"/api/v1/namespaces/{seen.job.namespace}/pods/{action.name}"
                return None if await self._attempt(self.kube.delete(path, action.uid)) else 1.0
            case ReleaseQuota():
                return None if await self.release_quota(seen.job.namespace, action) else 30.0
            case EnsureChildren() | EmitEvent():
                return None
            case _:
                return await self.agents.deliver(action)

    async def release_quota(self, namespace: str, action: ReleaseQuota) -> bool:
        """Needs a permission of its own (chart value queueing.kueue); without it a person has to do it."""
        log.info("releasing Kueue's workload %s in %s: none of its pods runs or will", action.group, namespace)
        for version in WORKLOADS:
            path = f"/apis/kueue.x-k8s.io/{version}/namespaces/{namespace}/workloads/{action.group}"
            if not await self._attempt(self.kube.delete(path)):
                return False
        return True

    async def _create_pod(self, seen: Observed, action: CreatePod, memory: JobMemory) -> float | None:
        job = seen.job
        name = names.pod_name(job.name, job.uid, action.worker, action.serial)
        what = f"pod {name}"
        refused = memory.refusals.get(what)
        if refused is not None and datetime.now(UTC) < refused_until(refused, seen.living):
            return None
        if (left := memory.failures.get(what, (0, 0.0))[1] - time.monotonic()) > 0:
            return left
        path = f"/api/v1/namespaces/{job.namespace}/pods"
        body = worker_pod(
            job, seen.spec, action.worker, action.serial, action.avoid_nodes, self.context,
            action.prefer_nodes, action.queue, action.avoid_zones, action.capacity, action.shun,
        )  # fmt: skip
        made = await self._create(job, path, body, what, memory, beside=seen.living)
        if isinstance(made, dict):
            memory.refusals.pop(_TEMPLATE, None)
            memory.failures.pop(what, None)
            self.pod_made(made)
            return None
        return 0.1 if what in memory.refusals else memory.failed(what)

    async def _check_template(self, seen: Observed, memory: JobMemory) -> float | None:
        """Only what is wrong with the pod itself counts: quota and the like may be full of the job's own pods."""
        job = seen.job
        path = f"/api/v1/namespaces/{job.namespace}/pods"
        first = next((k.name for k in capacity.kinds(seen.spec)), "")
        try:
            await self.kube.create(
                path, worker_pod(job, seen.spec, 0, 0, (), self.context, capacity_kind=first), dry_run=True
            )
        except ApiError as e:
            if e.passing and not e.namespace_ends:
                return 5.0
            if e.status in (400, 422) or e.namespace_ends:
                self._refused(_TEMPLATE, e, memory)
        else:
            memory.refusals.pop(_TEMPLATE, None)
        known, memory.template_checked = memory.template_checked, True
        return 0.0 if _TEMPLATE in memory.refusals and not known else None

    async def _ensure_children(self, job: JobMeta, memory: JobMemory) -> bool:
        """Service, Secret and NetworkPolicy exist and are ours. The operator may not read Secrets: one of this name counts as ours (its name holds the
        job's uid), and an agent that got another one's keys refuses our signature."""
        core, policies = f"/api/v1/namespaces/{job.namespace}", f"/apis/networking.k8s.io/v1/namespaces/{job.namespace}"
        service = children.service(job)
        policy = children.network_policy(job, self.operator_namespace, self.scrape_namespace)
        made = [
            await self._create(job, f"{core}/services", service, f"service {service['metadata']['name']}", memory),
            await self._create(
                job, f"{policies}/networkpolicies", policy, f"networkpolicy {policy['metadata']['name']}", memory
            ),
            await self._create(
                job,
                f"{core}/secrets",
                children.keys_secret(job, self.master),
                f"secret {service['metadata']['name']}",
                memory,
                readable=False,
            ),
        ]
        if all(made):
            memory.children_at = time.monotonic()
        return all(made)

    async def _create(
        self,
        job: JobMeta,
        path: str,
        body: dict[str, Any],
        what: str,
        memory: JobMemory,
        *,
        readable: bool = True,
        beside: int = 0,
    ) -> dict[str, Any] | bool:
        """The object, or True where it exists and cannot be read; False if it was refused (remembered) or the API is away (not)."""
        try:
            made = await self.kube.create(path, body)
        except ApiError as e:
            if e.status == 409 and e.reason == "AlreadyExists":
                return await self._found(job, f"{path}/{body['metadata']['name']}", what, memory) if readable else True
            self._refused(what, e, memory, beside)
            return False
        memory.refusals.pop(what, None)
        return made

    async def _found(self, job: JobMeta, path: str, what: str, memory: JobMemory) -> dict[str, Any] | bool:
        try:
            found = await self.kube.get(path)
        except ApiError as e:
            log.warning("%s: %s", what, e)
            return False
        owners = found["metadata"].get("ownerReferences") or []
        if any(o.get("uid") == job.uid for o in owners):
            memory.refusals.pop(what, None)
            return found
        others = ", ".join(f"{o.get('kind')} {o.get('name')}" for o in owners) or "nobody"
        memory.refusals[what] = Refusal(RefusalKind.TAKEN, what, f"it is owned by {others}", datetime.now(UTC))
        return False

    def _refused(self, what: str, error: ApiError, memory: JobMemory, beside: int = 0) -> None:
        if error.namespace_ends:
            if not memory.namespace_ends():
                log.info("%s: its namespace is being terminated; the job is left alone", what)
            memory.namespace_ends_at = time.monotonic()
            return
        if error.passing or error.status == 409:
            log.warning("%s: %s", what, error)
            return
        invalid = error.status in (400, 422) and not error.denied
        kind = RefusalKind.INVALID if invalid else RefusalKind.FORBIDDEN
        before = memory.refusals.get(what)
        # Fewer pods beside it than last time: somebody has gone, and what he gives back may not be counted yet.
        times = before.times + 1 if before is not None and beside >= before.beside else 1
        memory.refusals[what] = Refusal(kind, what, error.message, datetime.now(UTC), times, beside)

    async def _event(self, job: JobMeta, event: EmitEvent) -> None:
        now = codec.format_time(datetime.now(UTC))
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{job.name}.", "namespace": job.namespace},
            "involvedObject": {
                "apiVersion": f"{names.GROUP}/{names.VERSION}",
                "kind": names.KIND,
                "name": job.name,
                "namespace": job.namespace,
                "uid": job.uid,
            },
            "type": "Warning" if event.warning else "Normal",
            "reason": event.reason[:128],
            "message": event.message[:1024],
            "action": "Reconcile",
            "source": {"component": "holdfast-operator"},
            "reportingComponent": "holdfast.dev/operator",
            "reportingInstance": self.identity[:128],
            "firstTimestamp": now[:19] + "Z",
            "lastTimestamp": now[:19] + "Z",
            "eventTime": now,
            "count": 1,
        }
        await self.kube.create(f"/api/v1/namespaces/{job.namespace}/events", body)

    async def _attempt(self, call: Coroutine[Any, Any, None]) -> bool:
        try:
            await call
        except ApiError as e:
            log.log(logging.DEBUG if e.namespace_ends else logging.WARNING, "%s", e)
            return False
        return True
