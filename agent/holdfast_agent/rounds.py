"""The coordinator's part of a round: one boundary for all ranks, captured, flushed, committed (E1-E3, E5).

At most one runs in an agent; a request that comes while one runs joins it: an evacuation wins over going on, the earlier deadline counts (F1).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from holdfast_agent import gates
from holdfast_agent.clock import Deadline, now
from holdfast_agent.errors import AgentError, PeerRefused, PeerSilent, SaveGivenUp
from holdfast_agent.gates import Gates
from holdfast_agent.periodic import Periodic
from holdfast_agent.plan import Choice, Plan
from holdfast_agent.planning import Planning, fallback_of
from holdfast_agent.saves import Saves
from holdfast_agent.shared import Shared
from holdfast_api import peers
from holdfast_api.messages import Cause, CheckpointInfo

log = logging.getLogger(__name__)
ROUND_SECONDS = 600.0
"""Deadline of a round that training survives, if none is given."""
LEASE_MARGIN_SECONDS = 10.0
OPEN_SECONDS = 15.0
AGAIN_SECONDS = 1.0
"""How often it is seen, while an older state is written, whether there is time for the newest after all."""
ENDS_SECONDS = 10.0
CLOSE_MARGIN_SECONDS = 1.0
"""For the answers of the agents, beyond those of their ranks."""
VOTE_SHARE = 0.25
"""Of what is left of a short deadline, for the ranks' answers: one that hangs must leave time for what the others hold."""
TRIES = 3
"""Of an emergency, while there is time: credentials are renewed, a connection comes back."""
PATIENCE_SECONDS = 3.0
"""Where nothing fits, so long the deadline may still prove to be later (F3)."""


@dataclass(eq=False, slots=True)
class Round:
    """One that runs."""

    cause: Cause
    evacuate: bool
    deadline: Deadline
    number: int = 0
    asked: dict[int, datetime] = field(default_factory=dict)
    """Worker -> by when it asked for it last."""
    votes: Deadline | None = None
    """Until when the ranks' answers are waited for; only ever closer."""
    arrival: Deadline | None = None
    """Until when the ranks are waited for; moves with `deadline`."""
    commit: Deadline | None = None
    """Until when the record must be written; moves with `deadline`."""
    planning: Planning | None = None
    """Of an evacuation."""
    takers: Mapping[int, int] = field(default_factory=dict)
    """Doomed worker -> the survivor that takes its part beside the upload, once that may be late."""
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
                for wait in (self._running.votes, self._running.arrival):
                    if wait is not None:
                        wait.at = now()  # asked again, for as long as there is time now, and planned anew
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
            if running.planning is not None:
                fits = running.planning.now()
                if running.votes is not None:
                    running.votes.tighten(Deadline.after(running.deadline.remaining * 2 * VOTE_SHARE).at)
                for wait, seconds in ((running.arrival, fits.arrive_seconds), (running.commit, fits.commit_seconds)):
                    if wait is not None:
                        wait.at = Deadline.after(seconds).at
            self._saves.deadline_moved()

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
            running.info = await self._evacuate(running) if running.evacuate else await self._save(running)
        except RoundLost as e:
            log.info("round %d gives way to a newer one: %s", running.number, e)
            running.lost = True
            self._least = running.number + 1
        except AgentError as e:
            log.warning("round %d made no checkpoint: %s", running.number, e)
        except asyncio.CancelledError:
            running.evacuate = False
            if running.planning is not None:
                running.planning.ended("withdrawn")
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
        """A round that training survives: the commit that holds everything, made now or earlier. Raises AgentError. It becomes an evacuation if one is
        asked for before everything is captured."""
        self._check_something_to_save()
        votes, boundary = await self._close(running), 0
        if not running.evacuate:  # else it has been joined
            running.arrival = running.deadline.copy()
            try:
                boundary = await self._arrive(running, votes, running.arrival)
            except RoundLost:
                raise
            except (AgentError, ValueError):
                if not running.evacuate:
                    raise
        if running.evacuate:
            return await self._evacuate(running)
        if all(v.keeps for v in votes):
            return await self._go_on(running, boundary)
        if boundary <= self._shared.last_boundary:
            return self._shared.last  # what the ranks hold is durable already
        # The ranks stand until it is written: it is not beside training.
        return await self._saves.make(
            boundary, running.cause, deadline=running.deadline, sealed=lambda: running.evacuate, full_speed=True
        )

    def _check_something_to_save(self) -> None:
        record = self._shared.record
        if record.claim is None and record.restored is None and not record.fresh:
            raise SaveGivenUp("the attempt has nothing to save yet")

    # ---- an evacuation

    async def _evacuate(self, running: Round) -> CheckpointInfo | None:
        """Chooses and carries out, again as long as something newer fits: what was chosen may fail, and the deadline may prove to be another one (E3, F3).
        The newest commit that it made, or that held everything before; None if something is lost. Raises AgentError."""
        planning = running.planning = Planning(
            self._shared, running.number, running.cause, running.deadline, self._periodic.under_way_seconds
        )
        self._saves.hurry()
        await self._worth_it(planning)
        self._check_something_to_save()
        votes = await self._ask(running, planning)
        failures, reason = 0, ""
        while True:
            chosen = await self._worth_it(planning)
            if chosen.choice is Choice.NOTHING and (running.info or planning.holds_everything or planning.on_node):
                planning.ended("late")  # of what was still waited for
                # What is on the nodes alone is no checkpoint: nothing newer is sealed by it (E6).
                return running.info or (self._shared.last if planning.holds_everything else None)
            planning.begins(chosen)
            try:
                match chosen.choice:
                    case Choice.NOTHING:
                        raise SaveGivenUp(reason or chosen.words)
                    case Choice.LIVE | Choice.STORE_ONLY | Choice.NODE_ONLY | Choice.RESCUE if (
                        not planning.has_captured
                    ):
                        votes = await self._run_to_target(running, planning, votes, chosen)
                    case Choice.CLEAN:
                        running.info = (
                            await self._unless_better(running, planning, chosen, self._make(running, chosen))
                            or running.info
                        )
                        planning.ended("committed")
                    case Choice.NODE_ONLY:
                        await self._keep(running, chosen)
                        planning.on_node = chosen.chosen.boundary
                        planning.ended("on-node")
                    case Choice.RESCUE:
                        await self._rescue(running, planning, chosen)
                        planning.on_node = chosen.chosen.boundary
                        planning.ended("rescued")
                    case Choice.LIVE if planning.rescue is not None:
                        running.info = await self._with_a_second_way(
                            running, planning, chosen, self._make(running, chosen)
                        )
                        planning.ended("committed")
                    case _:
                        running.info = await self._make(running, chosen)
                        planning.ended("committed")
            except RoundLost:
                planning.ended("withdrawn")
                raise
            except (AgentError, ValueError) as e:
                log.warning("round %d: %s", running.number, e)
                failures, reason = failures + 1, str(e)
                planning.ended("late" if planning.is_late else "failed")
                if chosen.choice is Choice.NOTHING or failures >= TRIES or self._shared.record.superseded_by:
                    if running.info is None:
                        raise
                    return running.info
                if not planning.has_captured:
                    # E3: what all ranks hold now; asked again, because slots were given up on the way to the target. A rank that has taken its vote
                    # back, because the state changed under its copy (I5), can be caught at its next boundary, and so can all.
                    votes = await self._ask(running, planning, failed=votes)
                else:
                    await asyncio.sleep(min(1.0, running.deadline.remaining / 8))

    async def _ask(
        self, running: Round, planning: Planning, *, failed: list[peers.GateVotes] | None = None
    ) -> list[peers.GateVotes]:
        """`failed`: votes whose target was not reached, and will not be; only a later one may."""
        votes = await self._close(running)
        try:
            target = self._target(votes)
            if failed is not None and target <= self._target(failed):
                target = 0
        except ValueError as e:
            log.warning("round %d: %s", running.number, e)
            target = 0
        planning.heard(votes, target)
        return votes

    async def _run_to_target(
        self, running: Round, planning: Planning, votes: list[peers.GateVotes], chosen: Plan
    ) -> list[peers.GateVotes]:
        """Until all ranks hold it, or as long as the plan allows: then it is planned anew, and ranks that were only slow may still come if the deadline has
        proved to be later. Raises AgentError or ValueError where they will not come at all."""
        running.arrival = Deadline.after(chosen.arrive_seconds)
        planning.released()
        try:
            planning.captured(await self._arrive(running, votes, running.arrival))
        except SaveGivenUp as e:
            if not e.may_pass:
                raise
            log.warning("round %d: %s", running.number, e)
            votes = await self._ask(running, planning)
        return votes

    async def _worth_it(self, planning: Planning) -> Plan:
        """The choice. Where the time is too short for anything it is looked at again for a moment: what SIGTERM left to assume is told soon (F3)."""
        chosen = planning.now()
        if chosen.choice is Choice.NOTHING and any(o.gain for o in chosen.options):
            limit = Deadline.after(min(PATIENCE_SECONDS, chosen.exit_seconds))
            await self._shared.changes.until(lambda: planning.now().choice is not Choice.NOTHING, limit)
            chosen = planning.now()
        return chosen

    async def _unless_better(
        self, running: Round, planning: Planning, chosen: Plan, making: Coroutine[Any, Any, CheckpointInfo]
    ) -> CheckpointInfo | None:
        """The clean slot is written, or given up because there is time for the live state after all and not for both: the deadline is a later one, or the
        store has proved to be faster than could be known. Raises SaveGivenUp."""
        changes, deadline = self._shared.changes, running.deadline
        task = asyncio.ensure_future(making)
        task.add_done_callback(lambda _: changes.bump())

        def settled(before: datetime) -> Callable[[], bool]:
            return lambda: task.done() or deadline.at != before

        try:
            while not task.done():
                await changes.until(settled(deadline.at), Deadline.after(AGAIN_SECONDS))
                if not task.done() and planning.goes_for > chosen.chosen.boundary:
                    await self._hear_again(running, planning, task)
                    if not task.done() and planning.gives_way(chosen.chosen, planning.now()):
                        planning.ended("replaced")
                        return None
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _with_a_second_way(
        self, running: Round, planning: Planning, chosen: Plan, making: Coroutine[Any, Any, CheckpointInfo]
    ) -> CheckpointInfo:
        """The live state is written; as soon as that may be late, survivors take the parts of those who go as well, which every worker that stays has its own
        beside on its node by then (E6). Raises SaveGivenUp."""
        task = asyncio.ensure_future(making)
        task.add_done_callback(lambda _: self._shared.changes.bump())
        running.takers = {}
        try:
            while not task.done():
                await self._shared.changes.until(task.done, Deadline.after(AGAIN_SECONDS))
                if not task.done() and not running.takers:
                    await self._hear_again(running, planning, task)
                    running.takers = planning.takers(chosen.chosen)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _hear_again(self, running: Round, planning: Planning, until: asyncio.Task[CheckpointInfo]) -> None:
        """What all workers expect now. Who does not answer at once changes nothing: what was heard before stands."""
        asking = asyncio.ensure_future(self._close(running))
        try:
            await asyncio.wait([until, asking], timeout=AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and asking.exception() is None:
                planning.renewed(asking.result())
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _make(self, running: Round, chosen: Plan) -> CheckpointInfo:
        """Raises SaveGivenUp."""
        boundary = chosen.chosen.boundary
        planning = running.planning
        assert planning is not None
        deadline = running.commit = Deadline.after(chosen.commit_seconds)
        if chosen.chosen.joins and (done := await self._periodic.finish(boundary, deadline)) is not None:
            return done
        await self._periodic.step_aside()
        return await self._saves.make(
            boundary,
            running.cause,
            deadline=deadline,
            emergency=True,
            sealed=lambda: running.evacuate and planning.now(committed=boundary).choice is Choice.NOTHING,
            to_node=chosen.choice is not Choice.STORE_ONLY,
            timings=lambda: planning.timings,
            takers=lambda: running.takers,
        )

    async def _keep(self, running: Round, chosen: Plan) -> None:
        """Raises SaveGivenUp."""
        deadline = running.commit = Deadline.after(chosen.exit_seconds)
        await self._periodic.step_aside()
        await self._saves.keep(chosen.chosen.boundary, running.cause, deadline=deadline)

    async def _rescue(self, running: Round, planning: Planning, chosen: Plan) -> None:
        """Raises SaveGivenUp."""
        found = planning.rescue
        if found is None:
            raise SaveGivenUp("nobody can take the parts of those who go any more")
        deadline = running.commit = Deadline.after(chosen.exit_seconds)
        await self._periodic.step_aside()
        await self._saves.keep(chosen.chosen.boundary, running.cause, deadline=deadline, takers=found.takers)

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

    async def _close(self, running: Round) -> list[peers.GateVotes]:
        s = self._shared
        left = running.deadline.remaining
        vote_seconds = min(gates.VOTE_SECONDS, max(0.2, left * VOTE_SHARE)) if running.evacuate else gates.VOTE_SECONDS
        until = running.votes = Deadline.after(min(left, vote_seconds + CLOSE_MARGIN_SECONDS))
        order = peers.CloseGates(
            s.attempt, running.number, s.settings.pod_uid, left + LEASE_MARGIN_SECONDS, vote_seconds
        )
        answers = await s.mesh.ask_all(order, until=until, round=running.number)
        _check_not_lost(answers)
        for worker, answer in answers.items():
            if isinstance(answer, BaseException):
                log.warning("worker %d did not vote: %s", worker, answer)
        votes = [a for a in answers.values() if isinstance(a, peers.GateVotes)]
        s.highest_save = max([s.highest_save, *(v.highest_save for v in votes)])
        return votes

    def _target(self, votes: list[peers.GateVotes]) -> int:
        """Raises ValueError."""
        entered = {int(r): e for v in votes for r, e in v.votes.items()}
        done = {int(r): e for v in votes for r, e in v.done_at.items()}
        return target_of(entered, done, self._shared.order.world_size)

    async def _arrive(self, running: Round, votes: list[peers.GateVotes], until: Deadline) -> int:
        """The boundary that every rank now holds. Raises AgentError or ValueError."""
        s = self._shared
        everybody = len(votes) == len(s.order.members)
        order = peers.ReleaseGates(
            s.attempt,
            running.number,
            s.settings.pod_uid,
            self._target(votes),
            until.at,
            evacuate=running.evacuate,
            pinned=fallback_of((v.clean for v in votes), s.last_boundary) or 0 if everybody else 0,
        )
        answers = await s.mesh.ask_all(order, until=until, round=running.number)
        _check_not_lost(answers)
        for answer in answers.values():
            if isinstance(answer, BaseException):
                raise SaveGivenUp(str(answer), may_pass=isinstance(answer, PeerSilent))
            if answer.error:
                raise SaveGivenUp(answer.error)
        reached = {a.boundary for a in answers.values()}
        if len(reached) != 1:
            raise SaveGivenUp(f"ranks ended at different boundaries: {sorted(reached)}")
        return int(reached.pop())

    async def _open(self, running: Round, *, keep: int = 0) -> None:
        s = self._shared
        order = peers.OpenGates(s.attempt, running.number, s.settings.pod_uid, keep)
        await s.mesh.ask_all(order, until=Deadline.after(OPEN_SECONDS), round=running.number)
