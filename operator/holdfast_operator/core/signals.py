"""What nodes and pods announce right now, read by the table (signal_table.py). Pure."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from holdfast_api import names, sources
from holdfast_api.messages import Cause
from holdfast_operator.core import notifier_signals
from holdfast_operator.core.observed import NodeCondition, NodeSeen, PodSeen
from holdfast_operator.core.signal_table import (
    ACTING,
    CERTAIN,
    NO_RULES,
    POSSIBLE,
    PREPARING,
    TABLE,
    UNKNOWN,
    Row,
    Signal,
    SignalRules,
    after,
    cause_of_disruption,
    exactly,
)

UNSCHEDULABLE_TAINT = "node.kubernetes.io/unschedulable"
SHUTTING_DOWN = "condition:Ready/shutting-down"
_GOOGLES = "cloud.google.com/gke-nodepool"
_GOOGLES_SHUTDOWN_SECONDS = 15
"""What kubelets of Google's nodes, which have this label, leave ordinary pods unless the pool says otherwise."""
_LONGEST_SHUTDOWN_SECONDS = 86_400


def node_signals(node: NodeSeen, rules: SignalRules = NO_RULES) -> tuple[Signal, ...]:
    """What a node announces for every pod on it."""
    return (*_from_table(node, (*rules.own, *TABLE)), *notifier_signals.of_node(node), *_from_node_itself(node, rules))


def pod_signals(pod: PodSeen, node: NodeSeen | None) -> tuple[Signal, ...]:
    """What a pod announces for itself: eviction, preemption, deletion."""
    found = []
    if pod.disruption:
        source = f"{sources.DISRUPTION_TARGET}/{pod.disruption}"
        cause = _cause_of_disruption(pod, node)
        since, message = pod.disruption_since, pod.disruption_message
        found.append(Signal(source, cause, ACTING, False, CERTAIN, since, message))
    if pod.deletion_deadline is not None:
        since = pod.deletion_deadline - timedelta(seconds=pod.deletion_grace_seconds or 0)
        rule = exactly(pod.deletion_deadline)
        found.append(Signal(sources.DELETION, Cause.DELETION, ACTING, False, CERTAIN, since, rule=rule))
    return tuple(found)


def is_doomed(pod: PodSeen, node: NodeSeen | None, rules: SignalRules = NO_RULES) -> bool:
    """Whether something acting stands against the pod or its node."""
    signals = (*pod_signals(pod, node), *(node_signals(node, rules) if node else ()))
    return any(s.acting for s in signals)


def _cause_of_disruption(pod: PodSeen, node: NodeSeen | None) -> Cause:
    cause = cause_of_disruption(pod.disruption, pod.disruption_message)
    if cause is Cause.EVICTION and node is not None and node.unschedulable:
        return Cause.DRAIN  # kubectl drain is a cordon followed by evictions
    if pod.disruption == "DeletionByTaintManager" and node is not None and node.ready:
        return Cause.DRAIN  # somebody's own NoExecute taint: the node is well, and nobody may be on it
    return cause


def _from_table(node: NodeSeen, rows: tuple[Row, ...]) -> Iterator[Signal]:
    matched: set[str] = set()
    names = _names(node)
    for row in rows:
        if (row.kind, row.name) not in names:  # most nodes announce nothing, and there may be thousands
            continue
        for value, since, detail in _occurrences(node, row):
            source = f"{row.kind}:{row.name}"
            if source not in matched:  # the first row of a name decides, so the special ones stand before the general
                matched.add(source)
                yield Signal(
                    source, row.cause, row.acting, row.revocable, row.confidence, since, detail, value, row.deadline
                )


def _names(node: NodeSeen) -> set[tuple[str, str]]:
    """(kind, name) of everything that a row could be about."""
    return {
        *(("taint", t.key) for t in node.taints),
        *(("condition", c.type) for c in node.conditions if c.status == "True"),
        *(("label", key) for key in node.labels),
        *(("annotation", key) for key in node.annotations),
        *(("event", e.reason) for e in node.events),
    }


def _occurrences(node: NodeSeen, row: Row) -> Iterator[tuple[str, datetime | None, str]]:
    """(value, since when, in words) of everything on the node that the row is about."""
    match row.kind:
        case "taint":
            yield from ((t.value, t.added_at, t.value) for t in node.taints if row.fits(t.key, t.value))
        case "condition":
            yield from ((c.message, c.since, c.message) for c in node.conditions if _condition_stands(c, row))
        case "event":
            yield from (
                (e.message, e.at, e.message) for e in node.events if row.fits(e.reason, f"{e.reason} {e.message}")
            )
        case "label" | "annotation":
            value = (node.labels if row.kind == "label" else node.annotations).get(row.name)
            if value is not None and row.fits(row.name, value):
                yield value, None, value


def _condition_stands(condition: NodeCondition, row: Row) -> bool:
    return condition.status == "True" and row.fits(condition.type, f"{condition.reason} {condition.message}")


def _from_node_itself(node: NodeSeen, rules: SignalRules) -> Iterator[Signal]:
    if node.deleting_since is not None:
        yield Signal("node:deletionTimestamp", Cause.SCALE_DOWN, ACTING, False, CERTAIN, node.deleting_since)
    if node.unschedulable or any(t.key == UNSCHEDULABLE_TAINT for t in node.taints):
        yield Signal("node:unschedulable", Cause.CORDON, PREPARING, True, POSSIBLE)
    for c in node.conditions:
        if c.type == "Ready" and c.status == "False" and "node is shutting down" in c.message:
            seconds = shutdown_seconds(node, rules)
            rule = after(seconds) if seconds else UNKNOWN
            yield Signal(SHUTTING_DOWN, Cause.NODE_SHUTDOWN, ACTING, False, CERTAIN, c.since, c.message, rule=rule)


def shutdown_seconds(node: NodeSeen, rules: SignalRules) -> int:
    """How long a shutdown of this node leaves ordinary pods; 0: not known. What the node's own label says stands before what the operator was told, as pools
    differ; a label that is no such number counts as none. A pod's own grace may be shorter still (deadlines.py)."""
    told = node.labels.get(names.LABEL_NODE_SHUTDOWN, "")
    if told.isascii() and told.isdigit() and 0 < int(told[:9]) <= _LONGEST_SHUTDOWN_SECONDS:
        return int(told)
    return rules.node_shutdown_seconds or (_GOOGLES_SHUTDOWN_SECONDS if _GOOGLES in node.labels else 0)
