"""A cluster with a queue. It stands in for Kueue (v0.17) as far as that meets pods: gates, groups, quota, finalizers, evictions; what it does is written after
pkg/controller/jobs/pod. Whatever Kueue would hold against the operator, or against a user who waits for quota, is noted in `wrong`.
"""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from simulated_cluster import SimulatedCluster

from holdfast_api import names
from holdfast_operator.core import actions as act
from holdfast_operator.core import kueue
from holdfast_operator.core.observed import PodSeen


@dataclass
class Workload:
    size: int
    order: int
    admitted: bool = False
    finished: bool = False


class QueuedCluster(SimulatedCluster):
    """`quota`: how many pods are let in at a time."""

    def __init__(self, *args: Any, quota: int = 8, **options: Any) -> None:
        super().__init__(*args, **options)
        self.job = replace(self.job, labels={kueue.QUEUE: "gpus"})
        self.quota = quota
        self.workloads: dict[str, Workload] = {}
        self.finalizers: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.excess = 0
        self.made = 0

    # The cluster, with gates and finalizers

    def _create(self, action: act.CreatePod) -> None:
        super()._create(action)
        name = names.pod_name(self.job.name, self.job.uid, action.worker, action.serial)
        uid, pod = next((u, p) for u, p in self.pods.items() if p.name == name)
        if action.queue is None or pod.queue_managed:
            return
        group = kueue.group_name(self.job, action.queue)
        if self.sizes.setdefault(group, action.queue.size) != action.queue.size:
            self.wrong.append(f"pods of {group} do not agree on its size")
        self.pods[uid] = replace(pod, gates=(kueue.GATE,), queue_group=group, queue_managed=True)
        self.finalizers.add(uid)

    def _kubelets(self) -> None:
        before = dict(self.pods)
        super()._kubelets()
        for uid in before.keys() - self.pods.keys():
            if uid in self.finalizers:
                pod = before[uid]
                phase = "Failed" if pod.node and not pod.terminal else pod.phase
                self.pods[uid] = replace(pod, phase=phase, deletion_deadline=pod.deletion_deadline or self.now)
        self._reconcile()

    def _schedule(self, uid: str, pod: PodSeen) -> None:
        if pod.gates and not pod.deleting:
            return
        super()._schedule(uid, pod)

    def _execute(self, action: act.Action) -> None:
        if isinstance(action, act.ReleaseQuota):
            self.delete_workload(action.group)
        else:
            super()._execute(action)

    # Kueue

    def evict(self) -> None:
        """Everything that is admitted, for somebody of a higher priority."""
        for name, found in self.workloads.items():
            if found.admitted and not found.finished:
                found.admitted = False
                for uid, pod in self._of(name).items():
                    if not pod.gates and not pod.terminal and not pod.deleting:
                        self.pods[uid] = replace(
                            pod,
                            disruption="WorkloadEvictedDueToPreempted",
                            disruption_message="Preempted to accommodate a workload",
                            disruption_since=self.now,
                        )
                        self.delete_pod(uid)

    def delete_workload(self, group: str) -> None:
        self.workloads.pop(group, None)
        for uid in self._of(group):
            self.finalizers.discard(uid)

    def held_quota(self) -> int:
        return sum(w.size for n, w in self.workloads.items() if self._holds(n, w))

    def _holds(self, name: str, found: Workload) -> bool:
        running = any(p.phase == "Running" for p in self._of(name).values())
        return not found.finished and (found.admitted or running)

    def _of(self, group: str) -> dict[str, PodSeen]:
        return {u: p for u, p in self.pods.items() if p.queue_group == group}

    def _reconcile(self) -> None:
        for group in sorted({p.queue_group for p in self.pods.values() if p.queue_group}):
            self._group(group)
        waiting = [(w.order, n) for n, w in self.workloads.items() if not w.admitted and not w.finished]
        for _, name in sorted(waiting):
            found = self.workloads[name]
            if not self._holds(name, found) and self.held_quota() + found.size <= self.quota:
                found.admitted = True

    def _group(self, group: str) -> None:
        pods, size = self._of(group), self.sizes[group]
        active = {u: p for u, p in pods.items() if p.phase != "Failed" and not (p.deleting and not p.node)}
        inactive = [u for u in pods if u not in active]
        found = self.workloads.get(group)
        if found is None:
            for uid in inactive:
                self.finalizers.discard(uid)
            if len(active) >= size:
                self.made += 1
                self.workloads[group] = Workload(size, self.made)
            return
        if found.finished or all(p.terminal for p in pods.values()):
            found.finished = True
            self.finalizers -= set(pods)
            return
        newest = sorted(active, key=lambda u: (bool(active[u].gates), active[u].created_at))
        for uid in newest[size:]:
            self.excess += 1
            self.finalizers.discard(uid)
            self.delete_pod(uid)
        if len(active) >= size:
            self.finalizers -= set(inactive)
        if found.admitted:
            for uid in newest[:size]:
                self.pods[uid] = replace(self.pods[uid], gates=())


def unfinished(cluster: QueuedCluster) -> dict[str, Workload]:
    """Groups that hold quota, or will, although nobody of the job's runs any more."""
    for _ in range(200):
        cluster.now += timedelta(seconds=0.25)
        cluster._kubelets()
    return {n: w for n, w in cluster.workloads.items() if not w.finished}
