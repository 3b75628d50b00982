"""How often to save (`every: auto`). Pure: no clock, no I/O.

With C the cost of one save in seconds of training and M the mean time between interruptions, the least is lost, in saving and in work that is done again,
when saves begin every

    T = sqrt(2 C M) (1 + sqrt(C / 2M) / 3 + C / 18M)        (J. T. Daly, Future Generation Computer Systems 22(3), 2006, eq. 37, plus C: from begin to begin)

of which the first factor is J. W. Young's (Communications of the ACM 17(9), 1974). Two things differ here. An interruption whose last state an emergency
save catches loses nothing, so only the others count: M grows by 1 / (1 - p), p being the share that is caught. And neither M nor p is known: both are
means of what is believed after what was seen, a Gamma prior for the rate and a Beta prior for the share, so that a young job is careful and an old one
goes by its own history.
"""

import math
from dataclasses import dataclass
from enum import Enum

PRIOR_WORKER_SECONDS = 7 * 86_400.0
"""Mean time between interruptions of one worker, before anything is known; it weighs as much as one interruption that was seen."""
PRIOR_CAUGHT, PRIOR_LOST = 1.0, 1.0
"""As if one interruption had been caught and one had not."""
FIRST_SECONDS = 60.0
"""Until a save has been measured. The first one costs little, and shows what the next ones will."""
SHORTEST_SECONDS = 5.0
LONGEST_SECONDS = 24 * 3600.0
ROOM_TO_PERSIST = 1.1
"""The next save begins when the one before is surely written: one is in flight at a time."""
STEADY = 0.1
"""A new interval that differs by less than this share is not worth a change, nor a report."""
REQUEST_SECONDS = 0.009
"""What a PUT costs in seconds of a rank's time (J3): 5 dollars a million requests against 2 dollars an hour for one accelerator."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one periodic save."""

    stall_seconds: float
    """No rank makes progress."""
    slowdown_seconds: float
    """Lost to slower steps while it is written."""
    persist_seconds: float
    """From its begin to its commit."""
    requests: float = 0.0
    """PUTs for each rank, 0 where they cost nothing."""

    @property
    def seconds(self) -> float:
        """C."""
        return self.stall_seconds + self.slowdown_seconds + REQUEST_SECONDS * self.requests


@dataclass(frozen=True, slots=True)
class History:
    """What has happened to the job."""

    interruptions: int = 0
    """Preemptions, losses and failures: whatever ended an attempt."""
    caught: int = 0
    """Of them, those that lost no step."""
    seconds: float = 0.0
    """Of training, in all attempts."""
    workers: int = 1

    @property
    def mean_seconds(self) -> float:
        """M: 1 / E[rate], the rate ~ Gamma(1 + interruptions, prior + seconds)."""
        return (PRIOR_WORKER_SECONDS / max(1, self.workers) + self.seconds) / (1 + self.interruptions)

    @property
    def caught_share(self) -> float:
        """p: E of Beta(1 + caught, 1 + not caught). Never 0 or 1."""
        caught = min(self.caught, self.interruptions)
        return (PRIOR_CAUGHT + caught) / (PRIOR_CAUGHT + PRIOR_LOST + self.interruptions)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user sets."""

    max_loss_seconds: float
    """Recovery-point objective: work that an interruption without notice may cost at most."""
    max_overhead: float
    """Share of the time that saving may take."""


class Bound(Enum):
    """What the interval follows from."""

    NOTHING_MEASURED = "nothing measured yet"
    BEST = "least loss"
    MAX_LOSS = "maxLossSeconds"
    MAX_OVERHEAD = "maxOverheadPercent"
    PERSIST = "the time to write a save"
    RANGE = "shortest or longest interval"


@dataclass(frozen=True, slots=True)
class Choice:
    """Seconds from the begin of one save to the begin of the next."""

    seconds: float
    bound: Bound
    words: str


def daly(cost_seconds: float, mean_seconds: float) -> float:
    """T of the module's formula, for a cost and a mean time greater than 0. Where a save costs more than twice the mean time, M, as Daly says."""
    if cost_seconds >= 2 * mean_seconds:
        return mean_seconds
    share = cost_seconds / (2 * mean_seconds)
    return math.sqrt(2 * cost_seconds * mean_seconds) * (1 + math.sqrt(share) / 3 + share / 9)


def choose(costs: Costs | None, history: History, limits: Limits) -> Choice:
    """The best interval within what can be done and what may be lost. Total: whatever the numbers, the answer is a usable one.

    Where the limits contradict each other, what protects the work wins: writing takes the time that it takes, then the loss is bounded, then the overhead.
    """
    if costs is None or not math.isfinite(costs.seconds + costs.persist_seconds):
        seconds = _clamp(min(FIRST_SECONDS, limits.max_loss_seconds))
        return Choice(seconds, Bound.NOTHING_MEASURED, f"every {seconds:.0f} s until a save has been measured")
    cost = max(costs.seconds, 1e-3)
    effective = history.mean_seconds / (1 - history.caught_share)
    seconds, bound = daly(cost, effective), Bound.BEST
    if limits.max_overhead > 0 and seconds < cost / limits.max_overhead:
        seconds, bound = cost / limits.max_overhead, Bound.MAX_OVERHEAD
    if seconds > limits.max_loss_seconds - costs.persist_seconds:  # a save protects once it is written
        seconds, bound = limits.max_loss_seconds - costs.persist_seconds, Bound.MAX_LOSS
    if seconds < costs.persist_seconds * ROOM_TO_PERSIST:
        seconds, bound = costs.persist_seconds * ROOM_TO_PERSIST, Bound.PERSIST
    if seconds != _clamp(seconds):
        seconds, bound = _clamp(seconds), Bound.RANGE
    return Choice(seconds, bound, _words(seconds, bound, cost, costs, history, limits))


def steady(before: Choice | None, after: Choice) -> Choice:
    """The one before, as long as the new one hardly differs."""
    if before is None or before.bound is Bound.NOTHING_MEASURED:
        return after
    return before if abs(after.seconds - before.seconds) <= STEADY * before.seconds else after


def _clamp(seconds: float) -> float:
    return min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS)


def _words(seconds: float, bound: Bound, cost: float, costs: Costs, history: History, limits: Limits) -> str:
    text = (
        f"every {seconds:.0f} s ({bound.value}): a save costs {cost:.2f} s (stall {costs.stall_seconds:.2f}, slower steps {costs.slowdown_seconds:.2f}) "
        f"and is written in {costs.persist_seconds:.1f} s; {history.interruptions} interruptions in {history.seconds / 3600:.1f} h, "
        f"{history.caught} of them caught"
    )
    if seconds + costs.persist_seconds > limits.max_loss_seconds * 1.001:
        text += f"; maxLossSeconds {limits.max_loss_seconds:.0f} cannot be held"
    return text
