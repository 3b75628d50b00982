"""Work that nobody waits for: kept from the garbage collector, bounded, cancelled at the end."""

import asyncio
from collections.abc import Coroutine
from typing import Any

MAX_TASKS = 2000


class Background:
    """Beyond `MAX_TASKS` new work is dropped: it is events and status questions, which are asked again or can be missed."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        if len(self._tasks) >= MAX_TASKS:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
