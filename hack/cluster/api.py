"""Gives the demo and the tests a cluster of the kind that this machine can have.

cluster = api.ensure_cluster()
cluster.node("n2").off()          # a power cut
bucket = cluster.s3("training")
"""

from hack import kind, target
from hack.cluster import current, lifecycle, preflight
from hack.cluster.artefacts import catalogue
from hack.cluster.artefacts.artefact import Artefact
from hack.cluster.artefacts.torch_cpu import torch_cpu
from hack.cluster.cluster import Cluster
from hack.cluster.current import CurrentCluster
from hack.cluster.namespaces import NamespaceCluster
from hack.cluster.paths import DEFAULT_NAME, state_directory
from hack.cluster.programs import TORCH_PACKAGES, toolchain
from hack.cluster.progress import Listener
from hack.cluster.state import Store


def ensure_cluster(
    nodes: int = 2,
    grace: int = 12,
    images: bool = True,
    on_progress: Listener | None = None,
    name: str = DEFAULT_NAME,
) -> Cluster:
    """A cluster that is up, of the kind this machine can have; started if need be, everything missing built first."""
    chosen = target.decide(target.look())
    if chosen is target.Target.CURRENT:
        return CurrentCluster(toolchain(on_progress))
    if chosen is target.Target.KIND:
        return kind.ensure(nodes, grace, toolchain(on_progress), images=images)
    request = lifecycle.Request(name=name, node_count=nodes, grace_seconds=grace, images=images)
    store = lifecycle.up(request, on_progress)
    return NamespaceCluster(store, toolchain(on_progress))


def down() -> None:
    """Ends the cluster that `ensure_cluster` gave, or, where it was there already, what runs beside it on this machine."""
    chosen = target.decide(target.look())
    if chosen is target.Target.CURRENT:
        current.down()
    elif chosen is target.Target.KIND:
        kind.down()
    else:
        lifecycle.down(Store(state_directory()))


def wanted() -> list[Artefact]:
    """All that the demo and the cluster tests need built on this machine, for the kind of cluster they will run on. What the machine lacks is
    said first (ClusterError), and packages that it may install are installed."""
    chosen = target.decide(target.look())
    if chosen is target.Target.NAMESPACES:
        lifecycle.require_machine()
        return [*catalogue.for_cluster(images=True), *catalogue.for_toolchain()]
    if chosen is target.Target.CURRENT:
        CurrentCluster.require()
    preflight.require_toolchain(TORCH_PACKAGES if chosen is target.Target.KIND else {})
    return [*catalogue.for_toolchain(), *([torch_cpu()] if chosen is target.Target.KIND else [])]
