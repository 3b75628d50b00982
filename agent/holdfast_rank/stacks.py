"""What the threads of this process are doing, written to a file at a signal: by the C handler of faulthandler, which needs no interpreter's lock. So it works
while the main thread waits in a collective, in a kernel of its own, or holds the lock and never lets it go.

The signal is a real-time one that nobody uses by habit. It is left alone if the script has taken it. Worker processes that the script forks inherit
handler and file.
"""

import contextlib
import faulthandler
import os
import signal
from typing import IO

NUMBER = getattr(signal, "SIGRTMAX", 0) - 7
"""64 on Linux is the greatest; the C library keeps the smallest ones."""
_open: dict[str, IO[bytes]] = {}
"""Kept open for as long as the process lives: the handler writes to the descriptor."""


def register(path: str) -> int:
    """Writes to `path` (made anew, appended to) at the signal whose number is returned; 0 if there is no way. Never raises."""
    if NUMBER <= 0:
        return 0
    if path in _open:
        return NUMBER
    with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
        if signal.getsignal(NUMBER) is not signal.SIG_DFL:
            return 0
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        file = os.fdopen(fd, "wb", buffering=0)
        faulthandler.register(NUMBER, file=file, all_threads=True, chain=False)
        _open[path] = file
        return NUMBER
    return 0


def path_beside(socket: str, rank: int) -> str:
    """On the memory volume, next to the agent's socket."""
    return f"{socket}.stacks-{rank}"
