"""A job that is interrupted, second by second of its own time: how much of it is useful under a rule for the interval between saves. Simulated time.

What is taken from life: a save stalls training, then is written beside it, and protects only once it is written; an interruption that is caught by an
emergency save loses nothing, another loses everything since the last save that was written, and so do saves that were under way; every interruption
costs the same restart besides. What is not: the cost of a save does not grow with the load, and interruptions are independent of what the job does.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from holdfast_agent.costs import Measured
from holdfast_agent.interval import Choice, Costs, History, Limits, choose, daly, steady

DAY = 86_400.0
RESTART_SECONDS = 120.0
NOISE = 0.25
"""Standard deviation of a measured cost, as a share of the true one."""


@dataclass(frozen=True, slots=True)
class World:
    """`gaps` draws the times between interruptions from a generator."""

    name: str
    stall_seconds: float
    persist_seconds: float
    caught_share: float
    mean_seconds: float
    gaps: Callable[[random.Random], float]
    workers: int = 1


def memoryless(mean: float) -> Callable[[random.Random], float]:
    return lambda r: r.expovariate(1 / mean)


def bursts(mean: float) -> Callable[[random.Random], float]:
    """Weibull of shape 0.6: one loss makes the next more likely, as when a zone runs out of capacity."""
    scale = mean / 1.504575
    return lambda r: r.weibullvariate(scale, 0.6)


def bathtub(mean: float) -> Callable[[random.Random], float]:
    """Many die young, few in between, all at 24 hours, as with machines that have a cap (arXiv 1911.05160); scaled to the mean."""
    share = 0.45
    young = 0.15 * DAY
    old = DAY
    scale = mean / (share * young + (1 - share) * old * 0.92)
    return lambda r: scale * (r.expovariate(1 / young) if r.random() < share else old * (0.84 + 0.16 * r.random()))


@dataclass(frozen=True, slots=True)
class Trace:
    """One life of a job: lengths of its attempts in seconds, and whether the end of each was caught."""

    gaps: tuple[float, ...]
    caught: tuple[bool, ...]

    @property
    def seconds(self) -> float:
        return sum(self.gaps) + RESTART_SECONDS * len(self.gaps)


def trace(world: World, seed: int, horizon_seconds: float) -> Trace:
    r = random.Random(f"{world.name}/{seed}")
    gaps: list[float] = []
    while sum(gaps) < horizon_seconds:
        gaps.append(min(world.gaps(r), 30 * DAY))
    return Trace(tuple(gaps), tuple(r.random() < world.caught_share for _ in gaps))


class Rule:
    """How long to the next save. Told of everything that a real lead is told of."""

    def next_seconds(self, trained: float) -> float:
        raise NotImplementedError

    def saved(self, stall: float, persist: float) -> None:
        """A save was committed; measured, so with noise."""

    def interrupted(self, caught: bool, trained: float) -> None:
        """An attempt has ended after so many seconds of training in all."""


class Fixed(Rule):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def next_seconds(self, trained: float) -> float:
        return self.seconds


class Oracle(Fixed):
    """Young and Daly with the truth: cost, mean time and share that is caught."""

    def __init__(self, world: World) -> None:
        effective = world.mean_seconds / max(1e-9, 1 - world.caught_share)
        super().__init__(max(daly(world.stall_seconds, effective), world.persist_seconds * 1.1))


class Overhead(Rule):
    """The smallest interval whose stall stays below a share of the time (CheckFreq, FAST'21): it needs no idea of interruptions."""

    def __init__(self, share: float = 0.035) -> None:
        self._share = share
        self._measured = Measured()

    def saved(self, stall: float, persist: float) -> None:
        self._measured = self._measured.stalled(stall).persisted(persist, 0)

    def next_seconds(self, trained: float) -> float:
        costs = self._measured.costs
        return 60.0 if costs is None else max(costs.stall_seconds / self._share, costs.persist_seconds * 1.1, 1.0)


class Ours(Rule):
    """The code that the lead runs (holdfast_agent.interval and costs), with what it would have measured."""

    def __init__(self, world: World, limits: Limits) -> None:
        self._limits, self._workers = limits, world.workers
        self._measured = Measured()
        self._choice: Choice | None = None
        self._interruptions = self._caught = 0

    def saved(self, stall: float, persist: float) -> None:
        self._measured = self._measured.stalled(stall).persisted(persist, 0)

    def interrupted(self, caught: bool, trained: float) -> None:
        self._interruptions += 1
        self._caught += caught

    def next_seconds(self, trained: float) -> float:
        history = History(self._interruptions, self._caught, trained, self._workers)
        self._choice = steady(self._choice, choose(self._measured.costs, history, self._limits))
        return self._choice.seconds


def goodput(world: World, life: Trace, rule: Rule, seed: int) -> float:
    """Useful seconds by all seconds."""
    noise = random.Random(f"noise/{world.name}/{seed}")
    useful, trained = 0.0, 0.0
    for gap, caught in zip(life.gaps, life.caught, strict=True):
        useful += sum(_attempt(world, rule, gap, caught, trained, noise))
        trained += gap
        rule.interrupted(caught, trained)
    return useful / life.seconds


def _attempt(
    world: World, rule: Rule, gap: float, caught: bool, trained: float, noise: random.Random
) -> Iterator[float]:
    """Pieces of useful time in one attempt."""
    began = 0.0
    while True:
        period = max(rule.next_seconds(trained + began), world.stall_seconds * 1.01)
        written = began + period + world.stall_seconds + world.persist_seconds
        if written > gap:
            break
        rule.saved(world.stall_seconds * _about(noise), world.persist_seconds * _about(noise))
        yield period
        began += period + world.stall_seconds
    if caught:
        yield min(gap - began, period) + max(0.0, gap - began - period - world.stall_seconds)


def _about(noise: random.Random) -> float:
    return max(0.1, noise.gauss(1.0, NOISE))


def truth(world: World) -> Costs:
    return Costs(world.stall_seconds, 0.0, world.persist_seconds)
