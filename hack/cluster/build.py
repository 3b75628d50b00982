"""Builds what is missing: side by side, longest first, each once, and nothing half.

Ctrl-C or SIGTERM at any point ends every program of every build by its process group and removes what they had written.
"""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

from hack.cluster.artefacts.artefact import Artefact, Children, Workshop
from hack.cluster.cache import Cache
from hack.cluster.errors import ClusterError, Interrupted
from hack.cluster.progress import Board, Listener, Step


def missing(wanted: Iterable[Artefact], cache: Cache) -> list[Artefact]:
    """What has to be built, each once, with what it needs, in the order of `plan`. Pure but for looking at the cache."""
    found: dict[str, Artefact] = {}

    def visit(artefact: Artefact) -> None:
        if artefact.name in found or artefact.is_built(cache):
            return
        found[artefact.name] = artefact
        for need in artefact.needs:
            visit(need)

    for artefact in wanted:
        visit(artefact)
    return plan(found.values())


def plan(artefacts: Iterable[Artefact]) -> list[Artefact]:
    """Longest chain first, so that the end does not wait for one long build alone. Pure."""
    listed = list(artefacts)

    def chain_seconds(artefact: Artefact) -> int:
        after = [chain_seconds(other) for other in listed if any(need.name == artefact.name for need in other.needs)]
        return artefact.usual_seconds + max(after, default=0)

    return sorted(listed, key=chain_seconds, reverse=True)


def startable(waiting: Sequence[Artefact], running: Sequence[Artefact], cores: int) -> Artefact | None:
    """The next build to start, if any may. Pure.

    As many builds as cores compete for the processor; one that mostly waits for the network comes on top of them.
    """
    unbuilt = {artefact.name for artefact in (*waiting, *running)}
    busy = sum(not artefact.mostly_waits for artefact in running)
    for artefact in waiting:
        if any(need.name in unbuilt for need in artefact.needs):
            continue
        if artefact.mostly_waits or busy < max(2, cores):
            return artefact
    return None


def build(wanted: Iterable[Artefact], cache: Cache | None = None, listener: Listener | None = None) -> None:
    """Builds what is missing of the wanted artefacts and what they need."""
    cache = cache or Cache()
    todo = missing(wanted, cache)
    if not todo:
        return
    crew = _Crew(cache, todo)
    board = Board(listener)
    with stops_on_signal():
        try:
            while not crew.finished():
                crew.start_what_may()
                board.show(crew.steps())
                crew.wait(1.0)
            board.show(crew.steps())
        finally:
            crew.stop()
    crew.raise_failure()


@dataclass
class _Job:
    artefact: Artefact
    thread: threading.Thread | None = None
    began: float = 0.0
    ended: float = 0.0
    state: str = "waiting"


@dataclass
class _Crew:
    """The builds of one call: a thread each, which mostly waits for a program."""

    cache: Cache
    todo: list[Artefact]
    jobs: dict[str, _Job] = field(init=False)
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.jobs = {artefact.name: _Job(artefact) for artefact in self.todo}
        self._children = Children()
        self._changed = threading.Condition()

    def finished(self) -> bool:
        return self.failure is not None or all(job.state == "built" for job in self.jobs.values())

    def start_what_may(self) -> None:
        with self._changed:
            while next_one := startable(self._in("waiting"), self._in("building"), os.cpu_count() or 2):
                job = self.jobs[next_one.name]
                job.state, job.began = "building", time.monotonic()
                job.thread = threading.Thread(target=self._work, args=(job,), name=next_one.name)
                job.thread.start()

    def wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait(seconds)

    def stop(self) -> None:
        """Ends what runs and waits until its traces are removed; with nothing running it does nothing."""
        self._children.end_all()
        for job in self.jobs.values():
            if job.thread is not None:
                job.thread.join()

    def raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def steps(self) -> list[Step]:
        now = time.monotonic()
        return [
            Step(
                name=job.artefact.name,
                what=job.artefact.what,
                usual_seconds=job.artefact.usual_seconds,
                state=job.state,
                elapsed_seconds=(job.ended or now) - job.began if job.began else 0.0,
            )
            for job in self.jobs.values()
        ]

    def _in(self, state: str) -> list[Artefact]:
        return [job.artefact for job in self.jobs.values() if job.state == state]

    def _work(self, job: _Job) -> None:
        state = "failed"
        try:
            make_one(job.artefact, self.cache, self._children)
            state = "built"
        except BaseException as problem:
            # The first failure is the cause; the others were stopped because of it.
            self.failure = self.failure or problem
        finally:
            with self._changed:
                job.state, job.ended = state, time.monotonic()
                self._changed.notify()


def make_one(artefact: Artefact, cache: Cache, children: Children) -> None:
    """Makes one artefact whose needs are built; does nothing if it is there by now."""
    with cache.making(artefact.name, artefact.key, artefact.keep, children.are_ended) as directory:
        if directory is None:
            return
        workshop = Workshop(cache, artefact, children)
        workshop.log.parent.mkdir(parents=True, exist_ok=True)
        workshop.log.unlink(missing_ok=True)
        shutil.rmtree(workshop.scratch)
        try:
            artefact.make(workshop, directory)
        except OSError as problem:
            raise ClusterError(f"{artefact.name}: {problem}") from problem
        finally:
            shutil.rmtree(workshop.scratch)


@contextlib.contextmanager
def stops_on_signal() -> Iterator[None]:
    """Turns SIGTERM into an exception of the main thread, as Python does with Ctrl-C; and SIGINT too where it was ignored at the start, as a shell does
    with what it starts in the background: else what is running then could not be told to take down what it made.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(f"stopped by {signal.Signals(number).name}")

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
