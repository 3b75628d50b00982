"""Which rank holds the others up, and by how much: from what each says of its own part of an iteration (RankPace). Pure.

Ranks that wait for each other all take the same time from step to step, so what is compared is what a rank does not share: waiting for a batch, computing,
updating. Each is compared with the median of the others, which no single odd value moves. It counts only if it matters for a step and stands out of how much
the others differ; it is told once it has lasted, and taken back only when it is clearly over.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from holdfast_api.messages import AgentPhase, RankPace
from holdfast_operator.core.membership import members
from holdfast_operator.core.observed import Observed
from holdfast_operator.crd.v1alpha1 import StragglerStatus, TrainingJobStatus

PARTS = ("data", "busy", "update", "step")
LASTING = timedelta(minutes=5)
ENTERS, STAYS = 1.3, 1.15
"""Times the median of the others."""
ENTERS_SHARE, STAYS_SHARE = 0.1, 0.05
"""Of a step, that it takes longer than them."""
STANDS_OUT = 5.0
"""Times the usual difference between the others (the median of how far each is from their median)."""
TELL_AGAIN_PERCENT = 50
"""A change of so much is worth a write."""


@dataclass(frozen=True, slots=True)
class Slow:
    rank: int
    part: str
    ratio: float
    excess_seconds: float


def find(pace: tuple[RankPace, ...], before: tuple[int, str] | None = None) -> Slow | None:
    """The rank and part that cost the most; `before` has been found already and stays while it is not clearly over."""
    found = [s for part in PARTS for s in _of_part(pace, part, before)]
    return max(found, key=lambda s: (s.excess_seconds, -s.rank), default=None)


def _of_part(pace: tuple[RankPace, ...], part: str, before: tuple[int, str] | None) -> Iterator[Slow]:
    values = {p.rank: float(getattr(p, f"{part}_seconds")) for p in pace}
    if len(values) < 2 or any(not 0 < v < 1e9 for v in values.values()) or any(not p.step_seconds > 0 for p in pace):
        return  # not known of one: nobody can be compared
    step = median(p.step_seconds for p in pace)
    for rank, value in values.items():
        others = [v for r, v in values.items() if r != rank]
        middle = median(others)
        spread = median(abs(v - middle) for v in others)
        known = (rank, part) == before
        ratio, share = (STAYS, STAYS_SHARE) if known else (ENTERS, ENTERS_SHARE)
        excess = value - middle
        if value >= ratio * middle and excess >= share * step and (known or excess >= STANDS_OUT * spread):
            yield Slow(rank, part, value / middle, excess)


def update(seen: Observed, status: TrainingJobStatus, now: datetime) -> TrainingJobStatus:
    """`status.straggler` by what all members say now. Nobody is compared while one of them is not training or not heard."""
    found = _now(seen, status, now)
    return status if found == status.straggler else status.model_copy(update={"straggler": found})


def lasts_at(status: TrainingJobStatus) -> datetime | None:
    """When it will have lasted long enough to be told."""
    found = status.straggler
    return found.since + LASTING if found is not None and not found.lasting else None


def _now(seen: Observed, status: TrainingJobStatus, now: datetime) -> StragglerStatus | None:
    before, attempt = status.straggler, status.attempt
    if attempt is None or attempt.first_step_at is None:
        return None
    whos = members(seen, attempt)
    reports = [w.report for w in whos if w.report is not None and w.report.phase is AgentPhase.TRAINING]
    if len(reports) < len(whos):
        return before
    pace = tuple(p for r in reports for p in r.pace)
    slow = find(pace, (before.rank, before.part) if before is not None else None)
    if slow is None:
        return None
    percent = round((slow.ratio - 1) * 10) * 10
    who = next(w for w, r in zip(whos, reports, strict=True) if any(p.rank == slow.rank for p in r.pace))
    if before is None or (before.rank, before.part) != (slow.rank, slow.part):
        return StragglerStatus(
            rank=slow.rank,
            worker=who.member.worker,
            node=who.member.node,
            part=slow.part,
            percent=min(percent, 1_000_000),
            since=now,
        )
    lasting = before.lasting or now >= before.since + LASTING
    told = (
        percent if abs(percent - before.percent) >= TELL_AGAIN_PERCENT or lasting != before.lasting else before.percent
    )
    return before.model_copy(
        update={
            "percent": min(told, 1_000_000),
            "lasting": lasting,
            "node": who.member.node,
            "worker": who.member.worker,
        }
    )
