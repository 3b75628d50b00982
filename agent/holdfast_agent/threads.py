"""Where blocking work runs: chunk work on one pool, metadata of the store on another, so that a flush of many chunks never delays a claim or a commit."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from holdfast_store.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")
CHUNK_THREADS = min(32, 4 * (os.cpu_count() or 1) + 4)
METADATA_THREADS = 8
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class Threads:
    """Two pools. They are not waited for when the process ends: it ends by `os._exit` once everything that counts is durable."""

    def __init__(self) -> None:
        self.chunks = ThreadPoolExecutor(CHUNK_THREADS, thread_name_prefix="chunk")
        self.metadata = ThreadPoolExecutor(METADATA_THREADS, thread_name_prefix="store")

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs store metadata or other short blocking work."""
        return await asyncio.get_running_loop().run_in_executor(self.metadata, lambda: function(*args, **kwargs))

    def close(self) -> None:
        self.chunks.shutdown(wait=False, cancel_futures=True)
        self.metadata.shutdown(wait=False, cancel_futures=True)


class Stop:
    """Tells threads that their work is no longer wanted, or no longer fits. May be set from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""
        self.at = float("inf")
        """Monotonic seconds after which nothing is tried again."""
        self.failing: Unavailable | None = None
        """Why a call that is repeated has failed so far; None once one went through."""

    def set(self, reason: str) -> None:
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    @property
    def wanted(self) -> bool:
        return self._event.is_set() or time.monotonic() >= self.at

    def pause(self, seconds: float) -> None:
        self._event.wait(min(seconds, max(0.0, self.at - time.monotonic())))


def persist(stop: Stop, function: Callable[[], T], *, patience: float = float("inf")) -> T:
    """Repeats a call that fails for a reason that may pass (Unavailable), with growing pauses, until `stop`, and for `patience` seconds at most. On a
    worker thread."""
    end, pause = time.monotonic() + patience, FIRST_PAUSE_SECONDS
    while True:
        try:
            result = function()
            stop.failing = None
            return result
        except Unavailable as e:
            stop.failing = e
            left = end - time.monotonic()
            if stop.wanted or left <= 0:
                raise
            stop.pause(min(pause, left))
            if stop.wanted:
                raise
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
