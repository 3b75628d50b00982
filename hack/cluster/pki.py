"""The certificates and kubeconfigs of one cluster: one authority, a leaf for each part, all made in a fifth of a second."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.settings import Settings
from hack.cluster.state import Store, replace_file


@dataclass(frozen=True)
class Leaf:
    """A certificate to be signed by the cluster's authority."""

    file: str
    common_name: str
    organization: str | None = None
    names: tuple[str, ...] = ()


def leaves(settings: Settings) -> list[Leaf]:
    """Every certificate the cluster needs. Pure."""
    host = (f"IP:{settings.host_ip}", "IP:127.0.0.1", "DNS:localhost")
    service = [f"DNS:kubernetes{suffix}" for suffix in ("", ".default", ".default.svc", ".default.svc.cluster.local")]
    return [
        Leaf("apiserver", "kube-apiserver", names=(*host, f"IP:{settings.kubernetes_service_ip}", *service)),
        Leaf("etcd", "etcd", names=host),
        Leaf("admin", "admin", "system:masters"),
        Leaf("apiserver-kubelet", "kube-apiserver-kubelet-client"),
        Leaf("controller-manager", "system:kube-controller-manager", names=host),
        Leaf("scheduler", "system:kube-scheduler", names=host),
        Leaf("coredns", "coredns"),
        Leaf("kube-proxy", "system:kube-proxy"),
        *(
            Leaf(node.name, f"system:node:{node.name}", "system:nodes", (f"IP:{node.ip}", f"DNS:{node.name}"))
            for node in settings.nodes.values()
        ),
    ]


def make(store: Store, settings: Settings) -> None:
    """Writes all keys, certificates and kubeconfigs below the state directory."""
    store.pki.mkdir(mode=0o700, exist_ok=True)
    # An empty [req]: the distribution's default config would add CA:TRUE to leaves.
    (store.pki / "req.cnf").write_text("[req]\ndistinguished_name=dn\n[dn]\n")
    _authority(store.pki)
    for leaf in leaves(settings):
        _sign(store.pki, leaf)
    _service_account_key(store.pki)
    for user in ("controller-manager", "scheduler", "coredns", "kube-proxy", *settings.nodes):
        _kubeconfig(store, settings, user, store.pki / f"{user}.kubeconfig")
    _kubeconfig(store, settings, "admin", store.kubeconfig)


def _request(pki: Path, name: str, subject: str, extra: Sequence[str | Path]) -> None:
    elliptic = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "365")
    files = ("-keyout", pki / f"{name}.key", "-out", pki / f"{name}.crt")
    _openssl("req", "-x509", "-config", pki / "req.cnf", *elliptic, "-subj", subject, *files, *extra)


def _authority(pki: Path) -> None:
    usage = "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"
    _request(pki, "ca", "/CN=holdfast-test-ca", ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", usage))


def _sign(pki: Path, leaf: Leaf) -> None:
    subject = (f"/O={leaf.organization}" if leaf.organization else "") + f"/CN={leaf.common_name}"
    extra: list[str | Path] = ["-CA", pki / "ca.crt", "-CAkey", pki / "ca.key"]
    extra += ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth,clientAuth"]
    if leaf.names:
        extra += ["-addext", "subjectAltName=" + ",".join(leaf.names)]
    _request(pki, leaf.file, subject, extra)


def _service_account_key(pki: Path) -> None:
    _openssl("genrsa", "-out", pki / "sa.key", "2048")
    _openssl("rsa", "-in", pki / "sa.key", "-pubout", "-out", pki / "sa.pub")


def _openssl(*argv: str | Path) -> None:
    subprocess.run(["openssl", *map(str, argv)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kubeconfig(store: Store, settings: Settings, user: str, path: Path) -> None:
    keys = {"client-certificate": str(store.pki / f"{user}.crt"), "client-key": str(store.pki / f"{user}.key")}
    server = {"server": settings.api_url, "certificate-authority": str(store.pki / "ca.crt")}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": settings.name,
        "clusters": [{"name": settings.name, "cluster": server}],
        "users": [{"name": user, "user": keys}],
        "contexts": [{"name": settings.name, "context": {"cluster": settings.name, "user": user}}],
    }
    replace_file(path, json.dumps(content, indent=1))
