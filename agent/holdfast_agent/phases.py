"""Which phase an agent is in, as a function of what it knows (level-triggered: no transition can be missed). Pure.

The flags only ever go from False to True within an attempt, except `evacuating` and `sealed`, which a withdrawn notice takes back.
"""

from dataclasses import dataclass

from holdfast_api.messages import AgentPhase


@dataclass(frozen=True, slots=True)
class Facts:
    attempt: int = 0
    resolved: bool = False
    """The lead has said what is loaded."""
    loaded: bool = False
    """All local ranks hold their state, or were told to start fresh."""
    evacuating: bool = False
    sealed: bool = False
    finished: bool = False
    failed: bool = False
    blocked: bool = False


_FIRST_TRUE: tuple[tuple[str, AgentPhase], ...] = (
    ("failed", AgentPhase.FAILED),
    ("finished", AgentPhase.FINISHED),
    ("sealed", AgentPhase.SEALED),
    ("evacuating", AgentPhase.EVACUATING),
    ("blocked", AgentPhase.BLOCKED),
    ("loaded", AgentPhase.TRAINING),
    ("resolved", AgentPhase.RESTORING),
)
"""The table, strongest fact first: an agent that is to go says so also while it waits for a person."""


def phase_of(facts: Facts) -> AgentPhase:
    if facts.attempt == 0:
        return AgentPhase.BLOCKED if facts.blocked else AgentPhase.WAITING
    for name, phase in _FIRST_TRUE:
        if getattr(facts, name):
            return phase
    return AgentPhase.STARTING
