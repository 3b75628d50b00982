"""What nodes and pods announce: every source of a notice, as one table (F2). Pure.

A row says which name means what. Acting means evacuate; preparing means save now and go on training. A deadline rule gives the moment the worker
goes; without one the configured default counts (F2). Facts and their origins: docs/operator.md lists the same table for people.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from holdfast_api.messages import Cause
from holdfast_operator.core.observed import NodeCondition, NodeSeen, PodSeen

DeadlineRule = Callable[[str, datetime], datetime | None]
"""(value or message, since) -> deadline."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One announcement that stands right now."""

    source: str
    cause: Cause
    acting: bool
    revocable: bool
    since: datetime | None = None
    """When it was made, where that is known."""
    detail: str = ""
    value: str = ""
    rule: DeadlineRule | None = None

    def deadline(self, noticed_at: datetime) -> datetime | None:
        """When the worker goes. What counts from the announcement counts from `noticed_at` where nobody says when it was made."""
        return self.rule(self.value, self.since or noticed_at) if self.rule else None


def no_deadline(value: str, since: datetime) -> None:
    return None


def after(seconds: int) -> DeadlineRule:
    return lambda value, since: since + timedelta(seconds=seconds)


def unix_value_plus(seconds: int) -> DeadlineRule:
    """The value is a Unix time; anything else counts from when the signal was seen."""

    def rule(value: str, since: datetime) -> datetime:
        base = datetime.fromtimestamp(int(value), UTC) if re.fullmatch(r"\d{9,10}", value) else since
        return base + timedelta(seconds=seconds)

    return rule


def rfc3339_value(value: str, since: datetime) -> datetime | None:
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else None


def time_in_message(value: str, since: datetime) -> datetime | None:
    """AKS: `… Preempt Scheduled: Mon, 02 Jan 2006 15:04:05 GMT …`."""
    found = re.search(r"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT", value)
    return parsedate_to_datetime(found[0]).astimezone(UTC) if found else None


def time_in_message_or(seconds: int) -> DeadlineRule:
    return lambda value, since: time_in_message(value, since) or since + timedelta(seconds=seconds)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `value` restricts it to a value (or to a word of a condition's message)."""

    kind: str
    """taint, condition, label or annotation."""
    name: str
    cause: Cause
    acting: bool
    revocable: bool = False
    deadline: DeadlineRule = no_deadline
    value: str = ""


ACTING, PREPARING = True, False

TABLE: tuple[Row, ...] = (
    # AWS node termination handler: 2 min for spot; rebalance and maintenance are only ahead.
    Row("taint", "aws-node-termination-handler/spot-itn", Cause.SPOT, ACTING, deadline=after(120)),
    Row("taint", "aws-node-termination-handler/asg-lifecycle-termination", Cause.SCALE_DOWN, ACTING),
    Row("taint", "aws-node-termination-handler/rebalance-recommendation", Cause.REBALANCE, PREPARING, revocable=True),
    Row("taint", "aws-node-termination-handler/scheduled-maintenance", Cause.MAINTENANCE, PREPARING, revocable=True),
    Row("label", "aws-node-termination-handler/action", Cause.MAINTENANCE, ACTING, revocable=True, value="cordon-and-drain"),
    # Karpenter: the taint alone has no deadline and may be taken back; the annotation is the node's hard deadline.
    Row("taint", "karpenter.sh/disrupted", Cause.SCALE_DOWN, PREPARING, revocable=True),
    Row("taint", "karpenter.sh/disruption", Cause.SCALE_DOWN, PREPARING, revocable=True),
    Row("annotation", "karpenter.sh/nodeclaim-termination-timestamp", Cause.SCALE_DOWN, ACTING, deadline=rfc3339_value),
    Row("condition", "InstanceTerminating", Cause.SCALE_DOWN, ACTING),
    # Google: 30 s to hard off, of which the kubelet gives user pods 15.
    Row("taint", "cloud.google.com/impending-node-termination", Cause.SPOT, ACTING, deadline=after(15)),
    Row("taint", "cloud.google.com/maintenance-window-started", Cause.MAINTENANCE, ACTING, revocable=True),
    Row("label", "cloud.google.com/active-node-maintenance", Cause.MAINTENANCE, ACTING, revocable=True, value="ONGOING"),
    Row("label", "cloud.google.com/perform-maintenance", Cause.MAINTENANCE, ACTING, revocable=True, value="true"),
    Row("label", "cloud.google.com/scheduled-maintenance-time", Cause.MAINTENANCE, PREPARING, revocable=True),
    Row("condition", "GCESpotPreempting", Cause.SPOT, ACTING, deadline=after(30)),
    # Azure: conditions of the node problem detector. Azure has announced and then not preempted, so all are revocable.
    Row("condition", "PreemptionScheduled", Cause.SPOT, ACTING, revocable=True, deadline=time_in_message_or(30)),
    Row("condition", "PreemptScheduled", Cause.SPOT, ACTING, revocable=True, deadline=time_in_message_or(30)),
    Row("condition", "TerminateScheduled", Cause.SCALE_DOWN, ACTING, revocable=True, deadline=time_in_message_or(300)),
    Row("condition", "RedeployScheduled", Cause.MAINTENANCE, ACTING, revocable=True, deadline=time_in_message_or(600)),
    Row("condition", "RebootScheduled", Cause.MAINTENANCE, ACTING, revocable=True, deadline=time_in_message_or(900)),
    Row("condition", "FreezeScheduled", Cause.MAINTENANCE, PREPARING, revocable=True),
    Row("condition", "VMEventScheduled", Cause.SPOT, ACTING, True, time_in_message_or(30), value="Preempt"),
    Row("condition", "VMEventScheduled", Cause.SCALE_DOWN, ACTING, True, time_in_message_or(300), value="Terminate"),
    Row("condition", "VMEventScheduled", Cause.MAINTENANCE, ACTING, True, time_in_message_or(600), value="Redeploy"),
    Row("condition", "VMEventScheduled", Cause.MAINTENANCE, ACTING, True, time_in_message_or(900), value="Reboot"),
    Row("condition", "VMEventScheduled", Cause.MAINTENANCE, PREPARING, revocable=True),
    Row("taint", "remediator.kubernetes.azure.com/unschedulable", Cause.MAINTENANCE, ACTING, revocable=True),
    Row("taint", "remediator.aks.microsoft.com/unschedulable", Cause.MAINTENANCE, ACTING, revocable=True),
    Row("taint", "cloudprovider.azure.microsoft.com/draining", Cause.SPOT, ACTING, deadline=after(30)),
    # Oracle.
    Row("taint", "ignore-taint.cluster-autoscaler.kubernetes.io/oke-impending-node-termination", Cause.SPOT, ACTING),
    # Cluster autoscaler: the value is when it decided; it waits at most --max-graceful-termination-sec, 600 by default.
    Row("taint", "ToBeDeletedByClusterAutoscaler", Cause.SCALE_DOWN, ACTING, revocable=True, deadline=unix_value_plus(600)),
    Row("taint", "DeletionCandidateOfClusterAutoscaler", Cause.SCALE_DOWN, PREPARING, revocable=True),
    # Kubernetes itself.
    Row("taint", "node.kubernetes.io/out-of-service", Cause.NODE_SHUTDOWN, ACTING, deadline=after(0)),
    Row("taint", "node.cloudprovider.kubernetes.io/shutdown", Cause.NODE_SHUTDOWN, ACTING, deadline=after(0)),
    Row("taint", "node.kubernetes.io/memory-pressure", Cause.NODE_PRESSURE, PREPARING, revocable=True),
    Row("taint", "node.kubernetes.io/disk-pressure", Cause.NODE_PRESSURE, PREPARING, revocable=True),
    Row("taint", "node.kubernetes.io/pid-pressure", Cause.NODE_PRESSURE, PREPARING, revocable=True),
)  # fmt: skip

DISRUPTION_CAUSES: dict[str, Cause] = {
    "PreemptionByScheduler": Cause.PRIORITY,
    "EvictionByEvictionAPI": Cause.EVICTION,
    "DeletionByTaintManager": Cause.NODE_LOST,
    "DeletionByPodGC": Cause.NODE_LOST,
    "TerminationByKubelet": Cause.NODE_SHUTDOWN,
}
"""Reasons of DisruptionTarget. Any other is an eviction: Kueue and others write their own."""

UNSCHEDULABLE_TAINT = "node.kubernetes.io/unschedulable"


def exactly(deadline: datetime) -> DeadlineRule:
    return lambda value, since: deadline


def node_signals(node: NodeSeen) -> tuple[Signal, ...]:
    """What a node announces for every pod on it."""
    return (*_from_table(node), *_from_node_itself(node))


def pod_signals(pod: PodSeen, node: NodeSeen | None) -> tuple[Signal, ...]:
    """What a pod announces for itself: eviction, preemption, deletion."""
    found = []
    if pod.disruption:
        cause = DISRUPTION_CAUSES.get(pod.disruption, Cause.EVICTION)
        if cause is Cause.EVICTION and node is not None and node.unschedulable:
            cause = Cause.DRAIN  # kubectl drain is a cordon followed by evictions
        source = f"pod:DisruptionTarget/{pod.disruption}"
        found.append(Signal(source, cause, ACTING, False, pod.disruption_since, pod.disruption_message))
    if pod.deletion_deadline is not None:
        since = pod.deletion_deadline - timedelta(seconds=pod.deletion_grace_seconds or 0)
        rule = exactly(pod.deletion_deadline)
        found.append(Signal("pod:deletionTimestamp", Cause.DELETION, ACTING, False, since, rule=rule))
    return tuple(found)


def is_doomed(pod: PodSeen, node: NodeSeen | None) -> bool:
    """Whether something acting stands against the pod or its node."""
    signals = (*pod_signals(pod, node), *(node_signals(node) if node else ()))
    return any(s.acting for s in signals)


def _from_table(node: NodeSeen) -> Iterator[Signal]:
    matched: set[str] = set()
    for row in TABLE:
        for value, since, detail in _occurrences(node, row):
            source = f"{row.kind}:{row.name}"
            if source not in matched:  # the first row of a name decides, so the special ones stand before the general
                matched.add(source)
                yield Signal(source, row.cause, row.acting, row.revocable, since, detail, value, row.deadline)


def _occurrences(node: NodeSeen, row: Row) -> Iterator[tuple[str, datetime | None, str]]:
    if row.kind == "taint":
        yield from ((t.value, t.added_at, t.value) for t in node.taints if t.key == row.name)
    elif row.kind == "condition":
        yield from ((c.message, c.since, c.message) for c in node.conditions if _condition_stands(c, row))
    else:
        value = (node.labels if row.kind == "label" else node.annotations).get(row.name)
        if value is not None and row.value in ("", value):
            yield value, None, value


def _condition_stands(condition: NodeCondition, row: Row) -> bool:
    text = f"{condition.reason} {condition.message}"
    return condition.type == row.name and condition.status == "True" and row.value.lower() in text.lower()


def _from_node_itself(node: NodeSeen) -> Iterator[Signal]:
    if node.deleting_since is not None:
        yield Signal("node:deletionTimestamp", Cause.SCALE_DOWN, ACTING, False, node.deleting_since)
    if node.unschedulable or any(t.key == UNSCHEDULABLE_TAINT for t in node.taints):
        yield Signal("node:unschedulable", Cause.CORDON, PREPARING, True)
    for c in node.conditions:
        if c.type == "Ready" and c.status == "False" and "node is shutting down" in c.message:
            yield Signal("condition:Ready/shutting-down", Cause.NODE_SHUTDOWN, ACTING, False, c.since, c.message)
