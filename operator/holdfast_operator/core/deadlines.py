"""By when a worker of an announcement ends: one absolute moment, whichever of these comes first. Pure.

What the source names (cloud, Karpenter, deletion timestamp) or what its rule gives (signal_table.py) stands in the record. Where the record names nothing, the
job's default counts (F2); and a pod that is being ended, rather than its machine, has no more than its own grace.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from holdfast_api import sources
from holdfast_operator.core.observed import Observed
from holdfast_operator.core.pods import grace_seconds
from holdfast_operator.core.signals import SHUTTING_DOWN
from holdfast_operator.crd.v1alpha1 import NoticeStatus


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one job."""

    default_seconds: int
    """`spec.notices.defaultDeadlineSeconds`."""
    grace_seconds: int
    """Of its pods."""

    @classmethod
    def of(cls, seen: Observed) -> "Limits":
        return cls(seen.spec.notices.default_deadline_seconds, grace_seconds(seen.spec))


def of_notice(notice: NoticeStatus, limits: Limits) -> datetime:
    """A notice without a deadline gets the configured one (F2), and what ends the pod by itself at most its grace."""
    if (
        notice.source == SHUTTING_DOWN
    ):  # the kubelet gives the pod its slot of the shutdown, or its own grace if that is shorter
        graced = notice.noticed_at + timedelta(seconds=min(limits.default_seconds, limits.grace_seconds))
        return min(notice.deadline, graced) if notice.deadline is not None else graced
    if notice.deadline is not None:
        return notice.deadline
    ends_the_pod = notice.source.startswith(sources.DISRUPTION_TARGET)
    seconds = min(limits.default_seconds, limits.grace_seconds) if ends_the_pod else limits.default_seconds
    return notice.noticed_at + timedelta(seconds=seconds)


def earliest(notices: Iterable[NoticeStatus], limits: Limits) -> datetime:
    """Of at least one."""
    return min(of_notice(n, limits) for n in notices)
