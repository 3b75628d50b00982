"""What follows from the notices of one attempt: a round while somebody is to go, a save while somebody may go, going on when it was taken back (E1, F1-F3).

`notices.merge` decides; this file asks a coordinator, watches that the evacuation ends, and ends the agent in time when SIGTERM has said that it is this pod.
"""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any

from holdfast_agent import notices, plan
from holdfast_agent.clock import Deadline, now
from holdfast_agent.errors import AgentError
from holdfast_agent.gates import Gates
from holdfast_agent.periodic import Periodic
from holdfast_agent.rounds import Rounds
from holdfast_agent.shared import Shared
from holdfast_agent.signals import Watchdog
from holdfast_api import peers
from holdfast_api.messages import Cause, CheckpointOrder, Exit, Notice, Stage
from holdfast_api.names import EXIT_CODES

log = logging.getLogger(__name__)
ASK_SECONDS = 2.0
"""A coordinator that does not take a request in by then is taken for unreachable; the next worker is asked."""
LOOK_SECONDS = 0.5
SEALED_LEASE_SECONDS = 600.0
REQUEST_SECONDS = 900.0
HARD_END_SECONDS = 0.4
"""The watchdog ends the process so long before the deadline if the event loop does not."""


class Evacuation:
    """One attempt's. Called on the event loop's thread."""

    def __init__(self, shared: Shared, gates: Gates, rounds: Rounds, periodic: Periodic, watchdog: Watchdog) -> None:
        self._shared = shared
        self._gates = gates
        self._rounds = rounds
        self._periodic = periodic
        self._watchdog = watchdog
        self._driving: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._prepared: set[str] = set()
        self._requests: set[str] = set()
        self._acted = False
        self._stopping = False
        self.terminated = False
        """SIGTERM has come."""

    # ---- what is heard

    def notice(self, records: Iterable[Notice]) -> None:
        """The operator's records, any order, any number of times (F1)."""
        for record in records:
            self._shared.record.notices[notices.key(record)] = record
        self._shared.record.changed()
        self.update()

    def sigterm(self) -> None:
        """Once; a second one changes nothing."""
        if self.terminated:
            return
        self.terminated = True
        config = self._shared.settings.config
        self.notice(
            [
                notices.assumed_at_sigterm(
                    worker=config.worker,
                    node=self._shared.settings.node,
                    now=now(),
                    grace_seconds=config.grace_seconds,
                    floor_seconds=config.sigterm_floor_seconds,
                )
            ]
        )
        self._later(self._end_in_time())

    def checkpoint(self, order: CheckpointOrder) -> None:
        if order.request_id not in self._requests and order.request_id not in self._shared.record.done_requests:
            self._requests.add(order.request_id)
            self._later(self._carry_out(order))

    def sealed(self, message: peers.Committed) -> None:
        """The coordinator says that the evacuation is over; the ranks stay at the gate."""
        s = self._shared
        if s.record.sealed:
            return  # said twice
        s.sealed_new = message.info is not None
        s.record.sealed = True
        s.record.stage(Stage.SEALED)
        s.record.changed()
        self._gates.keep_closed(SEALED_LEASE_SECONDS)
        self._later(self._stay_closed())
        if message.info is not None and message.info.cause is Cause.SUSPEND:
            self._stopping = True
        s.changes.bump()
        if self._stopping or self._being_deleted():
            self._later(self._end_when_told())

    def update(self) -> None:
        """Level-triggered: looks at all records."""
        s = self._shared
        merged = self._merged()
        if merged.acting:
            self._acted = True
            if merged.noticed_at is not None:
                s.record.stage(Stage.NOTICED, merged.noticed_at)
            if self._rounds.active is not None:
                self._rounds.wanted_by(s.settings.config.worker, merged.deadline)
            if not s.record.sealed:
                if not s.record.evacuating:
                    s.record.evacuating = True
                self._drive()
            elif self._being_deleted():
                self._later(self._end_when_told())
        elif self._acted:
            self._acted = False
            self._later(self._withdraw())
        self._prepare(merged)
        s.record.changed()
        s.changes.bump()

    async def close(self) -> None:
        for task in [*self._tasks, *([self._driving] if self._driving else [])]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- what is done

    def _drive(self) -> None:
        if self._driving is None or self._driving.done():
            self._driving = asyncio.ensure_future(self._until_sealed())

    async def _until_sealed(self) -> None:
        """Asks until it is over: a coordinator that dies is followed by the next (E1, E5)."""
        s = self._shared
        while not s.record.sealed and (merged := self._merged()).acting:
            if not s.record.loaded:
                log.warning("the evacuation finds nothing to save: the attempt has not loaded yet")
            own = s.settings.config.worker
            request = peers.RoundRequest(s.attempt, merged.cause, True, merged.deadline, merged.doomed, own)
            for worker in coordinators(s.mesh.workers, merged.doomed):
                try:
                    await s.mesh.ask(worker, request, until=Deadline.after(ASK_SECONDS))
                    break
                except AgentError as e:
                    log.warning("worker %d cannot coordinate: %s", worker, e)
            await s.changes.until(lambda: s.record.sealed or not self._merged().acting, Deadline.after(LOOK_SECONDS))

    def _prepare(self, merged: notices.Merged) -> None:
        """A notice that does not act yet is worth one save (F2). The lead asks for it."""
        new = set(merged.preparing) - self._prepared
        if new and not merged.acting and self._shared.is_lead and self._shared.record.loaded:
            self._prepared |= new
            self._rounds.request(merged.cause, evacuate=False, deadline=None)

    async def _withdraw(self) -> None:
        """No notice acts any more: gates open, training goes on; what was committed stays a normal checkpoint."""
        s = self._shared
        await self._rounds.cancel(reopen=True)
        if self._stopping or self._merged().acting:
            return
        s.record.evacuating = s.record.sealed = s.sealed_new = False
        for stage in (Stage.NOTICED, Stage.QUIESCED, Stage.LOCAL_DURABLE, Stage.SEALED):
            s.record.stages.pop(stage.value, None)
        self._gates.open_all()
        self._periodic.kick()
        s.record.changed()
        s.changes.bump()

    async def _carry_out(self, order: CheckpointOrder) -> None:
        """The lead runs the round; another worker asks it to, in case it was not told."""
        s = self._shared
        self._stopping |= order.then_stop
        s.record.evacuating |= order.then_stop
        limit = Deadline.of(order.deadline, otherwise_seconds=REQUEST_SECONDS)
        await s.changes.until(lambda: s.record.loaded, limit)
        if s.is_lead:
            running = self._rounds.request(
                order.cause, evacuate=order.then_stop, deadline=order.deadline, worker=s.settings.config.worker
            )
            await running.ended.wait()
        else:
            known = self._gates.greatest
            if not await s.changes.until(lambda: self._gates.greatest > known, Deadline.after(ASK_SECONDS)):
                request = peers.RoundRequest(s.attempt, order.cause, order.then_stop, order.deadline)
                await _quietly(s.mesh.ask(min(s.mesh.workers), request, until=limit))
            before = s.last_boundary
            await s.changes.until(lambda: s.record.sealed or s.last_boundary > before, limit)
        s.record.request_done(order.request_id)
        if order.then_stop and s.record.sealed:
            await self._end_when_told()

    async def _stay_closed(self) -> None:
        while self._shared.record.sealed:
            await asyncio.sleep(SEALED_LEASE_SECONDS / 4)
            if self._shared.record.sealed:
                self._gates.keep_closed(SEALED_LEASE_SECONDS)

    # ---- the end

    async def _end_in_time(self) -> None:
        """After SIGTERM: as soon as everything is sealed and told, and in any case before the deadline (F3)."""
        s = self._shared
        until: Deadline | None = None
        while True:
            deadline = self._merged().deadline
            if deadline is not None and (until is None or until.at != deadline):
                until = Deadline(deadline)
            left = until.remaining if until is not None and deadline is not None else 0.0
            # The watchdog reports less than the truth can be: an end by it has not been able to say more.
            code = EXIT_CODES[Exit.PREEMPTED_SEALED if s.sealed_new else Exit.PREEMPTED_NOTHING_NEW]
            self._watchdog.arm(max(0.0, left - HARD_END_SECONDS), code)
            done = s.record.sealed and self._rounds.active is None
            if done or left <= plan.EXIT_MARGIN_SECONDS or not s.record.loaded:
                return self._end()
            soon = Deadline.after(min(0.5, left - plan.EXIT_MARGIN_SECONDS))
            await s.changes.until(lambda: s.record.sealed and self._rounds.active is None, soon)

    async def _end_when_told(self) -> None:
        await self._shared.changes.until(lambda: self._rounds.active is None, Deadline.after(20))
        self._end()

    def _end(self) -> None:
        s = self._shared
        last = (
            f"checkpoint {s.last.ref} at boundary {s.last.boundary}"
            if s.last is not None
            else "no checkpoint of this attempt"
        )
        if s.sealed_new:
            s.end(Exit.PREEMPTED_SEALED, f"sealed: {last}")
        else:
            words = f"nothing newer could be made durable: {last}, ranks were at boundary {s.record.boundary}"
            if s.record.on_node is not None:
                words += (
                    f"; boundary {s.record.on_node_boundary} lies whole on this node as {s.record.on_node}, and becomes a checkpoint if every worker's pod "
                    "returns to its node before the next claim (E6)"
                )
            s.end(Exit.PREEMPTED_NOTHING_NEW, words)

    # ---- inside

    def _merged(self) -> notices.Merged:
        config = self._shared.settings.config
        return notices.merge(
            self._shared.record.notices.values(),
            default_seconds=config.notice_seconds,
            grace_seconds=config.grace_seconds,
        )

    def _being_deleted(self) -> bool:
        """The operator has seen this pod's deletion; SIGTERM may be on its way still."""
        own = self._shared.settings.config.worker
        return any(
            n.worker == own and n.acting and not n.withdrawn and not n.revocable and n.cause is Cause.DELETION
            for n in self._shared.record.notices.values()
        )

    def _later(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def coordinators(workers: Iterable[int], doomed: Iterable[int]) -> list[int]:
    """Who is asked, in order: the lowest that stays, then the lowest that goes (E1). Pure."""
    going = set(doomed)
    return sorted(workers, key=lambda w: (w in going, w))


async def _quietly(awaitable: Awaitable[Any]) -> None:
    try:
        await awaitable
    except AgentError as e:
        log.warning("%s", e)
