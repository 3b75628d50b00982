"""A request that is cut when its time is up, with its connection: a server that is gone without a word answers never, and a deadline does not wait.

obstore's time-outs are fixed per client, and a second client would have connections of its own to warm up. Its asynchronous calls can be cancelled, which
closes the connection. One thread runs the loop in which they are cancelled; callers wait on theirs.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import obstore

from holdfast_store.bound import Bound

T = TypeVar("T")
_making = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def put(store: Any, key: str, view: memoryview, mode: Any, bound: Bound | None) -> None:
    """One single PUT (J3). TimeoutError at the end of `bound`, else what obstore raises."""

    async def start() -> None:
        await obstore.put_async(store, key, view, mode=mode, use_multipart=False)

    if bound is None:
        obstore.put(store, key, view, mode=mode, use_multipart=False)
    else:
        within(bound, start)


def within(bound: Bound, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of the coroutine that `start` makes, or what it raises. TimeoutError at the end of `bound`, which may come nearer meanwhile; what was sent
    by then may have been carried out."""
    running: Future[T] = asyncio.run_coroutine_threadsafe(_bounded(bound, start), _the_loop())
    return running.result()


async def _bounded(bound: Bound, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:

        def set_to(end: float) -> None:
            with contextlib.suppress(RuntimeError):  # the request has just ended
                limit.reschedule(end)

        # The loop's clock is `time.monotonic`.
        with bound.followed(lambda end: _soon(loop, set_to, end)):
            return await start()


def _soon(loop: asyncio.AbstractEventLoop, function: Callable[[float], None], end: float) -> None:
    loop.call_soon_threadsafe(function, end)


def _the_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _making:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="requests", daemon=True).start()
        return _loop
