"""How often the store is asked about an order to delete (D2). Pure.

The operator says an order again until it has heard how it ended, and what is kept stays ordered. Each asking of the store costs listings, and one about a
checkpoint that must stay costs them for nothing.
"""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    DELETED = "deleted"
    KEPT = "kept"
    FAILED = "failed"


REST_SECONDS = {Outcome.DELETED: 3600.0, Outcome.KEPT: 3600.0, Outcome.FAILED: 60.0}
"""A branch or a base keeps a checkpoint for days; a store that failed may do better in a minute."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How the store has answered about one checkpoint, and when (monotonic seconds)."""

    outcome: Outcome
    at: float


def rests(asked: Asked | None, now: float) -> bool:
    """The answer still counts: it is reported again, and the store is left alone."""
    return asked is not None and now - asked.at < REST_SECONDS[asked.outcome]
