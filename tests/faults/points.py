"""How many of all possible faults a test run tries: an even sample that the seed moves, or every one.

HOLDFAST_ALL_POINTS=1 tries every one (minutes); HOLDFAST_FAULT_SEED moves the sample (0 where it is not set).
"""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def seed() -> int:
    return int(os.environ.get("HOLDFAST_FAULT_SEED", "0"))


def everything() -> bool:
    return os.environ.get("HOLDFAST_ALL_POINTS", "") not in ("", "0")


def sample(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly spread, both ends' neighbourhoods among them; all where everything is wanted. A function of the seed."""
    if everything() or len(items) <= most:
        return list(items)
    step = len(items) / most
    start = (seed() * 0.618) % 1.0
    return [items[int((n + start) * step)] for n in range(most)]
