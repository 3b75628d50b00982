"""Watches that boundaries are passed, and does what has to be done when they are not (hangs.py decides).

Every agent watches its own ranks and tells the lead of one that is late. The lead asks all agents what their ranks do, and where; it says so in its report
and its log, has the newest state saved if that can be done without the ranks that hang, and lets the attempt fail. The next one starts the ranks in the
pods that are there.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from holdfast_agent import clock, hangs, stacks
from holdfast_agent.clock import Deadline
from holdfast_agent.crew import Rank
from holdfast_agent.rounds import Rounds
from holdfast_agent.shared import Shared
from holdfast_api import peers
from holdfast_api.messages import Cause, CheckpointInfo, HangReport, RankStack
from holdfast_rank.stacks import path_beside

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
STOOD_STILL_SECONDS = 3.0
"""If this agent itself was not run for longer, neither were its ranks, perhaps: such time does not count."""
TELL_AGAIN_SECONDS = 5.0
ASK_SECONDS = 10.0
ASK_STACKS_SECONDS = 25.0
SAVE_SECONDS = 15.0
"""Beside what copying takes: for the newest state to be copied before the ranks are ended."""
COPY_TIMES, MOST_COPY_SECONDS = 2.0, 300.0
SETTLE_SECONDS = 60.0
"""For saves that are being written."""
STACK_BYTES = 3000
"""Of a rank's stack, in the report; the log has all of it."""
MOST_STACKS = 8


class HangWatch:
    """One attempt's. Called on the event loop's thread."""

    def __init__(
        self, shared: Shared, rounds: Rounds, leaving: Callable[[], bool], writing: Callable[[], bool], socket: str
    ) -> None:
        """`socket`: beside it lie the files to which ranks write their stacks. `leaving`: an evacuation goes on. `writing`: saves are being written."""
        self._shared = shared
        self._rounds = rounds
        self._leaving = leaving
        self._writing = writing
        self._socket = socket
        self._told_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._warned = False
        """Of this standstill it has been told in time."""

    # ---- every agent

    async def run(self) -> None:
        before = clock.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = clock.monotonic()
            passed, before = now - before, now
            try:
                await self._watch(now, passed if passed <= STOOD_STILL_SECONDS else LOOK_SECONDS)
            except Exception:  # nobody awaits this task: it must not end without a word
                log.exception("whether ranks hang cannot be seen")

    async def _watch(self, now: float, passed: float) -> None:
        s = self._shared
        for rank in s.crew:
            if not self._rests(rank):
                since = now - rank.passed_at if rank.passed_at is not None else passed
                rank.idle_seconds += min(passed, max(0.0, since))
        if self._leaving() or s.record.failed:
            return
        seen = [self._seen(r) for r in s.crew]
        late = any(hangs.is_late(r) or hangs.is_late(r, warn=True) for r in seen)
        if late and now - self._told_at >= TELL_AGAIN_SECONDS:
            self._told_at = now
            await self._tell_lead()
        elif not late:
            self._told_at = float("-inf")
        if s.record.hang is not None and not s.record.hang.restarts and not late:
            self._over()

    async def answer(self, message: peers.LookAtRanks) -> peers.RanksSeen:
        """LookAtRanks. Each rank in its own thread: one that does not answer holds nobody up."""
        ranks = list(self._shared.crew)
        seen = [self._seen(r) for r in ranks]
        if not message.stacks:
            return peers.RanksSeen(tuple(seen))
        found = await asyncio.gather(*(asyncio.to_thread(_look, r, path_beside(self._socket, r.number)) for r in ranks))
        for rank, (state, stack) in zip(ranks, found, strict=True):
            log.error(
                "rank %d (%s): what its threads are doing:\n%s",
                rank.number,
                state or "gone",
                stack or "no stack is to be had",
            )
        return peers.RanksSeen(
            tuple(
                peers.RankSeen(
                    r.rank,
                    r.boundary,
                    r.doing,
                    r.idle_seconds,
                    r.patience_seconds,
                    r.warn_seconds,
                    r.ended,
                    state,
                    stack,
                )
                for r, (state, stack) in zip(seen, found, strict=True)
            )
        )

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def _rests(self, rank: Rank) -> bool:
        """Its clock stands: it is the agent's turn, or there is nothing to wait for."""
        return rank.ended is not None or (rank.wants_restore and not rank.handed and not rank.loaded)

    def _seen(self, rank: Rank) -> peers.RankSeen:
        doing = rank.doing or "step"
        if not rank.longest_seconds and doing not in hangs.OURS:
            doing = "start"  # no iteration has been seen whole: nobody knows what one takes
        may = hangs.patience(
            self._shared.order.hangs,
            doing,
            usual_seconds=self._shared.experience.usual_step_seconds,
            longest_seconds=rank.longest_seconds,
        )
        # Of a script that never speaks to us, or hands over whole directories when it likes, nothing is known.
        watched = rank.hello is not None and not rank.is_directory_mode
        ended = rank.ended is not None or rank.done_at is not None
        limit, warn = (may.limit, may.warn) if watched else (0.0, 0.0)
        return peers.RankSeen(rank.number, rank.boundary, doing, rank.idle_seconds, limit, warn, ended)

    async def _tell_lead(self) -> None:
        s = self._shared
        try:
            message = peers.HangSuspected(s.attempt, s.settings.config.worker)
            await s.mesh.ask(min(s.mesh.workers), message, until=Deadline.after(ASK_SECONDS))
        except Exception as e:  # said again while it is so
            log.warning("the lead did not hear that a rank hangs: %s", e)

    # ---- the lead

    def suspected(self) -> None:
        """Some agent says that a rank is late. Nothing that was begun is begun again."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        try:
            await self._investigate()
        except Exception:
            log.exception("what hangs cannot be looked at")

    async def _investigate(self) -> None:
        s = self._shared
        seen, silent = await self._ask(with_stacks=False)
        hung = bool(hangs.stuck(seen, silent=bool(silent)))
        if self._is_off() or not (hung or (not self._warned and hangs.stuck(seen, warn=True))):
            return
        self._warned = True
        seen, silent = await self._ask(with_stacks=True)
        late = hangs.stuck(seen, warn=not hung, silent=bool(silent))
        if self._is_off() or not late:
            return
        found = hangs.culprits(late, seen, silent)
        restarts = hung and s.order.hangs.action == "restart"
        report = self._report(late, seen, found, restarts=False)
        log.error("no boundary has been passed for %.0f s. %s", report.idle_seconds, found.why)
        s.record.hangs(report)
        if not restarts:
            return
        saved = await self._save()
        seen, silent = await self._ask(with_stacks=False)
        if self._is_off():
            return
        if not hangs.stuck(seen, silent=bool(silent)):
            log.warning("the ranks go on")
            self._over()
            return
        s.record.hangs(self._report(late, seen, found, restarts=True, stacks=report.stacks, saved=saved))
        s.metrics.hangs.inc()
        words = f"hung: no boundary was passed for {report.idle_seconds:.0f} s. {found.why}. {saved}"
        s.fail(words)

    def _is_off(self) -> bool:
        s = self._shared
        return self._leaving() or s.record.failed or s.record.exit is not None or s.order.hangs.action == "ignore"

    def _over(self) -> None:
        self._warned = False
        self._shared.record.hangs(None)

    async def _ask(self, *, with_stacks: bool) -> tuple[list[peers.RankSeen], list[int]]:
        """(what all agents say of their ranks, workers that did not answer)."""
        s = self._shared
        seconds = ASK_STACKS_SECONDS if with_stacks else ASK_SECONDS
        answers = await s.mesh.ask_all(peers.LookAtRanks(s.attempt, with_stacks), until=Deadline.after(seconds))
        seen = [r for a in answers.values() if isinstance(a, peers.RanksSeen) for r in a.ranks]
        return seen, [w for w, a in answers.items() if not isinstance(a, peers.RanksSeen)]

    async def _save(self) -> str:
        """The newest state that every rank holds or can still be copied from; never a torn one: it is a round as any other (E2, E3), and what hangs in an
        update window, or does not answer, makes it end without a checkpoint. In words."""
        s = self._shared
        before = s.last_boundary
        info: CheckpointInfo | None = None
        if s.record.boundary > before:
            copies = COPY_TIMES * s.experience.copy(s.logical_bytes).sure
            seconds = SAVE_SECONDS + min(copies, MOST_COPY_SECONDS)
            deadline = clock.now() + timedelta(seconds=seconds)
            running = self._rounds.request(Cause.FAILURE, evacuate=False, deadline=deadline)
            try:
                async with asyncio.timeout(seconds + SETTLE_SECONDS):
                    await running.ended.wait()
                info = running.info
            except TimeoutError:
                log.warning("the round that was to save the newest state has not ended; it ends with the attempt")
        await s.changes.until(lambda: not self._writing(), Deadline.after(SETTLE_SECONDS))
        newest = s.last_boundary
        if info is not None or newest > before:
            return f"Boundary {newest} was saved before the ranks were ended"
        if newest and newest >= s.record.boundary:
            return f"Boundary {newest}, the newest, had been saved"
        return f"Nothing newer than boundary {newest} could be saved" if newest else "Nothing could be saved"

    def _report(
        self,
        late: tuple[peers.RankSeen, ...],
        seen: list[peers.RankSeen],
        found: hangs.Finding,
        *,
        restarts: bool,
        stacks: tuple[RankStack, ...] = (),
        saved: str = "",
    ) -> HangReport:
        s = self._shared
        per_worker = s.settings.config.processes_per_worker
        workers = tuple(m.worker for m in sorted(s.order.members, key=lambda m: m.worker))
        shown = sorted(seen, key=lambda r: (r.rank not in found.culprits, r not in late, r.rank))[:MOST_STACKS]
        cut = tuple(
            RankStack(
                r.rank,
                workers[r.rank // per_worker],
                r.boundary,
                r.doing,
                round(r.idle_seconds, 1),
                r.state,
                hangs.main_thread(r.stack)[:STACK_BYTES],
            )
            for r in shown
        )
        return HangReport(
            at=clock.now(),
            idle_seconds=round(max(r.idle_seconds for r in late), 1),
            boundary=min(r.boundary for r in seen),
            culprits=found.culprits[:64],
            workers=tuple(sorted({workers[r // per_worker] for r in found.culprits}))[:64],
            why=found.why[:2000],
            restarts=restarts,
            saved=saved,
            stacks=stacks or cut,
        )


def _look(rank: Rank, path: str) -> tuple[str, str]:
    if rank.process is None or rank.ended is not None or rank.hello is None:
        return "", ""
    hello, leader = rank.hello, rank.process.popen.pid
    pid = hello.pid if stacks.group_of(hello.pid) == leader else leader  # the command may be a shell that started it
    known = hello.stack_path == path  # what a script makes up is neither cut nor read
    return stacks.state_of(pid), stacks.take(pid, path, hello.stack_signal) if known else ""
