"""SIGTERM and SIGINT to the agent, and the last resort if the agent itself hangs. Ranks get neither signal: they are shielded (launcher.py)."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


def install(loop: asyncio.AbstractEventLoop, *, on_term: Callable[[], None], laptop: bool) -> None:
    """SIGTERM asks for an evacuation, once. On a laptop Ctrl-C does the same and a second one ends hard; in a pod SIGINT means nothing."""
    asked = False

    def interrupted() -> None:
        nonlocal asked
        if asked:
            log.warning("interrupted a second time: ending without saving")
            os._exit(130)  # ranks die with their parent (holdfast_rank.shield)
        asked = True
        on_term()

    loop.add_signal_handler(signal.SIGTERM, on_term)
    loop.add_signal_handler(signal.SIGINT, interrupted if laptop else lambda: log.warning("SIGINT is ignored in a pod"))


class Watchdog:
    """Ends the process at a moment, whatever the event loop does. Armed at SIGTERM and again whenever the deadline is known better: a loop that hangs
    keeps the last moment it gave."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def arm(self, seconds: float, code: int) -> None:
        """So many seconds from now, whatever was armed before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, os._exit, args=(code,))
        self._timer.daemon = True
        self._timer.start()
