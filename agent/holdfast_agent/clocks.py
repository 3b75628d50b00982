"""What happens in an attempt because time has passed, not because somebody spoke: each function is one task."""

import asyncio
import logging
from collections.abc import Callable

from holdfast_agent import interval, takeover
from holdfast_agent.clock import Deadline
from holdfast_agent.rounds import Rounds
from holdfast_agent.saves import Saves
from holdfast_agent.shared import Shared
from holdfast_agent.writing import Writing
from holdfast_api.messages import Blocked, BlockedReason, Cause

log = logging.getLogger(__name__)
LOOK_AGAIN_SECONDS = 30.0
UNUSED_SECONDS = 20.0
"""A script that has not said Hello by then does not use the library, as far as anybody can tell."""


async def watch_use(shared: Shared) -> None:
    """A script that runs long without the library trains, and nothing of it is saved: somebody must hear of it."""
    s = shared
    await asyncio.sleep(UNUSED_SECONDS)
    if all(r.hello is None for r in s.crew) and s.record.blocked is None:
        s.record.block(
            Blocked(
                BlockedReason.LIBRARY_NOT_USED,
                f"the script has run for {UNUSED_SECONDS:.0f} s without calling holdfast.Checkpointer: it trains, but nothing is saved; "
                "add the five lines that docs/ shows",
            )
        )


async def save_by_clock(shared: Shared, saves: Saves, rounds: Rounds, leaving: Callable[[], bool]) -> None:
    """every.seconds and every.auto: the lead asks for a round when the newest save is that old."""
    s = shared
    clock = asyncio.get_running_loop().time
    await s.changes.until(lambda: s.record.loaded, Deadline.after(10**8))
    saves.started_at = began = clock()
    while True:
        seconds = _seconds(s, clock() - began)
        # Looked at again now and then: what is measured meanwhile may make the interval shorter.
        await asyncio.sleep(min(LOOK_AGAIN_SECONDS, max(0.2, seconds - (clock() - saves.started_at))))
        idle = not (leaving() or s.crew.done_at is not None or rounds.active)
        if idle and clock() - saves.started_at >= seconds and s.record.boundary > s.last_boundary:
            await rounds.request(Cause.PERIODIC, evacuate=False, deadline=None).ended.wait()
            saves.started_at = max(saves.started_at, clock() - seconds / 2)


def _seconds(shared: Shared, trained_seconds: float) -> float:
    """Between the begins of two periodic saves."""
    s, config, order = shared, shared.settings.config, shared.order
    if not config.every_auto:
        return config.every_seconds
    history = interval.History(
        order.interruptions, order.interruptions_caught, order.trained_seconds + trained_seconds, len(order.members)
    )
    limits = interval.Limits(config.max_loss_seconds, config.max_overhead_percent / 100)
    before = s.record.interval
    choice = interval.steady(before, interval.choose(s.measured.costs, history, limits))
    if choice != before:
        log.info("periodic saves: %s", choice.words)
        s.record.saves_every(choice)
        s.metrics.interval.set(choice.seconds)
    return choice.seconds


async def free_forgotten_slots(shared: Shared, writing: Writing) -> None:
    """With one slot per rank nothing newer takes the place of a save that was given up unheard: a rank would wait for its slot for ever (J6)."""
    s = shared
    every, seconds = s.settings.config.every_steps, takeover.FORGOTTEN_SECONDS
    since: dict[tuple[int, int], float] = {}
    while True:
        now = asyncio.get_running_loop().time()
        waiting = {
            (r.number, slot): r
            for r in s.crew
            if r.book is not None and r.book.count == 1 and takeover.waits(r.book, boundary=r.boundary, every=every)
            for slot, held in r.book.held.items()
            if not held.readers and not writing.wants(held.captured.boundary)
        }
        since = {key: since.get(key, now) for key in waiting}
        for (number, slot), rank in waiting.items():
            if now - since[number, slot] >= seconds and rank.book is not None:
                log.warning("rank %d waits for its slot, whose save nobody makes: it is given up", number)
                writing.free(rank, slot)
                s.changes.bump()
        await asyncio.sleep(seconds / 10)
