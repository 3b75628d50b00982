"""The configuration files of one node. Pure: settings in, text out; `nodes.py` writes them."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hack.cluster.settings import NodeAddress, Settings
from hack.cluster.state import Store

PAUSE_IMAGE = "localhost/pause:1"
KUBELET = "kubelet.yaml"

_UNUSED_PLUGINS = (
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.opt",
)


def files(store: Store, settings: Settings, node: NodeAddress, cgroups: list[tuple[str, str]]) -> Mapping[str, str]:
    """Every file of a node's directory by its name there."""
    return {
        "containerd.toml": containerd(store, settings, node),
        "cni/10-pods.conflist": json.dumps(cni(node), indent=1),
        KUBELET: json.dumps(kubelet(store, settings, node), indent=1),
        "kube-proxy.yaml": json.dumps(kube_proxy(store, settings, node), indent=1),
        "env": shell_variables(init_environment(store, settings, node, cgroups)),
    }


def containerd(store: Store, settings: Settings, node: NodeAddress) -> str:
    # oom_score and restrict_oom_score_adj: without CAP_SYS_RESOURCE a lower score cannot be set, and runc then fails with
    # "can't get final child's PID from pipe: EOF".
    return f"""version = 2
oom_score = 0
disabled_plugins = {json.dumps(_UNUSED_PLUGINS)}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{settings.cni_plugins}"
    conf_dir = "{store.node_directory(node.name)}/cni"
"""


def cni(node: NodeAddress) -> dict[str, Any]:
    # The address book is in /run: it is forgotten when the node loses power, as its pods are.
    addresses = {
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{"subnet": node.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    # ptp and not bridge: every packet between pods is routed, so Service addresses work without br_netfilter.
    cable = {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": addresses}
    host_ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [cable, host_ports]}


def kubelet(store: Store, settings: Settings, node: NodeAddress) -> dict[str, Any]:
    identity = {
        "address": node.ip,
        "authentication": {
            "x509": {"clientCAFile": str(store.pki / "ca.crt")},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(store.pki / f"{node.name}.crt"),
        "tlsPrivateKeyFile": str(store.pki / f"{node.name}.key"),
        # CoreDNS listens on the host: no DNS Service and no DNS pod, so names resolve whatever nodes are down.
        "clusterDNS": [settings.host_ip],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
    }
    machine = {
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,  # refused by default since 1.35
        "failSwapOn": False,
        "oomScoreAdj": 0,  # a lower one needs CAP_SYS_RESOURCE
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "maxPods": 100,
        "systemReserved": settings.reserved,
        # Images come by import, never by pull: one that was collected would be gone for good.
        "imageGCHighThresholdPercent": 100,
        "imageMinimumGCAge": "24h",
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "containerLogMaxSize": "20Mi",
    }
    rhythm = {
        "nodeStatusUpdateFrequency": f"{settings.status_period_seconds}s",
        "nodeLeaseDurationSeconds": settings.lease_seconds,
        "syncFrequency": "10s",
    }
    kind = {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration"}
    return {**kind, **identity, **machine, **rhythm}


def kube_proxy(store: Store, settings: Settings, node: NodeAddress) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "bindAddress": node.ip,
        "hostnameOverride": node.name,
        "clientConnection": {"kubeconfig": str(store.pki / "kube-proxy.kubeconfig")},
        "clusterCIDR": settings.pods_range,
        "detectLocalMode": "ClusterCIDR",
        # The connection table's limits belong to the machine, and cannot be written from another network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def init_environment(
    store: Store, settings: Settings, node: NodeAddress, cgroups: list[tuple[str, str]]
) -> dict[str, str]:
    """What `node-init` reads."""
    others = [other for other in settings.nodes.values() if other.name != node.name]
    return {
        "NODE": node.name,
        "NODE_DIR": str(store.node_directory(node.name)),
        "PKI": str(store.pki),
        "BIN": str(store.bin),
        "IP": node.ip,
        "GATEWAY": settings.host_ip,
        "ROUTES": " ".join(f"{other.pods}={other.ip}" for other in others),
        "SHARED": settings.shared or "",
        "CGROUPS": " ".join(f"{directory}={options}" for directory, options in cgroups),
    }


def shell_variables(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def control_directory(store: Store, node: str) -> Path:
    """Files here hold a service of the node back (NAME.stop) and say which images its disk has (image-NAME)."""
    return store.node_directory(node) / "ctl"
