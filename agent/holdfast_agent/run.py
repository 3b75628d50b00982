"""The agent as a whole: opens what lives as long as the pod, joins attempts as they are ordered, ends with an exit code that says what happened."""

import asyncio
import logging
import os
import sys
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NoReturn

import aiohttp

from holdfast_agent import membership, rank_socket, signals, storage
from holdfast_agent.arena import Arena
from holdfast_agent.attempt import Attempt
from holdfast_agent.collecting import Asked, Outcome, rests
from holdfast_agent.crew import Changes, Crew
from holdfast_agent.errors import ProtocolBroken
from holdfast_agent.experience import Experience
from holdfast_agent.gatekeeper import Gatekeeper
from holdfast_agent.headstart import HeadStart
from holdfast_agent.launcher import Launcher
from holdfast_agent.metrics import Metrics
from holdfast_agent.outlook import expected
from holdfast_agent.peers import Mesh
from holdfast_agent.ranks import RankLink, RankServer
from holdfast_agent.record import KEPT as REPORTED
from holdfast_agent.record import Record
from holdfast_agent.refuge import Refuge
from holdfast_agent.reports import Reporter
from holdfast_agent.server import Server, WrongAttempt
from holdfast_agent.settings import Settings
from holdfast_agent.shared import Shared
from holdfast_agent.threads import Threads
from holdfast_agent.unexpected import unexpected
from holdfast_agent.unfinished import Unfinished
from holdfast_api import ranks as wire
from holdfast_api.layout import CheckpointRef
from holdfast_api.messages import (
    AgentReport,
    AttemptOrder,
    Blocked,
    CheckpointOrder,
    CollectOrder,
    EndOrder,
    Exit,
    NoticeOrder,
    Stage,
)
from holdfast_api.names import EXIT_CODES
from holdfast_api.signing import Role
from holdfast_store.errors import StoreError
from holdfast_store.job import JobStore
from holdfast_store.local import LocalTier
from holdfast_store.opening import open_bucket

log = logging.getLogger(__name__)
RETRY_SECONDS = 3.0
STORE_RETRY_SECONDS = 10.0
"""Of one call; what must not fail is tried again by its caller (threads.persist)."""
LAST_REPORT_SECONDS = 3.0
"""For the last report; with SIGTERM behind it less (plan.EXIT_MARGIN_SECONDS has room for it)."""
LAST_REPORT_AT_DEADLINE_SECONDS = 0.5
ANSWER_SECONDS = 0.05
"""A peer that has just said how a save ended gets its answer, and does not ask again for nothing."""


class Agent:
    """`run` is the whole life. Everything else is called on the event loop's thread."""

    def __init__(self, settings: Settings, begun: HeadStart | None = None) -> None:
        """`begun`: of a laptop, whose attempt is known."""
        config = settings.config
        self._settings = settings
        self._begun = begun
        self._memory = Path(config.memory_dir)
        self._experience = Experience(self._memory)
        self._node = (
            LocalTier(Path(config.local_dir), config.namespace, config.job, config.job_uid)
            if config.local_dir
            else None
        )
        self._threads = Threads(settings.config.background_bytes_per_second)
        self._arena = Arena(self._memory, self._threads.slots.tidy)
        self._metrics = Metrics(config.worker)
        self._record = Record(config.job_uid, config.worker, settings.pod_uid)
        self._changes = Changes()
        self._store: JobStore | None = None
        self._attempt: Attempt | None = None
        self._joined = self._record.joined = membership.newest(self._memory, config.job_uid)
        self._joining = asyncio.Lock()
        self._ended = asyncio.Event()
        self._refuge = Refuge(self._node, self._memory, config.namespace, config.job, config.job_uid)
        self._unfinished = Unfinished(
            self._node, lambda: self._store, self._threads, self._experience, self._metrics, self._record,
            in_memory=self._refuge.in_memory,
        )  # fmt: skip
        self._collecting: set[CheckpointRef] = set()
        self._asked: dict[CheckpointRef, Asked] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watchdog = signals.Watchdog()

    async def run(self) -> int:
        """The exit code."""
        loop = asyncio.get_running_loop()
        self._launcher = Launcher(loop, self._begun.processes if self._begun is not None else ())
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        ) as self._session:
            self._reporter = self._make_reporter()
            self._record.on_change = self._reporter.changed
            self._reporter.taken = self._record.taken
            self._record.stage(Stage.AGENT_STARTED)
            listening = self._begun.listening if self._begun is not None else rank_socket.listen(self._memory)
            self._ranks = RankServer(listening, self)
            self._server = Server(
                self,
                Gatekeeper(self._settings.keys, self._settings.config.job_uid, self._settings.pod_uid),
                self._metrics,
                self._settings.config.job_uid,
            )
            await self._ranks.start()
            await self._server.start(self._settings.listen_host, self._settings.listen_port)
            signals.install(loop, on_term=self._sigterm, laptop=self._settings.laptop)
            self._later(self._open_store())
            self._later(self._reporter.run())
            if self._settings.config.warm_start:
                self._launcher.prepare(range(self._settings.config.processes_per_worker), self._settings.command)
            if self._begun is not None:
                await self.order(self._begun.order)
            await self._ended.wait()
            await self._shut_down()
        assert self._record.exit is not None
        return EXIT_CODES[self._record.exit]

    def end(self, exit: Exit, detail: str) -> None:
        """The first reason counts."""
        if self._record.exit is None:
            self._record.exit, self._record.exit_detail = exit, detail
            log.info("ending: %s %s", exit.value, detail.splitlines()[0] if detail else "")
            self._record.changed()
            self._ended.set()

    # ---- orders (server.Desk)

    def report(self) -> AgentReport:
        return self._record.report()

    async def order(self, message: Any) -> None:
        match message:
            case AttemptOrder():
                await self._join(message)
            case NoticeOrder():
                attempt = self._current(message.attempt)
                if not self._record.failed:  # nothing is left to evacuate
                    attempt.evacuation.notice(message.notices)
            case EndOrder():
                self._current(message.attempt).dismiss()
            case CheckpointOrder():
                self._current(message.attempt).evacuation.checkpoint(message)
            case CollectOrder():
                self._current(message.attempt)
                self._later(self._collect(message))

    async def peer(self, message: Any) -> Any:
        return await self._current(message.attempt).peer(message)

    def chunk(self, attempt: int, digest: str) -> AbstractAsyncContextManager[memoryview]:
        return self._current(attempt).chunk(digest)

    async def _join(self, order: AttemptOrder) -> None:
        """A2: greater is joined, equal is acknowledged, lower is refused."""
        async with self._joining:
            if order.attempt < max(self._joined, self._record.attempt) or self._record.exit is not None:
                raise WrongAttempt
            if self._attempt is not None and order.attempt == self._attempt.shared.attempt:
                self._attempt.again(order)
                return
            if order.attempt == self._joined and self._attempt is None:
                # This pod ran it in an earlier life of the agent: an attempt starts its ranks once (A1).
                raise WrongAttempt
            if not any(
                (m.worker, m.pod_uid) == (self._settings.config.worker, self._settings.pod_uid) for m in order.members
            ):
                raise WrongAttempt  # of another pod (A2)
            leaving, self._attempt = self._attempt, None
            if leaving is not None:
                await leaving.close()
            membership.remember(self._memory, order)
            self._joined = order.attempt
            self._record.begin(order.attempt)
            self._record.stage(Stage.AGENT_STARTED)
            self._unfinished.begin(order.attempt)
            self._attempt = self._make_attempt(order)
            self._attempt.start()

    def _current(self, number: int) -> Attempt:
        if self._attempt is None or number != self._attempt.shared.attempt or self._record.exit is not None:
            raise WrongAttempt
        return self._attempt

    async def _collect(self, order: CollectOrder) -> None:
        """D2: the lead of a claimed attempt deletes what was given up; one after the other, and none again while the last answer counts."""
        for ref in order.expired:
            if self._store is None or self._record.claim is None or ref in self._collecting:
                continue
            if not rests(self._asked.get(ref), time.monotonic()):
                self._collecting.add(ref)
                try:
                    self._asked[ref] = Asked(await self._expire(self._store, ref, order.attempt), time.monotonic())
                finally:
                    self._collecting.discard(ref)
            self._say_collected(ref, self._asked[ref].outcome)

    async def _expire(self, store: JobStore, ref: CheckpointRef, attempt: int) -> Outcome:
        try:
            done = await self._threads.call(
                store.expire, ref, by_attempt=attempt, reason="retention", in_use=self._in_use()
            )
        except Exception as e:
            log.warning("checkpoint %s is not deleted yet: %s: %s", ref, type(e).__name__, e)
            return Outcome.FAILED
        if not done.deleted:
            log.info("checkpoint %s is kept: %s", ref, done.kept_because)
        return Outcome.DELETED if done.deleted else Outcome.KEPT

    def _say_collected(self, ref: CheckpointRef, outcome: Outcome) -> None:
        """Newest last, also if it was said before: a report holds the last few only."""
        record = self._record
        said = {Outcome.DELETED: record.expired, Outcome.KEPT: record.kept}.get(outcome)
        if said is not None and ref not in said[-REPORTED:]:
            record.expired, record.kept = ([r for r in known if r != ref] for known in (record.expired, record.kept))
            (record.expired if outcome is Outcome.DELETED else record.kept).append(ref)
            record.stray = tuple(r for r in record.stray if r != ref)  # it has been ordered: the operator knows of it
            record.changed()

    def _in_use(self) -> tuple[CheckpointRef, ...]:
        """What a save leans on, and what is being restored (D5)."""
        shared = self._attempt.shared if self._attempt is not None else None
        found = (shared.base, shared.last) if shared is not None else ()
        return tuple(f.ref for f in found if f is not None)

    # ---- ranks (ranks.Listener)

    def admit(self, hello: wire.Hello) -> str:
        return self._attempt.admit(hello) if self._attempt is not None else "there is no attempt"

    def joined(self, link: RankLink) -> None:
        if self._attempt is None:
            raise ProtocolBroken("the attempt has ended")
        self._attempt.joined(link)

    def said(self, link: RankLink, message: wire.FromRank) -> Any:
        if self._attempt is None:
            raise ProtocolBroken("the attempt has ended")
        return self._attempt.said(link, message)

    def left(self, link: RankLink) -> None:
        if self._attempt is not None:
            self._attempt.left(link)

    # ---- inside

    def _make_attempt(self, order: AttemptOrder) -> Attempt:
        shared = Shared(
            settings=self._settings,
            order=order,
            record=self._record,
            metrics=self._metrics,
            threads=self._threads,
            arena=self._arena,
            node=self._node,
            crew=Crew(order.ranks_of(self._settings.config.worker)),
            changes=self._changes,
            end=self.end,
            fail=lambda detail: attempt.fail(detail),
            supersede=self._superseded,
            store=self._store,
            experience=self._experience,
            unfinished=self._unfinished,
        )
        self._record.expects = lambda: expected(shared)
        attempt = Attempt(shared, self._launcher, str(self._ranks.path), self._watchdog, self._refuge)
        shared.mesh = Mesh(
            order.attempt,
            order.members,
            self._settings.config.worker,
            attempt.peer,
            self._session,
            self._settings.keys[Role.PEER],
            self._settings.config.job_uid,
        )
        return attempt

    def _make_reporter(self) -> Reporter:
        return Reporter(
            self._record.report,
            self._session,
            operator_url=self._settings.config.operator_url,
            token_path=self._settings.token_path,
            termination_path=self._settings.termination_path,
            metrics=self._metrics,
        )

    async def _open_store(self) -> None:
        """Tried until it can be opened: a Secret or an endpoint may be mended while the agent waits."""
        config = self._settings.config
        said: Blocked | None = None
        while self._store is None:
            try:
                bucket = await self._threads.call(
                    open_bucket, config.storage, os.environ, retry_seconds=STORE_RETRY_SECONDS
                )
                self._store = JobStore(bucket, config.namespace, config.job, config.job_uid)
            except StoreError as e:
                said = storage.blocked(e, config.storage)
            except BaseException as e:  # nobody awaits this task: it must not end without a word
                said = unexpected(e, "opening the store")
            if self._store is None:
                self._record.block(said)
                await asyncio.sleep(RETRY_SECONDS)
        if said is not None and self._record.blocked == said:
            self._record.block(None)
        store = self._store
        self._reporter.store = lambda report: self._threads.call(store.write_report, report)
        if self._attempt is not None:
            self._attempt.shared.store = store
        self._changes.bump()

    def _sigterm(self) -> None:
        if self._attempt is None:
            self.end(Exit.PREEMPTED_NOTHING_NEW, "SIGTERM before any attempt")
        elif self._record.failed:
            self._attempt.dismiss()
        else:
            self._attempt.evacuation.sigterm()

    def _superseded(self, newest: int) -> None:
        self._record.superseded_by = newest
        self.end(Exit.SUPERSEDED, f"attempt {newest} is claimed by another")

    def _later(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shut_down(self) -> None:
        """Ranks end first; the report goes out while there is time."""
        if self._attempt is not None:
            self._launcher.kill(self._attempt.shared.crew.processes)
        hurried = self._attempt is not None and self._attempt.evacuation.terminated
        await self._reporter.finish(LAST_REPORT_AT_DEADLINE_SECONDS if hurried else LAST_REPORT_SECONDS)
        if self._settings.laptop:
            if self._attempt is not None:
                await self._attempt.close()
            self._arena.clear()
        await asyncio.sleep(ANSWER_SECONDS)
        await self._ranks.close()


def main(settings: Settings, begun: HeadStart | None = None) -> NoReturn:
    """Runs an agent to its end and ends the process. Raises what the agent raises when it is made."""

    async def life() -> None:
        code = await Agent(settings, begun).run()
        sys.stdout.flush()
        sys.stderr.flush()
        # Here and not after the loop: neither a task that is slow to be cancelled nor a thread that talks to a dead store may hold up the end.
        os._exit(code)

    asyncio.run(life())
    raise AssertionError("unreachable")
