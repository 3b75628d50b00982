"""Service, Secret and NetworkPolicy of a job (G3, H2). Pure: manifests only."""

from holdfast_api import names, signing
from holdfast_operator.core.observed import JobMeta
from holdfast_operator.core.pods import Manifest, labels, owner


def service(job: JobMeta) -> Manifest:
    """Headless, and with addresses before readiness: ranks find each other while they start."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB_UID: job.uid},
            "ports": [{"name": "holdfast", "port": names.AGENT_PORT, "targetPort": names.AGENT_PORT}],
        },
    }


def keys_secret(job: JobMeta, master: bytes) -> Manifest:
    """The job's two keys; the operator derives them again at any time and never reads this Secret."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(job),
        "type": "Opaque",
        "immutable": True,
        "stringData": {role.value: signing.derive_key(master, job.uid, role).hex() for role in signing.Role},
    }


def network_policy(job: JobMeta, operator_namespace: str, scrape_namespace: str = "") -> Manifest:
    """Ranks talk among themselves on ports that the libraries choose; the agent's port is open to the operator's namespace too, and to the one from which
    Prometheus scrapes. (Whatever else the port offers is signed, H2.)"""
    own_pods = {"podSelector": {"matchLabels": {names.LABEL_JOB_UID: job.uid}}}
    callers = [_namespace(n) for n in (operator_namespace, scrape_namespace) if n]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(job),
        "spec": {
            "podSelector": {"matchLabels": {names.LABEL_JOB_UID: job.uid}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [own_pods]},
                {"from": callers, "ports": [{"port": names.AGENT_PORT, "protocol": "TCP"}]},
            ],
        },
    }


def _namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _metadata(job: JobMeta) -> Manifest:
    return {
        "name": names.child_name(job.name, job.uid),
        "namespace": job.namespace,
        "labels": labels(job),
        "ownerReferences": [owner(job)],
    }
