"""A cluster of two kinds of nodes, of which spot capacity comes and goes. It stands in for a cloud's market: nodes with the labels that say what they are,
and a scheduler that keeps to what a pod was made for. What must never happen with several pods of one worker is noted in `wrong`.
"""

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from simulated_cluster import SimulatedCluster

from holdfast_api import names
from holdfast_api.messages import AgentPhase
from holdfast_operator.core import actions as act
from holdfast_operator.core.membership import newest_plans
from holdfast_operator.core.observed import PodSeen
from holdfast_operator.crd.v1alpha1 import TrainingJobStatus

LABEL = "karpenter.sh/capacity-type"


class Market(SimulatedCluster):
    """Nodes s0, s1, … are spot, d0, d1, … on demand. `short` takes all spot capacity off the market."""

    def __init__(self, *args: Any, spot: int = 3, on_demand: int = 3, **options: Any) -> None:
        super().__init__(*args, **options, nodes=0)
        self.sizes = {"spot": spot, "on-demand": on_demand}
        self.pod_kinds: dict[str, str] = {}
        self.changes: list[tuple[datetime, int, str, str]] = []
        """(when, worker, from, to) of every change of kind."""
        for kind in self.sizes:
            self.bring(kind)

    def bring(self, kind: str) -> None:
        for i in range(self.sizes[kind]):
            name = f"{kind[0]}{i}" if kind == "spot" else f"d{i}"
            if name not in self.nodes or self.nodes[name].taints or name in self.dead_nodes:
                self.bring_node(name)
                self.nodes[name] = replace(self.nodes[name], labels={LABEL: kind})

    def reclaim(self, node: str) -> None:
        self.announce(node)

    def take_away(self, kind: str) -> None:
        """Nodes without pods are gone; the others are announced to go, and go."""
        for name in [n for n in self.nodes if self.nodes[n].labels.get(LABEL) == kind]:
            if any(p.node == name and not p.terminal for p in self.pods.values()):
                self.announce(name)
            else:
                del self.nodes[name]

    def sweep(self) -> None:
        """What was announced to go and holds no pod any more is gone."""
        for name in [n for n, node in self.nodes.items() if node.taints]:
            if not any(p.node == name and not p.terminal for p in self.pods.values()):
                del self.nodes[name]

    def tick(self) -> None:
        super().tick()
        self.sweep()
        training = Counter(a.worker for a in self.agents.values() if a.phase is AgentPhase.TRAINING and self._trains(a))
        if any(n > 1 for n in training.values()):
            self.wrong.append(f"two pods of one worker train: {training}")

    def _trains(self, agent: Any) -> bool:
        newest = max(self.store.claims, default=0)
        return self.live(agent) and agent.exit is None and agent.order is not None and agent.order.attempt == newest

    def _create(self, action: act.CreatePod) -> None:
        super()._create(action)
        name = names.pod_name(self.job.name, self.job.uid, action.worker, action.serial)
        uid = next(u for u, p in self.pods.items() if p.name == name)
        self.pod_kinds[uid] = action.capacity

    def _schedule(self, uid: str, pod: PodSeen) -> None:
        everywhere, wanted = self.nodes, self.pod_kinds[uid]
        self.nodes = {n: node for n, node in everywhere.items() if wanted in ("", node.labels.get(LABEL))}
        super()._schedule(uid, pod)
        self.nodes = everywhere

    def _check_step(self, before: TrainingJobStatus, after: TrainingJobStatus) -> None:
        super()._check_step(before, after)
        known = newest_plans(before)
        for worker, plan in newest_plans(after).items():
            old = known.get(worker)
            if old is not None and old.capacity != plan.capacity:
                self.changes.append((self.now, worker, old.capacity, plan.capacity))

    def flaps(self, stay: timedelta) -> list[tuple[datetime, int, str, str]]:
        """Returns to the first kind before the worker had stayed with the other for long enough."""
        left: dict[int, datetime] = {}
        found = []
        for at, worker, old, new in self.changes:
            if new == "on-demand":
                left[worker] = at
            elif old == "on-demand" and at - left[worker] < stay:
                found.append((at, worker, old, new))
        return found
