"""From samples to figures: medians, ratios of what was measured in the same round, goals. Pure."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.contender import Kind, Sample
from benchmarks.harness.crew import Outcome
from benchmarks.results import spread

Figure = Callable[[Sample], float]


@dataclass(frozen=True)
class Goal:
    limit: float
    at_least: bool = False
    """Else at most."""

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def rate(sample: Sample) -> float:
    return sample.gb_per_second


def seconds(sample: Sample) -> float:
    return sample.seconds


def cpu(sample: Sample) -> float:
    return sample.cpu_per_gb


def median(outcome: Outcome, of: Figure) -> float:
    return statistics.median(of(s) for s in outcome.samples)


def running(outcomes: Sequence[Outcome], kind: Kind) -> list[Outcome]:
    return [o for o in outcomes if o.contender.kind is kind and o.samples and not o.failure]


def named(outcomes: Sequence[Outcome], name: str) -> Outcome | None:
    """None if it did not run."""
    return next((o for o in outcomes if o.contender.name == name and o.samples and not o.failure), None)


def best(outcomes: Sequence[Outcome], of: Figure, *, larger: bool) -> Outcome | None:
    """The one with the best median: a floor measured in several ways counts at its best, and so do peers."""
    chosen = [o for o in outcomes if o.samples and not o.failure]
    return (max if larger else min)(chosen, key=lambda o: median(o, of)) if chosen else None


def paired(ours: Outcome, other: Outcome, of: Figure, of_other: Figure | None = None) -> list[float]:
    """Ours divided by the other's, round by round: what slows a whole round slows both."""
    return [of(a) / (of_other or of)(b) for a, b in zip(ours.samples, other.samples, strict=True)]


def measure(
    id: str,
    what: str,
    unit: str,
    ours: float | None,
    *,
    goal: Goal | None,
    ratios: Sequence[float] = (),
    values: Sequence[float] = (),
    floor: float | None = None,
    floor_name: str = "",
    peers: dict[str, dict[str, Any]] | None = None,
    skipped: str = "",
    of_ratio: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """An entry of summary.json. With `ratios` the goal is about their median, else about `ours`. `skipped`: why there is no figure,
    `of_ratio`: which would be a ratio."""
    ratio = statistics.median(ratios) if ratios else None
    judged = ratio if ratios else ours
    entry: dict[str, Any] = {
        "id": id, "what": what, "unit": unit, "ours": _short(ours), "floor": _short(floor), "floor_name": floor_name,
        "peers": peers or {}, "ratio": _short(ratio), "goal": goal.limit if goal else None,
        "at_least": bool(goal and goal.at_least), "goal_on": "ratio" if ratios or of_ratio else "ours",
        "met": goal.met(round(judged, 3)) if goal and judged is not None else None,
        "spread": spread(list(ratios or values)) if ratios or values else {},
    }  # fmt: skip
    if skipped:
        entry["skipped"] = skipped
    return entry | more


def table_of_peers(outcomes: Sequence[Outcome], of: Figure) -> dict[str, dict[str, Any]]:
    """Each peer with its version, its median, or why it has none."""
    found: dict[str, dict[str, Any]] = {}
    for o in outcomes:
        if o.contender.kind is Kind.PEER:
            value = {"not_measured": o.failure} if o.failure or not o.samples else {"value": _short(median(o, of))}
            found[o.contender.name] = {"version": o.contender.version, **value}
    return found


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
