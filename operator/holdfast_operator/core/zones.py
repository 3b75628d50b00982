"""Zones that a new pod had better keep away from (F5). Pure.

An announcement is about one node, and most causes say nothing of its neighbours: a drain, an upgrade, a scale-down, a higher priority. Two things say something
of a zone: its capacity is being taken back (spot and the recommendation that comes before it are about a pool of machines in one zone, so what comes next from
there is taken next), and most of its nodes are gone at once (power, network).

Never a rule, always a preference: a zone with the only room left is better than no pod. And a gang that is together stays together: while every worker that
stays is in a zone whose capacity is short, its replacement goes there too, because ranks in two zones are slow for as long as they train.
"""

from collections import defaultdict

from holdfast_api.messages import Cause
from holdfast_operator.core.membership import members
from holdfast_operator.core.observed import NodeSeen, Observed
from holdfast_operator.core.signals import node_signals
from holdfast_operator.crd.v1alpha1 import TrainingJobStatus

LABELS = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
OF_CAPACITY = (Cause.SPOT, Cause.REBALANCE)
"""Causes that say that machines of this kind are short there."""
MAX_ZONES = 16
FAILED_NODES = 3
"""Fewer that are not Ready are single machines (as the node controller of Kubernetes has it)."""
FAILED_SHARE = 0.55


def zone_of(node: NodeSeen | None) -> str:
    """Empty where nobody says."""
    return next((node.labels[k] for k in LABELS if node.labels.get(k)), "") if node is not None else ""


def avoided(seen: Observed, status: TrainingJobStatus) -> tuple[str, ...]:
    """In order of name."""
    whos = members(seen, status.attempt)
    short = {zone_of(w.node) for w in whos if w.node is not None and _is_short(seen, w.node)}
    if len(together := staying(seen, status)) == 1:
        short -= together
    return tuple(sorted((short | _failed(seen)) - {""}))[:MAX_ZONES]


def staying(seen: Observed, status: TrainingJobStatus) -> set[str]:
    """Where the workers are that stay; "" for a node that does not say."""
    whos = members(seen, status.attempt)
    return {zone_of(w.node) for w in whos if w.node is not None and not _goes(seen, w.node)}


def _is_short(seen: Observed, node: NodeSeen) -> bool:
    return any(s.cause in OF_CAPACITY for s in node_signals(node, seen.signal_rules))


def _goes(seen: Observed, node: NodeSeen) -> bool:
    return not node.ready or any(s.acting for s in node_signals(node, seen.signal_rules))


def _failed(seen: Observed) -> set[str]:
    """Most of their nodes are not Ready."""
    ready: dict[str, int] = defaultdict(int)
    away: dict[str, int] = defaultdict(int)
    for node in seen.nodes.values():
        (ready if node.ready else away)[zone_of(node)] += 1
    return {z for z, n in away.items() if n >= FAILED_NODES and n >= FAILED_SHARE * (n + ready[z])}
