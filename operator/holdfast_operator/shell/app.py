"""Puts the operator together: Lease first, then key, caches, servers, kopf; ends when any of them ends."""

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

from holdfast_api import names
from holdfast_operator.core import queueing
from holdfast_operator.core.observed import NodeSeen, PodSeen
from holdfast_operator.core.pods import PodContext
from holdfast_operator.shell import keys, kinds, serving, translate
from holdfast_operator.shell.agents import AgentClient
from holdfast_operator.shell.background import Background
from holdfast_operator.shell.execute import Executor
from holdfast_operator.shell.jobs import Jobs, Shared
from holdfast_operator.shell.kube import Access, ApiError, Kube, retry_wait
from holdfast_operator.shell.leader import Lease
from holdfast_operator.shell.metrics import Metrics
from holdfast_operator.shell.nodes import Nodes
from holdfast_operator.shell.reportbook import ReportBook
from holdfast_operator.shell.reports import ReportServer
from holdfast_operator.shell.settings import Settings
from holdfast_operator.shell.tokens import Tokens
from holdfast_operator.shell.watch import Cache

log = logging.getLogger("holdfast.app")
RESTART_RULES_SINCE = (1, 35)
"""Container restart rules are on by default from this server version (G1)."""


class Operator:
    """One process. `run()` returns only by an exception or cancellation."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self._settings, self._access = settings, access
        self.metrics = Metrics()
        self.book = ReportBook()
        self._pods_by_job: dict[str, dict[str, PodSeen]] = {}
        self._pod_owners: dict[str, tuple[str, str]] = {}
        self._nodes: Nodes | None = None
        self._jobs: Jobs | None = None
        self._shared: Shared | None = None
        self.active = False

    # World: what a round sees

    def pods_of(self, job_uid: str) -> tuple[PodSeen, ...]:
        return tuple(sorted(self._pods_by_job.get(job_uid, {}).values(), key=lambda p: (p.worker, p.serial)))

    def nodes(self) -> dict[str, NodeSeen]:
        return self._nodes.seen() if self._nodes is not None else {}

    # What changed

    def _pod_changed(self, item: dict[str, Any], pod: PodSeen) -> None:
        job_uid = item["metadata"]["labels"][names.LABEL_JOB_UID]
        pods = self._pods_by_job.setdefault(job_uid, {})
        if self._pod_cache.holds(pod.uid):
            pods[pod.uid] = pod
            self._pod_owners[pod.uid] = (item["metadata"]["namespace"], job_uid)
        else:
            pods.pop(pod.uid, None)
            self._pod_owners.pop(pod.uid, None)
            if not pods:
                self._pods_by_job.pop(job_uid, None)
        if self._jobs is not None:
            self._jobs.wake(job_uid, node_or_pod=True)
            self._release_orphans(item["metadata"]["namespace"], job_uid)

    def _release_orphans(self, namespace: str, job_uid: str) -> None:
        """Of a job that was deleted while it queued: nobody else can, it has no loop any more and never had a finalizer."""
        if self._jobs is None or self._jobs.knows(job_uid) or self._shared is None:
            return
        executor = self._shared.executor
        for action in queueing.release(self._pods_by_job.get(job_uid, {}).values()):
            executor.background.start(executor.release_quota(namespace, action))

    def _node_changed(self, name: str) -> None:
        if self._jobs is not None:
            self._jobs.wake_node(name)

    def _reported(self, job_uid: str) -> None:
        self.metrics.reports.inc()
        if self._jobs is not None:
            self._jobs.wake(job_uid)

    def _find_pod(self, pod_uid: str) -> tuple[str, str, PodSeen] | None:
        owner = self._pod_owners.get(pod_uid)
        pod = self._pods_by_job.get(owner[1], {}).get(pod_uid) if owner else None
        return (*owner, pod) if owner and pod else None

    # Life

    async def run(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            kube = await stack.enter_async_context(Kube(self._access))
            await self._serve_health(stack)
            lease = Lease(kube, self._settings.namespace, self._settings.identity)
            if self._settings.leader_election:
                await lease.acquire()
                stack.push_async_callback(lease.release)
            await self._act(stack, kube, lease)

    async def _act(self, stack: contextlib.AsyncExitStack, kube: Kube, lease: Lease) -> None:
        master = await _patiently(lambda: keys.master_key(kube, self._settings.namespace))
        context = PodContext(self._settings.report_url, await _patiently(lambda: _knows_restart_rules(kube)))
        self._pod_cache = self._cache(kube, "pods", translate.pod, self._pod_changed)
        rules = self._settings.signal_rules
        self._nodes = Nodes(
            kube, self._node_changed, rules, events=self._settings.node_events, claims=self._settings.node_claims
        )
        agents = AgentClient(
            master, self.book, self._reported, self.metrics.orders_failed.inc, self._settings.agent_port
        )
        await agents.open()
        stack.push_async_callback(agents.close)
        background = Background()
        stack.push_async_callback(background.close)
        executor = Executor(
            kube=kube,
            agents=agents,
            context=context,
            master=master,
            operator_namespace=self._settings.namespace,
            scrape_namespace=self._settings.scrape_namespace,
            identity=self._settings.identity,
            background=background,
            pod_made=self._pod_cache.put,
        )
        self._shared = Shared(kube, self, self.book, agents, executor, self.metrics, datetime.now(UTC), rules)
        self._jobs = Jobs(self._shared)
        stack.push_async_callback(self._jobs.close)
        await self._serve_reports(stack, kube)
        self.active = True
        self.metrics.leader.set(1)
        work: list[Coroutine[Any, Any, None]] = [
            self._pod_cache.run(), *(c.run() for c in self._nodes.caches()), self._serve_jobs(), self._jobs.ask_silent_agents(), self._tidy(),
        ]  # fmt: skip
        if self._settings.leader_election:
            work.append(lease.hold())
        await _until_one_ends(work)

    def _cache(self, kube: Kube, plural: str, convert: Any, changed: Any) -> "Cache[PodSeen]":
        namespace = self._settings.watch_namespace
        path = f"/api/v1/namespaces/{namespace}/{plural}" if namespace else f"/api/v1/{plural}"
        query = {"labelSelector": f"{names.LABEL_MANAGED}={names.MANAGED_BY},{names.LABEL_JOB_UID}"}
        return Cache(kube, path, query=query, convert=convert, changed=changed)

    async def _serve_jobs(self) -> None:
        """kopf starts only when pods and nodes are known: before that an absent pod would look like a lost one."""
        assert self._jobs is not None
        assert self._nodes is not None
        await self._pod_cache.synced.wait()
        await self._nodes.cache.synced.wait()
        registry = kinds.registry(changed=self._jobs.offer, gone=self._jobs.remove)
        await kinds.run(registry, self._settings.watch_namespace)

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(60)
            known = {p.uid for pods in self._pods_by_job.values() for p in pods.values()}
            self.book.forget_all_but(known | self._members())

    def _members(self) -> set[str]:
        statuses = self._jobs.statuses() if self._jobs else []
        return {m.pod_uid for _, _, s in statuses if s.attempt is not None for m in s.attempt.members}

    async def _serve_health(self, stack: contextlib.AsyncExitStack) -> None:
        health = serving.health_app(
            lambda: self.active,
            lambda: self._shared.last_round if self._shared else 0.0,
            lambda: bool(self._jobs and self._jobs.statuses()),
        )
        for app, port in (
            (health, self._settings.health_port),
            (serving.metrics_app(self.metrics, self._refresh_metrics), self._settings.metrics_port),
        ):
            runner, _ = await serving.serve(app, port)
            stack.push_async_callback(runner.cleanup)

    def _refresh_metrics(self) -> None:
        self.metrics.set_jobs(self._jobs.statuses() if self._jobs else [])
        if self._shared is not None:
            self.metrics.clock_skew.set(self._shared.kube.skew_seconds)

    async def _serve_reports(self, stack: contextlib.AsyncExitStack, kube: Kube) -> None:
        server = ReportServer(Tokens(kube), self.book, self._find_pod, self._reported)
        runner, _ = await serving.serve(server.app(), self._settings.report_port)
        stack.push_async_callback(runner.cleanup)


async def _patiently(call: Any) -> Any:
    """A start while the API server is away waits for it."""
    tries = 0
    while True:
        try:
            return await call()
        except ApiError as e:
            if not e.passing:
                raise
            log.warning("%s", e)
            await retry_wait(tries)
            tries += 1


async def _knows_restart_rules(kube: Kube) -> bool:
    found = await kube.get("/version")
    numbers = [re.match(r"\d+", str(found.get(k, "0"))) for k in ("major", "minor")]
    version = tuple(int(n[0]) if n else 0 for n in numbers)
    return version >= RESTART_RULES_SINCE and os.environ.get("HOLDFAST_RESTART_RULES", "true") == "true"


async def _until_one_ends(work: list[Coroutine[Any, Any, None]]) -> None:
    """All of them run for ever; the first that ends, ends the process: half an operator would be worse than none."""
    tasks = [asyncio.create_task(w) for w in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        raise RuntimeError("a part of the operator has ended")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
