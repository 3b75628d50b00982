"""What the demo and the tests hold: a cluster that is up, its nodes, its S3 server, its Prometheus.

    cluster = api.ensure_cluster()
    cluster.node("n2").off()          # a power cut
    bucket = cluster.s3("training")

The same calls work on kind and on a cluster that was there already, as far as these can do it; what they cannot raises
Unsupported.
"""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from hack import services, target
from hack.cluster import lifecycle, network, nodes, preflight
from hack.cluster.artefacts import catalogue
from hack.cluster.artefacts.torch_cpu import torch_cpu
from hack.cluster.build import build
from hack.cluster.cache import Cache, digest_of
from hack.cluster.errors import Unsupported
from hack.cluster.paths import DEFAULT_NAME
from hack.cluster.processes import run
from hack.cluster.progress import Listener
from hack.cluster.state import Store
from hack.services import S3Info

#: Where pods find torch; a hostPath volume and PYTHONPATH bring it into a training container.
TORCH_PATH_IN_POD = "/mnt/shared"


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
    #: The host as pods reach it.
    host_ip: str
    torch_path_in_pod: str = TORCH_PATH_IN_POD
    #: Where the S3 server keeps its buckets, a directory each: for tests that damage what lies there.
    s3_data: Path

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

    def __init__(self, store: Store, programs: Path) -> None:
        self._store = store
        self._programs = programs
        self.state = store.directory
        self.kubeconfig = store.kubeconfig
        self.bin = store.bin
        self.host_ip = store.read().settings.host_ip
        self.s3_data = services.s3_data(store)

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
    """A cluster that was there already; its nodes and images are its owner's business."""

    def __init__(self, programs: Path) -> None:
        self.kubeconfig = Path(os.environ["KUBECONFIG"])
        self.state = Cache().directory / "clusters" / "current"
        self.bin = programs
        self.host_ip = os.environ.get("HOLDFAST_HOST_IP", "127.0.0.1")
        self.s3_data = self.state / "not-ours"

    @property
    def node_names(self) -> list[str]:
        listed = run(self.bin / "kubectl", f"--kubeconfig={self.kubeconfig}", "get", "nodes", "-o", "name")
        return [line.removeprefix("node/") for line in listed.split()]

    def node(self, name: str) -> Node:
        raise Unsupported(f"node {name}: the machines of a cluster that was there already are not ours to switch off")

    def s3(self, bucket: str) -> S3Info:
        return services.from_environment(bucket)

    def prometheus(self, config: Path) -> str:
        raise Unsupported(f"{config}: no Prometheus is started beside a cluster that was there already")

    def load_images(self) -> None:
        """Its nodes pull from a registry; the chart's values name the images."""

    def down(self) -> None:
        """Nothing of it is ours."""


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
    preflight.require_toolchain({"gcc": "gcc", "binutils": "objdump"})
    cache = Cache()
    part = torch_cpu()
    build([part], cache, on_progress)
    return part.path(cache)
