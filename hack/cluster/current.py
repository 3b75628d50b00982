"""A cluster that was there already, named by KUBECONFIG."""

import os
from collections.abc import Mapping
from pathlib import Path

from hack import services
from hack.cluster.cache import Cache
from hack.cluster.cluster import Cluster, Node
from hack.cluster.errors import ClusterError, Unsupported
from hack.cluster.processes import run
from hack.cluster.settings import Settings
from hack.cluster.state import Store
from hack.services import S3Info

#: Names of images that the nodes can pull, for clusters that no image of this checkout is brought to.
OPERATOR_IMAGE, TRAINER_IMAGE = "HOLDFAST_OPERATOR_IMAGE", "HOLDFAST_TRAINER_IMAGE"
#: A directory of every node that holds torch, where the trainer's image has none.
TORCH_PATH = "HOLDFAST_TORCH_PATH"


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
        self._store = _store()
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


def down() -> None:
    """Ends what runs beside it on this machine; the cluster stays."""
    services.end_all(_store())


def _store() -> Store:
    return Store(Cache().directory / "clusters" / "current")
