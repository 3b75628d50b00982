"""Which pod is to be each worker: keep what can stay, plan a new pod for what is gone or doomed, away from doomed nodes and zones (F5, A2).

A plan is an entry in status.workers, written before the pod is created; its serial is never used again. Two entries of one worker are the member that
still runs and its replacement.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

from holdfast_operator.core import (
    capacity,
    failures,
    fruitless,
    giving_way,
    incidents,
    interruptions,
    queueing,
    renew,
    sizes,
    unfinished,
    zones,
)
from holdfast_operator.core.membership import is_member, members, newest_plans, pod_by_uid, pod_of, report_of
from holdfast_operator.core.observed import NodeSeen, Observed, PodSeen
from holdfast_operator.core.pods import made_from
from holdfast_operator.core.signals import is_doomed, node_signals
from holdfast_operator.crd.v1alpha1 import ShunStatus, TrainingJobStatus, WorkerStatus

MAX_AVOID = 64
STALE_AVOIDANCE = timedelta(seconds=5)
"""How long a pod may find no node before the list of nodes that it avoids is made anew."""


def plan(
    seen: Observed, status: TrainingJobStatus, now: datetime, *, only: Collection[int] | None = None
) -> TrainingJobStatus:
    """A usable or planned pod for every worker that is wanted, or for these `only`. Entries that are neither newest nor members of a live attempt are
    dropped."""
    status = _without_needless(seen, status, now)
    newest, digest = newest_plans(status), made_from(seen.spec)
    of = sizes.wanted(seen.spec, status.attempt) if only is None else only
    wanted = [w for w in of if w not in newest or not _may_stay(seen, status, newest[w], digest, now)]
    if not wanted:
        return status
    serial = status.serials_used + 1
    avoid, avoid_zones = avoided(seen, status), zones.avoided(seen, status)
    queue = queueing.ticket(seen, status, wanted, serial)
    kinds = {w: capacity.choose(seen, newest.get(w), now) for w in wanted}
    shuns = {w: incidents.shunned(seen, status, w, newest.get(w), now) for w in wanted}
    new = tuple(
        WorkerStatus(
            worker=w,
            serial=serial,
            avoid_nodes=avoid,
            avoid_zones=avoid_zones,
            shun=shuns[w],
            prefer_nodes=unfinished.preferred(seen, status, w, _without(avoid, shuns[w])),
            since=now,
            made_from=digest,
            queue=queue,
            capacity=kinds[w].kind,
            capacity_since=kinds[w].since,
            renewed=newest[w].renewed + 1 if w in newest and renew.blocked_until(seen, newest[w]) is not None else 0,
            fruitless=_came_to_nothing(status, newest.get(w), digest, now),
        )
        for w in wanted
    )
    kept = tuple(
        w for w in status.workers if w.worker not in wanted or is_member(status, w.pod_uid)
    )  # a replacement that is itself lost is dropped; its pod is then nobody's and is deleted
    workers = tuple(sorted((*kept, *new), key=lambda w: (w.worker, w.serial)))
    return status.model_copy(update={"workers": workers, "serials_used": serial})


def _without(avoid: tuple[str, ...], shun: ShunStatus | None) -> tuple[str, ...]:
    """What is not preferred: nodes to avoid, and those that the worker's pod keeps away from."""
    return (*avoid, *(shun.nodes if shun is not None else ()))


def take_back(status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Drops replacements: every notice was withdrawn before the attempt ended (F5)."""
    if status.attempt is None:
        return status
    of = {m.worker for m in status.attempt.members}
    kept = tuple(w for w in status.workers if is_member(status, w.pod_uid) or w.worker not in of)
    if len(kept) == len(status.workers) or not of <= {w.worker for w in kept}:
        return status
    newest = newest_plans(status)
    return status.model_copy(update={"workers": tuple(_remembers(w, newest[w.worker], now) for w in kept)})


def usable(seen: Observed, status: TrainingJobStatus, entry: WorkerStatus) -> PodSeen | None:
    """The entry's pod if an attempt may be started with it: there, addressed, and nothing announced against it."""
    pod = pod_of(seen, entry.worker, entry.serial)
    if pod is None or pod.uid != entry.pod_uid or not pod.ip or _is_done(seen, pod):
        return None
    return pod


def avoided(seen: Observed, status: TrainingJobStatus) -> tuple[str, ...]:
    """Nodes that a new pod must not go to: announced to go, or silent under a member. A node that is gone needs no naming."""
    doomed = {name for name, node in seen.nodes.items() if any(s.acting for s in node_signals(node, seen.signal_rules))}
    silent = {w.node.name for w in members(seen, status.attempt) if w.node is not None and not w.node.ready}
    # A node object that is gone cannot be scheduled to; naming it would only fill the list.
    return tuple(sorted(doomed | silent))[:MAX_AVOID]


def _without_needless(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """Without the replacement of a member whose own announcements were all withdrawn, while another's stand or its attempt is over: it stays after all, with
    pod, image and arena (F5)."""
    newest = newest_plans(status)
    staying = {
        w.worker: _remembers(w, newest[w.worker], now)
        for w in status.workers
        if w is not newest[w.worker] and is_member(status, w.pod_uid) and _stays_after_all(seen, status, w)
    }
    if not staying:
        return status
    others = (w for w in status.workers if w.worker not in staying)
    workers = tuple(sorted((*others, *staying.values()), key=lambda w: (w.worker, w.serial)))
    return status.model_copy(update={"workers": workers})


def _stays_after_all(seen: Observed, status: TrainingJobStatus, entry: WorkerStatus) -> bool:
    told = [n for n in status.notices if n.worker == entry.worker and n.acting]
    pod = pod_of(seen, entry.worker, entry.serial)
    return bool(told) and all(n.withdrawn for n in told) and pod is not None and not _is_done(seen, pod)


def _remembers(member: WorkerStatus, newest: WorkerStatus, now: datetime) -> WorkerStatus:
    return member if newest is member else fruitless.thrown_away(member, newest, now)


def _may_stay(seen: Observed, status: TrainingJobStatus, entry: WorkerStatus, digest: str, now: datetime) -> bool:
    member = is_member(status, entry.pod_uid)
    # After a failure nothing is at stake, and what was corrected may be what has failed; a survivor of a preemption keeps its pod.
    failed = member and _has_failed(status)
    if renew.is_stale(seen, entry, digest, now) and (failed or not member):
        return False
    if queueing.is_orphaned(seen, entry) or capacity.gives_up(seen, entry, now):
        return False
    if incidents.must_relax(entry, now) or (member and incidents.must_move(status, entry)):
        return False
    pod = pod_of(seen, entry.worker, entry.serial)
    if pod is None and not entry.pod_uid:
        return True  # planned and not made yet; a pod that was seen and is gone is lost (A2)
    if pod is not None and not _is_done(seen, pod) and not _is_misplaced(seen, status, entry, pod, now):
        return True
    if member and (pod is None or pod.ended or interruptions.is_over(status)):
        return False
    # What is refused over and over must not become a storm of pods; and who was not let in beside the old one waits for its end (F5).
    if not fruitless.may_follow(entry, now, member=member):
        return True
    return giving_way.refused_by_queue(seen, entry) and _old_one_stands(seen, status, entry)


def _came_to_nothing(status: TrainingJobStatus, before: WorkerStatus | None, digest: str, now: datetime) -> int:
    """How many in a row, of what follows `before`. A corrected spec is another chance."""
    if before is None or before.made_from not in ("", digest):
        return 0
    return fruitless.count(before, now, member=is_member(status, before.pod_uid))


def _old_one_stands(seen: Observed, status: TrainingJobStatus, entry: WorkerStatus) -> bool:
    member = next((m for m in status.attempt.members if m.worker == entry.worker), None) if status.attempt else None
    pod = pod_by_uid(seen, member.pod_uid) if member is not None else None
    return pod is not None and not pod.terminal


def _has_failed(status: TrainingJobStatus) -> bool:
    entry = interruptions.current(status)
    return entry is not None and entry.ended_at is not None and entry.cause in failures.CAUSES


def _is_done(seen: Observed, pod: PodSeen) -> bool:
    node = seen.nodes.get(pod.node) if pod.node else None
    report = report_of(seen, pod.uid)
    if pod.ended or pod.deleting or (report is not None and report.exit is not None):
        return True
    if is_doomed(pod, node, seen.signal_rules):
        return True
    return bool(pod.node) and _gone(node)


def _gone(node: NodeSeen | None) -> bool:
    """A pod whose node is gone or not Ready is no pod to start with; if the node comes back, a replacement is as good."""
    return node is None or not node.ready


def _is_misplaced(seen: Observed, status: TrainingJobStatus, entry: WorkerStatus, pod: PodSeen, now: datetime) -> bool:
    if is_member(status, pod.uid):
        return False
    return _avoids_for_nothing(seen, status, entry, pod, now) or unfinished.lies_elsewhere(seen, status, entry, now)


def _avoids_for_nothing(
    seen: Observed, status: TrainingJobStatus, entry: WorkerStatus, pod: PodSeen, now: datetime
) -> bool:
    """It finds no node and keeps away from one that is doomed no more."""
    if not pod.unschedulable or pod.node or now - entry.since < STALE_AVOIDANCE:
        return False
    return not set(entry.avoid_nodes) <= set(avoided(seen, status))
