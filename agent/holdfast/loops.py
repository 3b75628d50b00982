"""The table of loop kinds (I4): what may be copied when, and why. Pure: from what is known of a loop to its class, in words.

A loop is boundary only until it has shown that it is more: whatever is not in the table, or has not been audited (I5), is copied at boundaries by
the main thread, as every loop can be. `refused` are states that cannot be saved at all; the parts refuse them by name when they are registered.
"""

from dataclasses import dataclass, field

from holdfast.audit import ROUNDS
from holdfast_rank.gate import LoopClass


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a loop, by looking at the registered objects and at its first iterations."""

    off: str = ""
    """Why copies between windows are not wanted."""
    optimizers: tuple[str, ...] = ()
    """Class names."""
    closures: bool = False
    """`step` was given a closure: forward and backward run inside it."""
    in_backward: bool = False
    """An optimizer stepped while a backward ran."""
    in_graph: bool = False
    """An optimizer's step was captured into a CUDA graph."""
    silent: int = 0
    """Boundaries in a row, from the start or lately, before which no optimizer's hook fired."""
    windows: int = 0
    """Update windows seen."""
    bypassed: bool = False
    """State was updated in an iteration that never came to the gate."""
    not_live: str = ""
    """Why no list of storages can stand for the state (I6)."""
    slow: str = ""
    """Why capturing the small state at each boundary costs too much."""
    clean: int = 0
    """Audits passed in a row."""
    moved: tuple[str, ...] = ()
    """Tensors found to change between boundaries, and copied at each since."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """`kind` is a row of the table, `why` says the rest to a person."""

    kind: str
    loop: LoopClass
    why: str = ""
    final: bool = field(default=False)
    """Nothing that the loop does later makes it mid-step."""


SILENT_BOUNDARIES = 64
"""So many boundaries without any optimizer's hook: longer than usual accumulation."""


def judge_loop(facts: Facts) -> Judgement:
    """The first row that fits."""
    only, kind = LoopClass.BOUNDARY_ONLY, kind_of(facts)
    if facts.off:
        return Judgement(kind, only, facts.off, True)
    if not facts.optimizers:
        return Judgement(
            "no torch optimizer", only, "no optimizer is registered, so nothing tells when updates begin", True
        )
    if "LBFGS" in facts.optimizers:
        return Judgement(
            "LBFGS", only, "it runs forward and backward inside its step, and its state changes form", True
        )
    if facts.closures:
        return Judgement("closure", only, "forward and backward run inside optimizer.step(closure)", True)
    if facts.in_graph:
        return Judgement(
            "graph of the update", only, "an optimizer's step is part of a CUDA graph, whose replays no hook sees", True
        )
    if facts.bypassed:
        return Judgement("updates past the gate", only, "state changes without optimizer.step() being seen", True)
    if facts.silent >= SILENT_BOUNDARIES:
        return Judgement(
            "hooks do not fire",
            only,
            f"{facts.silent} boundaries without a hook of optimizer.step(): a graph of the whole step?",
        )
    for reason in (facts.not_live, facts.slow):
        if reason:
            return Judgement(kind, only, reason, True)
    if facts.clean < ROUNDS:
        return Judgement(kind, only, f"still being audited: {facts.clean} of {ROUNDS} iterations clean")
    moved = ", ".join(facts.moved[:5]) + (f" and {len(facts.moved) - 5} more" if len(facts.moved) > 5 else "")
    return Judgement(kind, LoopClass.MID_STEP, f"copied at each boundary: {moved}" if moved else "")


def kind_of(facts: Facts) -> str:
    """The name of the row that an allowed loop belongs to."""
    if "ZeroRedundancyOptimizer" in facts.optimizers:
        return "ZeRO-1"
    if facts.in_backward:
        return "optimizer in backward"
    return "several optimizers" if len(facts.optimizers) > 1 else "plain"
