"""The worlds of the matrix: kind of loop, precision, loader, distribution, and the moments at which the run is taken away. Pure: a world is a function of
(seed, number), so that one that failed can be repeated alone.
"""

import random
from dataclasses import dataclass

LOOPS = (
    "plain",
    "accumulation kept",
    "accumulation gone back",
    "closure",
    "LBFGS",
    "scaler",
    "several optimizers",
    "in backward",
    "EMA",
    "compile",
    "checkpointing",
)
"""`kept`: a boundary after every micro-batch; `gone back`: boundaries at updates alone (I2)."""
PRECISIONS = ("fp32", "autocast", "masters", "fp64")
"""`autocast`: in bfloat16; `masters`: weights in bfloat16 beside float32 masters that the optimizer updates."""
LOADERS = ("map", "workers", "sampler", "iterable", "stateful", "torchdata")
"""`iterable`: read again up to the position; `stateful`: iterable, keeps its own place; `torchdata`: its StatefulDataLoader."""
DISTRIBUTIONS = ("one", "DDP", "FSDP2", "ZeRO-1")
OPTIMIZERS = ("AdamW", "fused AdamW", "SGD", "Adagrad", "NAdam")
SCHEDULERS = ("step", "cosine", "one cycle")

PLACES = (
    "forward",
    "backward",
    "optimizer",
    "evaluation",
    "data",
    "after the step",
    "epoch end",
    "last step",
    "finish",
    "restore",
    "anywhere",
)
HOWS = ("notice", "notice, then killed", "killed agent", "killed trainer")
"""A notice is SIGTERM to the agent, as a pod gets it."""

BATCH = 4
BATCHES = 6
"""In an epoch, per rank."""
ACCUMULATE = 3
EVALUATE_EVERY = 4
"""Boundaries."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a life ends. `at` is the number of the boundary that the iteration would reach."""

    place: str
    at: int
    how: str
    rank: int = 0
    """Which one comes to the place and tells, or is killed."""
    skip: int = 0
    """So many passes through the place in that iteration are let go first."""
    linger_seconds: float = 0.0
    """How long the loop stays there afterwards; for the places that a clock chooses, how long after the begin it happens."""
    busy: bool = False
    """It stays there in Python instead of asleep."""

    def __str__(self) -> str:
        return f"{self.how} in {self.place} at {self.at} (rank {self.rank}, {self.linger_seconds:g} s)"


@dataclass(frozen=True, slots=True)
class World:
    seed: int
    number: int
    loop: str
    precision: str
    loader: str
    distribution: str
    ranks: int
    optimizer: str
    scheduler: str
    epochs: int
    outer: bool
    """The script has a loop of its own over epochs."""
    persistent: bool
    """Worker processes stay over epochs."""
    every_steps: int
    pace_seconds: float
    moments: tuple[Moment, ...]

    @property
    def steps(self) -> int:
        """Boundaries in all."""
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        return BATCHES // ACCUMULATE if self.loop == "accumulation gone back" else BATCHES

    @property
    def samples(self) -> int:
        return BATCH * BATCHES * self.ranks

    def __str__(self) -> str:
        return (
            f"world {self.number} of seed {self.seed}: {self.loop}, {self.precision}, {self.loader}, {self.distribution} of {self.ranks}, {self.optimizer}, "
            f"{self.epochs} epochs{' in a loop of its own' if self.outer else ''}, a save every {self.every_steps} steps"
        )


def left_out(loop: str, distribution: str) -> str:
    """Why a combination is not run, or ""."""
    if distribution == "one":
        return ""
    if loop == "LBFGS":
        return "each rank's own loss decides how often it evaluates, so ranks would wait for each other for ever"
    if loop == "in backward":
        return "the optimizer would step before the gradient is reduced"
    if distribution == "FSDP2":
        if loop == "accumulation kept":
            return "refused without gradient synchronisation (docs/library.md)"
        if loop in ("scaler", "EMA", "compile"):
            return f"{loop} over FSDP2 has its own tests in torch, and nothing in it is ours"
    if distribution == "ZeRO-1" and loop in ("scaler", "closure", "several optimizers"):
        return "ZeroRedundancyOptimizer steps its own share: not supported by it, or no other code than DDP's"
    return ""


def without(loop: str, distribution: str) -> set[str]:
    """Precisions and optimizers that do not go with it."""
    found = set()
    if loop in ("several optimizers", "in backward"):
        found.add("masters")
    if distribution == "FSDP2":
        found |= {"fused AdamW", "masters"}  # torch has no batch norm of halves beside statistics in float32 on the CPU
    return found


PAIRS = tuple((loop, d) for d in DISTRIBUTIONS for loop in LOOPS if not left_out(loop, d))


def draw(seed: int, number: int, *, torchdata: bool) -> World:
    """Every pair of loop and distribution comes once in each row of `len(PAIRS)` numbers. Without torchdata its worlds read the stateful loader."""
    row, at = divmod(number, len(PAIRS))
    order = list(PAIRS)
    random.Random(f"{seed}/{row}").shuffle(order)
    loop, distribution = order[at]
    rng = random.Random(f"{seed}/{row}/{at}")
    ranks = 1 if distribution == "one" else rng.choice((2, 2, 4))
    bad = without(loop, distribution)
    loader = rng.choice(LOADERS)
    if loader == "torchdata" and not torchdata:
        loader = "stateful"
    world = World(
        seed=seed,
        number=number,
        loop=loop,
        precision=rng.choice([p for p in PRECISIONS if p not in bad]),
        loader=loader,
        distribution=distribution,
        ranks=ranks,
        optimizer="LBFGS" if loop == "LBFGS" else rng.choice([o for o in OPTIMIZERS if o not in bad]),
        scheduler=rng.choice(SCHEDULERS),
        epochs=rng.randint(6, 9),
        outer=rng.random() < 0.4,
        persistent=rng.random() < 0.5,
        every_steps=rng.choice((1, 3, 4, 1000)),
        pace_seconds=rng.choice((0.001, 0.004, 0.01)),
        moments=(),
    )
    chosen = [_moment(world, rng) for _ in range(rng.randint(4, 7))]
    fields = {name: getattr(world, name) for name in World.__dataclass_fields__}
    return World(**(fields | {"moments": tuple(sorted(chosen, key=lambda m: m.at))}))


def _moment(world: World, rng: random.Random) -> Moment:
    place, at = rng.choice(PLACES), rng.randint(1, world.steps)
    if place == "evaluation":
        at = EVALUATE_EVERY * max(1, at // EVALUATE_EVERY - 1) + 1
    elif place == "epoch end":
        at = world.steps_per_epoch * rng.randint(1, world.epochs - 1) + 1
    elif place == "last step":
        place, at = rng.choice(("forward", "backward", "optimizer", "after the step")), world.steps
    elif place == "finish":
        at = world.steps + 1
    return Moment(
        place=place,
        at=at,
        how=rng.choices(HOWS, (6, 1, 2, 1))[0],
        rank=rng.randrange(world.ranks),
        skip=rng.choice((0, 0, 1)) if place in ("forward", "backward", "data", "optimizer") else 0,
        linger_seconds=rng.random() * 0.3 if place in ("restore", "anywhere") else rng.choice((0, 0, 0.01, 0.05, 0.2)),
        busy=rng.random() < 0.25,
    )


def enough(seed: int, moments: int, *, torchdata: bool) -> list[World]:
    """The first worlds of a seed that have so many moments together."""
    found: list[World] = []
    while sum(len(w.moments) for w in found) < moments:
        found.append(draw(seed, len(found), torchdata=torchdata))
    return found
