"""The words of Kueue's that pods carry (kueue v0.17, pkg/controller/jobs/pod and constants). What is decided about queues is in queueing.py."""

from collections.abc import Mapping
from typing import Any

from holdfast_api import names
from holdfast_operator.core.observed import JobMeta
from holdfast_operator.crd.v1alpha1 import QueueStatus

QUEUE = "kueue.x-k8s.io/queue-name"
PRIORITY = "kueue.x-k8s.io/priority-class"
GROUP = "kueue.x-k8s.io/pod-group-name"
MANAGED = "kueue.x-k8s.io/managed"
"""Label of the pods that Kueue has taken charge of, and the finalizer that it sets on them."""
GATE = "kueue.x-k8s.io/admission"
TOTAL = "kueue.x-k8s.io/pod-group-total-count"
ROLE = "kueue.x-k8s.io/role-hash"
RETRIABLE = "kueue.x-k8s.io/retriable-in-group"
FORCED = "kueue.x-k8s.io/safe-to-forcefully-delete"
THE_ROLE = "worker"


def queue_of(job: JobMeta, template: Mapping[str, Any]) -> str:
    """Of the job's own label, else of the template's; empty: no queue."""
    own = (template.get("metadata") or {}).get("labels") or {}
    return str(job.labels.get(QUEUE) or own.get(QUEUE) or "")


def group_name(job: JobMeta, queue: QueueStatus) -> str:
    """Also the name of Kueue's Workload. Never used twice, as serials are not."""
    return f"{names.child_name(job.name, job.uid)}-{queue.founded}"


def labels(job: JobMeta, queue: QueueStatus) -> dict[str, str]:
    """Of a pod of the group."""
    priority = job.labels.get(PRIORITY, "")
    return {QUEUE: queue.name, GROUP: group_name(job, queue), **({PRIORITY: priority} if priority else {})}


def annotations(queue: QueueStatus) -> dict[str, str]:
    """Of a pod of the group.

    Pods of a group are alike for Kueue, or it does not know them: by what they ask for and where they may go, unless they name their role. Ours differ in where
    they may go. A group that may be filled up again keeps its quota, and its pods their finalizer, when all of them have ended: ours may not. And what a pod on
    an unreachable node still writes is off the lineage (A7), so Kueue may write it off where it is set up to.
    """
    return {TOTAL: str(queue.size), ROLE: THE_ROLE, RETRIABLE: "false", FORCED: "true"}
