"""Says what is being built, for how long, and how long it usually takes.

On a terminal the lines are redrawn in place; elsewhere (a log, a continuous integration run) a line comes now and then.
"""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

QUIET_SECONDS = 15.0

Listener = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One artefact on its way."""

    name: str
    what: str
    usual_seconds: int
    state: str
    elapsed_seconds: float

    def line(self) -> str:
        if self.state == "waiting":
            return f"{self.name:<12} {self.what}: waiting, usually {self.usual_seconds} s"
        if self.state == "building":
            return f"{self.name:<12} {self.what}: {self.elapsed_seconds:.0f} s, usually {self.usual_seconds} s"
        return f"{self.name:<12} {self.what}: {self.state} after {self.elapsed_seconds:.0f} s"


def summary(steps: Sequence[Step]) -> str:
    """All that is going on in one line. Pure."""
    running = [step for step in steps if step.state == "building"]
    done = sum(step.state == "built" for step in steps)
    each = [f"{step.what} {step.elapsed_seconds:.0f} s of about {step.usual_seconds} s" for step in running]
    return f"building ({done} of {len(steps)} done): " + "; ".join(each)


class Board:
    """Shows steps to a person, or hands lines to a listener."""

    def __init__(self, listener: Listener | None = None, out: TextIO | None = None) -> None:
        self._listener = listener
        self._out = out or sys.stderr
        self._redraws = listener is None and self._out.isatty()
        self._drawn = 0
        self._said_at = 0.0
        self._ended: set[str] = set()

    def show(self, steps: Sequence[Step]) -> None:
        """Called about once a second."""
        if self._redraws:
            self._redraw(steps)
            return
        for step in steps:
            if step.state not in ("waiting", "building") and step.name not in self._ended:
                self._ended.add(step.name)
                self._say(step.line())
        if time.monotonic() - self._said_at >= QUIET_SECONDS and any(step.state == "building" for step in steps):
            self._said_at = time.monotonic()
            self._say(summary(steps))

    def _redraw(self, steps: Sequence[Step]) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A")
        # A line that wraps would take two rows, and the next drawing would start too low.
        width = shutil.get_terminal_size().columns - 1
        for step in steps:
            self._out.write(f"\x1b[2K{step.line()[:width]}\n")
        self._out.flush()
        self._drawn = len(steps)

    def _say(self, line: str) -> None:
        if self._listener is not None:
            self._listener(line)
        else:
            print(line, file=self._out, flush=True)
