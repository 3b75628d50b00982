"""etcd, the API server, the controller manager, the scheduler and CoreDNS as processes of the host."""

import json
import signal
import ssl
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hack.cluster.errors import ClusterError
from hack.cluster.processes import end, run
from hack.cluster.settings import API_PORT, Settings
from hack.cluster.state import Store

#: What the multi-call binary can be called as.
PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
    "coredns",
)

#: In the order in which they end: nobody is left to report the loss of the one before.
CONTROL_PLANE = ("coredns", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")


def commands(store: Store, settings: Settings) -> dict[str, list[str]]:
    """The command line of every part. Pure."""
    return {
        "etcd": _etcd(store, settings),
        "kube-apiserver": _apiserver(store, settings),
        "kube-controller-manager": _controller_manager(store, settings),
        "kube-scheduler": _scheduler(store, settings),
        "coredns": [str(store.bin / "coredns"), "-conf", str(store.directory / "Corefile")],
    }


def link_programs(store: Store, settings: Settings) -> None:
    """One binary, picked by the name it is called by: the program text is in memory once."""
    store.bin.mkdir(exist_ok=True)
    for name in PROGRAMS:
        (store.bin / name).symlink_to(settings.kube)


def write_files(store: Store, settings: Settings) -> None:
    (store.directory / "audit.yaml").write_text(json.dumps(AUDIT_POLICY))
    (store.directory / "Corefile").write_text(corefile(store, settings))


def start(store: Store, settings: Settings, *names: str) -> None:
    # A limit on the API server's heap: it would use the machine's free memory before it collects.
    limits = {"kube-apiserver": {"GOMEMLIMIT": "1GiB"}}
    for name in names:
        store.spawn(name, commands(store, settings)[name], limits.get(name))


def stop(store: Store, name: str) -> None:
    """SIGKILL; `start` starts it again with the same files."""
    end(store.read().processes[name], signal.SIGKILL)


def runs(store: Store, name: str) -> bool:
    process = store.read().processes.get(name)
    return process is not None and process.alive()


def create_roles(store: Store) -> None:
    """What the API server's kubelet client and CoreDNS may do; harmless when done twice."""
    kubectl(store, "apply", "-f", "-", feed=json.dumps({"apiVersion": "v1", "kind": "List", "items": ROLES}))


def kubectl(store: Store, *argv: str, feed: str | None = None) -> str:
    return run(store.bin / "kubectl", f"--kubeconfig={store.kubeconfig}", *argv, feed=feed)


def get(store: Store, settings: Settings, path: str) -> bytes:
    """One request to the API server as its administrator."""
    context = ssl.create_default_context(cafile=str(store.pki / "ca.crt"))
    context.load_cert_chain(store.pki / "admin.crt", store.pki / "admin.key")
    with urllib.request.urlopen(settings.api_url + path, context=context, timeout=5) as answer:
        body: bytes = answer.read()
        return body


def wait_for(store: Store, what: str, test: Callable[[], bool], patience_seconds: float = 120.0) -> None:
    """Waits until the test holds, and stops early when a part of the cluster has ended."""
    deadline = time.monotonic() + patience_seconds
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if test():
                return
        except Exception as problem:  # whatever the answer was, the next one counts
            last = problem
        for name in store.read().missing_processes():
            raise ClusterError(f"{name} ended: see {store.log(name)}")
        time.sleep(0.1)
    raise ClusterError(f"not in {patience_seconds:.0f} s: {what} ({last}); see {store.directory}/log")


def wait_ready(store: Store, settings: Settings) -> None:
    wait_for(store, "API server ready", lambda: get(store, settings, "/readyz") == b"ok")


def wait_nodes(store: Store, settings: Settings) -> None:
    """All nodes Ready, and pods of the default namespace can be made."""

    def all_ready() -> bool:
        nodes = json.loads(get(store, settings, "/api/v1/nodes"))["items"]
        return len(nodes) == settings.node_count and all(map(node_is_ready, nodes))

    account = "/api/v1/namespaces/default/serviceaccounts/default"
    wait_for(store, f"{settings.node_count} nodes Ready", all_ready)
    wait_for(store, "service account of the default namespace", lambda: bool(get(store, settings, account)))


def node_is_ready(node: dict[str, Any]) -> bool:
    """Ready, and without a taint of Kubernetes' own. One that somebody put there is theirs: waiting would not remove it. Pure."""
    conditions = {condition["type"]: condition["status"] for condition in node["status"].get("conditions", [])}
    taints = [t for t in node["spec"].get("taints", []) if t["key"].startswith("node.kubernetes.io/")]
    return conditions.get("Ready") == "True" and not taints


def _etcd(store: Store, settings: Settings) -> list[str]:
    pki, client = store.pki, f"https://{settings.host_ip}:2379"
    peer = f"https://{settings.host_ip}:2380"
    return [
        str(store.bin / "etcd"),
        "--name=e",
        f"--data-dir={store.directory}/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=e={peer}",
        # Client certificates, because pods can reach this address.
        f"--cert-file={pki}/etcd.crt",
        f"--key-file={pki}/etcd.key",
        f"--trusted-ca-file={pki}/ca.crt",
        "--client-cert-auth",
        f"--peer-cert-file={pki}/etcd.crt",
        f"--peer-key-file={pki}/etcd.key",
        f"--peer-trusted-ca-file={pki}/ca.crt",
        "--peer-client-cert-auth",
        "--unsafe-no-fsync",  # the data need not survive a crash of the machine
        "--log-level=warn",
    ]


def _apiserver(store: Store, settings: Settings) -> list[str]:
    pki = store.pki
    return [
        str(store.bin / "kube-apiserver"),
        f"--etcd-servers=https://{settings.host_ip}:2379",
        f"--etcd-cafile={pki}/ca.crt",
        f"--etcd-certfile={pki}/apiserver.crt",
        f"--etcd-keyfile={pki}/apiserver.key",
        f"--bind-address={settings.host_ip}",
        f"--advertise-address={settings.host_ip}",
        f"--secure-port={API_PORT}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--service-cluster-ip-range={settings.services_range}",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        # Always on: it shows which permissions were used, to be compared with those granted.
        f"--audit-policy-file={store.directory}/audit.yaml",
        f"--audit-log-path={store.directory}/log/audit.log",
        "--audit-log-maxsize=100",
        *settings.apiserver_arguments,
    ]


def _controller_manager(store: Store, settings: Settings) -> list[str]:
    pki = store.pki
    return [
        str(store.bin / "kube-controller-manager"),
        *_kubeconfigs(pki, "controller-manager"),
        f"--service-account-private-key-file={pki}/sa.key",
        f"--root-ca-file={pki}/ca.crt",
        "--use-service-account-credentials",
        "--leader-elect=false",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        f"--bind-address={settings.host_ip}",
        f"--tls-cert-file={pki}/controller-manager.crt",
        f"--tls-private-key-file={pki}/controller-manager.key",
        # The default rate, one node in 10 s, would mix the losses of two nodes, or of one node twice, up with each other.
        "--node-eviction-rate=10",
        f"--node-monitor-grace-period={settings.grace_seconds}s",
        f"--node-monitor-period={settings.monitor_period_seconds}s",
    ]


def _scheduler(store: Store, settings: Settings) -> list[str]:
    return [
        str(store.bin / "kube-scheduler"),
        *_kubeconfigs(store.pki, "scheduler"),
        "--leader-elect=false",
        f"--bind-address={settings.host_ip}",
        f"--tls-cert-file={store.pki}/scheduler.crt",
        f"--tls-private-key-file={store.pki}/scheduler.key",
    ]


def _kubeconfigs(pki: Path, user: str) -> list[str]:
    purposes = ("", "authentication-", "authorization-")
    return [f"--{purpose}kubeconfig={pki}/{user}.kubeconfig" for purpose in purposes]


def corefile(store: Store, settings: Settings) -> str:
    # ttl 1: a pod that comes back with another address is found at once. Names outside the cluster get NXDOMAIN at once:
    # nothing leaks out, and no search path waits for a server that is not there.
    return f"""cluster.local:53 {{
  bind {settings.host_ip}
  errors
  kubernetes cluster.local {{
    kubeconfig {store.pki}/coredns.kubeconfig
    pods insecure
    ttl 1
  }}
}}
.:53 {{
  bind {settings.host_ip}
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""


AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}

_RBAC = "rbac.authorization.k8s.io"


def _binding(name: str, user: str, role: str) -> dict[str, Any]:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "subjects": [{"kind": "User", "name": user}],
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
    }


ROLES: list[dict[str, Any]] = [
    # Logs, exec and port-forward: the API server speaks to kubelets as this user.
    _binding("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:kubelet-api-admin"),
    _binding("coredns", "coredns", "coredns"),
    {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "coredns"},
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["endpoints", "services", "pods", "namespaces"],
                "verbs": ["list", "watch"],
            },
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    },
]
