"""C5, D2, D5: 200 checkpoints under random retention rules, deleted by two collectors at once that are killed at any operation. What is kept stays whole, and
what is given up goes in the end, with every chunk that nobody needs.

The collectors act as the leads that were ordered to delete: through the store's own code, one bucket operation at a time, in an order that a seed decides.
"""

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from worlds import CHUNK, NOW, World, ref

from holdfast_api import layout
from holdfast_api.layout import CheckpointRef
from holdfast_api.retention import Best, EverySteps, Last, Pinned, Policy, Saved, decide
from holdfast_store.chunks import digest
from holdfast_store.errors import Absent, StoreError
from holdfast_store.memory import MemoryBucket

ALPHABET = [bytes([letter]) * CHUNK for letter in b"abcdefghijklmnopqrstuvwxyz"]


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Collector:
    """A process that deletes, in a thread that stops before each operation of the bucket."""

    work: Callable[[], None]
    dies_at: int
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: bool = False
    operations: int = 0


class Turns:
    """Lets one collector do one operation at a time."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.here = threading.local()
        self.control = threading.Semaphore(0)

    def before_call(self, _operation: str, _key: str) -> None:
        mine: Collector | None = getattr(self.here, "collector", None)
        if mine is None:
            return
        self.control.release()
        mine.go.acquire()
        mine.operations += 1
        if mine.operations == mine.dies_at:
            raise Killed

    def run(self, collectors: Iterable[Collector]) -> None:
        running = list(collectors)
        for each in running:
            threading.Thread(target=self._live, args=(each,), daemon=True).start()
        while alive := [c for c in running if not c.done]:
            self.chance.choice(alive).go.release()
            self.control.acquire()

    def _live(self, collector: Collector) -> None:
        collector.go.acquire()
        self.here.collector = collector
        try:
            collector.work()
        except (Killed, StoreError):
            pass
        finally:
            collector.done = True
            self.control.release()


class History:
    """A run of saves, each on the one before it, and its retention."""

    def __init__(self, seed: int, policy: Policy) -> None:
        self.chance = random.Random(seed)
        self.policy = policy
        self.turns = Turns(self.chance)
        self.bucket = MemoryBucket(before_call=self.turns.before_call)
        self.world = World(self.bucket).claimed(1)
        self.image = [self.chance.choice(ALPHABET) for _ in range(3)]
        self.kept: dict[CheckpointRef, bytes] = {}
        self.saved: list[Saved] = []
        self.given_up: set[CheckpointRef] = set()
        self.deaths = 0

    def save(self, number: int) -> None:
        self.image[self.chance.randrange(3)] = self.chance.choice(ALPHABET)  # content comes back
        base = self.saved[-1].ref if self.saved else None
        image = b"".join(self.image)
        self.world.saved(1, number, image, base=base)
        metrics = {"loss": self.chance.random()}
        self.saved.append(Saved(ref(1, number), number, NOW, metrics=metrics, image_bytes=len(image)))
        self.kept[ref(1, number)] = image
        for doomed in decide(self.policy, self.saved, NOW).given_up:
            self.given_up.add(doomed)
            del self.kept[doomed]
        self.saved = [s for s in self.saved if s.ref in self.kept]

    def collect(self, *, may_die: bool) -> None:
        """Both are told to delete everything that is given up, as the operator says it again until it has heard how it ended."""
        gone: set[CheckpointRef] = set()

        def work() -> None:
            for doomed in sorted(self.given_up):
                if self.world.store.expire(doomed, by_attempt=1, reason="retention").deleted:
                    gone.add(doomed)

        dies = [self.chance.randint(1, 60) if may_die and self.chance.random() < 0.4 else 0 for _ in range(2)]
        collectors = [Collector(work, at) for at in dies]
        self.turns.run(collectors)
        self.deaths += sum(c.operations == c.dies_at for c in collectors)
        self.given_up -= gone

    def check(self) -> None:
        for checkpoint, image in self.kept.items():
            assert self.world.image(checkpoint) == image, checkpoint
        assert self.world.candidates(2)[0] == str(max(self.kept))


def referred(history: History) -> set[str]:
    found = set()
    for checkpoint in history.kept:
        record, _ = history.world.store.read_commit(checkpoint)
        manifest = history.world.store.read_manifest(record, 0)
        found |= {layout.chunk_key(c.at, c.digest) for c in manifest.chunks}
    return found


def lived(history: History, saves: int) -> None:
    for number in range(1, saves + 1):
        history.save(number)
        history.collect(may_die=False)
        history.check()


POLICIES = [
    Policy((Last(3),)),
    Policy((Last(2), Best("loss", 3), EverySteps(40))),
    Policy((Last(5), Pinned(frozenset({ref(1, 7), ref(1, 90)}))), 60),
]


@pytest.mark.parametrize("seed", range(len(POLICIES)))
def test_two_collectors_that_are_killed_anywhere_lose_nothing_and_leave_nothing(seed: int) -> None:
    history = History(seed, POLICIES[seed])
    for number in range(1, 201):
        history.save(number)
        history.collect(may_die=True)
        if number % 10 == 0:
            history.check()
    history.collect(may_die=False)
    history.world.store.sweep(attempt=1)
    history.check()
    assert history.deaths > 40
    assert not history.given_up
    assert set(history.world.stored("/chunks/")) == referred(history)


def test_this_would_find_a_collector_that_does_not_look_at_the_other_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """D2: a chunk goes only if no remaining commit refers to it."""
    from holdfast_store import collect, deletion

    monkeypatch.setattr(collect, "_held", lambda *_: deletion.Held())
    with pytest.raises(Absent):
        lived(History(1, POLICIES[0]), 60)


def test_chunks_have_the_digests_that_name_them() -> None:
    """So that the alphabet above really shares chunks between checkpoints."""
    history = History(3, Policy((Last(1000),)))
    for number in range(1, 40):
        history.save(number)
    names = [key.rsplit("/", 1)[1] for key in history.world.stored("/chunks/")]
    assert len(set(names)) < len(names), "content that comes back is stored anew, under the save that wrote it"
    assert set(names) <= {digest(piece) for piece in ALPHABET}
