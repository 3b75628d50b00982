"""Every verb that the operator uses; the chart's RBAC is compared with it (S8). (group, resource, verbs, scope), scope `cluster`, `own-namespace` or the
name of a namespace."""

Permission = tuple[str, str, tuple[str, ...], str]
PERMISSIONS: tuple[Permission, ...] = (
    ("holdfast.dev", "trainingjobs", ("get", "list", "watch"), "cluster"),
    ("holdfast.dev", "trainingjobs/status", ("update",), "cluster"),
    ("", "pods", ("create", "delete", "get", "list", "watch"), "cluster"),
    ("", "nodes", ("list", "watch"), "cluster"),
    ("", "services", ("create", "get"), "cluster"),
    ("", "secrets", ("create",), "cluster"),
    ("networking.k8s.io", "networkpolicies", ("create", "get"), "cluster"),
    ("", "events", ("create",), "cluster"),
    ("authentication.k8s.io", "tokenreviews", ("create",), "cluster"),
    ("", "secrets", ("get", "create"), "own-namespace"),
    ("coordination.k8s.io", "leases", ("get", "create", "update"), "own-namespace"),
)
OPTIONAL: dict[str, tuple[Permission, ...]] = {
    "notices.nodeEvents": (("", "events", ("list", "watch"), "default"),),
    "queueing.kueue": (("kueue.x-k8s.io", "workloads", ("delete",), "cluster"),),
    "notices.nodeClaims": (("karpenter.sh", "nodeclaims", ("list", "watch"), "cluster"),),
}
"""Only where the chart's value of this name is true."""
