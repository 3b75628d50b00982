"""Several notices about one interruption, as one (F1): the strongest source gives the cause, the earliest deadline counts."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from holdfast_api import sources
from holdfast_operator.core import deadlines
from holdfast_operator.core.deadlines import Limits
from holdfast_operator.crd.v1alpha1 import Confidence, NoticeStatus

_SURENESS = (Confidence.CERTAIN, Confidence.LIKELY, Confidence.POSSIBLE)


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


def merge(notices: Iterable[NoticeStatus], limits: Limits) -> Merged | None:
    """None if nothing acting stands."""
    live = standing(notices)
    if not live:
        return None
    strongest = min(live, key=lambda n: (strength(n), deadlines.of_notice(n, limits), n.noticed_at, n.worker, n.source))
    return Merged(
        workers=tuple(sorted({n.worker for n in live})),
        nodes=tuple(sorted({n.node for n in live if n.node})),
        cause=strongest.cause,
        source=strongest.source,
        noticed_at=min(n.noticed_at for n in live),
        deadline=deadlines.earliest((n for n in live if not _overruled(n, live)), limits),
    )


def strength(notice: NoticeStatus) -> tuple[int, bool, int]:
    """Smaller is stronger. Of sources that are equally strong one that names the deadline comes first, then the surer one (then the earlier deadline)."""
    return sources.strength(notice.source), notice.deadline is None, _SURENESS.index(notice.confidence)


def _overruled(notice: NoticeStatus, live: tuple[NoticeStatus, ...]) -> bool:
    """What an agent assumed at a bare SIGTERM ends when the pod itself says by when it will be killed (F3)."""
    return notice.source == sources.SIGTERM and any(
        n.worker == notice.worker and n.source == sources.DELETION for n in live
    )
