"""Everything that is known of nodes, as one: the node objects, and laid over them, where the operator was told to look, Events about nodes and Karpenter's
NodeClaims.

The deadline of a NodeClaim stands in an annotation of the claim alone (karpenter.sh/nodeclaim-termination-timestamp). It is shown on the node, where the table
of signals looks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from holdfast_operator.core.observed import NodeCondition, NodeEvent, NodeSeen
from holdfast_operator.core.signal_table import TABLE, SignalRules
from holdfast_operator.shell import translate
from holdfast_operator.shell.kube import Kube
from holdfast_operator.shell.watch import Cache

Object = dict[str, Any]
NODES = "/api/v1/nodes"
EVENTS = "/api/v1/namespaces/default/events"
"""Events about what has no namespace are kept in this one."""
CLAIMS = "/apis/karpenter.sh/v1/nodeclaims"
CLAIM_ANNOTATION = "karpenter.sh/nodeclaim-termination-timestamp"
CLAIM_CONDITIONS = ("InstanceTerminating",)
EVENT_LASTS = timedelta(minutes=10)
"""An Event is never taken back, and a node that is still well so long after it has not gone."""
MAX_EVENTS = 16
"""Of one node."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a NodeClaim says of its node."""

    node: str
    annotations: tuple[tuple[str, str], ...]
    conditions: tuple[NodeCondition, ...]


@dataclass(frozen=True, slots=True)
class _Told:
    """An Event and the node that it is about."""

    node: str
    event: NodeEvent


class Nodes:
    """`changed` is called with the name of a node about which something is new."""

    def __init__(
        self, kube: Kube, changed: Callable[[str], None], rules: SignalRules, *, events: bool, claims: bool
    ) -> None:
        self._changed = changed
        self._nodes: dict[str, NodeSeen] = {}
        self._told: dict[str, dict[str, NodeEvent]] = {}
        self._claims: dict[str, Claim] = {}
        reasons = {r.name for r in (*rules.own, *TABLE) if r.kind == "event"}
        self.cache = Cache(kube, NODES, convert=translate.node, changed=self._node_changed)
        self._events = Cache(
            kube,
            EVENTS,
            query={"fieldSelector": "involvedObject.kind=Node"},
            convert=lambda item: event(item, reasons),
            changed=self._event_changed,
        )
        self._claim_cache = Cache(kube, CLAIMS, convert=claim, changed=self._claim_changed)
        self._caches: list[Cache[Any]] = [
            self.cache, *([self._events] if events else []), *([self._claim_cache] if claims else []),
        ]  # fmt: skip

    def caches(self) -> list[Cache[Any]]:
        """Each is run for ever. Only that of the nodes must be complete before anything is decided."""
        return self._caches

    def seen(self, now: datetime | None = None) -> dict[str, NodeSeen]:
        """By name. `now` is UTC; Events that are older than EVENT_LASTS say nothing any more."""
        if not self._told and not self._claims:
            return self._nodes
        moment = now or datetime.now(UTC)
        about = (self._told.keys() | self._claims.keys()) & self._nodes.keys()
        return {**self._nodes, **{name: self._with_what_is_told(self._nodes[name], moment) for name in about}}

    def _with_what_is_told(self, node: NodeSeen, now: datetime) -> NodeSeen:
        told, claimed = self._told.get(node.name), self._claims.get(node.name)
        if told is not None:
            fresh = tuple(e for e in told.values() if e.at is None or now - e.at < EVENT_LASTS)
            node = replace(node, events=fresh[-MAX_EVENTS:])
        if claimed is not None:
            annotations = {**node.annotations, **dict(claimed.annotations)}
            node = replace(node, annotations=annotations, conditions=(*node.conditions, *claimed.conditions))
        return node

    def _node_changed(self, item: Object, node: NodeSeen) -> None:
        if self.cache.holds(item["metadata"]["uid"]):
            self._nodes = {**self._nodes, node.name: node}
        else:
            self._nodes = {k: v for k, v in self._nodes.items() if k != node.name}
        self._changed(node.name)

    def _event_changed(self, item: Object, told: _Told) -> None:
        uid = item["metadata"]["uid"]
        of_node = {k: v for k, v in self._told.get(told.node, {}).items() if k != uid}
        if self._events.holds(uid):
            of_node[uid] = told.event
        if of_node:
            self._told[told.node] = of_node
        else:
            self._told.pop(told.node, None)
        self._changed(told.node)

    def _claim_changed(self, item: Object, found: Claim) -> None:
        if self._claim_cache.holds(item["metadata"]["uid"]):
            self._claims[found.node] = found
        else:
            self._claims.pop(found.node, None)
        self._changed(found.node)


def event(item: Object, reasons: set[str]) -> _Told | None:
    """None for an Event that no row of the table is about."""
    name, reason = (item.get("involvedObject") or {}).get("name", ""), item.get("reason", "")
    if reason not in reasons or not name:
        return None
    series = item.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        item.get("lastTimestamp"),
        item.get("eventTime"),
        item.get("firstTimestamp"),
    )
    at = next((t for t in map(translate.time_of, times) if t is not None), None)
    return _Told(name, NodeEvent(reason, item.get("message", "")[:1024], at))


def claim(item: Object) -> Claim | None:
    """None for a NodeClaim without a node, or one that announces nothing."""
    meta, status = item["metadata"], item.get("status") or {}
    value = (meta.get("annotations") or {}).get(CLAIM_ANNOTATION)
    conditions = tuple(
        NodeCondition(
            c["type"], c.get("status", ""), c.get("reason", ""), c.get("message", ""), translate.time_of(c.get("lastTransitionTime"))
        )
        for c in status.get("conditions") or []
        if c.get("type") in CLAIM_CONDITIONS
    )  # fmt: skip
    if not status.get("nodeName") or not (value or conditions):
        return None
    return Claim(status["nodeName"], ((CLAIM_ANNOTATION, value),) if value else (), conditions)
