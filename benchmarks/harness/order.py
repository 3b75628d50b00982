"""Who goes when: every contender once per round, and each begins as often as any other. Pure."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def rotated(contenders: Sequence[T], round: int) -> list[T]:
    """The order of round 0, 1, …: the one before begins one place later, so whatever a round leaves behind (warm caches, a busy disk) meets everyone."""
    if not contenders:
        return []
    start = round % len(contenders)
    return [*contenders[start:], *contenders[:start]]
