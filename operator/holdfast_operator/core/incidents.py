"""Where workers were lost lately, and what new pods keep away from for a while because of it: a node that died, or on which training code crashes again and
again; a zone of which several nodes went (`spec.placement.quarantine`). Pure.

zones.py and replace.avoided read what is announced now. This is the memory of what has happened: a node that is Ready again after it died, a zone whose spot
capacity was taken back node by node. An incident counts for a bounded time, and nothing else ends it.

Keeping away is a preference unless the job asks for more, and then only for as long as another place may still be found: a bad place is better than none.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from holdfast_api.messages import Cause
from holdfast_operator.core import interruptions, zones
from holdfast_operator.core.failures import CAUSES, HUNG
from holdfast_operator.core.membership import members
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import (
    AvoidedStatus,
    IncidentStatus,
    Place,
    PlaceMode,
    PlaceQuarantine,
    ShunStatus,
    TrainingJobSpec,
    TrainingJobStatus,
    WorkerStatus,
)

MAX_INCIDENTS = 64
MAX_AVOIDED = 32
RELAXED_AFTER = timedelta(seconds=60)
"""How long a pod that must keep away from places may find no node before the one that follows only had better."""
CRASHES = 2
"""Of training code on one node, before it may be the machine."""
_DIED = (Cause.NODE_LOST.value, Cause.NODE_PRESSURE.value, Cause.NODE_SHUTDOWN.value)
"""The node may come back, and is not to be trusted at once."""
_TAKEN = (Cause.SPOT.value, Cause.REBALANCE.value, Cause.MAINTENANCE.value)
"""The node is gone for good, and its neighbours may follow."""
_OF_CODE = ("TrainerFailed", "WorkerFailed", HUNG)
"""Failures that a machine can cause; no memory, a wrong configuration and a missing program it cannot, and who kills an agent is somebody."""


def update(seen: Observed, before: TrainingJobStatus, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """With the incidents of an attempt that has just ended, without those that count no more, and with what follows from them."""
    rules = rules_of(seen.spec)
    found = (*status.incidents, *_new(seen, before, status, now))
    kept = tuple(i for i in found if now < i.at + timedelta(seconds=rules.seconds))[-MAX_INCIDENTS:]
    avoiding = tuple(_avoiding(kept, rules))[:MAX_AVOIDED]
    if (kept, avoiding) == (status.incidents, status.avoiding):
        return status
    return status.model_copy(update={"incidents": kept, "avoiding": avoiding})


def rules_of(spec: TrainingJobSpec) -> PlaceQuarantine:
    return spec.placement.quarantine if spec.placement is not None else PlaceQuarantine()


def shunned(
    seen: Observed, status: TrainingJobStatus, worker: int, before: WorkerStatus | None, now: datetime
) -> ShunStatus | None:
    """What the pod that follows `before` keeps away from; None: from nothing. Where the worker's part of the newest state lies and nowhere else, it may go
    (E6); and a gang that is together stays together, as with zones that are short."""
    left = {p.node for p in status.unfinished.parts if p.worker == worker} if status.unfinished is not None else set()
    nodes = tuple(a.name for a in status.avoiding if a.kind is Place.NODE and a.name not in left)
    together = zones.staying(seen, status)
    bad = tuple(a.name for a in status.avoiding if a.kind is Place.ZONE)
    if len(together) == 1:
        bad = tuple(z for z in bad if z not in together)
    if not nodes and not bad:
        return None
    required = rules_of(seen.spec).mode is PlaceMode.REQUIRE and not _was_relaxed(before, now)
    return ShunStatus(nodes=nodes, zones=bad, required=required)


def must_relax(entry: WorkerStatus, now: datetime) -> bool:
    """It finds no node, and may be keeping away from the only ones."""
    ends = relaxes_at(entry)
    return ends is not None and now >= ends


def relaxes_at(entry: WorkerStatus) -> datetime | None:
    if entry.shun is None or not entry.shun.required or entry.waiting_since is None:
        return None
    return entry.waiting_since + RELAXED_AFTER


def must_move(status: TrainingJobStatus, entry: WorkerStatus) -> bool:
    """Its training code has crashed on this node again and again, and it is this worker that has just crashed: the next attempt had better be elsewhere."""
    ended = interruptions.current(status)
    if ended is None or ended.ended_at is None or ended.cause not in CAUSES or entry.worker not in ended.workers:
        return False
    left = {p.node for p in status.unfinished.parts} if status.unfinished is not None else set()
    crashes = [i for i in status.incidents if i.node == entry.node and i.cause in CAUSES]
    return bool(entry.node) and len(crashes) >= CRASHES and entry.node not in left


def _was_relaxed(before: WorkerStatus | None, now: datetime) -> bool:
    return before is not None and before.shun is not None and (not before.shun.required or must_relax(before, now))


def _new(
    seen: Observed, before: TrainingJobStatus, status: TrainingJobStatus, now: datetime
) -> Iterator[IncidentStatus]:
    entry, was = interruptions.current(status), interruptions.current(before)
    if entry is None or entry.ended_at is None or (was is not None and was.ended_at is not None):
        return
    # What makes progress on a node before it crashes is no reason to leave it, with all that lies there; finish.count_end has just counted.
    crashed = entry.cause in CAUSES and entry.source in _OF_CODE and status.counts.fruitless_in_a_row > 0
    if not crashed and entry.cause not in _DIED + _TAKEN:
        return
    for who in members(seen, status.attempt):
        if who.member.worker in entry.workers and who.member.node:
            zone = zones.zone_of(who.node) or who.member.zone
            yield IncidentStatus(node=who.member.node, zone=zone, cause=entry.cause, attempt=entry.attempt, at=now)


def _avoiding(incidents: tuple[IncidentStatus, ...], rules: PlaceQuarantine) -> Iterator[AvoidedStatus]:
    lasts = timedelta(seconds=rules.seconds)
    for node in sorted({i.node for i in incidents}):
        died = [i for i in incidents if i.node == node and i.cause in _DIED]
        crashed = [i for i in incidents if i.node == node and i.cause in CAUSES]
        if died:
            yield _avoided(Place.NODE, node, died[-1].at + lasts, f"a worker was lost there ({died[-1].cause})")
        elif len(crashed) >= CRASHES:
            until = crashed[-CRASHES].at + lasts
            yield _avoided(Place.NODE, node, until, f"training code crashed there {len(crashed)} times")
    for zone in sorted({i.zone for i in incidents if i.zone}):
        lost = _newest_of_each([i for i in incidents if i.zone == zone and i.cause in _DIED + _TAKEN])
        if len(lost) >= rules.zone_after_nodes:
            until = lost[-rules.zone_after_nodes].at + lasts
            causes = ", ".join(sorted({i.cause for i in lost}))
            yield _avoided(Place.ZONE, zone, until, f"{len(lost)} nodes of it went ({causes})")


def _newest_of_each(incidents: Iterable[IncidentStatus]) -> list[IncidentStatus]:
    """Of several on one node the newest; in the order of time."""
    newest = {i.node: i for i in sorted(incidents, key=lambda i: i.at)}
    return sorted(newest.values(), key=lambda i: i.at)


def _avoided(kind: Place, name: str, until: datetime, reason: str) -> AvoidedStatus:
    return AvoidedStatus(kind=kind, name=name, until=until, reason=reason)
