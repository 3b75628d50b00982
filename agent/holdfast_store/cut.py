"""A request that is cut when its time is up, with its connection: a server that is gone without a word answers never, and a deadline does not wait.

obstore's time-outs are fixed per client, and a second client would have connections of its own to warm up. Its asynchronous calls can be cancelled, which
closes the connection. One thread runs the loop in which they are cancelled; callers wait on theirs.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import obstore

T = TypeVar("T")
_making = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def put(store: Any, key: str, view: memoryview, mode: Any, seconds: float | None) -> None:
    """One single PUT (J3). TimeoutError after `seconds`, else what obstore raises."""

    async def start() -> None:
        await obstore.put_async(store, key, view, mode=mode, use_multipart=False)

    if seconds is None:
        obstore.put(store, key, view, mode=mode, use_multipart=False)
    else:
        within(seconds, start)


def within(seconds: float, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of the coroutine that `start` makes, or what it raises. TimeoutError after `seconds`; what was sent by then may have been carried out."""
    running: Future[T] = asyncio.run_coroutine_threadsafe(_bounded(seconds, start), _the_loop())
    return running.result()


async def _bounded(seconds: float, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async with asyncio.timeout(seconds):
        return await start()


def _the_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _making:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="requests", daemon=True).start()
        return _loop
