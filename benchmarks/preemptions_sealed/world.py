"""What a simulated preemption is made of, drawn from a seed. The assumptions of the benchmark stand here and nowhere else.

Nothing of it is known to the code that is tested; that sees only what its own measurements have shown.
"""

import dataclasses
import math
import random
from dataclasses import dataclass

SIZE_SHARE = 0.6
"""The state is as large as an emergency flush writes in this part of the budget, at the store's usual speed."""


@dataclass(frozen=True, slots=True)
class World:
    """Times in seconds."""

    seed: int
    mid_step: bool
    """The loop can be copied between two update windows; else at its boundaries only (I4)."""
    told_by: str
    """`sigterm`: a bare SIGTERM, of which 15 s are assumed; `notice`: an acting notice with its deadline; `told`: SIGTERM first, the deadline a little
    later."""
    budget: float
    workers: int
    step: float
    jitter: float
    """Standard deviation of a step's time, as a share."""
    window: float
    """Share of a step in which parameters change."""
    bytes_per_second: float
    """Of one worker to the store, in an emergency."""
    beside: float
    """Speed of saves beside training, as a share of that."""
    unsteady: float
    """Standard deviation of the logarithm of the speed, from one flush to the next."""
    stall: float
    """Once in the emergency flush the store takes nothing for so long."""
    copy: float
    """Of the state into a slot."""
    request: float
    latency: float
    """Of a message between agents."""
    heard_after: float
    """From the moment of the notice to the agents."""
    told_after: float
    """From SIGTERM to the operator's word on the deadline (`told`)."""
    earlier_flushes: int
    """How many saves this pod has measured in earlier attempts."""
    every: int
    """Boundaries between two periodic saves."""
    phase: int
    """Of them, that have passed when the simulation begins."""
    training: float
    """From the start of the simulation to the notice."""
    size_share: float = SIZE_SHARE
    node: float = 0.0
    """Bytes a second of one worker to its node's directory, which is there for those who come next (F4); 0: there is none, and the machine goes."""
    away: float = 0.0
    """From the deadline until the next pods have their attempt. (With nodes only.)"""
    returns: bool = True
    """Every worker's next pod comes to its node; else worker 0's does not."""
    hangs: bool = False
    """One rank stands still from the notice on and answers nothing. (Not in the benchmark.)"""
    moved_to: float | None = None
    """The deadline turns out to be so long after the notice. (Not in the benchmark.)"""
    moved_after: float = 0.0

    @property
    def state_bytes(self) -> int:
        """Of one worker."""
        return max(1, int(self.size_share * self.budget * self.bytes_per_second))


def draw(seed: int, *, mid_step: bool) -> World:
    r = random.Random(f"{seed}/{mid_step}")
    budget = r.choice((15.0, 30.0))
    told_by = r.choice(("sigterm", "notice")) if budget == 15.0 else r.choice(("told", "notice"))
    step = _log_uniform(r, 0.05, 5.0)
    return World(
        seed=seed,
        mid_step=mid_step,
        told_by=told_by,
        budget=budget,
        workers=r.choice((1, 1, 2, 3)),
        step=step,
        jitter=r.uniform(0.01, 0.1),
        window=r.uniform(0.01, 0.1),
        bytes_per_second=_log_uniform(r, 20e6, 5e9),
        beside=r.uniform(0.25, 1.0),
        unsteady=r.uniform(0.02, 0.12),
        stall=r.uniform(0.2, 1.5) if r.random() < 0.1 else 0.0,
        copy=budget * r.uniform(0.005, 0.03),
        request=_log_uniform(r, 0.005, 0.15),
        latency=_log_uniform(r, 0.0003, 0.02),
        heard_after=r.uniform(0.01, 0.2),
        told_after=r.uniform(0.05, 1.5),
        earlier_flushes=r.choice((0, 1, 3, 10, 30, 100)),
        every=(every := max(1, math.ceil(_log_uniform(r, 30.0, 600.0) / step))),
        phase=r.randrange(every),
        training=max(r.uniform(3.0, 60.0), r.uniform(3.2, 6.0) * step),
    )


def draw_on_nodes(seed: int) -> World:
    """Pods go and their machines stay; the state often does not fit into the budget (half of it to three times as long as it is), and a node's disk takes
    it 1.5 to 20 times as fast as the store. The pods have trained for one to ten minutes, so that something is at stake. Three times of four all pods come back
    to their nodes, within a minute."""
    r = random.Random(f"{seed}/nodes")
    usual = draw(seed, mid_step=True)
    step = _log_uniform(r, 0.5, 5.0)
    every = max(1, math.ceil(_log_uniform(r, 30.0, 600.0) / step))
    return dataclasses.replace(
        usual,
        told_by="notice" if usual.told_by == "sigterm" else usual.told_by,
        size_share=r.uniform(0.5, 3.0),
        step=step,
        every=every,
        phase=r.randrange(every),
        training=_log_uniform(r, 60.0, 600.0),
        node=usual.bytes_per_second * _log_uniform(r, 1.5, 20.0),
        away=r.uniform(5.0, 60.0),
        returns=r.random() < 0.75,
    )


SLOWER_THAN_EVER = World(
    seed=0, mid_step=True, told_by="notice", budget=120.0, workers=2, step=0.4, jitter=0.1, window=0.05,
    bytes_per_second=10e6, beside=0.004, unsteady=0.05, stall=0.0, copy=0.02, request=0.02, latency=0.001, heard_after=0.2,
    told_after=1.0, earlier_flushes=1, every=20, phase=0, training=9.0, size_share=0.0004,
)  # fmt: skip
"""What `make demo` once met: two minutes, a state that an emergency flush writes in a moment, and a save beside training that took many times as long as
any before when the notice came."""


def _log_uniform(r: random.Random, low: float, high: float) -> float:
    return math.exp(r.uniform(math.log(low), math.log(high)))
