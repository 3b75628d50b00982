"""Node objects as an API server shows them after the component that is named has written what it writes; only the parts that say who they are are left out.

Where it was read: the sources of the node termination handler, Karpenter (core, AWS, Azure, Google), the cluster autoscaler, the kubelet and Kueue; conditions
of AKS and taints and labels of GKE as their documentation and dumps of clusters show them.
"""

from typing import Any

Object = dict[str, Any]
NOW = "2026-03-01T12:00:00Z"


def node(
    *,
    taints: list[Object] | None = None,
    conditions: list[Object] | None = None,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    unschedulable: bool = False,
    deleting: str = "",
    ready: bool = True,
) -> Object:
    """A node that is well but for what is given. A cordoned one has the taint that the node lifecycle controller adds."""
    cordon = [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": NOW}]
    meta: Object = {
        "name": "n1",
        "uid": "uid-of-n1",
        "resourceVersion": "100",
        "creationTimestamp": "2026-03-01T08:00:00Z",
        "labels": {"kubernetes.io/hostname": "n1", "kubernetes.io/os": "linux", **(labels or {})},
        "annotations": {"node.alpha.kubernetes.io/ttl": "0", **(annotations or {})},
    }
    if deleting:
        meta |= {
            "deletionTimestamp": deleting,
            "deletionGracePeriodSeconds": 0,
            "finalizers": ["karpenter.sh/termination"],
        }
    usual = [
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ]
    if ready:
        usual.append(
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status", "2026-03-01T08:00:30Z")
        )
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": meta,
        "spec": {
            **({"unschedulable": True} if unschedulable else {}),
            "taints": [*(cordon if unschedulable else []), *(taints or [])],
        },
        "status": {"conditions": [*usual, *(conditions or [])], "addresses": []},
    }


def condition(kind: str, status: str, reason: str, message: str, since: str = NOW) -> Object:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": NOW,
        "lastTransitionTime": since,
    }


# ---- AWS


def nth_taint(name: str, event_id: str) -> Object:
    """The taint's value is the event's id, cut to 63 characters."""
    return {"key": f"aws-node-termination-handler/{name}", "value": event_id[:63], "effect": "NoSchedule"}


def nth_spot() -> Object:
    event = "spot-itn-93bc9ad1d6ed9b6c4ab2f2ce4a8d3d7b5ddba2ea0f64b9b0b30d7ab1e17c1bb2"
    return node(taints=[nth_taint("spot-itn", event)], unschedulable=True)


def nth_rebalance() -> Object:
    event = "rebalance-recommendation-5d5f4e9b6c7a4f0d8e2b1a3c5d7e9f1a3b5c7d9e"
    return node(taints=[nth_taint("rebalance-recommendation", event)], unschedulable=True)


def nth_maintenance() -> Object:
    return node(taints=[nth_taint("scheduled-maintenance", "instance-event-0d59937288b749b32")], unschedulable=True)


def nth_reboot() -> Object:
    """Before it drains for `system-reboot` it marks the node, to make it schedulable again afterwards."""
    labels = {
        "aws-node-termination-handler/action": "UncordonAfterReboot",
        "aws-node-termination-handler/action-time": "1772366400",
        "aws-node-termination-handler/event-id": "instance-event-0d59937288b749b32",
    }
    return node(labels=labels, unschedulable=True)


def nth_asg() -> Object:
    return node(
        taints=[nth_taint("asg-lifecycle-termination", "asg-lifecycle-term-33346338616435")], unschedulable=True
    )


# ---- Karpenter


def _karpenter(kind: str) -> Object:
    return {"karpenter.sh/nodepool": "training", "karpenter.sh/capacity-type": kind, "karpenter.sh/registered": "true"}


def karpenter_disrupts() -> Object:
    """Consolidation or drift, while the replacement is being made: it may still be taken back."""
    return node(taints=[{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}], labels=_karpenter("on-demand"))


def karpenter_ends() -> Object:
    """The NodeClaim was deleted, and with it the node, which the finalizer holds until it is drained."""
    return node(
        taints=[{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}],
        labels=_karpenter("spot"),
        deleting=NOW,
    )


def karpenter_ends_by() -> Object:
    """With a termination grace period. The annotation is the NodeClaim's; the operator's node cache lays it over the node."""
    return node(
        taints=[{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}],
        labels=_karpenter("on-demand"),
        annotations={"karpenter.sh/nodeclaim-termination-timestamp": "2026-03-01T12:05:00Z"},
        deleting=NOW,
    )


# ---- Google


GKE_LABELS = {"cloud.google.com/gke-nodepool": "spot-pool", "cloud.google.com/gke-spot": "true"}


def gke_impending() -> Object:
    return node(
        taints=[{"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"}], labels=GKE_LABELS
    )


def gke_maintenance_ahead() -> Object:
    return node(labels={**GKE_LABELS, "cloud.google.com/scheduled-maintenance-time": "1772370000"})


def gke_maintenance() -> Object:
    labels = {
        **GKE_LABELS,
        "cloud.google.com/scheduled-maintenance-time": "1772366400",
        "cloud.google.com/active-node-maintenance": "ONGOING",
    }
    return node(labels=labels, taints=[{"key": "cloud.google.com/maintenance-window-started", "effect": "NoSchedule"}])


def gke_maintenance_asked_for() -> Object:
    return node(labels={**GKE_LABELS, "cloud.google.com/perform-maintenance": "true"})


def gce_preempting() -> Object:
    """A detector for Karpenter's provider for Google watches the metadata key."""
    found = condition("GCESpotPreempting", "True", "PreemptionNotice", "GCE preemption notice received")
    return node(conditions=[found], labels=_karpenter("spot"))


def gke_shuts_down() -> Object:
    """The kubelet's graceful node shutdown."""
    found = condition("Ready", "False", "KubeletNotReady", "node is shutting down")
    return node(conditions=[found], labels=GKE_LABELS, ready=False)


# ---- Azure


AKS_TAIL = "For more information, see https://aka.ms/aks-spot-eviction. EventId: 40B7BD88-C56E-44E4-93F6-75CEDACE2869"


def aks(kind: str, message: str, reason: str = "") -> Object:
    labels = {"kubernetes.azure.com/scalesetpriority": "spot", "kubernetes.azure.com/agentpool": "spot"}
    taint = {"key": "kubernetes.azure.com/scalesetpriority", "value": "spot", "effect": "NoSchedule"}
    return node(conditions=[condition(kind, "True", reason or kind, message)], labels=labels, taints=[taint])


def aks_preempt() -> Object:
    return aks(
        "PreemptionScheduled", f"Preempt Scheduled: Sun, 01 Mar 2026 12:00:45 GMT. {AKS_TAIL}", "SpotEvictionIncoming"
    )


def aks_preempt_by_another_form_of_date() -> Object:
    """RFC 1123 allows days of one digit."""
    return aks(
        "PreemptionScheduled", f"Preempt  Scheduled: Sun,  1 Mar 2026 12:00:45 GMT. {AKS_TAIL}", "SpotEvictionIncoming"
    )


def aks_preempt_started() -> Object:
    return aks("PreemptionScheduled", f"Preempt Started. {AKS_TAIL}", "SpotEvictionIncoming")


def aks_advice() -> Object:
    """The same condition and reason, and no eviction: only the words tell."""
    return aks(
        "PreemptionScheduled",
        f"SpotRebalanceRecommendation Advisory: Sun, 01 Mar 2026 12:00:00 GMT. {AKS_TAIL}",
        "SpotEvictionIncoming",
    )


def aks_drains() -> Object:
    return node(
        taints=[{"key": "remediator.kubernetes.azure.com/unschedulable", "effect": "NoSchedule"}], unschedulable=True
    )


def aks_is_well() -> Object:
    quiet = condition("VMEventScheduled", "False", "NoVMEventScheduled", "VM has no scheduled event")
    calm = condition("PreemptionScheduled", "False", "NoSpotEviction", "VM is not scheduled for spot eviction")
    return node(
        conditions=[quiet, calm],
        labels={"kubernetes.azure.com/scalesetpriority": "spot"},
        taints=[{"key": "kubernetes.azure.com/scalesetpriority", "value": "spot", "effect": "NoSchedule"}],
    )


# ---- Oracle, cluster autoscaler, Kubernetes itself


def oke_impending() -> Object:
    key = "ignore-taint.cluster-autoscaler.kubernetes.io/oke-impending-node-termination"
    return node(taints=[{"key": key, "effect": "NoSchedule"}])


def autoscaler_deletes() -> Object:
    return node(
        taints=[{"key": "ToBeDeletedByClusterAutoscaler", "value": "1772366300", "effect": "NoSchedule"}],
        unschedulable=False,
    )


def autoscaler_considers() -> Object:
    return node(
        taints=[
            {"key": "DeletionCandidateOfClusterAutoscaler", "value": "1772366300", "effect": "PreferNoSchedule"},
        ]
    )


def cordoned() -> Object:
    return node(unschedulable=True)


def out_of_service() -> Object:
    return node(
        taints=[
            {
                "key": "node.kubernetes.io/out-of-service",
                "value": "nodeshutdown",
                "effect": "NoExecute",
                "timeAdded": NOW,
            }
        ]
    )


def shut_down_at_the_cloud() -> Object:
    return node(taints=[{"key": "node.cloudprovider.kubernetes.io/shutdown", "effect": "NoSchedule", "timeAdded": NOW}])


def under_pressure(what: str) -> Object:
    return node(taints=[{"key": f"node.kubernetes.io/{what}", "effect": "NoSchedule", "timeAdded": NOW}])


def shuts_down() -> Object:
    return node(conditions=[condition("Ready", "False", "KubeletNotReady", "node is shutting down")], ready=False)
