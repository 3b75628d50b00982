"""Somebody who does the work that is measured: Holdfast, a floor, or a peer. Each runs in a process of its own (crew.py).

A contender is a generator, so that its whole life reads from top to bottom:

    def torch_save(state, folder):
        path = folder / "state.pt"
        yield None                      # set up: ready
        while True:
            with metered(state.bytes) as work:
                ...                     # the work
            yield work.sample()         # one round is over
            path.unlink()
            yield None                  # tidied: ready again
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias


class Kind(Enum):
    OURS = "ours"
    FLOOR = "floor"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one contender."""

    seconds: float
    bytes: int
    cpu_seconds: float
    """User and system, of its process and everything that it started."""
    extra: dict[str, float] = field(default_factory=dict)
    """Whatever else the question wants to know, by name with its unit."""

    @property
    def gb_per_second(self) -> float:
        return self.bytes / 1e9 / self.seconds

    @property
    def cpu_per_gb(self) -> float:
        return self.cpu_seconds / (self.bytes / 1e9)


Rounds: TypeAlias = Iterator[Sample | None]


@dataclass(frozen=True)
class Contender:
    name: str
    kind: Kind
    make: Callable[[], Rounds]
    """Called in the contender's own process."""
    version: str = ""
    settings: str = ""
    """In words, for the page: what was set, and what that gives up."""
