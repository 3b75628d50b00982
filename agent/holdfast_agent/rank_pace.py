"""What each rank's iterations take, as it says itself: for the report that finds the slow one among ranks that wait for each other."""

from holdfast_agent.crew import Rank
from holdfast_agent.shared import Shared
from holdfast_api import ranks as wire
from holdfast_api.messages import RankPace

MOST_RANKS = 64
LEAST_SECONDS = 1e-6
"""A whole iteration has been seen, however short."""
PARTS = ("step", "busy", "update", "data")


def passes(rank: Rank) -> None:
    """A boundary: what it took is remembered, but for the first of an attempt, which holds the start."""
    if rank.stepped:
        rank.longest_seconds = max(rank.longest_seconds, rank.idle_seconds, LEAST_SECONDS)
    rank.idle_seconds, rank.doing = 0.0, ""


def measured(shared: Shared, rank: Rank, message: wire.Passed, weight: float) -> None:
    """`weight`: of the newest iteration in the averages."""
    for part in PARTS[1:]:
        name = f"{part}_seconds"
        before, new = getattr(rank, name), getattr(message, name)
        setattr(rank, name, (1 - weight) * before + weight * new if before else new)
    for part in PARTS:
        shared.metrics.rank_seconds.labels(str(rank.number), part).set(getattr(rank, f"{part}_seconds"))
    shared.record.pace = tuple(
        RankPace(r.number, r.step_seconds, r.busy_seconds, r.update_seconds, r.data_seconds)
        for r in list(shared.crew)[:MOST_RANKS]
        if r.stepped
    )
