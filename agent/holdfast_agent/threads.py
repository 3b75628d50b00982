"""Where blocking work runs: each kind on a pool of its own, so that a flush of many chunks never delays a claim or a commit, nor a slow store the node."""

import asyncio
import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from holdfast_agent.link import Link
from holdfast_agent.mappings import Mappings
from holdfast_agent.stopping import Stop as Stop
from holdfast_agent.throttle import Throttle
from holdfast_store.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")
CHUNK_THREADS = min(32, 4 * (os.cpu_count() or 1) + 4)
METADATA_THREADS = 8
NODE_THREADS = 16
SENDING_THREADS = 160
"""Of one emergency and of what is left of the save that steps aside for it. A thread that waits for an answer costs a few KiB."""
LOWEST_PRIORITY = 19
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class Threads:
    """Pools, and what flushes keep from one to the next (`link`, `slots`, `throttle`). Their threads begin when they are needed. They are not waited for
    when the process ends: it ends by `os._exit` once everything that counts is durable."""

    def __init__(self, background_bytes_per_second: int = 0) -> None:
        """What is sent beside training at most; 0: no limit."""
        self.cpus = cpus()
        self.chunks = ThreadPoolExecutor(CHUNK_THREADS, thread_name_prefix="chunk")
        """Restores."""
        self.metadata = ThreadPoolExecutor(METADATA_THREADS, thread_name_prefix="store")
        self.hashing = ThreadPoolExecutor(self.cpus, thread_name_prefix="hash")
        self.node = ThreadPoolExecutor(NODE_THREADS, thread_name_prefix="node")
        self.sending = ThreadPoolExecutor(SENDING_THREADS, thread_name_prefix="send")
        self.background = ThreadPoolExecutor(1, thread_name_prefix="background", initializer=yield_to_training)
        """Hashes beside training."""
        self.link = Link()
        self.slots = Mappings()
        self.throttle = Throttle(background_bytes_per_second)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs store metadata or other short blocking work."""
        return await asyncio.get_running_loop().run_in_executor(self.metadata, lambda: function(*args, **kwargs))

    async def on_node(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs short work on the node's directory: a disk that hangs holds up nothing of the store."""
        return await asyncio.get_running_loop().run_in_executor(self.node, lambda: function(*args, **kwargs))

    async def send(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs what goes to the store with a save and is repeated for as long as the save may take: claims and new slots do not wait behind it."""
        return await asyncio.get_running_loop().run_in_executor(self.sending, lambda: function(*args, **kwargs))

    def close(self) -> None:
        for pool in (self.chunks, self.metadata, self.hashing, self.node, self.sending, self.background):
            pool.shutdown(wait=False, cancel_futures=True)


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def yield_to_training() -> None:
    """The calling thread gets what is left of the processors. It cannot be taken back without privileges: so background work has threads of its own."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


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
            # Not all at the same moment: a store that is too busy is asked by many at once.
            stop.pause(min(pause * random.uniform(0.5, 1.5), left))
            if stop.wanted:
                raise
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
