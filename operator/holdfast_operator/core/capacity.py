"""Of which kind of capacity a worker's pod is made (`spec.placement.capacity`): the first kind of the list, the next one when no node of it was to be had for
its waiting time, and the first again later. Pure.

A pod cannot be changed, so another kind is another pod. The one that found no node is dropped like any that never took part (A2): it has no member's uid, so
nothing of it is ever trained, also if it finds a node in the same moment.

Back to the first kind is gone when a pod has to be made anyway, and not before the worker has stayed with the other kind for the minimum time: what could not
be had a moment ago would only be waited for again. Nothing is moved that runs.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast_operator.core.observed import Observed, PodSeen
from holdfast_operator.crd.v1alpha1 import CapacityKind, TrainingJobSpec, WorkerStatus


@dataclass(frozen=True, slots=True)
class Choice:
    kind: str = ""
    """Empty: any node that the template allows."""
    since: datetime | None = None
    """Since when the worker is of this kind."""


def kinds(spec: TrainingJobSpec) -> tuple[CapacityKind, ...]:
    """In the order of preference; empty: the job does not say."""
    found = spec.placement.capacity if spec.placement is not None else None
    return found.kinds if found is not None else ()


def kind_named(spec: TrainingJobSpec, name: str) -> CapacityKind | None:
    return next((k for k in kinds(spec) if k.name == name), None)


def choose(seen: Observed, before: WorkerStatus | None, now: datetime) -> Choice:
    """For the pod that follows `before`."""
    names = [k.name for k in kinds(seen.spec)]
    if not names:
        return Choice()
    if before is None or before.capacity not in names:
        return Choice(names[0], now)
    if gives_up(seen, before, now):
        return Choice(names[names.index(before.capacity) + 1], now)
    assert seen.spec.placement is not None
    assert seen.spec.placement.capacity is not None
    stay = timedelta(seconds=seen.spec.placement.capacity.minimum_stay_seconds)
    if before.capacity != names[0] and (before.capacity_since is None or now - before.capacity_since >= stay):
        return Choice(names[0], now)
    return Choice(before.capacity, before.capacity_since)


def waiting_since(plan: WorkerStatus, pod: PodSeen, now: datetime) -> datetime | None:
    """Since when the scheduler looks for a node in vain. It does not look at a pod that waits at a gate, and says so otherwise."""
    waits = bool(pod.unschedulable) and not pod.node and not pod.deleting and not pod.terminal
    return (plan.waiting_since or now) if waits else None


def gives_up(seen: Observed, entry: WorkerStatus, now: datetime) -> bool:
    """Its kind has been waited for long enough, and there is another."""
    ends = wait_ends(seen, entry)
    return ends is not None and now >= ends


def wait_ends(seen: Observed, entry: WorkerStatus) -> datetime | None:
    """When the next kind's turn comes; None: the pod waits for nothing, or as long as it takes."""
    if entry.waiting_since is None or next_kind(seen.spec, entry) is None:
        return None
    kind = kind_named(seen.spec, entry.capacity)
    assert kind is not None
    return entry.waiting_since + timedelta(seconds=kind.after_seconds)


def next_kind(spec: TrainingJobSpec, entry: WorkerStatus) -> CapacityKind | None:
    """What follows when no node of the entry's kind is to be had."""
    found = kinds(spec)
    here = next((i for i, k in enumerate(found) if k.name == entry.capacity), len(found))
    return found[here + 1] if here + 1 < len(found) else None


def in_words(seen: Observed, entry: WorkerStatus) -> str:
    """What is waited for, and until when; empty: nothing that is said here."""
    ends, after = wait_ends(seen, entry), next_kind(seen.spec, entry)
    if not entry.capacity:
        return ""
    if ends is None or after is None:
        return f" (of kind {entry.capacity})"
    return f" (of kind {entry.capacity} until {ends:%H:%M:%S} UTC, then {after.name})"
