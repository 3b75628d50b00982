"""A worker's part of a round: shut the gates of its ranks, let them run to the target, open again (E1-E4).

The ranks decide what their boundary is; this file only asks, waits and passes on. Idempotent, and obedient to the greatest round seen.
"""

import asyncio
import logging
import time

from holdfast_agent import notices, slots, takeover
from holdfast_agent.clock import Deadline
from holdfast_agent.crew import Rank
from holdfast_agent.errors import PeerRefused
from holdfast_agent.outlook import outlook_of
from holdfast_agent.peers import LATER, LATER_SECONDS
from holdfast_agent.shared import Shared
from holdfast_agent.writing import Writing
from holdfast_api import peers
from holdfast_api import ranks as wire
from holdfast_api.messages import Stage

log = logging.getLogger(__name__)
FORGOTTEN_SECONDS = 3600.0
"""A round that nobody ends is opened by its lease long before."""
VOTE_SECONDS = 5.0
"""A rank's helper thread answers at once; one that has not by then is not coming."""


class Gates:
    """One attempt's. Called on the event loop's thread."""

    def __init__(self, shared: Shared, writing: Writing) -> None:
        self._shared = shared
        self._writing = writing
        self.greatest: tuple[int, str] = (0, "")
        """(round, coordinator's pod uid): the only one that is obeyed (E1)."""
        self.closed = False
        self._stand_since: float | None = None
        """When the first rank stopped for the round that runs."""
        self._lease = Deadline.after(0)
        self._asked_until = Deadline.after(0)
        self._released: tuple[int, str] = (0, "")
        self._target = 0
        self._pinned = 0
        """What the round falls back to (E4)."""
        self._emergency = False
        self._sacrifices: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    # ---- orders

    async def close_gates(self, order: peers.CloseGates) -> object:
        """GateVotes of the ranks that answered, or LATER."""
        name = self._obey(order.round, order.coordinator)
        if name != self.greatest or not self.closed:
            self.greatest, self.closed = name, True
            self._asked_until = Deadline.after(min(VOTE_SECONDS, max(0.0, order.vote_seconds)))
            for rank in self._shared.crew:
                rank.vote = None
                if rank.steps:
                    rank.send(self._close(order.round, order.lease_seconds))
            self._writing.warm()
        else:  # an evacuation has joined a round that had time
            self._asked_until.tighten(Deadline.after(max(0.0, order.vote_seconds)).at)
            for rank in self._shared.crew:
                if rank.steps and self._shared.record.evacuating:
                    rank.send(self._close(order.round, order.lease_seconds))
        self._lease = Deadline.after(order.lease_seconds)
        self._watch = self._watch or asyncio.ensure_future(self._open_when_forgotten())
        if not await self._shared.changes.until(self._all_voted, self._asked_until):
            log.warning("not all ranks answered the closing of round %d", order.round)
        return self._votes()

    async def release(self, order: peers.ReleaseGates) -> object:
        """Captured once every rank holds the target, or says that it ended before; or LATER."""
        name = self._obey(order.round, order.coordinator)
        if name != self.greatest:
            raise PeerRefused("this round was not closed here")
        self._pinned = order.pinned
        if self._released != name or order.target > self._target:  # a later target: a rank could not keep its vote
            self._released, self._target, self._emergency = name, order.target, order.evacuate
            for rank in self._shared.crew:
                self._make_room_for(rank)
                rank.send(wire.ReleaseGate(order.round, order.target))
        # How long is the coordinator's to say: what it knows of the deadline may change while the ranks run.
        soon = Deadline.after(LATER_SECONDS)
        if not await self._shared.changes.until(lambda: self._arrived(order.target) is not None, soon):
            return LATER
        answer = self._arrived(order.target)
        assert answer is not None
        if not answer.error:
            self._shared.record.stage(Stage.QUIESCED)
        return answer

    def open(self, order: peers.OpenGates) -> None:
        name = (order.round, order.coordinator)
        if name >= self.greatest:
            self.greatest = name
            self.open_all(keep=order.keep)

    # ---- also for the agent itself

    def captured(self, rank: Rank, message: wire.CapturedSlot) -> None:
        """On its way to the target a rank passes periodic boundaries; one of them may have taken the slot that the target needs."""
        if message.kind == "round" and self._stand_since is None:
            self._stand_since = time.monotonic() - message.copy_seconds
        self._make_room_for(rank)

    def open_all(self, *, keep: int = 0) -> None:
        """Training goes on; the slots of boundary `keep` are about to be written."""
        if self.closed:
            self.closed = False
            for rank in self._shared.crew:
                rank.send(wire.OpenGate(self.greatest[0]))
            if keep and self._stand_since is not None:
                self._shared.measured = self._shared.measured.stalled(time.monotonic() - self._stand_since)
            self._stand_since = None
            self._writing.release_round(keep)
            self._shared.changes.bump()

    def keep_closed(self, seconds: float) -> None:
        """The coordinator has gone on to the flush, or the evacuation is sealed: the lease starts again."""
        if self.closed:
            self._lease = Deadline.after(seconds)
            for rank in self._shared.crew:
                if rank.steps:
                    rank.send(self._close(self.greatest[0], seconds))

    def next_round(self) -> int:
        return self.greatest[0] + 1

    async def end(self) -> None:
        for task in [*self._sacrifices, *([self._watch] if self._watch is not None else [])]:
            task.cancel()

    # ---- inside

    def _close(self, round: int, lease_seconds: float) -> wire.CloseGate:
        record, config = self._shared.record, self._shared.settings.config
        if not record.evacuating:
            return wire.CloseGate(round, lease_seconds)
        deadline = notices.merge(
            record.notices.values(), default_seconds=config.notice_seconds, grace_seconds=config.grace_seconds
        ).deadline
        left = Deadline(deadline).remaining if deadline is not None else None
        return wire.CloseGate(round, lease_seconds, evacuating=True, seconds=left)

    def _obey(self, round_number: int, coordinator: str) -> tuple[int, str]:
        name = (round_number, coordinator)
        if name < self.greatest:
            raise PeerRefused(f"round {self.greatest[0]} is newer than {round_number}")
        return name

    def _all_voted(self) -> bool:
        return self._shared.crew.all(lambda r: not r.steps or (r.vote is not None and r.vote.round == self.greatest[0]))

    def _votes(self) -> peers.GateVotes:
        votes, done = {}, {}
        for rank in self._shared.crew:
            if rank.vote is not None and rank.vote.round == self.greatest[0] and rank.ended is None:
                votes[str(rank.number)] = rank.vote.boundary
                if rank.vote.done:
                    done[str(rank.number)] = rank.vote.boundary
        return peers.GateVotes(
            votes,
            done,
            self._shared.highest_save,
            self._shared.crew.clean,
            keeps=True,
            outlook=outlook_of(self._shared, self._writing.progress),
        )

    def _make_room_for(self, rank: Rank) -> None:
        task = asyncio.ensure_future(self._make_room(rank))
        self._sacrifices.add(task)
        task.add_done_callback(self._sacrifices.discard)

    async def _make_room(self, rank: Rank) -> None:
        """While the ranks run to a target, each gets a slot free for it, when takeover.py says so."""
        name = self._released

        def needed() -> bool:
            return self.closed and name == self._released == self.greatest and not rank.holds(self._target)

        def take() -> takeover.Take:
            if rank.book is None or not needed():
                return takeover.Take.NOTHING
            emergency = self._emergency or self._shared.record.evacuating
            every = self._shared.settings.config.every_steps
            arrived = takeover.waits(rank.book, boundary=rank.boundary, every=every, target=self._target)
            return takeover.decide(rank.book, emergency=emergency, arrived=arrived)

        await self._shared.changes.until(lambda: take() is not takeover.Take.LATER, Deadline.after(FORGOTTEN_SECONDS))
        if take() is takeover.Take.NOW and rank.book is not None:
            boundary = slots.sacrificed_for_round(rank.book, self._pinned)
            if boundary is not None:
                await self._sacrifice(rank, boundary)

    async def _sacrifice(self, rank: Rank, boundary: int) -> None:
        """A8: the older save gives its slot to the newer one."""
        if reading := self._writing.abandon(boundary):
            await asyncio.wait(reading, timeout=5)
        if rank.book is not None and (found := rank.book.at(boundary)) and not found[1].readers:
            self._writing.free(rank, found[0])

    def _arrived(self, target: int) -> peers.Captured | None:
        crew = self._shared.crew
        if crew.all(lambda r: self._has(r, target)):
            return peers.Captured(target)
        for rank in crew:
            if not self._has(rank, target) and not rank.steps:
                return peers.Captured(0, f"rank {rank.number} ended or left before boundary {target}")
            if (later := self._taken_back(rank, target)) is not None:
                return peers.Captured(0, f"rank {rank.number} can be caught at boundary {later} only")
        end = crew.done_at
        if end is not None and end != target and crew.all(lambda r: self._has(r, end)):
            return peers.Captured(end)  # "done at n" (E3): no rank will get further
        return None

    def _taken_back(self, rank: Rank, target: int) -> int | None:
        """The boundary that a rank votes for now, if it is later than the target: what it was to copy in the middle of a step has changed under the
        copy (I5)."""
        vote = rank.vote
        if vote is None or vote.done or vote.round != self.greatest[0] or self._has(rank, target):
            return None
        return vote.boundary if vote.boundary > target else None

    def _has(self, rank: Rank, boundary: int) -> bool:
        """In a slot; or the rank has ended its loop there and the store has it."""
        return rank.holds(boundary) or (rank.done_at == boundary and boundary <= self._shared.last_boundary)

    async def _open_when_forgotten(self) -> None:
        """E4: no gate stays closed because a coordinator died. A flush that runs, and a sealed evacuation, keep it closed."""
        while True:
            await asyncio.sleep(0.5)
            if self.closed and self._lease.passed and not self._shared.record.sealed and not self._writing.busy:
                log.warning("round %d was not ended by its coordinator; training goes on", self.greatest[0])
                self.open_all()
