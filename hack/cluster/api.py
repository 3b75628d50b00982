"""What the demo and the tests hold: a cluster that is up, its nodes, its S3 server, its Prometheus.

    cluster = api.ensure_cluster()
    cluster.node("n2").off()          # a power cut
    bucket = cluster.s3("training")

The same calls work on kind and on a cluster that was there already, as far as these can do it; what they cannot raises
Unsupported.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hack import services, target
from hack.cluster import lifecycle, network, nodes, preflight
from hack.cluster.artefacts import catalogue, project_images
from hack.cluster.artefacts.artefact import Artefact
from hack.cluster.artefacts.torch_cpu import torch_cpu
from hack.cluster.build import build
from hack.cluster.cache import Cache, digest_of
from hack.cluster.errors import ClusterError, Unsupported
from hack.cluster.paths import DEFAULT_NAME, state_directory
from hack.cluster.processes import run
from hack.cluster.progress import Listener
from hack.cluster.settings import Settings
from hack.cluster.state import Store
from hack.services import S3Info

#: Where pods find torch; a hostPath volume and PYTHONPATH bring it into a training container.
TORCH_PATH_IN_POD = "/mnt/shared"
#: What making torch for the CPU needs.
TORCH_PACKAGES: Mapping[str, str] = {"gcc": "gcc", "binutils": "objdump"}

#: Names of images that the nodes can pull, for clusters that no image of this checkout is brought to.
OPERATOR_IMAGE, TRAINER_IMAGE = "HOLDFAST_OPERATOR_IMAGE", "HOLDFAST_TRAINER_IMAGE"
#: A directory of every node that holds torch, where the trainer's image has none.
TORCH_PATH = "HOLDFAST_TORCH_PATH"


@dataclass(frozen=True)
class Node:
    """One node, and what can happen to a machine."""

    store: Store
    name: str

    def off(self) -> None:
        """Power cut: everything on the node dies at once, memory is lost, the disk stays."""
        nodes.power_off(self.store, self.name)

    def on(self) -> None:
        settings = self.store.read().settings
        nodes.prepare(self.store, settings, self.name)
        nodes.power_on(self.store, settings, self.name)

    def cut(self) -> None:
        """The network cable is out; everything on the node goes on running."""
        network.cut(self.store.read().settings.nodes[self.name])

    def mend(self) -> None:
        settings = self.store.read().settings
        network.mend(settings, settings.nodes[self.name])

    def stop(self, service: str) -> None:
        """Kills kubelet, containerd or kube-proxy and holds it back."""
        nodes.stop_service(self.store, self.name, service)

    def start(self, service: str) -> None:
        nodes.start_service(self.store, self.name, service)

    def kill(self, service: str) -> None:
        """Kills a service; the node starts it again at once."""
        nodes.kill_service(self.store, self.name, service)

    def run(self, *argv: str) -> str:
        """Runs a command inside the node."""
        return run(*nodes.enter(self.store, self.name), *argv)


class Cluster(ABC):
    """A cluster that is up."""

    #: Everything the cluster writes; services started beside it are recorded there.
    state: Path
    kubeconfig: Path
    #: With kubectl and helm.
    bin: Path
    #: Where torch lies in every node's file system, for a hostPath volume; empty: it is in the image.
    torch_path_in_pod: str = TORCH_PATH_IN_POD
    operator_image: str = project_images.reference("operator")
    trainer_image: str = project_images.reference("trainer")
    #: Its machines are ours: `node` can switch them off, and nobody else is on them.
    owns_machines: bool = False
    #: It was made for this and goes away with `down`; on any other, what was put there is taken away piece by piece.
    is_ours: bool = True

    @property
    @abstractmethod
    def s3_data(self) -> Path:
        """Where the S3 server keeps its buckets, a directory each: for tests that damage what lies there."""

    @property
    def api_proxy(self) -> str | None:
        """`HOST:PORT` of a `kubectl proxy`, where this machine cannot reach pods by their addresses; None where it can."""
        return None

    def environment(self) -> dict[str, str]:
        """The environment in which kubectl and helm mean this cluster."""
        path = f"{self.bin}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}

    @property
    @abstractmethod
    def node_names(self) -> list[str]:
        """The nodes pods can run on."""

    @abstractmethod
    def node(self, name: str) -> Node:
        """A node, for what can happen to a machine."""

    @abstractmethod
    def s3(self, bucket: str) -> S3Info:
        """The bucket, on a server that runs from now on."""

    @abstractmethod
    def prometheus(self, config: Path) -> str:
        """Starts Prometheus with a configuration; its base URL."""

    @abstractmethod
    def load_images(self) -> None:
        """Builds Holdfast's images if their sources changed and brings them to the nodes."""

    @abstractmethod
    def down(self) -> None:
        """Ends the cluster and everything beside it."""


class NamespaceCluster(Cluster):
    """Nodes made of namespaces on this machine."""

    owns_machines = True

    def __init__(self, store: Store, programs: Path) -> None:
        self._store = store
        self._programs = programs
        self.state = store.directory
        self.kubeconfig = store.kubeconfig
        self.bin = store.bin
        self.host_ip = store.read().settings.host_ip

    @property
    def s3_data(self) -> Path:
        return services.s3_data(self._store)

    @property
    def node_names(self) -> list[str]:
        return list(self._store.read().settings.nodes)

    def node(self, name: str) -> Node:
        if name not in self.node_names:
            raise ValueError(f"no node {name!r}: there are {', '.join(self.node_names)}")
        return Node(self._store, name)

    def s3(self, bucket: str) -> S3Info:
        return services.start_s3(self._store, self._programs, self.host_ip, bucket)

    def stop_s3(self) -> None:
        """An outage of the object store; `s3` ends it, with the same data and keys."""
        services.stop(self._store, services.S3)

    def prometheus(self, config: Path) -> str:
        return services.start_prometheus(self._store, self._programs, config, self.host_ip)

    def load_images(self) -> None:
        lifecycle.load_images(self._store)

    def down(self) -> None:
        lifecycle.down(self._store)


class CurrentCluster(Cluster):
    """A cluster that was there already: its machines, its images and its bucket are its owner's business."""

    is_ours = False

    def __init__(self, programs: Path, environment: Mapping[str, str] = os.environ) -> None:
        """Raises ClusterError that names the variables which are not set."""
        self.require(environment)
        self.operator_image, self.trainer_image = environment[OPERATOR_IMAGE], environment[TRAINER_IMAGE]
        self.torch_path_in_pod = environment.get(TORCH_PATH, "")
        self.kubeconfig = Path(environment["KUBECONFIG"]).expanduser()
        self.bin = programs
        self._store = _current_store()
        self.state = self._store.directory
        if not self._store.exists():
            # The state file only records what runs beside the cluster; its other settings mean nothing here.
            self._store.create(Settings(kube="", archives=(), templates=""))

    @staticmethod
    def require(environment: Mapping[str, str] = os.environ) -> None:
        """Raises ClusterError that names the variables which are not set."""
        absent = [name for name in (OPERATOR_IMAGE, TRAINER_IMAGE) if not environment.get(name)]
        if absent:
            raise ClusterError(
                f"on a cluster of your own, name images that its nodes can pull: set {', '.join(absent)}"
            )
        services.from_environment("any", environment)

    @property
    def s3_data(self) -> Path:
        raise Unsupported(
            "the files of the bucket's server are not ours to look at or to damage on a cluster that was there already"
        )

    @property
    def api_proxy(self) -> str | None:
        return services.start_api_proxy(self._store, self.bin, self.kubeconfig)

    @property
    def node_names(self) -> list[str]:
        listed = run(self.bin / "kubectl", f"--kubeconfig={self.kubeconfig}", "get", "nodes", "-o", "name")
        return [line.removeprefix("node/") for line in listed.split()]

    def node(self, name: str) -> Node:
        raise Unsupported(f"node {name}: the machines of a cluster that was there already are not ours to switch off")

    def s3(self, bucket: str) -> S3Info:
        return services.from_environment(bucket)

    def prometheus(self, config: Path) -> str:
        return services.start_prometheus(self._store, self.bin, config, "127.0.0.1", services.free_port())

    def load_images(self) -> None:
        """Its nodes pull them."""

    def down(self) -> None:
        """Ends what runs beside it on this machine; the cluster stays."""
        services.end_all(self._store)


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
        from hack import kind  # it builds on this module

        return kind.ensure(nodes, grace, toolchain(on_progress), images=images)
    request = lifecycle.Request(name=name, node_count=nodes, grace_seconds=grace, images=images)
    store = lifecycle.up(request, on_progress)
    return NamespaceCluster(store, toolchain(on_progress))


def down() -> None:
    """Ends the cluster that `ensure_cluster` gave, or, where it was there already, what runs beside it on this machine."""
    chosen = target.decide(target.look())
    if chosen is target.Target.CURRENT:
        services.end_all(_current_store())
    elif chosen is target.Target.KIND:
        from hack import kind

        kind.down()
    else:
        lifecycle.down(Store(state_directory()))


def _current_store() -> Store:
    return Store(Cache().directory / "clusters" / "current")


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


def toolchain(on_progress: Listener | None = None) -> Path:
    """A folder with helm, kubectl, versitygw, prometheus and promtool; builds what is missing, without root."""
    preflight.require_toolchain({})
    cache = Cache()
    parts = catalogue.for_toolchain()
    build(parts, cache, on_progress)
    where = {part.name: part.path(cache) for part in parts}
    links = {
        "kubectl": where["kube"] / "kube",
        "helm": where["helm"] / "helm",
        "versitygw": where["versitygw"] / "versitygw",
        "azurite-blob": where["azurite"] / "node_modules/.bin/azurite-blob",
        "prometheus": where["prometheus"] / "prometheus",
        "promtool": where["prometheus"] / "promtool",
    }
    with cache.making("toolchain", digest_of(map(str, links.values()))) as directory:
        if directory is not None:
            for name, program in links.items():
                (directory / name).symlink_to(program)
    return cache.path("toolchain", digest_of(map(str, links.values())))


def torch_directory(on_progress: Listener | None = None) -> Path:
    """A directory with torch for the CPU, for the search path of the host's Python; built if need be."""
    preflight.require_toolchain(TORCH_PACKAGES)
    cache = Cache()
    part = torch_cpu()
    build([part], cache, on_progress)
    return part.path(cache)
