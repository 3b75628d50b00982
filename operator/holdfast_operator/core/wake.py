"""When to look again although nothing happens: the moments at which the passing of time alone changes the decision."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from holdfast_operator.core import (
    blame,
    capacity,
    elastic,
    evacuate,
    failures,
    fruitless,
    incidents,
    interruptions,
    loss,
    renew,
    stragglers,
)
from holdfast_operator.core.membership import members, silent_from
from holdfast_operator.core.observed import Observed, Refusal
from holdfast_operator.core.replace import STALE_AVOIDANCE
from holdfast_operator.crd.v1alpha1 import TrainingJobStatus

FIRST_REFUSED_AGAIN = timedelta(seconds=1)
REFUSED_AGAIN = timedelta(seconds=30)
"""How long after a refused creation it is tried again: doubled with each in a row, up to this."""


def next_look(seen: Observed, status: TrainingJobStatus, now: datetime) -> datetime | None:
    return earliest(now, *_moments(seen, status, now))


def earliest(now: datetime, *moments: datetime | None) -> datetime | None:
    """The first that lies ahead; None if none does."""
    return min((m for m in moments if m is not None and m > now), default=None)


def refused_until(refusal: Refusal, beside: int) -> datetime:
    """`beside`: pods of the job that live now. One that has gone since has given back its share of a quota: tried again soon, and that anew."""
    times = 1 if beside < refusal.beside else refusal.times
    return refusal.at + min(FIRST_REFUSED_AGAIN * (1 << min(times - 1, 10)), REFUSED_AGAIN)


def _moments(seen: Observed, status: TrainingJobStatus, now: datetime) -> Iterator[datetime | None]:
    yield status.retry_at
    yield from elastic.moments(seen, status, now)
    yield stragglers.lasts_at(status)
    entry = interruptions.current(status)
    if entry is not None and entry.ended_at is None:
        yield entry.deadline
    whos = members(seen, status.attempt)
    if (failure := failures.find(status, whos, now)) is not None:
        yield blame.decided_at(seen, failure)
    yield loss.word_by(seen)
    lost_after = timedelta(seconds=seen.spec.notices.node_lost_seconds)
    for who in whos:
        since = silent_from(who)
        yield since + lost_after if since is not None else None
        yield evacuate.silence_ends(seen, status, who)
    for plan in status.workers:
        yield fruitless.due(plan)
        yield plan.since + STALE_AVOIDANCE
        yield renew.blocked_until(seen, plan)
        yield capacity.wait_ends(seen, plan)
        yield incidents.relaxes_at(plan)
    for place in status.avoiding:
        yield place.until
    for refusal in seen.refusals:
        yield refused_until(refusal, seen.living)
