"""Many worlds side by side, with a line that says how far it is."""

import importlib.util
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.matrix import lives
from tests.matrix.lives import Outcome
from tests.matrix.worlds import World

BESIDE = int(os.environ.get("HOLDFAST_WORLDS_BESIDE", "0")) or (os.cpu_count() or 1) + 1
"""Worlds at a time: an agent that was told to end waits a little now and then."""
TORCHDATA = importlib.util.find_spec("torchdata") is not None


def run(worlds: Iterable[World], folder: Path, say: Callable[[str], None], beside: int = BESIDE) -> list[Outcome]:
    """What a world left is removed unless it failed. `say` hears each failure in full, and the line."""
    worlds = list(worlds)
    line = Line(sum(len(w.moments) for w in worlds), len(worlds), say)
    outcomes = []
    with lives.server(folder) as server, ThreadPoolExecutor(beside) as pool:
        running = {pool.submit(lives.run, w, folder / f"world-{w.number}", server): w for w in worlds}
        for done in as_completed(running):
            outcome = done.result()
            outcomes.append(outcome)
            if outcome.wrong:
                say(failure(outcome))
            else:
                shutil.rmtree(folder / f"world-{outcome.world.number}", ignore_errors=True)
            line.count(outcome)
    return sorted(outcomes, key=lambda o: o.world.number)


def failure(outcome: Outcome) -> str:
    world = outcome.world
    moments = "".join(f"\n  {n}: {m}" for n, m in enumerate(world.moments))
    wrong = "".join(f"\n  - {w}" for w in outcome.wrong[: lives.compare.MOST])
    more = len(outcome.wrong) - lives.compare.MOST
    last = f"\n  … {more} more; {outcome.wrong[-1]}" if more > 0 else ""
    return (
        f"\nFAILED {world}\n it was taken away at:{moments}\n and differs:{wrong}{last}\n"
        f" again: scripts/run -m tests.matrix --seed {world.seed} --world {world.number}\n"
    )


def table(outcomes: list[Outcome]) -> str:
    """How many worlds and moments of each kind there were."""
    kinds: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        world = outcome.world
        for kind, value in (
            ("loop", world.loop), ("precision", world.precision), ("loader", world.loader), ("distribution", f"{world.distribution} of {world.ranks}"),
        ):  # fmt: skip
            kinds.setdefault(kind, Counter())[value] += 1
        for moment in outcome.moments:
            kinds.setdefault("moment", Counter())[moment.place] += 1
            kinds.setdefault("how", Counter())[moment.how] += 1
        kinds.setdefault("class of the saves", Counter()).update(outcome.classes)
    return "\n".join(
        f"  {kind}: " + ", ".join(f"{v} {n}" for v, n in sorted(found.items())) for kind, found in kinds.items()
    )


class Line:
    """`say` rewrites one line on a terminal, and gets one every twentieth of the way elsewhere."""

    def __init__(self, moments: int, worlds: int, say: Callable[[str], None]) -> None:
        self._moments, self._worlds, self._say = moments, worlds, say
        self._done = self._come = self._over = self._failed = 0
        self._began = time.monotonic()
        self._said = 0
        self._terminal = sys.__stderr__ is not None and sys.__stderr__.isatty()

    def count(self, outcome: Outcome) -> None:
        self._over += 1
        self._done += len(outcome.world.moments)
        self._come += len(outcome.moments)
        self._failed += bool(outcome.wrong)
        part = self._done / max(1, self._moments)
        bar = ("#" * round(20 * part)).ljust(20)
        words = f"[{bar}] {self._over} of {self._worlds} worlds, {self._come} moments, {self._failed} failed, {time.monotonic() - self._began:.0f} s"
        if self._terminal:
            self._say(f"\r{words}" + ("\n" if self._over == self._worlds else ""))
        elif int(20 * part) > self._said or self._over == self._worlds:
            self._said = int(20 * part)
            self._say(f"{words}\n")
