"""The lead re-reads what the job has stored, beside training, where `spec.validation.scrub` asks for it (B5): the store's own scrub, at its pace, in a thread
of the lowest priority. It holds one chunk in memory, waits for nothing that training waits for, and stands back while everybody leaves. What it finds is
reported.

Damage is mended from this node's directory too. Other nodes' images are not seen from here: `holdfast scrub --local-dir` looks into those.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from holdfast_agent.clock import Deadline
from holdfast_agent.shared import Shared
from holdfast_agent.threads import yield_to_training
from holdfast_store.job import JobStore
from holdfast_store.scrub import Ended, OnNode, Pace, Round, Source, is_due, read_notes, scrub

log = logging.getLogger(__name__)
LOOK_SECONDS = 30.0
"""After a pause, and for a round that is due."""


async def watch(shared: Shared, leaving: Callable[[], bool]) -> None:
    """One task of the lead, as long as the attempt lives. `leaving`: everybody is going away; nothing is read then."""
    s = shared
    if not s.settings.config.scrub_bytes_per_second:
        return
    await s.changes.until(lambda: s.record.loaded and s.store is not None, Deadline.after(10**8))
    while True:
        if not leaving() and s.store is not None:
            try:
                await _round(s, s.store, leaving)
            except Exception as e:  # a store that is away, or a bug: training knows nothing of it
                log.warning("what is stored could not be read again: %s: %s", type(e).__name__, e)
        await asyncio.sleep(LOOK_SECONDS)


async def _round(s: Shared, store: JobStore, leaving: Callable[[], bool]) -> None:
    notes = await s.threads.call(read_notes, store)
    if not is_due(notes, s.settings.config.scrub_every_seconds, datetime.now(UTC)):
        return
    found = await _in_its_own_thread(s, store, leaving)
    if found is None:
        return
    log.info("%d checkpoints were read again, %d problems", len(found.before) + len(found.done), len(found.problems))
    s.record.found_damaged(await s.threads.call(store.damaged))


async def _in_its_own_thread(s: Shared, store: JobStore, leaving: Callable[[], bool]) -> Round | None:
    """None where it was ended. The thread ends by itself after the chunk in hand; nobody waits for it."""
    loop = asyncio.get_running_loop()
    ended = threading.Event()
    result: asyncio.Future[Round | None] = loop.create_future()
    sources: list[Source] = [OnNode(s.node)] if s.node is not None else []

    def tell(found: Round | None, e: Exception | None) -> None:
        if not result.done():
            result.set_result(found) if e is None else result.set_exception(e)

    def work() -> None:
        yield_to_training()
        pace = Pace(s.settings.config.scrub_bytes_per_second, ended=lambda: ended.is_set() or leaving())
        found: Round | None = None
        failure: Exception | None = None
        try:
            found = scrub(store, pace=pace, sources=sources)
        except Ended:
            log.info("reading again what is stored stands back; it goes on from here")
        except Exception as e:
            failure = e
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(tell, found, failure)

    threading.Thread(target=work, name="scrub", daemon=True).start()
    try:
        return await result
    finally:
        ended.set()
