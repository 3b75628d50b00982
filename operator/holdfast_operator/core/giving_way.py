"""The pod of a worker that goes gives its place to its replacement, where there is room for one of the two only (F5).

Two pods of one worker need room twice for a while. Where a quota, a queue or the cluster has it once, there is no handover: the old pod saves, and ends; then
the new one is made or scheduled. A pod that is evicted ends by itself. One whose node is only announced to go would stand there, saved and useless, until the
node goes: it is deleted as soon as its attempt is over, and never before (A3).
"""

from collections.abc import Iterator

from holdfast_api import names
from holdfast_operator.core import interruptions, queueing
from holdfast_operator.core.actions import DeletePod
from holdfast_operator.core.membership import MemberSeen, members, newest_plans, pod_of
from holdfast_operator.core.observed import Observed, RefusalKind
from holdfast_operator.core.signals import node_signals
from holdfast_operator.crd.v1alpha1 import TrainingJobStatus, WorkerStatus


def orders(seen: Observed, status: TrainingJobStatus) -> Iterator[DeletePod]:
    """Graceful deletes of members that nothing is expected of any more."""
    if status.attempt is None or not interruptions.is_over(status):
        return
    newest = newest_plans(status)
    for who in members(seen, status.attempt):
        entry = newest.get(who.member.worker)
        if who.pod is None or who.pod.deleting or who.pod.terminal or entry is None or entry.pod_uid == who.pod.uid:
            continue
        why = _waits_for(seen, entry, who)
        if why:
            yield DeletePod(who.pod.name, who.pod.uid, f"its attempt is over, and its replacement {why}")


def refused_by_queue(seen: Observed, entry: WorkerStatus) -> bool:
    """It was made, and was taken away again before it had a node: somebody who lets pods in did not let in this one."""
    pod = pod_of(seen, entry.worker, entry.serial)
    if pod is None:
        return bool(entry.pod_uid) and not entry.node
    return pod.deleting and not pod.node


def _waits_for(seen: Observed, entry: WorkerStatus, old: MemberSeen) -> str:
    """Empty: for nothing that the old pod could give."""
    name = names.pod_name(seen.job.name, seen.job.uid, entry.worker, entry.serial)
    if any(r.kind is RefusalKind.FORBIDDEN and r.what == f"pod {name}" for r in seen.refusals):
        return "is refused beside it"
    if refused_by_queue(seen, entry):
        return "was not let in beside it"
    pod = pod_of(seen, entry.worker, entry.serial)
    if pod is None and queueing.waits_for_place(seen, entry) is not None:
        return "is not made before it has ended"
    if pod is None or pod.node:
        return ""
    if pod.gates:
        return "waits in a queue for its place"
    if pod.unschedulable and _could_take(seen, old):
        return "needs its room"
    return ""


def _could_take(seen: Observed, old: MemberSeen) -> bool:
    """Another pod may run where the old one does: the pod goes, and the node stays."""
    node = old.node
    if node is None or not node.ready or node.unschedulable:
        return False
    return not any(s.acting for s in node_signals(node, seen.signal_rules))
