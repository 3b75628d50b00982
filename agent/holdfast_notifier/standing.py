"""What stands about this machine, given what stood before and what the cloud says now. Pure.

A source keeps the time at which it was first noticed. A deadline that was only counted from the moment of looking must not move away with every look.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from holdfast_api.node_notices import MAX_NOTICES, NodeNotice


@dataclass(frozen=True, slots=True)
class Found:
    """One announcement as a look finds it."""

    notice: NodeNotice
    counted: bool = False
    """Its deadline is counted from the look; the cloud names none."""


def after(before: Iterable[NodeNotice], found: Iterable[Found]) -> tuple[NodeNotice, ...]:
    """What is not found any more is withdrawn. Acting ones first, then by deadline, then by name; at most MAX_NOTICES."""
    known = {n.source: n for n in before}
    standing = {f.notice.source: _continued(known.get(f.notice.source), f) for f in found}
    return tuple(sorted(standing.values(), key=_urgency))[:MAX_NOTICES]


def _continued(before: NodeNotice | None, found: Found) -> NodeNotice:
    if before is None:
        return found.notice
    deadline = found.notice.deadline
    if found.counted and deadline is not None and before.deadline is not None:
        deadline = min(deadline, before.deadline)
    return replace(found.notice, noticed_at=before.noticed_at, deadline=deadline)


def _urgency(notice: NodeNotice) -> tuple[bool, bool, float, str]:
    at = notice.deadline.timestamp() if notice.deadline is not None else 0.0
    return not notice.acting, notice.deadline is None, at, notice.source
