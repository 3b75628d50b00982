"""Saves beside training: periodic ones, the last one, and what a round captured before it let training go on.

The lead runs periodic saves, for which no agreement is needed: it waits until every worker has offered the same boundary. All of them step aside for an
emergency.
"""

import asyncio
import logging
from collections.abc import Callable

from holdfast_agent.clock import Deadline, monotonic
from holdfast_agent.errors import PeerRefused, SaveGivenUp
from holdfast_agent.saves import Saves
from holdfast_agent.shared import Shared
from holdfast_agent.writing import PERIODIC_SECONDS
from holdfast_api import peers
from holdfast_api.messages import Cause, CheckpointInfo
from holdfast_store.errors import StoreError

log = logging.getLogger(__name__)
OFFERS_KEPT = 64
FINAL_TRIES = 5
"""Of a last state that fails for a reason that lies neither in the store nor in a peer; those are tried without end."""
FINAL_PAUSE_SECONDS = 1.0
LONGEST_FINAL_PAUSE_SECONDS = 15.0
REFUSING_SECONDS = 5.0
"""A store that has taken nothing for so long is not slow, it is away."""
LOOK_SECONDS = 0.5


class Periodic:
    """One attempt's. Called on the event loop's thread."""

    def __init__(self, shared: Shared, saves: Saves, failing: Callable[[], StoreError | None] = lambda: None) -> None:
        """`failing`: why what is saved does not get on, as far as it is the store."""
        self._shared = shared
        self._saves = saves
        self._failing = failing
        self._refuses_since: float | None = None
        self._offers: dict[int, set[int]] = {}
        self._periodic: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[CheckpointInfo]] = set()
        """Saves of rounds after which training went on."""
        self._at = 0
        """Boundary of the periodic save that runs or ran last."""
        self._failed_finals: dict[int, tuple[int, int]] = {}
        """Boundary -> how often its save failed, and how often of that for a reason that lies in the state: only those are ever enough."""
        self.impossible = ""
        """Why the last state of the job can be saved never; every offer is refused then."""

    # ---- offers

    def offered(self, offer: peers.SaveOffer) -> None:
        """The lead: a worker's ranks all hold a boundary. Raises PeerRefused if the last state can be saved never: nobody need wait for it."""
        if self.impossible:
            raise PeerRefused(f"nothing more is saved: {self.impossible}")
        self._offers.setdefault(offer.boundary, set()).add(offer.worker)
        for old in sorted(self._offers)[:-OFFERS_KEPT]:
            del self._offers[old]
        self.kick()

    def kick(self) -> None:
        """Something may have become possible: an offer, or the end of an evacuation."""
        idle = self._periodic is None or self._periodic.done()
        if idle and self._next_offer() is not None and not self._leaving:
            self._periodic = asyncio.ensure_future(self._run_periodic())

    @property
    def _leaving(self) -> bool:
        """An evacuation saves what there is; a save beside it would take its number and its store (A8)."""
        return self._shared.record.evacuating or self._shared.record.sealed

    def _next_offer(self) -> int | None:
        """The newest boundary that everybody holds and that is not committed; what is older is not worth a save any more (A8)."""
        workers = set(self._shared.mesh.workers)
        complete = [b for b, who in self._offers.items() if who >= workers and b > self._shared.last_boundary]
        return max(complete, default=None)

    async def _run_periodic(self) -> None:
        while (
            not self._leaving and (boundary := self._next_offer()) is not None and self._shared.record.claim is not None
        ):
            self._at = boundary
            cause = Cause.FINAL if self._is_final(boundary) else Cause.PERIODIC
            try:
                await self._make(boundary, cause)
            except SaveGivenUp as e:
                if e.storage is None or not self._is_final(boundary):
                    self._offers.pop(boundary, None)  # a last boundary is offered again by whoever holds it (finish.py)
                if self._is_final(boundary):
                    await self._after_failed_final(boundary, e)
            for old in [b for b in self._offers if b <= self._shared.last_boundary]:
                del self._offers[old]

    async def _make(self, boundary: int, cause: Cause) -> None:
        """The save, unless a newer boundary is worth more: while the store is away each save would hold its slot until it is back, and the ranks would
        stand still for want of one. So the newest boundary that everybody holds takes the place of the older one (A8)."""
        saving = self._saves.make(
            boundary,
            cause,
            deadline=Deadline.after(PERIODIC_SECONDS),
            for_good=self._is_replaced(boundary),
            full_speed=self._is_final(boundary) or self._shared.experience.speed_is_unknown,
        )
        task = asyncio.ensure_future(saving)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=LOOK_SECONDS)
                if not task.done() and self._store_is_away() and self._gives_way(boundary):
                    log.warning(
                        "the save of boundary %d gives way to %s: the store takes neither", boundary, self._next_offer()
                    )
                    return
        finally:
            if not task.done():
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await task

    def _gives_way(self, boundary: int) -> bool:
        newest = self._next_offer()
        return newest is not None and newest > boundary and not self._is_final(boundary)

    def _store_is_away(self) -> bool:
        """It has taken nothing for a while. A look soon after a save has begun says nothing yet, neither way."""
        if self._failing() is not None:
            self._refuses_since = self._refuses_since or monotonic()
        elif self.under_way_seconds(self._at) > REFUSING_SECONDS:
            self._refuses_since = None
        return self._refuses_since is not None and monotonic() - self._refuses_since >= REFUSING_SECONDS

    async def _after_failed_final(self, boundary: int, e: SaveGivenUp) -> None:
        self._saves.refused_by = e.storage
        self._shared.changes.bump()
        failed, in_the_state = self._failed_finals.get(boundary, (0, 0))
        failed, in_the_state = self._failed_finals[boundary] = failed + 1, in_the_state + (not e.may_pass)
        if in_the_state >= FINAL_TRIES:
            await self.give_up(str(e))
            return
        await asyncio.sleep(pause_before_try(failed))

    async def give_up(self, reason: str) -> None:
        """The lead: the last state can be saved never, for a reason that lies in it. Whoever offers what it holds is told (`offered`)."""
        self.impossible = reason
        self._offers.clear()
        self._saves.forget_unstored()
        await self._saves.tell(peers.Committed(self._shared.attempt, max(1, self._shared.highest_save), ""))

    def _is_replaced(self, boundary: int) -> Callable[[], bool]:
        """The next periodic save makes up for one that fails; nothing makes up for the last state."""
        return lambda: not self._is_final(boundary)

    def _is_final(self, boundary: int) -> bool:
        held = self._shared.crew.held(boundary)
        return bool(held) and (held[0].kind == "final" or self._shared.crew.done_at == boundary)

    async def step_aside(self) -> None:
        """An emergency: what is saved beside training ends now, unless its commit record is on the way."""
        if self._shared.committing:
            return
        running = [t for t in (self._periodic, *self._beside) if t is not None and not t.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def finish(self, boundary: int, deadline: Deadline) -> CheckpointInfo | None:
        """An emergency wants the very boundary that is being saved: it is not begun anew. None if that is not so, or it was not done in time."""
        task = self._periodic
        if self._at != boundary or task is None or task.done():
            return None
        s = self._shared
        await s.changes.until(lambda: task.done() or s.last_boundary >= boundary, deadline)
        return s.last if s.last_boundary >= boundary else None

    def under_way_seconds(self, boundary: int) -> float:
        """How long a save of this boundary has been under way; 0 if there is none."""
        running = self._periodic is not None and not self._periodic.done() and self._at == boundary
        return max(0.0, monotonic() - self._saves.started_at) if running else 0.0

    def beside_training(self, boundary: int, cause: Cause, deadline: Deadline) -> asyncio.Task[CheckpointInfo]:
        """A save of what a round has captured, for which no rank waits. The task raises SaveGivenUp, or is cancelled by an emergency."""
        task = asyncio.ensure_future(self._saves.make(boundary, cause, deadline=deadline))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    async def close(self) -> None:
        """The attempt is over: no save is begun and none is waited for any more."""
        self._saves.closed = True
        running = [t for t in (self._periodic, *self._beside) if t is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @property
    def pending(self) -> bool:
        """The lead still has something to commit, or a commit is not decided."""
        return self._saves.busy or self._next_offer() is not None


def pause_before_try(failed: int) -> float:
    """Seconds before a last state is tried again after so many failures. Pure."""
    return float(min(FINAL_PAUSE_SECONDS * 2 ** min(failed - 1, 10), LONGEST_FINAL_PAUSE_SECONDS))
