"""What the announcements add up to (F1-F3): is anybody to go, which workers, by when. Pure: the same records and time give the same answer.

Records come from the operator (`NoticeOrder`) and from the agent itself (SIGTERM). The strongest source decides the cause, as in the operator; the minimum over
the records that are not withdrawn decides the deadline.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast_api import sources
from holdfast_api.messages import Cause, Notice

SIGTERM_SOURCE = sources.SIGTERM
_STRENGTH = (
    Cause.SPOT, Cause.NODE_SHUTDOWN, Cause.MAINTENANCE, Cause.NODE_PRESSURE, Cause.PRIORITY, Cause.EVICTION, Cause.SCALE_DOWN,
    Cause.DRAIN, Cause.DRILL, Cause.DELETION, Cause.SUSPEND, Cause.REBALANCE, Cause.CORDON, Cause.SIGTERM, Cause.UNKNOWN,
)  # fmt: skip
"""Causes from the one that says most about why a worker goes to the one that says least; decides between sources that are equally strong (F1)."""


@dataclass(frozen=True, slots=True)
class Merged:
    """All records of one attempt in one view."""

    acting: bool
    """At least one record says: evacuate."""
    deadline: datetime | None
    """Minimum over acting records; None while none acts."""
    doomed: tuple[int, ...]
    """Workers named by an acting record, in order."""
    cause: Cause
    noticed_at: datetime | None
    preparing: tuple[str, ...] = ()
    """Identity of every preparing record: each is worth one save (F2)."""


def key(notice: Notice) -> tuple[int, str]:
    """One record per (worker, source) within an attempt (F1)."""
    return notice.worker, notice.source


def merge(notices: Iterable[Notice], *, default_seconds: int, grace_seconds: int) -> Merged:
    """`default_seconds` is the deadline of an acting notice that has none (F2), `grace_seconds` what the pods have at their end."""
    live = [n for n in notices if not n.withdrawn]
    acting = [n for n in live if n.acting]
    deadlines = [deadline_of(n, default_seconds, grace_seconds) for n in acting if not _overruled(n, live)]
    return Merged(
        acting=bool(acting),
        deadline=min(deadlines, default=None),
        doomed=tuple(sorted({n.worker for n in acting})),
        cause=min(acting or live, key=_weakness).cause if live else Cause.UNKNOWN,
        noticed_at=min((n.noticed_at for n in acting), default=None),
        preparing=tuple(sorted(f"{n.worker}/{n.source}/{n.noticed_at.isoformat()}" for n in live if not n.acting)),
    )


def deadline_of(notice: Notice, default_seconds: int, grace_seconds: int) -> datetime:
    """What ends the pod by itself, rather than its machine, leaves it no more than its grace (as the operator's core/deadlines.py has it)."""
    if notice.deadline is not None:
        return notice.deadline
    ends_the_pod = notice.source.startswith(sources.DISRUPTION_TARGET)
    seconds = min(default_seconds, grace_seconds) if ends_the_pod else default_seconds
    return notice.noticed_at + timedelta(seconds=seconds)


def assumed_at_sigterm(*, worker: int, node: str, now: datetime, grace_seconds: int, floor_seconds: int) -> Notice:
    """A bare SIGTERM does not say how long there is: the smaller of the pod's grace and the floor (F3)."""
    seconds = min(grace_seconds, floor_seconds)
    return Notice(
        source=SIGTERM_SOURCE,
        cause=Cause.SIGTERM,
        worker=worker,
        node=node,
        noticed_at=now,
        deadline=now + timedelta(seconds=seconds),
        detail=f"SIGTERM; {seconds} s assumed (F3)",
    )


def _overruled(notice: Notice, live: list[Notice]) -> bool:
    """The assumption made at SIGTERM ends when the operator tells the deadline of the very same deletion (F3)."""
    return notice.source == SIGTERM_SOURCE and any(
        n.worker == notice.worker and n.acting and n.source.startswith(sources.DELETION) and n.deadline is not None
        for n in live
    )


def _weakness(notice: Notice) -> tuple[int, int]:
    of_cause = _STRENGTH.index(notice.cause) if notice.cause in _STRENGTH else len(_STRENGTH)
    return sources.strength(notice.source), of_cause
