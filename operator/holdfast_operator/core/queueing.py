"""A job in a queue of Kueue's: which pod group a new pod belongs to, when it may be made, and who holds it at a gate. Pure.

Kueue gates pods that carry a queue's name, admits a group once all of its pods exist, and takes it away again by deleting them; it makes none anew. A pod
counts for its group until it has failed, or was deleted before it had a node. One too many is deleted at once, the newest first. A group of which every pod
has ended is over, and its quota free: what comes next is another group, which queues anew (docs/decisions, "Pods in a queue").
"""

from collections.abc import Iterable, Iterator

from holdfast_operator.core import interruptions, kueue, sizes
from holdfast_operator.core.actions import ReleaseQuota
from holdfast_operator.core.membership import newest_plans, pod_of
from holdfast_operator.core.observed import Observed, PodSeen
from holdfast_operator.crd.v1alpha1 import QueueStatus, TrainingJobStatus, WorkerStatus


def ticket(seen: Observed, status: TrainingJobStatus, wanted: list[int], serial: int) -> QueueStatus | None:
    """The group of the pods that are planned together for the workers `wanted`: that of the pods that stay, else a new one of their own. None: no queue.

    A job enters a queue, leaves it or changes it as a whole, when no pod stays.
    """
    staying = [w for w in newest_plans(status).values() if w.worker not in wanted]
    if not staying:
        name = kueue.queue_of(seen.job, seen.spec.template)
        return QueueStatus(name=name, founded=serial, size=len(wanted)) if name else None
    last = max(staying, key=lambda w: w.queue.founded if w.queue else 0).queue
    in_it = sum(w.queue is not None and last is not None and w.queue.founded == last.founded for w in staying)
    if last is None or (in_it + len(wanted) <= last.size and not any(_has_succeeded(seen, w, last) for w in wanted)):
        return last
    # What has ended well counts for its group for ever, and a job that grows has more pods than its group: these are a group beside it.
    return QueueStatus(name=last.name, founded=serial, size=len(wanted))


def must_wait(seen: Observed, status: TrainingJobStatus, entry: WorkerStatus) -> bool:
    """No handover through a queue (F5): a pod beside its group's others is one too many, and a second group would hold quota twice, or be thrown away with a
    withdrawn notice, which Kueue does not take for the end of a group."""
    if entry.queue is None:
        return False
    beside = sizes.is_beside(
        status.attempt, entry.worker
    )  # the attempt goes on without it: nobody's place is held twice
    return (not beside and not interruptions.is_over(status)) or waits_for_place(seen, entry) is not None


def waits_for_place(seen: Observed, entry: WorkerStatus) -> PodSeen | None:
    """The pod of the same worker that must be gone, for Kueue, before this one is made; None: none."""
    if entry.queue is None:
        return None
    mine = kueue.group_name(seen.job, entry.queue)
    older = (p for p in seen.pods if p.worker == entry.worker and p.serial < entry.serial and p.queue_group == mine)
    return next((p for p in older if p.queue_managed and _counts(p)), None)


def is_orphaned(seen: Observed, entry: WorkerStatus) -> bool:
    """It was to fill up a group of which nothing runs any more: Kueue takes that for over, and would never let it in."""
    if entry.queue is None or entry.serial == entry.queue.founded:
        return False
    pod = pod_of(seen, entry.worker, entry.serial)
    if pod is not None and kueue.GATE not in pod.gates:
        return False
    mine = kueue.group_name(seen.job, entry.queue)
    others = (p for p in seen.pods if p.queue_group == mine and _counts(p))
    return not any(p.serial == entry.queue.founded or kueue.GATE not in p.gates for p in others)


def release(pods: Iterable[PodSeen]) -> tuple[ReleaseQuota, ...]:
    """Groups of which no pod runs or will: suspended or given up in the queue. Kueue would let them in, and hold quota for nobody; and their pods stay,
    deleted, until its Workload is."""
    groups: dict[str, list[PodSeen]] = {}
    for pod in pods:
        if pod.queue_managed and pod.queue_group:
            groups.setdefault(pod.queue_group, []).append(pod)
    return tuple(ReleaseQuota(name) for name, of_group in sorted(groups.items()) if _is_abandoned(of_group))


def held(seen: Observed, status: TrainingJobStatus) -> Iterator[str]:
    """Who holds which worker's pod, in words, worker by worker."""
    for worker, entry in sorted(newest_plans(status).items()):
        if entry.gates:
            yield f"worker {worker} waits at {_gates(entry)}"
        elif not entry.pod_uid and (old := waits_for_place(seen, entry)) is not None:
            yield _why_not_yet(seen, worker, old)


def _gates(entry: WorkerStatus) -> str:
    named = ", ".join(entry.gates[:4])
    if kueue.GATE not in entry.gates or entry.queue is None:
        return f"the scheduling gate {named}: whoever has set it has to take it away"
    return f"the scheduling gate {named}: Kueue has not admitted it yet (queue {entry.queue.name})"


def _why_not_yet(seen: Observed, worker: int, old: PodSeen) -> str:
    words = f"worker {worker}: Kueue still counts pod {old.name}, and another one is made when that has ended"
    node = seen.nodes.get(old.node)
    if node is None or node.ready:
        return words
    return (
        f"{words}. Its node {old.node} is not Ready: delete the Node if the machine is gone, or set up Kueue's failureRecoveryPolicy, which writes such pods "
        f"off (this one says {kueue.FORCED})"
    )


def _counts(pod: PodSeen) -> bool:
    """For its group."""
    return pod.phase != "Failed" and not (pod.deleting and not pod.node)


def _is_abandoned(of_group: list[PodSeen]) -> bool:
    return not any(_counts(p) for p in of_group) and any(p.deleting and p.gates for p in of_group)


def _has_succeeded(seen: Observed, worker: int, queue: QueueStatus) -> bool:
    mine = kueue.group_name(seen.job, queue)
    return any(p.worker == worker and p.phase == "Succeeded" and p.queue_group == mine for p in seen.pods)
