"""The coordinator's part of a round: one boundary for all ranks, captured, flushed, committed (E1-E3, E5).

At most one runs in an agent; a request that comes while one runs joins it: an evacuation wins over going on, the earlier deadline counts (F1).
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from holdfast_agent import plan
from holdfast_agent.clock import Deadline
from holdfast_agent.errors import AgentError, PeerRefused, SaveGivenUp
from holdfast_agent.gates import Gates
from holdfast_agent.periodic import Periodic
from holdfast_agent.saves import Saves
from holdfast_agent.shared import Shared
from holdfast_api import peers
from holdfast_api.messages import Cause, CheckpointInfo

log = logging.getLogger(__name__)
ROUND_SECONDS = 600.0
"""Deadline of a round that training survives, if none is given."""
LEASE_MARGIN_SECONDS = 10.0
OPEN_SECONDS = 15.0
ENDS_SECONDS = 10.0
TRIES = 3


@dataclass(eq=False, slots=True)
class Round:
    """One that runs."""

    cause: Cause
    evacuate: bool
    deadline: Deadline
    number: int = 0
    asked: dict[int, datetime] = field(default_factory=dict)
    """Worker -> by when it asked for it last."""
    arrival: Deadline | None = None
    """Until when the ranks are waited for; moves with `deadline`."""
    commit: Deadline | None = None
    """Until when the record must be written; moves with `deadline`."""
    going_on: bool = False
    """Everything is captured and training goes on: an evacuation that comes now is a round of its own."""
    lost: bool = False
    """Another coordinator runs a greater round: it decides, this one keeps still (E1)."""
    info: CheckpointInfo | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


def earliest(asked: Mapping[int, datetime], before: datetime) -> datetime:
    """F1: the minimum over those who ask. Each one's newest word counts, so that what was assumed at SIGTERM may be lengthened (F3). Pure."""
    return min(asked.values(), default=before)


def target_of(votes: Mapping[int, int], done: Mapping[int, int], world_size: int) -> int:
    """S of E2, from the votes of all ranks. Raises ValueError, in words, if there is none (E3). Pure."""
    if len(votes) < world_size:
        missing = sorted(set(range(world_size)) - set(votes))
        raise ValueError(f"ranks {missing[:16]} did not vote")
    target = max(votes.values())
    ends = {v for r, v in done.items() if v < target}
    if ends and len(done) < world_size:
        # A rank that voted for the boundary after its last one takes the vote back by saying done; the arrival settles that (gates.py).
        target = max(target, max(ends))
    if target <= 0:
        raise ValueError("no rank has passed a boundary")
    return target


def fallback_of(clean: Iterable[Iterable[int]], newer_than: int) -> int | None:
    """The newest boundary that every worker holds clean and that is not committed yet (E3). Pure."""
    sets = [frozenset(c) for c in clean]
    common = frozenset.intersection(*sets) if sets else frozenset()
    return max((b for b in common if b > newer_than), default=None)


class RoundLost(AgentError):
    """A member obeys a greater round."""


def _check_not_lost(answers: Mapping[int, object]) -> None:
    for answer in answers.values():
        if isinstance(answer, PeerRefused):
            raise RoundLost(str(answer))


class Rounds:
    """One attempt's. Called on the event loop's thread."""

    def __init__(self, shared: Shared, gates: Gates, saves: Saves, periodic: Periodic) -> None:
        self._shared = shared
        self._gates = gates
        self._saves = saves
        self._periodic = periodic
        self._running: Round | None = None
        self._task: asyncio.Task[None] | None = None
        self._reopen = True
        self._least = 1
        """A round with a smaller number would be refused somewhere."""

    # ---- requests

    def request(self, cause: Cause, *, evacuate: bool, deadline: datetime | None, worker: int = -1) -> Round:
        """Starts a round or joins the running one; `ended` is set when it is over. `worker` is who asks."""
        if self._running is not None and not (evacuate and self._running.going_on):
            self.wanted_by(worker, deadline)
            if evacuate and not self._running.evacuate:
                self._running.evacuate, self._running.cause = True, cause
            return self._running
        seconds = self._shared.settings.config.notice_seconds if evacuate else ROUND_SECONDS
        running = Round(
            cause,
            evacuate,
            Deadline.of(deadline, otherwise_seconds=seconds),
            max(self._least, self._gates.next_round()),
        )
        if deadline is not None:
            running.asked[worker] = deadline
        if evacuate and self._shared.record.sealed:
            running.ended.set()  # said twice: it is over already
            return running
        self._running = running
        self._task = asyncio.ensure_future(self._run(running))
        return running

    @property
    def active(self) -> Round | None:
        return self._running

    def wanted_by(self, worker: int, deadline: datetime | None) -> None:
        """A worker's newest word on how long there is."""
        running = self._running
        if running is None or deadline is None:
            return
        if worker < 0 and worker in running.asked:
            deadline = min(deadline, running.asked[worker])
        running.asked[worker] = deadline
        at = earliest(running.asked, running.deadline.at)
        if at != running.deadline.at:
            running.deadline.at = at
            fits = self._fit(running)
            for wait, seconds in ((running.arrival, fits.arrive_seconds), (running.commit, fits.commit_seconds)):
                if wait is not None:
                    wait.at = Deadline.after(seconds).at

    async def cancel(self, *, reopen: bool) -> None:
        """The notices were withdrawn (`reopen`: everybody's gates open again), or the attempt is over."""
        if self._task is not None and not self._task.done():
            self._reopen = reopen
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def ask_ends(self) -> dict[int, peers.GateVotes]:
        """Every worker's votes, with the gates opened again at once: where the ranks that are done have ended (E3). Empty while a round runs."""
        if self._running is not None:
            return {}
        s = self._shared
        number = max(self._least, self._gates.next_round())
        order = peers.CloseGates(s.attempt, number, s.settings.pod_uid, ENDS_SECONDS + LEASE_MARGIN_SECONDS)
        answers = await s.mesh.ask_all(order, until=Deadline.after(ENDS_SECONDS), round=number)
        opened = peers.OpenGates(s.attempt, number, s.settings.pod_uid)
        await s.mesh.ask_all(opened, until=Deadline.after(ENDS_SECONDS), round=number)
        return {w: a for w, a in answers.items() if isinstance(a, peers.GateVotes)}

    # ---- one round

    async def _run(self, running: Round) -> None:
        try:
            if running.evacuate:
                await self._periodic.step_aside()
            running.info = await self._save(running)
        except RoundLost as e:
            log.info("round %d gives way to a newer one: %s", running.number, e)
            running.lost = True
            self._least = running.number + 1
        except AgentError as e:
            log.warning("round %d made no checkpoint: %s", running.number, e)
        except asyncio.CancelledError:
            running.evacuate = False
            raise
        except Exception:
            log.exception("round %d failed", running.number)
        finally:
            if self._running is running:
                self._running = None
            try:
                if running.lost or running.going_on or not self._reopen:
                    pass
                elif not running.evacuate:
                    await self._open(running)
                elif not self._shared.record.sealed:
                    await self._saves.seal(running.info)
            finally:
                running.ended.set()
                self._shared.changes.bump()

    async def _save(self, running: Round) -> CheckpointInfo | None:
        """The commit that holds everything, made now or earlier; None if something is lost. Raises AgentError."""
        s = self._shared
        fits = self._fit(running)
        if not fits.worth_it:
            raise SaveGivenUp(f"{running.deadline.remaining:.1f} s are too short for anything new")
        if s.record.claim is None and s.record.restored is None and not s.record.fresh:
            raise SaveGivenUp("the attempt has nothing to save yet")
        votes = await self._close(running, fits)
        try:
            boundary = await self._arrive(running, votes)
        except RoundLost:
            raise
        except (AgentError, ValueError) as e:
            log.warning("round %d: %s", running.number, e)
            return await self._fall_back(running, str(e))
        if not running.evacuate and all(v.keeps for v in votes):
            return await self._go_on(running, boundary)
        if boundary <= s.last_boundary:
            return s.last  # what the ranks hold is durable already
        return await self._make(running, boundary)

    async def _go_on(self, running: Round, boundary: int) -> CheckpointInfo | None:
        """The copy is there: training waits for nothing more. What is left is a save like a periodic one, which an evacuation puts aside."""
        running.going_on = True
        await self._open(running, keep=boundary)
        if boundary <= self._shared.last_boundary:
            return self._shared.last
        saving = self._periodic.beside_training(boundary, running.cause, running.deadline)
        if self._running is running:
            self._running = None
        self._shared.changes.bump()
        await asyncio.wait([saving])
        if saving.cancelled():
            raise SaveGivenUp("an evacuation came before it was written")
        return saving.result()

    async def _close(self, running: Round, fits: plan.Plan) -> list[peers.GateVotes]:
        s = self._shared
        lease = running.deadline.remaining + LEASE_MARGIN_SECONDS
        until = Deadline.after(min(fits.arrive_seconds, 15.0))
        order = peers.CloseGates(s.attempt, running.number, s.settings.pod_uid, lease)
        answers = await s.mesh.ask_all(order, until=until, round=running.number)
        _check_not_lost(answers)
        for worker, answer in answers.items():
            if isinstance(answer, BaseException):
                log.warning("worker %d did not vote: %s", worker, answer)
        votes = [a for a in answers.values() if isinstance(a, peers.GateVotes)]
        s.highest_save = max([s.highest_save, *(v.highest_save for v in votes)])
        return votes

    async def _arrive(self, running: Round, votes: list[peers.GateVotes]) -> int:
        """The boundary that every rank now holds. Raises AgentError or ValueError."""
        s = self._shared
        entered = {int(r): e for v in votes for r, e in v.votes.items()}
        done = {int(r): e for v in votes for r, e in v.done_at.items()}
        target = target_of(entered, done, s.order.world_size)
        if target == s.last_boundary and all(e == target for e in entered.values()) and running.evacuate:
            log.info("round %d: boundary %d is committed already", running.number, target)
        until = running.arrival = Deadline.after(self._fit(running).arrive_seconds)
        order = peers.ReleaseGates(
            s.attempt, running.number, s.settings.pod_uid, target, until.at, evacuate=running.evacuate
        )
        answers = await s.mesh.ask_all(order, until=until, round=running.number)
        _check_not_lost(answers)
        for answer in answers.values():
            if isinstance(answer, BaseException):
                raise SaveGivenUp(str(answer))
            if answer.error:
                raise SaveGivenUp(answer.error)
        reached = {a.boundary for a in answers.values()}
        if len(reached) != 1:
            raise SaveGivenUp(f"ranks ended at different boundaries: {sorted(reached)}")
        return int(reached.pop())

    async def _fall_back(self, running: Round, reason: str) -> CheckpointInfo | None:
        """E3: what all ranks hold now; asked again, because slots were given up on the way to the target."""
        votes = await self._close(running, self._fit(running))
        complete = len(votes) == len(self._shared.order.members)
        boundary = fallback_of((v.clean for v in votes), self._shared.last_boundary) if complete else None
        if boundary is None:
            raise SaveGivenUp(reason)
        log.warning("round %d falls back to boundary %d", running.number, boundary)
        return await self._make(running, boundary)

    async def _make(self, running: Round, boundary: int) -> CheckpointInfo:
        """An emergency is worth another try while there is time: credentials are renewed, a connection comes back, the deadline proves to be later."""
        if running.evacuate:
            await self._periodic.step_aside()
        for left in reversed(range(TRIES if running.evacuate else 1)):
            fits = self._fit(running)
            deadline = running.commit = Deadline.after(fits.commit_seconds)
            try:
                return await self._saves.make(
                    boundary,
                    running.cause,
                    deadline=deadline,
                    emergency=running.evacuate,
                    sealed=lambda: running.evacuate,
                )
            except SaveGivenUp:
                if not left or not self._fit(running).worth_it or self._shared.record.superseded_by:
                    raise
                await asyncio.sleep(min(1.0, self._fit(running).commit_seconds / 4))
        raise AssertionError("unreachable")

    async def _open(self, running: Round, *, keep: int = 0) -> None:
        s = self._shared
        order = peers.OpenGates(s.attempt, running.number, s.settings.pod_uid, keep)
        await s.mesh.ask_all(order, until=Deadline.after(OPEN_SECONDS), round=running.number)

    def _fit(self, running: Round) -> plan.Plan:
        s = self._shared
        return plan.fit(running.deadline.remaining, logical_bytes=s.logical_bytes, bytes_per_second=s.bytes_per_second)
