"""Several notices about one interruption, as one (F1): the strongest source gives the cause, the earliest deadline counts."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast_operator.crd.v1alpha1 import NoticeStatus

SIGTERM_SOURCE = "signal:SIGTERM"
_STRENGTH = ("pod:DisruptionTarget", "pod:deletionTimestamp", "signal:", "node:gone")
"""From strong to weak, after everything that a node says by taint, condition, label or annotation (platform order, 1.11)."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What stands, seen as one."""

    workers: tuple[int, ...]
    nodes: tuple[str, ...]
    cause: str
    source: str
    noticed_at: datetime
    deadline: datetime


def standing(notices: Iterable[NoticeStatus]) -> tuple[NoticeStatus, ...]:
    """Acting and not withdrawn."""
    return tuple(n for n in notices if n.acting and not n.withdrawn)


def merge(notices: Iterable[NoticeStatus], default_seconds: int) -> Merged | None:
    """None if nothing acting stands."""
    live = standing(notices)
    if not live:
        return None
    strongest = min(live, key=lambda n: (strength(n), n.noticed_at, n.worker, n.source))
    return Merged(
        workers=tuple(sorted({n.worker for n in live})),
        nodes=tuple(sorted({n.node for n in live if n.node})),
        cause=strongest.cause,
        source=strongest.source,
        noticed_at=min(n.noticed_at for n in live),
        deadline=min(deadline_of(n, default_seconds) for n in live if not _overruled(n, live)),
    )


def strength(notice: NoticeStatus) -> tuple[int, bool]:
    """Smaller is stronger. Among what a node says, a source that names the deadline comes first."""
    for i, prefix in enumerate(_STRENGTH):
        if notice.source.startswith(prefix):
            return i + 1, False
    return 0, notice.deadline is None


def deadline_of(notice: NoticeStatus, default_seconds: int) -> datetime:
    """A notice without a deadline gets the configured one (F2)."""
    return notice.deadline or notice.noticed_at + timedelta(seconds=default_seconds)


def _overruled(notice: NoticeStatus, live: tuple[NoticeStatus, ...]) -> bool:
    """What an agent assumed at a bare SIGTERM ends when the pod itself says by when it will be killed (F3)."""
    return notice.source == SIGTERM_SOURCE and any(
        n.worker == notice.worker and n.source == "pod:deletionTimestamp" for n in live
    )
