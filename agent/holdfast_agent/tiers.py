"""Which place of a state is still there after what is about to happen (F4). Pure; the table is the rule.

A place counts in a plan only if it survives: a copy on a disk that goes with its machine is no checkpoint.
"""

from collections import defaultdict
from collections.abc import Iterable
from enum import IntEnum, StrEnum

from holdfast_api.messages import Cause, Notice


class Loss(IntEnum):
    """What goes, each including what stands before it."""

    NOTHING = 0
    """Training goes on."""
    CONTAINER = 1
    """The container starts again in the same pod."""
    POD = 2
    """The pod is replaced, and may come back to the same node."""
    NODE = 3
    """The machine goes, or nobody may be placed on it."""


class Tier(StrEnum):
    ARENA = "arena"
    """Slots on the pod's memory volume."""
    POD = "pod"
    """A directory that lives as long as the pod: emptyDir."""
    NODE = "node"
    """A directory or a volume that is bound to the node: hostPath, local volumes."""
    NETWORK = "network"
    """A volume that any node can mount."""
    STORE = "store"


LOCAL_VOLUMES = (Tier.POD, Tier.NODE, Tier.NETWORK)
"""What `AgentConfig.local_volume` may be."""
_LASTS_THROUGH = {
    Tier.ARENA: Loss.CONTAINER,
    Tier.POD: Loss.CONTAINER,
    Tier.NODE: Loss.POD,
    Tier.NETWORK: Loss.NODE,
    Tier.STORE: Loss.NODE,
}
_LOSSES = {
    Cause.PERIODIC: Loss.NOTHING,
    Cause.MANUAL: Loss.NOTHING,
    Cause.FINAL: Loss.NOTHING,
    Cause.FAILURE: Loss.CONTAINER,
    Cause.HUNG: Loss.CONTAINER,
    Cause.ROLLBACK: Loss.CONTAINER,
    Cause.RESIZE: Loss.NODE,
    Cause.DRILL: Loss.POD,
    Cause.EVICTION: Loss.POD,
    Cause.PRIORITY: Loss.POD,
    Cause.NODE_PRESSURE: Loss.POD,
    Cause.DELETION: Loss.POD,
    Cause.SUSPEND: Loss.POD,
    Cause.SPOT: Loss.NODE,
    Cause.REBALANCE: Loss.NODE,
    Cause.MAINTENANCE: Loss.NODE,
    Cause.SCALE_DOWN: Loss.NODE,
    Cause.DRAIN: Loss.NODE,
    Cause.CORDON: Loss.NODE,
    Cause.NODE_SHUTDOWN: Loss.NODE,
    Cause.NODE_LOST: Loss.NODE,
    Cause.SIGTERM: Loss.NODE,
    Cause.UNKNOWN: Loss.NODE,
}
"""A node that shuts down may come up again and a drained one be opened again; nobody promises it. SIGTERM does not say why (F3)."""


def loss_of(cause: Cause) -> Loss:
    return _LOSSES.get(cause, Loss.NODE)


def worst(records: Iterable[Notice], otherwise: Cause) -> Loss:
    """What goes by all acting notices together, which may be of several workers and causes; `otherwise`: what is taken where there are none. SIGTERM counts
    only for a worker of which nothing else says why it goes."""
    causes: defaultdict[int, set[Cause]] = defaultdict(set)
    for n in records:
        if n.acting and not n.withdrawn:
            causes[n.worker].add(n.cause)
    found = [loss_of(c) for said in causes.values() for c in said if c is not Cause.SIGTERM or len(said) == 1]
    return max(found, default=loss_of(otherwise))


def survives(tier: Tier, loss: Loss) -> bool:
    return loss <= _LASTS_THROUGH[tier]


def tier_of(volume: str) -> Tier:
    """`AgentConfig.local_volume`. A word that is not known promises nothing."""
    return Tier(volume) if volume in LOCAL_VOLUMES else Tier.POD
