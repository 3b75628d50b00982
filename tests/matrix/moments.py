"""Where a life ends: the training process itself comes to the place, and there the notice is given or somebody is killed."""

import os
import signal
import threading
import time
from collections.abc import Callable

from tests.matrix.worlds import Moment

HANGS = "hangs"
"""Is not drawn: for the test of the limit."""
BY_THE_CLOCK = ("restore", "anywhere", "finish")


class Trigger:
    """Of one training process; does nothing in those that are not meant. `passed` says the boundary passed last."""

    def __init__(
        self, moment: Moment | None, agent: int, passed: Callable[[], int], note: Callable[[int], None]
    ) -> None:
        self._moment, self._agent, self._passed, self._note = moment, agent, passed, note
        self._skipped = 0
        self._fired = False
        self._once = threading.Lock()

    def at(self, place: str) -> None:
        """The loop is there. A place that never came in its iteration happens in the next ones."""
        moment = self._moment
        if moment is None or self._fired or moment.place in BY_THE_CLOCK:
            return
        number = self._passed() + 1
        if number < moment.at or (number == moment.at and place != moment.place):
            return
        self._skipped += 1
        if self._skipped > moment.skip or number > moment.at:
            self._fire(moment)

    def soon(self, place: str) -> None:
        """A place that lasts begins: restoring, training, the end. A clock chooses the moment in it."""
        moment = self._moment
        if moment is not None and moment.place == place:
            clock = threading.Timer(moment.linger_seconds, self._fire, (moment,))
            clock.daemon = True
            clock.start()

    def _fire(self, moment: Moment) -> None:
        with self._once:
            if self._fired:
                return
            self._fired = True
        self._note(self._passed())
        if moment.how == HANGS:
            time.sleep(3600)
        if moment.how == "killed trainer":
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(self._agent, signal.SIGKILL if moment.how == "killed agent" else signal.SIGTERM)
        if moment.how == "notice, then killed":
            time.sleep(moment.linger_seconds)
            os.kill(self._agent, signal.SIGKILL)
        until = time.monotonic() + moment.linger_seconds
        while time.monotonic() < until:
            if moment.busy:
                sum(range(1000))
            else:
                time.sleep(max(0.0, until - time.monotonic()))
