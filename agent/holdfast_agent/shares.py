"""Which of several workers sends a chunk that all of them hold (J4): state that is the same on every rank is sent once, each worker its share.

A chunk is named by its content, so workers that hold copies of one state can tell whose it is without a word to each other: by its name. A copy that differs
has another name, which nobody else has. What is another's is looked for once one's own is stored, and sent all the same if it does not come: a worker that is
slow or gone costs time, never a save.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from holdfast_agent import replicas
from holdfast_agent.stopping import Stop
from holdfast_store.errors import StoreError

FIRST_LOOK_SECONDS = 1.0
"""So long at most the first answer about what others have stored is waited for, also in an emergency: one listing costs less than one chunk."""
LOOK_SECONDS = 0.5
PAUSE_SECONDS = 0.05
LEAST_PATIENCE_SECONDS = 2.0
"""Beside training others are waited for as long as one's own share has taken, and this at least."""
HURRIED_PATIENCE, HURRIED_SHARE = 0.25, 0.05
"""In an emergency, for this part of the time that one's own share has taken, and of the time that is left."""
MOST_RANKS = 1 << 20


def workers_of(group: str, ranks_per_worker: int) -> tuple[int, ...]:
    """The workers of a group of ranks (`0-3,6`, as manifests write it), in order. Empty for a text that is no such group. Pure."""
    found: set[int] = set()
    for run in group.split(","):
        first, _, last = run.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            return ()
        begin, end = int(first), int(last or first)
        if not begin <= end < MOST_RANKS:
            return ()
        found.update(range(begin // ranks_per_worker, end // ranks_per_worker + 1))
    return tuple(sorted(found))


def shared_by(sides: Mapping[str, replicas.Compared], ranks_per_worker: int) -> dict[int, tuple[int, ...]]:
    """By the number of the chunk, the workers that should hold the same: of those that hold nothing but copies of one group. Pure."""
    found: dict[int, tuple[int, ...]] = {}
    for key, side in sides.items():
        workers = workers_of(replicas.group_in(key), ranks_per_worker)
        if len(workers) > 1:
            found |= dict.fromkeys(side.chunks, workers)
    return found


def sends(worker: int, name: str, workers: tuple[int, ...]) -> bool:
    """Whether a chunk is this worker's to send. One that nobody else is known to hold always is. Pure."""
    return worker not in workers or workers[int(name[:16], 16) % len(workers)] == worker


def patience(own_seconds: float, left_seconds: float, *, background: bool) -> float:
    """Seconds to wait for what others send, once one's own share, which took `own_seconds`, is on its way; `left_seconds` until the save is given up. Pure."""
    if background:
        return min(max(LEAST_PATIENCE_SECONDS, own_seconds), left_seconds / 2)
    return min(HURRIED_PATIENCE * own_seconds, HURRIED_SHARE * left_seconds)


def first_look(left_seconds: float) -> float:
    """Seconds to wait for the first answer. Pure."""
    return min(FIRST_LOOK_SECONDS, HURRIED_SHARE * left_seconds)


class Arrived:
    """What lies under a save by now, as listings say it. Any thread. A listing that hangs or fails holds nobody up: then nothing is known to be there."""

    def __init__(self, listed: Callable[[], Mapping[str, int]], pool: Executor) -> None:
        """`listed`: sizes by name."""
        self._listed, self._pool = listed, pool
        self._lock = threading.Lock()
        self._sizes: Mapping[str, int] = {}
        self._looking = False
        self._answers = 0
        self._next = 0.0

    def shows(self, name: str, size: int) -> bool:
        """At once."""
        self._look()
        with self._lock:
            return self._sizes.get(name) == size

    def has(self, name: str, size: int, patience: Callable[[], float], stop: Stop) -> bool:
        """Waits for `patience` seconds, which is asked again and again; for the first answer a moment at least."""
        first_until = time.monotonic() + first_look(stop.left)
        while True:
            if self.shows(name, size):
                return True
            with self._lock:
                answered = self._answers > 0
            if stop.wanted or (patience() <= 0 and (answered or time.monotonic() >= first_until)):
                return False
            stop.pause(PAUSE_SECONDS)

    def _look(self) -> None:
        """Unless somebody does, or has just done."""
        with self._lock:
            if self._looking or time.monotonic() < self._next:
                return
            self._looking = True
        try:
            self._pool.submit(self._ask)
        except RuntimeError:  # the pool is closed: the agent ends
            return

    def _ask(self) -> None:
        try:
            sizes: Mapping[str, int] | None = self._listed()
        except StoreError:
            sizes = None  # who sends what is not seen here hears the store's own words
        with self._lock:
            self._sizes = self._sizes if sizes is None else sizes
            self._answers += 1
            self._looking, self._next = False, time.monotonic() + LOOK_SECONDS
