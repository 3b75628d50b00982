"""A kind cluster as the target, for machines with Docker and without root or cgroup v1.

Power and cables of its nodes are not offered: what a stopped node container does is not what a lost machine does.
"""

import json
import subprocess
from pathlib import Path

from hack import services
from hack.cluster.artefacts.project_images import ROLES, reference
from hack.cluster.cache import Cache
from hack.cluster.cluster import TORCH_PATH_IN_POD, Cluster, Node
from hack.cluster.errors import Unsupported
from hack.cluster.paths import REPOSITORY
from hack.cluster.processes import run
from hack.cluster.programs import torch_directory
from hack.cluster.settings import Settings
from hack.cluster.state import Store
from hack.services import S3Info

NAME = "holdfast"


def ensure(node_count: int, grace_seconds: int, programs: Path, *, images: bool) -> "KindCluster":
    """The kind cluster of our name, created if it is not there."""
    store = _store()
    if NAME not in run("kind", "get", "clusters").split():
        store.directory.mkdir(parents=True, exist_ok=True)
        torch = torch_directory() if images else None
        described = json.dumps(configuration(node_count, grace_seconds, torch))
        run("kind", "create", "cluster", "--name", NAME, "--wait", "180s", "--config", "-", feed=described)
    if not store.exists():
        # The state file only records the services beside the cluster; its other settings mean nothing here.
        store.create(Settings(node_count=node_count, grace_seconds=grace_seconds, kube="", archives=(), templates=""))
    store.kubeconfig.write_text(run("kind", "get", "kubeconfig", "--name", NAME))
    store.kubeconfig.chmod(0o600)
    cluster = KindCluster(store, programs)
    if images:
        cluster.load_images()
    return cluster


def configuration(node_count: int, grace_seconds: int, torch: Path | None) -> dict[str, object]:
    """kind's configuration: one control plane and workers that see torch under /mnt/shared. Pure."""
    mounts = [{"hostPath": str(torch), "containerPath": TORCH_PATH_IN_POD, "readOnly": True}] if torch else []
    grace = {
        "kind": "ClusterConfiguration",
        "controllerManager": {"extraArgs": {"node-monitor-grace-period": f"{grace_seconds}s"}},
    }
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "kubeadmConfigPatches": [json.dumps(grace)],
        "nodes": [{"role": "control-plane"}, *({"role": "worker", "extraMounts": mounts} for _ in range(node_count))],
    }


class KindCluster(Cluster):
    """Nodes made of containers."""

    def __init__(self, store: Store, programs: Path) -> None:
        self._store = store
        self.state = store.directory
        self.kubeconfig = store.kubeconfig
        self.bin = programs
        networks = json.loads(run("docker", "network", "inspect", "kind"))
        self.host_ip = next(
            entry["Gateway"] for entry in networks[0]["IPAM"]["Config"] if ":" not in entry.get("Gateway", ":")
        )

    @property
    def s3_data(self) -> Path:
        return services.s3_data(self._store)

    @property
    def api_proxy(self) -> str | None:
        return services.start_api_proxy(self._store, self.bin, self.kubeconfig)

    @property
    def node_names(self) -> list[str]:
        return [name for name in run("kind", "get", "nodes", "--name", NAME).split() if "worker" in name]

    def node(self, name: str) -> Node:
        raise Unsupported(f"node {name}: kind's nodes are containers; power and cables need the namespace cluster")

    def s3(self, bucket: str) -> S3Info:
        return services.start_s3(self._store, self.bin, self.host_ip, bucket)

    def prometheus(self, config: Path) -> str:
        return services.start_prometheus(self._store, self.bin, config, "127.0.0.1", services.free_port())

    def load_images(self) -> None:
        for role in ROLES:
            subprocess.run(["docker", "build", "--target", role, "-t", reference(role), str(REPOSITORY)], check=True)
        run("kind", "load", "docker-image", "--name", NAME, *map(reference, ROLES))

    def down(self) -> None:
        down()


def down() -> None:
    """Ends the cluster of our name and what runs beside it; harmless when there is none."""
    services.end_all(_store())
    run("kind", "delete", "cluster", "--name", NAME)


def _store() -> Store:
    return Store(Cache().directory / "clusters" / "kind")
