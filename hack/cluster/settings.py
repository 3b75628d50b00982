"""What a cluster is made of, as one frozen value; every address, device name and interval follows from it."""

import socket
from dataclasses import dataclass, field

#: The prefix goes into names of network devices, which the kernel limits to 15 bytes.
LONGEST_NAME = 8

#: First lets pods come up; the rest of a node's services are held back until the API server answers.
RUNTIME = "containerd"
NODE_SERVICES = (RUNTIME, "kubelet", "kube-proxy")

API_PORT = 6443


@dataclass(frozen=True)
class NodeAddress:
    """One node's place in the network."""

    name: str
    ip: str
    #: The range its pods get their addresses from.
    pods: str
    #: The host's end of its cable.
    link: str

    @property
    def mac(self) -> str:
        """The same after every power-on, as a real card's is: neighbours keep the old one for many seconds."""
        return ":".join(f"{byte:02x}" for byte in (2, 0, *socket.inet_aton(self.ip)))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one cluster was brought up with; kept in its state file."""

    name: str = "holdfast"
    node_count: int = 2
    #: Seconds without a heartbeat after which a node is Unknown (Kubernetes' own default is 50).
    grace_seconds: int = 12
    #: First half of every address: NET.0.0/24 nodes, NET.8-15.0/24 pods, NET.200.0/24 services.
    net: str = "10.250"
    #: Size of each node's disk, a sparse file.
    disk_gigabytes: int = 20
    #: The multi-call binary.
    kube: str
    #: Image archives every node holds; the first one is the pause image.
    archives: tuple[str, ...]
    #: A host directory that every node sees, read-only, at /mnt/shared.
    shared: str | None = None
    cni_plugins: str = "/usr/lib/cni"
    #: Kept from pods on each node, as the kubelet writes it.
    reserved: dict[str, str] = field(default_factory=lambda: {"memory": "1Gi"})
    apiserver_arguments: tuple[str, ...] = ()
    #: Where disks with the images imported are kept for the next cluster.
    templates: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= LONGEST_NAME or not self.name.isalnum():
            raise ValueError(f"name {self.name!r}: 1 to {LONGEST_NAME} letters and digits, it goes into device names")
        if not 1 <= self.node_count <= 8:
            raise ValueError(f"nodes {self.node_count}: 1 to 8, each has a /24 of its own below {self.net}.8.0/21")
        if self.grace_seconds < 5:
            raise ValueError(f"grace {self.grace_seconds}: at least 5 seconds, a node reports every second at the most")

    @property
    def host_ip(self) -> str:
        return f"{self.net}.0.1"

    @property
    def bridge(self) -> str:
        return f"{self.name}-br"

    @property
    def services_range(self) -> str:
        return f"{self.net}.200.0/24"

    @property
    def kubernetes_service_ip(self) -> str:
        return f"{self.net}.200.1"

    @property
    def pods_range(self) -> str:
        return f"{self.net}.8.0/21"

    @property
    def api_url(self) -> str:
        return f"https://{self.host_ip}:{API_PORT}"

    @property
    def nodes(self) -> dict[str, NodeAddress]:
        return {node.name: node for node in map(self._node, range(1, self.node_count + 1))}

    @property
    def monitor_period_seconds(self) -> int:
        """How often the control plane looks at heartbeats."""
        return min(5, max(1, self.grace_seconds // 8))

    @property
    def status_period_seconds(self) -> int:
        """How often a kubelet reports."""
        return min(10, max(1, self.grace_seconds // 5))

    @property
    def lease_seconds(self) -> int:
        """How long a node's lease holds; the kubelet renews it four times as often."""
        return min(40, max(4, self.grace_seconds * 4 // 5))

    def _node(self, number: int) -> NodeAddress:
        return NodeAddress(
            name=f"n{number}",
            ip=f"{self.net}.0.{10 + number}",
            pods=f"{self.net}.{7 + number}.0/24",
            link=f"{self.name}-n{number}",
        )
