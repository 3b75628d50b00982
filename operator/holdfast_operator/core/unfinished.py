"""The newest state of a job, where it lies on its workers' nodes and nowhere else: no checkpoint, unless their pods return there before the next claim (E6).

What agents said when they ended is taken over into status, and stays until an attempt has claimed: from then on it is a checkpoint, or lost. Whoever plans a
pod asks where it had better go (`preferred`). The pods that return finish it by themselves, whatever stands here.
"""

from datetime import datetime, timedelta

from holdfast_api.layout import CheckpointRef
from holdfast_operator.core import interruptions
from holdfast_operator.core.failures import CAUSES
from holdfast_operator.core.membership import MemberSeen, has_ended, members, newest_plans, pod_by_uid
from holdfast_operator.core.observed import Observed
from holdfast_operator.core.signals import node_signals
from holdfast_operator.crd.v1alpha1 import PartStatus, TrainingJobStatus, UnfinishedStatus, WorkerStatus

LONGEST_WORTH = timedelta(days=30)
GIVEN_UP = "given-up"


def update(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """With what the attempt that is over has left on its nodes; without it once that is decided."""
    found = _left(seen, status, now) or status.unfinished
    if found is not None and (_is_checkpoint(status, found) or _is_past(status, found)):
        found = None
    return status if found == status.unfinished else status.model_copy(update={"unfinished": found})


def became_checkpoint(before: UnfinishedStatus, after: TrainingJobStatus) -> bool:
    """Whether what is unfinished no more was finished; else it is lost."""
    claimed = after.attempt is not None and after.attempt.parent == before.checkpoint
    return claimed or any(c.name == before.checkpoint or c.step >= before.step for c in after.checkpoints)


def preferred(seen: Observed, status: TrainingJobStatus, worker: int, avoid: tuple[str, ...]) -> tuple[str, ...]:
    """The node that a new pod of this worker had better go to: where its part of the newest state lies, or, with a directory of the node's, will lie and the
    newest checkpoint does already (F4). None that is to be avoided, is cordoned, not Ready or gone; nor the one on which the worker has just failed by itself,
    where nothing but a copy lies: it may be the machine."""
    parts = status.unfinished.parts if status.unfinished is not None else ()
    names = [p.node for p in parts if p.worker == worker and p.kept_by is None]
    if not names and seen.spec.checkpoint.local.host_path is not None and not _has_failed(status, worker):
        entry = newest_plans(status).get(worker)
        member = next((m for m in status.attempt.members if m.worker == worker), None) if status.attempt else None
        names = [n for n in (member.node if member else "", entry.node if entry else "") if n][:1]
    return tuple(name for name in names if name not in avoid and _takes_pods(seen, name))


def lies_elsewhere(seen: Observed, status: TrainingJobStatus, entry: WorkerStatus, now: datetime) -> bool:
    """A replacement that was made at the notice went elsewhere, because the old pod held its node; now the newest state lies there and nowhere else, whole, and
    is worth more than a second start. Asked once: the pod that follows prefers that node, wherever it then goes."""
    left = status.unfinished
    if left is None or not left.whole or left.worth_until is None or now >= left.worth_until:
        return False
    node = next((p.node for p in left.parts if p.worker == entry.worker), "")
    if not entry.node or node in ("", entry.node, *entry.prefer_nodes) or not _takes_pods(seen, node):
        return False
    stays = not any(s.acting for s in node_signals(seen.nodes[node], seen.signal_rules))
    return stays and _has_gone(seen, status, entry)


def _has_gone(seen: Observed, status: TrainingJobStatus, entry: WorkerStatus) -> bool:
    """The old pod of that worker, with what it took of its node."""
    old = next((m.pod_uid for m in status.attempt.members if m.worker == entry.worker), "") if status.attempt else ""
    pod = pod_by_uid(seen, old)
    return pod is None or pod.terminal


def describe(seen: Observed, status: TrainingJobStatus, found: UnfinishedStatus) -> str:
    """What lies where, what has to happen, until when, and what an agent that looked at it says."""
    where = ", ".join(
        f"{p.node} (worker {p.worker}{'' if p.kept_by is None else f', with worker {p.kept_by}'})"
        for p in found.parts[:8]
    )
    newest = status.last_checkpoint
    instead = f"{newest.name} at step {newest.step}" if newest is not None else "the beginning"
    words = f"step {found.step} is in no checkpoint: it lies on {where} and nowhere else. "
    if not found.whole:
        return f"{words}Other workers have left nothing, so it cannot be finished; the next attempt continues {instead}"
    if any(p.kept_by is not None for p in found.parts):
        words += f"The workers that stay make it checkpoint {found.checkpoint} before the next attempt has claimed"
    else:
        words += f"It becomes checkpoint {found.checkpoint} if a pod comes to each of these nodes before the next attempt has claimed"
    if found.worth_until is not None:
        words += f", which is worth waiting for until {found.worth_until:%H:%M:%S} UTC"
    words += f"; else the next attempt continues {instead}"
    given_up = sorted(
        {
            f"worker {c.worker}'s part: {c.detail}"
            for w in members(seen, status.attempt)
            if w.report is not None
            for c in w.report.unfinished
            if str(c.ref) == found.checkpoint and c.state == GIVEN_UP and c.detail
        }
    )
    return f"{words}. Given up: {'; '.join(given_up[:4])}" if given_up else words


def _left(seen: Observed, status: TrainingJobStatus, now: datetime) -> UnfinishedStatus | None:
    """The newest save of the attempt that is over of which a worker's part lies on its node. While an attempt lives its saves come and go."""
    whos = members(seen, status.attempt)
    if not whos or not (interruptions.is_over(status) or all(has_ended(seen, w, now) for w in whos)):
        return None
    said = [(w, w.report.on_node) for w in whos if w.report is not None]
    left = [(w, ref) for w, ref in said if ref is not None]
    newest = max((ref for _, ref in left), default=None)
    if newest is None:
        return None
    there = [w for w, ref in left if ref == newest and _node_of(w)]
    found = {w.member.worker: PartStatus(worker=w.member.worker, node=_node_of(w)) for w in there}
    for w in there:  # what a worker that stays has taken is worth more than what lies on a node that goes
        for other in w.report.holds_of if w.report is not None else ():
            found[other] = PartStatus(worker=other, node=_node_of(w), kept_by=w.member.worker)
    parts = tuple(found[worker] for worker in sorted(found))
    reports = [w.report for w, ref in left if ref == newest and w.report is not None]
    if not parts:
        return None
    step = max(r.on_node_boundary for r in reports)
    known = status.unfinished
    since = known.since if known is not None and known.checkpoint == str(newest) else now
    return UnfinishedStatus(
        checkpoint=str(newest),
        step=step,
        parts=parts,
        whole=len(parts) == len(whos),
        since=since,
        worth_until=_worth_until(status, step, max(r.step_seconds for r in reports), since),
    )


def _worth_until(status: TrainingJobStatus, step: int, step_seconds: float, since: datetime) -> datetime | None:
    """When its steps could have been done again. None where nobody knows how long a step takes."""
    if not 0 < step_seconds < LONGEST_WORTH.total_seconds():
        return None
    done = status.last_checkpoint.step if status.last_checkpoint is not None else 0
    seconds = min(max(0, step - done) * step_seconds, LONGEST_WORTH.total_seconds())
    return since + timedelta(seconds=round(seconds))


def _is_checkpoint(status: TrainingJobStatus, found: UnfinishedStatus) -> bool:
    newest = status.last_checkpoint
    return newest is not None and (newest.step >= found.step or newest.name == found.checkpoint)


def _is_past(status: TrainingJobStatus, found: UnfinishedStatus) -> bool:
    """A later attempt has claimed: nothing of the earlier one is finished any more (A5)."""
    attempt = status.attempt
    later = attempt is not None and attempt.number > CheckpointRef.parse(found.checkpoint).attempt
    return later and attempt is not None and attempt.claimed_at is not None


def _has_failed(status: TrainingJobStatus, worker: int) -> bool:
    entry = interruptions.current(status)
    return entry is not None and entry.cause in CAUSES and worker in entry.workers


def _node_of(who: MemberSeen) -> str:
    return who.member.node or (who.pod.node if who.pod is not None else "")


def _takes_pods(seen: Observed, name: str) -> bool:
    node = seen.nodes.get(name)
    return node is not None and node.ready and not node.unschedulable and node.deleting_since is None
