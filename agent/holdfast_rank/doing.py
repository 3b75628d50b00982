"""What the main thread is busy with, told to the agent so that a long wait of a known kind is not taken for a hang.

The main thread only sets a word; the helper thread looks at it a few times a second and tells what has lasted. A word that comes and goes within every
iteration is never told, and costs nothing.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

LASTS_SECONDS = 1.0


class Doing:
    """One rank's. `now` and `during` are the main thread's, `tick` is the helper's."""

    def __init__(
        self,
        tell: Callable[[str], None],
        look: Callable[[str], str] = lambda what: what,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`look` may know better than the word: it sees what the main thread does not say. On the helper thread."""
        self.now = "start"
        self._tell, self._look, self._clock = tell, look, clock
        self._seen, self._since, self._told = "", 0.0, ""

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        before, self.now = self.now, what
        try:
            yield
        finally:
            self.now = before

    def passed(self) -> None:
        """A boundary. The agent takes what it was told for over; what begins now is told anew."""
        self.now, self._told = "step", ""

    def tick(self) -> None:
        what, at = self._look(self.now), self._clock()
        if what != self._seen:
            self._seen, self._since = what, at
        elif what != self._told and at - self._since >= LASTS_SECONDS:
            self._told = what
            self._tell(what)
