"""The cluster that needs nothing but this machine: nodes made of namespaces."""

from pathlib import Path

from hack import services
from hack.cluster import controlplane, lifecycle
from hack.cluster.cluster import Cluster, Node
from hack.cluster.state import Store
from hack.services import S3Info

API_SERVER = "kube-apiserver"


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

    def stop_api(self) -> None:
        """The API server dies without a word; kubelets and pods go on."""
        controlplane.stop(self._store, API_SERVER)

    def start_api(self) -> None:
        """Returns when it is ready; harmless when it runs."""
        if not controlplane.runs(self._store, API_SERVER):
            settings = self._store.read().settings
            controlplane.start(self._store, settings, API_SERVER)
            controlplane.wait_ready(self._store, settings)

    def prometheus(self, config: Path) -> str:
        return services.start_prometheus(self._store, self._programs, config, self.host_ip)

    def load_images(self) -> None:
        lifecycle.load_images(self._store)

    def down(self) -> None:
        lifecycle.down(self._store)
