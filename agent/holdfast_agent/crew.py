"""The training processes of this worker in one attempt, as the agent knows them: what they have said, what they hold, whether they live.

State and questions about it only; written by the event loop's thread. Who waits for a change uses `Changes`.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from holdfast_agent.clock import Deadline
from holdfast_agent.launcher import Process
from holdfast_agent.ranks import RankLink
from holdfast_agent.slots import SlotBook
from holdfast_api import ranks as wire

LOOK_AGAIN_SECONDS = 0.5
"""A deadline may have moved closer while somebody waits."""


class Changes:
    """Wakes everybody who waits for a condition over the agent's state."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def bump(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], bool], deadline: Deadline) -> bool:
        """True once `condition()` holds; False at the deadline."""
        while not condition():
            left = deadline.remaining
            if left <= 0:
                return False
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(future)
            try:
                await asyncio.wait([future], timeout=min(left, LOOK_AGAIN_SECONDS))
            finally:
                self._waiting.discard(future)
        return True


@dataclass(slots=True)
class Rank:
    """One training process."""

    number: int
    process: Process | None = None
    link: RankLink | None = None
    hello: wire.Hello | None = None
    wants_restore: bool = False
    reshards: bool = False
    """It can load a checkpoint of another number of ranks."""
    prepares: bool = False
    """It wants to hear where its image is being brought."""
    handed: bool = False
    """RestoreReady has been sent and not yet answered."""
    loaded: bool = False
    """It holds its state, or was told to start fresh."""
    plan: wire.Plan | None = None
    book: SlotBook | None = None
    boundary: int = 0
    stepped: bool = False
    step_seconds: float = 0.0
    passed_at: float | None = None
    """When it said so last, by `clock.monotonic`."""
    doing: str = ""
    """As it said last; empty: it does not say."""
    idle_seconds: float = 0.0
    """Since it passed a boundary, or began what is asked of it; time in which the agent stood still left out (hang_watch.py)."""
    longest_seconds: float = 0.0
    """Of these, when it did pass one, after the first of the attempt; 0 before that."""
    busy_seconds: float = 0.0
    update_seconds: float = 0.0
    data_seconds: float = 0.0
    """Moving averages, as in RankPace."""
    done_at: int | None = None
    vote: wire.Vote | None = None

    def send(self, message: wire.FromAgent) -> None:
        if self.link is not None:
            self.link.send(message)

    @property
    def looks(self) -> bool:
        """What it loads, it has looked at: it is finite (C4). Directory mode puts files back and knows nothing of what is in them."""
        return not self.is_directory_mode

    @property
    def is_directory_mode(self) -> bool:
        return self.hello is not None and self.hello.versions.get("mode") == "directory"

    @property
    def connected(self) -> bool:
        return self.link is not None and self.link.open

    @property
    def ended(self) -> int | None:
        """Exit status, None while it runs."""
        if self.process is None or not self.process.ended.done():
            return None
        return self.process.ended.result()

    @property
    def steps(self) -> bool:
        """It can answer a round."""
        return self.connected and self.loaded and self.ended is None

    def holds(self, boundary: int) -> bool:
        return self.book is not None and self.book.at(boundary) is not None


class Crew:
    """All ranks of this worker."""

    def __init__(self, numbers: range) -> None:
        self.ranks = {n: Rank(n) for n in numbers}

    def __iter__(self) -> Iterator[Rank]:
        return iter(self.ranks.values())

    def all(self, condition: Callable[[Rank], bool]) -> bool:
        return all(condition(r) for r in self)

    @property
    def processes(self) -> list[Process]:
        return [r.process for r in self if r.process is not None]

    @property
    def clean(self) -> tuple[int, ...]:
        """Boundaries that every rank holds, oldest first."""
        sets = [r.book.boundaries if r.book is not None else frozenset[int]() for r in self]
        return tuple(sorted(frozenset.intersection(*sets)))

    @property
    def done_at(self) -> int | None:
        """The last boundary, once every rank has said that it is done."""
        ends = [r.done_at for r in self]
        return min(e for e in ends if e is not None) if ends and None not in ends else None

    def held(self, boundary: int) -> list[wire.CapturedSlot]:
        """What the ranks said when they captured it, in the order of ranks; empty unless all hold it."""
        found = [r.book.at(boundary) if r.book is not None else None for r in self]
        return [f[1].captured for f in found if f is not None] if all(f is not None for f in found) else []
