"""What the demo and the tests hold: a cluster that is up, its nodes, its S3 server, its Prometheus.

The same calls work on every kind of cluster, as far as it can do them; what it cannot raises Unsupported.
"""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hack.cluster import network, nodes
from hack.cluster.artefacts import project_images
from hack.cluster.processes import run
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

    @contextlib.contextmanager
    def kubelet(self, **changes: Any) -> Iterator[None]:
        """Its kubelet runs with these settings added to its own, until the block ends. Pods go on."""
        nodes.restart_kubelet(self.store, self.name, changes)
        try:
            yield
        finally:
            nodes.restart_kubelet(self.store, self.name, {})

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
