"""The end of training in one worker: its ranks are let go once their last boundary is durable, or can be saved never.

"The store does not take it" is not never: the ranks stay, the report says why and what to mend (`blocked`), and the save is tried until it succeeds or the
agent is ended (SIGTERM, Ctrl-C, a new attempt). Never is what lies in the state: refused memory, ranks that ended at different boundaries (E3).
"""

import asyncio
import logging
from collections.abc import Mapping

from holdfast_agent import storage
from holdfast_agent.clock import Deadline
from holdfast_agent.crew import Rank
from holdfast_agent.errors import PeerAhead, PeerRefused, PeerSilent
from holdfast_agent.periodic import Periodic
from holdfast_agent.rounds import Rounds
from holdfast_agent.saves import Saves, info_of
from holdfast_agent.shared import Shared
from holdfast_agent.writing import Writing
from holdfast_api import peers
from holdfast_api import ranks as wire
from holdfast_api.messages import Blocked
from holdfast_store.errors import StoreError

log = logging.getLogger(__name__)
LAST_CAPTURE_SECONDS = 5.0
OFFER_SECONDS = 5.0
"""The last boundary is offered again so often: an offer, and how a save ended, may get lost."""
LOOK_SECONDS = 1.0
ASK_SECONDS = 10.0
IDLE_SECONDS = 60.0
"""So long nothing is heard of the others' last boundary before their ranks are asked where they ended."""
REFUSE_SECONDS = 2 * OFFER_SECONDS + 2.0
LINGER_SECONDS = 120.0
"""A worker that does not hold its last boundary stays so long, for the others to hear it."""
SILENT_SECONDS = 3600.0
"""The lead does not answer, the store has no commit, and no new attempt is ordered: nobody will save it."""


class Finish:
    """One attempt's. `run` is one task, begun when all local ranks are done."""

    def __init__(self, shared: Shared, writing: Writing, saves: Saves, periodic: Periodic, rounds: Rounds) -> None:
        self._shared = shared
        self._writing = writing
        self._saves = saves
        self._periodic = periodic
        self._rounds = rounds
        self._task: asyncio.Task[None] | None = None
        self._blocked: Blocked | None = None

    def begin(self) -> None:
        """Once; said twice it changes nothing."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    @property
    def begun(self) -> bool:
        return self._task is not None

    async def over(self) -> None:
        """Until what the ranks held at their end is committed or given up. At once if they have not said that they are done."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        s = self._shared
        end = s.crew.done_at
        assert end is not None
        reason = await self._until_durable(end)
        if reason:
            at = s.last_boundary
            log.error("the last boundary %d cannot be saved: %s; the newest checkpoint is at %d", end, reason, at)
            s.record.exit_detail = f"the last boundary {end} could not be saved: {reason}; the newest is {at}"[:2000]
        elif self._blocked is not None and s.record.blocked == self._blocked:
            log.info("the last boundary %d is durable now", end)
            s.record.block(None)
        for rank in s.crew:
            rank.send(wire.FinishAllowed())

    async def _until_durable(self, end: int) -> str:
        """Why it can be saved never, or "" once it is durable."""
        s = self._shared
        if not await self._hold(end):
            return await self._missing(end)
        idle, silent = Deadline.after(IDLE_SECONDS), Deadline.after(SILENT_SECONDS)
        while not await self._durable(end, OFFER_SECONDS):
            if s.record.evacuating or s.record.sealed:
                continue  # the round has it
            try:
                await s.mesh.ask(
                    min(s.mesh.workers),
                    peers.SaveOffer(s.attempt, s.settings.config.worker, end),
                    until=Deadline.after(ASK_SECONDS),
                )
                silent = Deadline.after(SILENT_SECONDS)
            except PeerAhead:
                continue  # the order of its attempt comes here too, and what the ranks hold is then of no more use
            except PeerRefused:
                # The lead has given it up, or has ended: in the second case the store knows more.
                if await self._in_store(end) is False:
                    await self._refuse_others(end)
                    return self._periodic.impossible or "the lead has given it up, and its report says why"
            except PeerSilent as e:
                if await self._in_store(end) is False and silent.passed:
                    return str(e)
            if self._periodic.pending:
                idle = Deadline.after(IDLE_SECONDS)
            elif s.is_lead and idle.passed and (reason := await self._of_others(end)):
                await self._periodic.give_up(reason)
                idle = Deadline.after(IDLE_SECONDS)
        return ""

    async def _hold(self, end: int) -> bool:
        """Every rank holds its last boundary, or it is durable."""
        s = self._shared
        for rank in s.crew:
            _reclaim(rank, end)

        def held() -> bool:
            return bool(s.crew.held(end)) or s.last_boundary >= end

        # The library captures the last boundary before it says Done; a rank that has not will not, whatever it is asked.
        return await s.changes.until(held, Deadline.after(LAST_CAPTURE_SECONDS))

    async def _missing(self, end: int) -> str:
        """This worker cannot give its part. The others hear it: from the lead, or when the lead asks."""
        reason = "not every rank has captured it"
        if self._shared.is_lead:
            await self._periodic.give_up(reason)
            await self._refuse_others(end)
        elif len(self._shared.mesh.workers) > 1:
            await self._durable(end, LINGER_SECONDS)
        return "" if self._shared.last_boundary >= end else reason

    async def _refuse_others(self, end: int) -> None:
        """The lead stays until every worker has offered once more and has been told."""
        if self._shared.is_lead and len(self._shared.mesh.workers) > 1:
            await self._durable(end, REFUSE_SECONDS)

    async def _durable(self, end: int, seconds: float) -> bool:
        """Waits for it so long; meanwhile whoever looks sees what is in the way."""
        s = self._shared
        limit = Deadline.after(seconds)
        while not limit.passed:
            soon = Deadline.after(LOOK_SECONDS)
            soon.tighten(limit.at)
            if await s.changes.until(lambda: s.last_boundary >= end, soon):
                return True
            self._say(self._saves.failing or self._writing.failing, end)
        return False

    def _say(self, trouble: StoreError | None, end: int) -> None:
        if trouble is None:
            return
        blocked = storage.blocked(trouble, self._shared.settings.config.storage)
        if blocked != self._blocked:
            log.error(
                "training has ended at boundary %d and cannot be stored: %s. The ranks wait. %s", end, blocked.message,
                "Ctrl-C ends without it." if self._shared.settings.laptop else "Deleting the pod ends it without it.",
            )  # fmt: skip
        self._blocked = blocked
        self._shared.record.block(blocked)

    async def _in_store(self, end: int) -> bool | None:
        """Whether a commit of this attempt has it: how a save ended may not have been heard. None if the store does not say."""
        s = self._shared
        if s.store is None:
            return None
        try:
            found = await s.threads.call(s.store.newest_commit, s.attempt)
        except StoreError as e:
            self._say(storage.refusal(e), end)
            return None
        if found is None or found.progress.boundary < end:
            return False
        s.last = info_of(found)
        s.record.committed(s.last)
        s.changes.bump()
        return True

    async def _of_others(self, end: int) -> str:
        """The lead asks everybody's ranks where they ended; "" while it can still come."""
        s = self._shared
        votes = await self._rounds.ask_ends()
        return why_never(votes, end, s.order.world_size)


def why_never(votes: Mapping[int, peers.GateVotes], end: int, world_size: int) -> str:
    """Why the boundary at which this worker's ranks ended can never be saved, from every worker's votes; "" if it can, or is not known (E3). Pure."""
    ends = {int(rank): at for v in votes.values() for rank, at in v.done_at.items()}
    if len(ends) < world_size:
        return ""  # somebody still trains, or has not answered
    if set(ends.values()) != {end}:
        return f"the ranks ended at different boundaries: {sorted(set(ends.values()))}"
    lacking = sorted(w for w, v in votes.items() if end not in v.clean)
    return f"workers {lacking} have not captured it" if lacking else ""


def _reclaim(rank: Rank, end: int) -> None:
    """A save of this boundary failed while it was one of many, and its slot was given back; now it is the last, and the rank captures no more."""
    if rank.done_at == end and rank.book is not None and not rank.holds(end):
        rank.book.reclaim(end)
