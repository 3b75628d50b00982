"""One attempt in one worker: starts the ranks, wires the parts, and says what a rank's message or end means.

Everything that outlives the attempt (arena, store, sockets) is the agent's (run.py). `close` leaves no process of the attempt and no reader of a slot.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from holdfast_agent import clock, clocks, earlier, layouts, rank_pace, scrubbing
from holdfast_agent.claims import Claims
from holdfast_agent.clock import Deadline
from holdfast_agent.crew import Rank
from holdfast_agent.errors import PeerRefused, ProtocolBroken
from holdfast_agent.evacuation import Evacuation
from holdfast_agent.finish import Finish
from holdfast_agent.gates import Gates
from holdfast_agent.hang_watch import HangWatch
from holdfast_agent.launcher import Launcher, Process
from holdfast_agent.periodic import Periodic
from holdfast_agent.ranks import RankLink
from holdfast_agent.refuge import Refuge
from holdfast_agent.rescue import Rescue
from holdfast_agent.restoring import Restoring
from holdfast_agent.rounds import Rounds
from holdfast_agent.saves import Saves
from holdfast_agent.shared import Shared
from holdfast_agent.signals import Watchdog
from holdfast_agent.spawning import specs
from holdfast_agent.writing import Writing
from holdfast_api import peers
from holdfast_api import ranks as wire
from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import AttemptOrder, Blocked, BlockedReason, Exit, Stage

log = logging.getLogger(__name__)
FAILED_SECONDS = 5.0
"""How long an agent that leaves after a trainer's failure waits for a save that runs."""
STAY_SECONDS = 3600.0
FINISH_SECONDS = 3600.0
"""A script that ended without finish(): for periodic saves that still run."""
STEP_WEIGHT = 0.2
"""Of the newest step in the moving average."""
NEVER_USED = "nothing was saved: the script ended without ever calling holdfast"


class Attempt:
    """Made when an AttemptOrder with a greater number is accepted."""

    def __init__(self, shared: Shared, launcher: Launcher, socket: str, watchdog: Watchdog, refuge: Refuge) -> None:
        self.shared = shared
        self._launcher = launcher
        self._socket = socket
        self.writing = Writing(shared, lambda message: self.evacuation.sealed(message))
        self.gates = Gates(shared, self.writing)
        self.saves = Saves(shared)
        self.periodic = Periodic(shared, self.saves, lambda: self.saves.failing or self.writing.failing)
        self.rounds = Rounds(shared, self.gates, self.saves, self.periodic)
        self.evacuation = Evacuation(shared, self.gates, self.rounds, self.periodic, watchdog)
        self.finish = Finish(shared, self.writing, self.saves, self.periodic, self.rounds)
        self.restoring = Restoring(shared)
        self.rescue = Rescue(shared, refuge)
        self.claims = Claims(shared) if shared.is_lead else None
        self.hang_watch = HangWatch(
            shared, self.rounds, lambda: self._going, lambda: self.periodic.pending or self.writing.busy, socket
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._dismissed = False
        self._handlers: dict[type, Callable[[Rank, object], object]] = {
            wire.RestoreWanted: self._restore_wanted,
            wire.PartsWanted: self._parts_wanted,
            wire.Loaded: lambda r, m: self.restoring.loaded(r),
            wire.LoadFailed: self._load_failed,
            wire.Plan: self._plan,
            wire.Passed: self._passed,
            wire.Doing: self._doing,
            wire.CapturedSlot: self._captured,
            wire.Vote: self._vote,
            wire.Done: self._done,
        }

    # ---- life

    def start(self) -> None:
        s = self.shared
        s.metrics.attempt.set(s.attempt)
        s.record.stage(Stage.ATTEMPT_ACCEPTED)
        self._launch()
        self._tasks = [
            asyncio.ensure_future(self._watch_ranks()),
            asyncio.ensure_future(self._prepare_next()),
            asyncio.ensure_future(clocks.watch_use(s)),
            asyncio.ensure_future(self.hang_watch.run()),
            asyncio.ensure_future(clocks.free_forgotten_slots(s, self.writing)),
        ]
        if self.claims is not None:
            self._tasks.append(asyncio.ensure_future(self.claims.run()))
            self._tasks.append(asyncio.ensure_future(scrubbing.watch(s, lambda: self._going)))
            if s.settings.config.operator_url:
                self._tasks.append(asyncio.ensure_future(earlier.forward(s)))
            if s.settings.config.every_seconds > 0 or s.settings.config.every_auto:
                by_clock = clocks.save_by_clock(s, self.saves, self.rounds, lambda: self._going)
                self._tasks.append(asyncio.ensure_future(by_clock))

    async def close(self) -> None:
        """Ranks first: nobody writes into a slot afterwards. Then the readers."""
        await self._launcher.end(self.shared.crew.processes)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.hang_watch.close()
        await self.finish.close()
        await self.evacuation.close()
        await self.rounds.cancel(reopen=False)
        await self.periodic.close()
        await self.saves.close()
        await self.rescue.close()
        await self.gates.end()
        await self.restoring.close()
        await self.writing.close()

    def again(self, order: AttemptOrder) -> None:
        """The operator says the same attempt once more."""
        if order != self.shared.order:
            self.shared.order = order
            self.shared.changes.bump()

    async def _prepare_next(self) -> None:
        """Not before the ranks train: until then they need the machine themselves. Nor for a worker that is about to go."""
        s = self.shared
        if not s.settings.config.warm_start:
            return
        trains = lambda: Stage.FIRST_STEP.value in s.record.stages and not s.record.evacuating  # noqa: E731
        while not await s.changes.until(trains, Deadline.after(3600)):
            pass
        self._launcher.prepare(range(len(s.ranks)), s.settings.command)

    def _launch(self) -> None:
        s = self.shared
        for rank, spec in zip(s.crew, specs(s.settings, s.order, self._socket), strict=True):
            rank.process = self._launcher.start(spec, s.settings.command)
        s.record.stage(Stage.RANKS_STARTED)

    # ---- ranks speak

    def admit(self, hello: wire.Hello) -> str:
        s = self.shared
        rank = s.crew.ranks.get(hello.rank)
        if hello.attempt != s.attempt:
            return f"this is attempt {s.attempt}, not {hello.attempt}"
        if rank is None or hello.world_size != s.order.world_size:
            return f"rank {hello.rank} of {hello.world_size} is not one of this worker's ranks {sorted(s.crew.ranks)} of {s.order.world_size}"
        if rank.link is not None:
            return f"rank {hello.rank} is connected already"
        return ""

    def joined(self, link: RankLink) -> None:
        s = self.shared
        rank = s.crew.ranks[link.rank]
        rank.link, rank.hello = link, link.hello
        if s.record.blocked is not None and s.record.blocked.reason is BlockedReason.LIBRARY_NOT_USED:
            s.record.block(None)
        link.send(
            wire.Welcome(
                s.attempt,
                s.settings.config.chunk_bytes,
                s.settings.config.every_steps,
                s.settings.config.slots,
                listens=True,
            )
        )
        s.changes.bump()

    def said(self, link: RankLink, message: wire.FromRank) -> object:
        rank = self.shared.crew.ranks[link.rank]
        if rank.link is not link:
            raise ProtocolBroken(f"rank {link.rank} has another connection")
        answer = self._handlers[type(message)](rank, message)
        self.shared.changes.bump()
        return answer

    def left(self, link: RankLink) -> None:
        """The process has ended, or its connection was closed: it can join no round any more."""
        rank = self.shared.crew.ranks.get(link.rank)
        if rank is not None and rank.link is link:
            log.info("rank %d has left", link.rank)
        self.shared.changes.bump()

    def _restore_wanted(self, rank: Rank, message: object) -> None:
        assert isinstance(message, wire.RestoreWanted)
        rank.idle_seconds = 0.0
        self.restoring.wanted(rank, message)

    def _parts_wanted(self, rank: Rank, message: object) -> None:
        assert isinstance(message, wire.PartsWanted)
        self.restoring.parts_wanted(rank, message)

    def _load_failed(self, rank: Rank, message: object) -> object:
        assert isinstance(message, wire.LoadFailed)
        rejection = self.restoring.failed(rank, message)
        if rejection is not None:
            rank.wants_restore = True
            return self._tell_lead(
                peers.CheckpointRejected(self.shared.attempt, self.shared.settings.config.worker, rejection)
            )
        return None

    def _plan(self, rank: Rank, message: object) -> object:
        assert isinstance(message, wire.Plan)
        if not rank.loaded:
            raise ProtocolBroken(
                f"rank {rank.number} has a plan before it asked for its state: call restore() before the first step (C1)"
            )
        if message.image_bytes <= 0 or message.image_bytes > 1 << 44:
            raise ProtocolBroken(f"a plan of {message.image_bytes} bytes")
        return layouts.make_slots(self.shared, self.writing, rank, message)

    def _passed(self, rank: Rank, message: object) -> None:
        assert isinstance(message, wire.Passed)
        s = self.shared
        if message.boundary > rank.boundary:
            rank_pace.passes(rank)
        rank.boundary = max(rank.boundary, message.boundary)
        rank.stepped = True
        rank.step_seconds = (
            message.step_seconds
            if not rank.step_seconds
            else (1 - STEP_WEIGHT) * rank.step_seconds + STEP_WEIGHT * message.step_seconds
        )
        rank_pace.measured(s, rank, message, STEP_WEIGHT)
        rank.passed_at = clock.monotonic()
        s.experience.stepped(message.step_seconds)
        if message.step_seconds > 0:
            s.measured = s.measured.stepped(message.step_seconds, saving=self.writing.busy)
        if s.crew.all(lambda r: r.stepped):
            s.record.boundary = min(r.boundary for r in s.crew)
            s.record.step_seconds = max(r.step_seconds for r in s.crew)
            s.metrics.boundary.set(s.record.boundary)
            s.metrics.step_seconds.set(s.record.step_seconds)
            s.record.stage(Stage.FIRST_STEP)

    def _doing(self, rank: Rank, message: object) -> None:
        assert isinstance(message, wire.Doing)
        rank.doing = message.what[:32]

    def _captured(self, rank: Rank, message: object) -> object:
        assert isinstance(message, wire.CapturedSlot)
        s = self.shared
        if rank.book is None or rank.plan is None or message.plan != rank.plan.plan:
            raise ProtocolBroken(f"rank {rank.number} captured for plan {message.plan}, which is not the current one")
        rank.book.take(message)
        rank.boundary = max(rank.boundary, message.boundary)
        s.metrics.stall_seconds.labels(
            message.kind if message.kind in ("periodic", "round", "final") else "other"
        ).observe(message.copy_seconds if message.stall_seconds is None else message.stall_seconds)
        s.experience.copied(rank.plan.image_bytes, message.copy_seconds)
        self.gates.captured(rank, message)
        if message.kind != "round" and s.crew.held(message.boundary):
            offer = peers.SaveOffer(s.attempt, s.settings.config.worker, message.boundary)
            self._tasks.append(asyncio.ensure_future(self._tell_lead(offer)))
            self._tasks = [t for t in self._tasks if not t.done()]
        return None

    def _vote(self, rank: Rank, message: object) -> None:
        assert isinstance(message, wire.Vote)
        rank.vote = message
        if message.done:
            rank.done_at = message.boundary

    def _done(self, rank: Rank, message: object) -> None:
        assert isinstance(message, wire.Done)
        rank.done_at = message.boundary
        rank.boundary = max(rank.boundary, message.boundary)
        if message.not_saved:
            self.shared.record.exit_detail = f"the last checkpoint is NOT SAVED: {message.not_saved}"[:2000]
        if self.shared.crew.done_at is not None:
            self.finish.begin()

    async def _tell_lead(self, message: object) -> None:
        s = self.shared
        try:
            await s.mesh.ask(min(s.mesh.workers), message, until=Deadline.after(60))
        except Exception as e:  # the next offer, or the next attempt, makes up for it
            log.warning("the lead did not hear %s: %s", type(message).__name__, e)

    # ---- peers speak

    async def peer(self, message: object) -> object:
        """One message of holdfast_api.peers, of this attempt. The answer, None, or LATER."""
        match message:
            case peers.RoundRequest():
                running = self.rounds.request(
                    message.cause, evacuate=message.evacuate, deadline=message.deadline, worker=message.worker
                )
                return peers.RoundAnswer(max(running.number, 1))
            case peers.CloseGates():
                return await self.gates.close_gates(message)
            case peers.ReleaseGates():
                return await self.gates.release(message)
            case peers.OpenGates():
                self.gates.open(message)
            case peers.SaveOffer():
                self._lead_only().periodic.offered(message)
            case peers.FlushOrder():
                return await self.writing.ordered(message)
            case peers.Committed():
                self.writing.committed(message)
                await self.writing.dropped()
                if not (message.record or message.sealed):
                    await self.rescue.given_up(message.save)
                if message.record:
                    self.rescue.saved(CheckpointRef(message.attempt, message.save))
            case peers.PartWanted():
                return await self.writing.part(message)
            case peers.RescueOrder():
                return await self.rescue.ordered(message)
            case peers.Unfinished():
                copies = await s.unfinished.copies() if (s := self.shared).unfinished is not None else ()
                return peers.UnfinishedCopies(s.attempt, s.settings.config.worker, copies)
            case peers.Prefetch():
                self.restoring.prefetch(message)
            case peers.Resolved():
                self.shared.offered.add(message.parent)
                if self.shared.unfinished is not None:
                    self.shared.unfinished.end(f"attempt {self.shared.attempt} has claimed", claimed=True)
                return await self.restoring.resolved(message)
            case peers.HangSuspected():
                self._lead_only().hang_watch.suspected()
            case peers.LookAtRanks():
                return await self.hang_watch.answer(message)
            case peers.CheckpointRejected():
                claims = self._lead_only().claims
                assert claims is not None
                claims.rejected(message.rejection)
            case _:
                raise PeerRefused(f"{type(message).__name__} is not a message of peers")
        return None

    def chunk(self, digest: str) -> AbstractAsyncContextManager[memoryview]:
        """What another worker asks for by its content. Raises NotHere, NotYet on entry."""
        return self.shared.giving.open(digest, self.shared.threads.slots)

    def _lead_only(self) -> "Attempt":
        if self.claims is None:
            raise PeerRefused("this worker is not the lead")
        return self

    # ---- ranks end

    async def _watch_ranks(self) -> None:
        """The first failure ends all ranks of this worker; the last good end ends the agent."""
        s = self.shared
        waiting = {p.ended: p for p in s.crew.processes}
        while waiting:
            ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            s.changes.bump()
            await asyncio.sleep(0.05)  # its last words may still be in the pipe
            for future in ended:
                process = waiting.pop(future)
                code = future.result()
                if code != 0:
                    if self._going:
                        log.warning("rank %d ended with %d during the evacuation", process.rank, code)
                    await self._until_it_matters()
                    await self._failed(process, code)
                    return
        await self._until_it_matters()
        await self._all_ended()

    async def _until_it_matters(self) -> None:
        """At once, or when the evacuation is withdrawn: training cannot go on without the rank then."""
        while self._going:
            await self.shared.changes.until(lambda: not self._going, Deadline.after(3600))

    @property
    def _going(self) -> bool:
        """While everybody leaves, a rank's end is no news: its peers are going away."""
        return self.shared.record.evacuating or self.shared.record.sealed

    async def _failed(self, process: Process, code: int) -> None:
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        log.error("rank %d ended with %s", process.rank, how)
        await self._fail(f"rank {process.rank} ended with {how}\n{process.last_words}"[:2300])

    @property
    def _unfinished(self) -> bool:
        """A save is written for which nobody has waited."""
        return self.writing.busy and not self.finish.begun

    def fail(self, detail: str) -> None:
        """A new attempt is needed, for a reason that is not a rank's end."""
        log.error("the attempt has failed: %s", detail)
        self._tasks.append(asyncio.ensure_future(self._fail(detail)))

    async def _fail(self, detail: str) -> None:
        s = self.shared
        if s.record.failed:
            return
        s.record.failed, s.record.exit_detail = True, detail
        s.record.stage(Stage.FAILED)
        s.record.changed()
        self._launcher.kill(s.crew.processes)
        await asyncio.sleep(1)
        # The next attempt starts the ranks in this pod, from the arena (G1); it is joined over this one, and cancels this wait.
        while s.settings.config.operator_url and not self._dismissed:
            await s.changes.until(lambda: self._dismissed, Deadline.after(STAY_SECONDS))
        await s.changes.until(
            lambda: not self.periodic.pending and not self.writing.busy, Deadline.after(FAILED_SECONDS)
        )
        s.end(Exit.TRAINER_FAILED, s.record.exit_detail)

    def dismiss(self) -> None:
        """After a failure: nobody will start the ranks again here."""
        if self.shared.record.failed:
            self._dismissed = True
            self.shared.changes.bump()

    async def _all_ended(self) -> None:
        s = self.shared
        await self.finish.over()
        await s.changes.until(lambda: not (self.periodic.pending or self._unfinished), Deadline.after(FINISH_SECONDS))
        s.record.finished = True
        detail = s.record.exit_detail
        if all(r.hello is None for r in s.crew):
            detail = NEVER_USED
            s.record.block(Blocked(BlockedReason.LIBRARY_NOT_USED, NEVER_USED))
        s.end(Exit.FINISHED, detail)
