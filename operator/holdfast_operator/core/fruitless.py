"""Pods that came to nothing before they could take part: how long until the next one is made (F5). Pure.

A queue that deletes what is too many, a scheduler that preempts, a node that refuses, a notice that comes and goes: each makes an end of a new pod within a
moment, and another one made at once would have the same end. The pause doubles with each in a row, of one worker.
"""

from datetime import datetime, timedelta

from holdfast_operator.crd.v1alpha1 import WorkerStatus

FIRST = timedelta(seconds=2)
LONGEST = timedelta(seconds=300)
FORGOTTEN = timedelta(seconds=600)
"""What was thrown away longer ago says nothing of now."""


def due(plan: WorkerStatus) -> datetime:
    """When what has come to nothing, or was thrown away, is followed by another."""
    return (plan.thrown_away_at or plan.since) + min(FIRST * (1 << min(plan.fruitless, 10)), LONGEST)


def may_follow(plan: WorkerStatus, now: datetime, *, member: bool) -> bool:
    """`member`: it takes part, so what came to nothing were replacements that were made for it."""
    return now >= due(plan) or (member and plan.thrown_away_at is None)


def count(plan: WorkerStatus, now: datetime, *, member: bool) -> int:
    """Of the pod that follows `plan`."""
    if not member:
        return plan.fruitless + 1
    return plan.fruitless if _lately(plan, now) else 0


def thrown_away(member: WorkerStatus, replacement: WorkerStatus, now: datetime) -> WorkerStatus:
    """The entry of a member whose replacement nobody needs any more."""
    before = max(replacement.fruitless, member.fruitless if _lately(member, now) else 0)
    return member.model_copy(update={"fruitless": before + 1, "thrown_away_at": now})


def _lately(plan: WorkerStatus, now: datetime) -> bool:
    return plan.thrown_away_at is not None and now - plan.thrown_away_at < FORGOTTEN
