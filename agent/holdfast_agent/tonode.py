"""One save's images on their way to the node's directory (B9, faults 11-13): pieces in any order, as they have been hashed; then all of them durable.

A disk that is full is given room once for each thing that may go: leftovers and older checkpoints, then the node's copy of the newest one, which the store
has too. A file whose write or flush failed is abandoned and all of it written again, once, under another name. What fails then costs the node's copy and
nothing else: the store is what counts.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import datetime
from functools import partial
from typing import Any, Protocol, TypeVar

from holdfast_agent.clock import now
from holdfast_agent.errors import SaveGivenUp
from holdfast_agent.lanes import Lane
from holdfast_agent.threads import Stop
from holdfast_api.layout import CheckpointRef
from holdfast_store.errors import Full, Unavailable
from holdfast_store.folders import NewFile
from holdfast_store.local import LocalTier

T = TypeVar("T")
WRITES = 2
"""Of one image: the first, and one more after an error of the disk."""


class Image(Protocol):
    """One rank's, in the arena."""

    @property
    def rank(self) -> int: ...

    @property
    def views(self) -> Sequence[memoryview]:
        """Its pieces, in order."""


class ToNode:
    """`offer` on hashing threads, everything else on the event loop's thread."""

    def __init__(
        self,
        ref: CheckpointRef,
        base: CheckpointRef | None,
        images: Sequence[Image],
        node: LocalTier,
        pool: Executor,
        width: int,
        stop: Stop,
    ) -> None:
        self._ref = ref
        self._images = images
        self._node = node
        self._pool = pool
        self._width = width
        self._stop = stop
        self._lock = threading.Lock()
        self._offered: list[tuple[int, int]] = []
        self._lane: Lane | None = None
        self._files: list[NewFile] = []
        self._complete = False
        # What is kept while room is made, the less the later.
        self._keeps = [{ref} | ({base} if base is not None else set()), {ref}]

    def offer(self, image: int, piece: int) -> None:
        """A piece is hot: it is written next, or as soon as writing has begun."""
        with self._lock:
            self._offered.append((image, piece))
            if self._lane is not None:
                self._lane.add(partial(self._write, image, piece))

    def complete(self) -> None:
        """All pieces have been offered, or no more will be. Twice is fine."""
        with self._lock:
            self._complete = True
            if self._lane is not None:
                self._lane.end()

    async def run(self) -> datetime:
        """When all images were durable. Raises StoreError, or SaveGivenUp if the save was stopped."""
        writes = WRITES
        while True:
            try:
                return await self._once()
            except Full:
                if not self._keeps:
                    raise
                await self._call(self._node.prune, self._keeps.pop(0))
            except Unavailable:
                writes -= 1
                if not writes or self._stop.wanted:
                    raise

    async def _once(self) -> datetime:
        try:
            for image in self._images:
                size = sum(v.nbytes for v in image.views)
                self._files.append(await self._call(self._node.begin_image, self._ref, image.rank, size))
            lane = Lane(self._pool, self._width)
            with self._lock:
                for number, piece in self._offered:
                    lane.add(partial(self._write, number, piece))
                self._lane = lane
                if self._complete:
                    lane.end()
            await lane.over
            self._check(len(self._offered) == sum(len(i.views) for i in self._images))
            for file in self._files:
                await self._call(file.keep)
            return now()
        finally:
            await self._close()

    def _write(self, image: int, piece: int) -> None:
        self._check(not self._stop.wanted)
        views = self._images[image].views
        self._files[image].write(views[piece], sum(v.nbytes for v in views[:1]) * piece)

    def _check(self, going_on: bool) -> None:
        if not going_on:
            raise SaveGivenUp(self._stop.reason or "the save ended before the node had its image")

    async def _close(self) -> None:
        """Nobody writes any more, or ever will."""
        with self._lock:
            lane, self._lane = self._lane, None
            if lane is not None:
                lane.end()
        if lane is not None:
            await asyncio.wait([lane.over])
        files, self._files = self._files, []
        for file in files:
            await self._call(file.close)

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
