"""Who uses this machine's cluster: one run at a time, because each takes it down at its end, under whoever still works on it.

The demo, the tests of the cluster and the benchmarks take their turn before they bring it up. It ends with the process, however that ends.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from hack.cluster.cache import Cache

SAY_AGAIN_SECONDS = 30


@contextlib.contextmanager
def taken(who: str, file: Path | None = None) -> Iterator[None]:
    """Waits until nobody else has it, and says for whom; then it is ours until the block ends. Raises OSError."""
    path = file or Cache().directory / "locks" / "turn"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        began, said = time.monotonic(), -1
        while not _free(handle):
            waited = int(time.monotonic() - began) // SAY_AGAIN_SECONDS
            if waited > said:
                handle.seek(0)
                holder = handle.read().strip() or "another run"
                print(
                    f"waiting for this machine's cluster, which {holder} uses: {waited * SAY_AGAIN_SECONDS} s",
                    flush=True,
                )
                said = waited
            time.sleep(0.2)
        handle.truncate(0)
        handle.write(f"{who} (process {os.getpid()})")
        handle.flush()
        try:
            yield
        finally:
            handle.truncate(0)


def _free(handle: TextIO) -> bool:
    """Not waiting in the kernel, so that Ctrl-C ends it at once."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
