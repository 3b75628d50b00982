"""One preemption in simulated time. Real: planner, rounds, gates, saves, the worker's part of a save, evacuation, estimates, and the store's commit protocol
over a bucket in memory. Simulated: time, the ranks, the transfer of bytes (holdfast_agent.flush.write), messages between agents, the network.

No state is written: a slot is a message, and its bytes are a number. Where a world has nodes, their directories hold the small files that a node has
(manifests, parts, commit records) and no images; afterwards successors return to them, finish what lies there and claim, again by the real code
(unfinished.py, claims.py).
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import math
import random
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from benchmarks.preemptions_sealed import virtual
from benchmarks.preemptions_sealed.world import World
from holdfast_agent import clock, flush, peers, threads, writing
from holdfast_agent.arena import Arena
from holdfast_agent.claims import Claims
from holdfast_agent.crew import Changes, Crew
from holdfast_agent.errors import SaveGivenUp
from holdfast_agent.evacuation import Evacuation
from holdfast_agent.experience import Experience
from holdfast_agent.gates import Gates
from holdfast_agent.metrics import Metrics
from holdfast_agent.periodic import Periodic
from holdfast_agent.plan import COMMIT_MARGIN_SECONDS, EXIT_MARGIN_SECONDS
from holdfast_agent.progress import Progress
from holdfast_agent.record import Record
from holdfast_agent.rounds import Rounds
from holdfast_agent.saves import Saves
from holdfast_agent.settings import Settings
from holdfast_agent.shared import Shared
from holdfast_agent.slots import SlotBook
from holdfast_agent.throttle import Throttle
from holdfast_agent.unfinished import Unfinished
from holdfast_agent.writing import Writing
from holdfast_api import peers as messages
from holdfast_api import ranks as wire
from holdfast_api.config import AgentConfig, StorageConfig
from holdfast_api.manifest import Chunk, Claim, CommitRecord, ParentRef, RankManifest
from holdfast_api.messages import AttemptOrder, Cause, ClaimInfo, Member, Notice, PlanReport, RestoreOrder
from holdfast_store.job import JobStore
from holdfast_store.local import LocalTier
from holdfast_store.memory import MemoryBucket
from holdfast_store.records import entry_of

UID = "5f0c9d9e-0000-4000-8000-000000000002"
PIECE_BYTES, PIECES = 4096, 8
"""In a manifest, whatever the size of the state."""
NODE_CALL_SECONDS = 0.005
"""A small file on a disk, durable."""
REQUESTS, CHUNK_BYTES = 8, 16 << 20
"""That are answered at the same moment: how far a flush is can be seen in such portions only."""
SLICE_SECONDS = 0.25
"""How often a flush looks whether it is still wanted."""
TOLD_SECONDS = 0.2
"""Ranks say which boundary they have passed no more often."""
TOLD_SOURCE = "pod:deletionTimestamp"


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    world: World
    boundary_at_notice: int
    """The last that all ranks had passed."""
    committed: int
    """Boundary of the newest commit record that was there by the deadline."""
    sealed_after: float | None
    """From the notice to that record, if it is new enough."""
    possible: bool
    """Whether anybody could have done it, knowing everything: the rest of the step, the copy, the transfer, the requests."""
    ended_after: float | None
    """From the notice to the end of the agent that got SIGTERM."""
    late_commits: int
    """Records after the deadline."""
    before: int
    """Boundary of the newest commit at the notice; 0 for none."""
    commits_seen: tuple[int, ...]
    """Boundaries in the order in which their records arrived."""
    verifies: bool
    """Every record that arrived is still there and names manifests that are there."""
    plans: tuple[PlanReport, ...]
    resumed: int = 0
    """Boundary that the next attempt claims, where the world has nodes to return to."""
    waited: float = 0.0
    """By the claim, for what is finished from nodes (E6)."""

    @property
    def kept(self) -> bool:
        """Like `sealed`, or finished by those who have returned before the next claim."""
        return max(self.committed, self.resumed) >= self.boundary_at_notice > 0

    @property
    def sealed(self) -> bool:
        """What is saved is at most one step old: no boundary that had been passed at the notice is lost."""
        return self.committed >= self.boundary_at_notice > 0


def simulate(world: World, folder: Path) -> Result:
    """`folder` is for the (empty) arenas and the small files on nodes, which are gone afterwards."""
    loop = virtual.Loop()
    folder.mkdir(parents=True, exist_ok=True)
    with clock.simulated(loop.time), _no_real_time(loop), tempfile.TemporaryDirectory(dir=folder) as nodes:
        return virtual.run(loop, _Simulation(world, folder, Path(nodes), loop).life())


@contextlib.contextmanager
def _no_real_time(loop: virtual.Loop) -> Iterator[None]:
    """What reads the machine's clock by itself, and what moves bytes."""
    shim = SimpleNamespace(monotonic=loop.time)
    with contextlib.ExitStack() as stack:
        for module in (threads, writing):
            if hasattr(module, "time"):
                stack.enter_context(mock.patch.object(module, "time", shim))
        stack.enter_context(mock.patch.object(writing.flush, "write", _write))
        yield


class _Simulation:
    def __init__(self, world: World, folder: Path, nodes: Path, loop: virtual.Loop) -> None:
        self.world = world
        self.folder = folder
        self.nodes = nodes
        self.loop = loop
        self.random = random.Random(world.seed)
        self.bucket = MemoryBucket()
        self.commits: list[tuple[float, CommitRecord]] = []
        self.notice_at = math.inf
        self.ended: dict[int, float] = {}
        self.members = tuple(Member(w, f"pod-{w}", f"uid-{w}", 1, f"node-{w}") for w in range(world.workers))
        store = JobStore(self.bucket, "ns", "job", UID)
        store.claim(Claim(UID, 1, "life", self.members, None, clock.now()))
        self.meeting = Meeting(world.workers)
        self.workers = {m.worker: Worker(self, m) for m in self.members}

    async def life(self) -> Result:
        world, loop = self.world, self.loop
        for worker in self.workers.values():
            worker.start()
        await asyncio.sleep(world.training)
        while min(w.rank.boundary for w in self.workers.values()) < 1:
            await asyncio.sleep(world.step / 2)
        self.notice_at = loop.time()
        at_notice = min(w.rank.boundary for w in self.workers.values())
        possible = self._possible()
        self.before = max((r.progress.boundary for _, r in self.commits), default=0)
        self.end = world.budget
        source, cause = ("pod:DisruptionTarget", Cause.EVICTION) if world.node else ("taint:spot", Cause.SPOT)
        if world.hangs:
            self.workers[self.random.randrange(world.workers)].rank.hang()
        deadline = clock.now() + timedelta(seconds=world.budget)
        doomed = self.random.randrange(world.workers)
        if world.told_by == "notice":
            await asyncio.sleep(world.heard_after)
            self._tell(Notice(source, cause, doomed, "node", clock.now(), deadline), list(self.workers))
        else:
            self.workers[doomed].evacuation.sigterm()
            if world.told_by == "told":
                await asyncio.sleep(world.told_after)
                self._tell(
                    Notice(TOLD_SOURCE, Cause.DELETION, doomed, "node", clock.now(), deadline), list(self.workers)
                )
        if world.moved_to is not None and world.moved_after <= world.budget:
            await asyncio.sleep(max(0.0, self.notice_at + world.moved_after - loop.time()))
            self.end = world.moved_to
            moved = clock.now() + timedelta(seconds=self.notice_at + world.moved_to - loop.time())
            self._tell(Notice(TOLD_SOURCE, Cause.DELETION, doomed, "node", clock.now(), moved), list(self.workers))
            self._tell(Notice(source, cause, doomed, "node", clock.now(), moved), list(self.workers))
        await asyncio.sleep(max(0.0, self.notice_at + self.end + 3 - loop.time()))
        found = self._result(at_notice, possible, doomed)
        return await self._returned(found) if world.node else found

    async def _returned(self, found: Result) -> Result:
        """The next attempt, until its claim: those who come to the nodes finish what lies there, the lead waits as long as that is worth it (E6)."""
        world = self.world
        await asyncio.sleep(world.away)
        successors: dict[int, Successor] = {}
        for m in self.members:
            lost = not world.returns and m.worker == 0
            successors[m.worker] = Successor(self, m, self.node(m.worker, "elsewhere" if lost else ""), successors)
        for one in successors.values():
            one.unfinished.begin(2)
        began, lead = self.loop.time(), successors[0]
        claims = Claims(lead.shared)
        await claims._finished_elsewhere()
        waited = self.loop.time() - began
        chosen = await claims._would_choose()
        JobStore(self.bucket, "ns", "job", UID).claim(
            Claim(UID, 2, "life-2", self.members, None if chosen is None else claims_parent(chosen), clock.now())
        )
        for one in successors.values():
            one.unfinished.end("attempt 2 has claimed")
        if chosen is None:
            return dataclasses.replace(found, waited=waited)
        whole = found.verifies and self._verifies(chosen.record)
        return dataclasses.replace(found, resumed=chosen.record.progress.boundary, waited=waited, verifies=whole)

    def node(self, worker: int, suffix: str = "") -> "Node":
        root = self.nodes / f"{worker}{suffix}"
        root.mkdir(exist_ok=True)
        return Node(root, "ns", "job", UID)

    def _tell(self, notice: Notice, workers: list[int]) -> None:
        for worker in workers:
            self.loop.call_later(
                self.random.uniform(0.0, 0.03), lambda w=worker: self.workers[w].evacuation.notice([notice])
            )

    def _possible(self) -> bool:
        """For somebody who knows everything and loses no time."""
        world = self.world
        ranks = [w.rank for w in self.workers.values()]
        # One of them may have passed a boundary that others have not: they all must get there.
        target = max(r.boundary + (r.in_window if world.mid_step else not r.at_rest) for r in ranks)
        rest = max(
            r.until_boundary() + (target - r.boundary - 1) * world.step if r.boundary < target else 0.0 for r in ranks
        )
        speed = min(w.emergency_speed for w in self.workers.values())
        heard = world.heard_after if world.told_by == "notice" else 0.0
        return (
            heard + rest + world.copy + world.state_bytes / speed + world.stall + 2 * world.request
            <= world.budget - EXIT_MARGIN_SECONDS - COMMIT_MARGIN_SECONDS
        )

    def _result(self, at_notice: int, possible: bool, doomed: int) -> Result:
        end = self.notice_at + self.end
        in_time = [(at, r) for at, r in self.commits if at <= end]
        committed = max((r.progress.boundary for _, r in in_time), default=0)
        enough = [at for at, r in in_time if r.progress.boundary >= at_notice]
        plans = [p for w in self.workers.values() for p in w.shared.record.plans]
        ended = self.ended.get(doomed)
        return Result(
            world=self.world,
            boundary_at_notice=at_notice,
            committed=committed,
            sealed_after=min(enough) - self.notice_at if enough else None,
            possible=possible,
            ended_after=ended - self.notice_at if ended is not None else None,
            late_commits=len(self.commits) - len(in_time),
            before=self.before,
            commits_seen=tuple(r.progress.boundary for _, r in self.commits),
            verifies=all(self._verifies(r) for _, r in self.commits),
            plans=tuple(sorted(plans, key=lambda p: p.at)),
        )

    def _verifies(self, record: CommitRecord) -> bool:
        store = JobStore(self.bucket, "ns", "job", UID)
        stands = store.read_commit(record.ref)[0]
        return all(
            store.read_manifest(stands, e.rank).boundary == stands.progress.boundary for e in stands.ranks
        ) and len(stands.ranks) == len(self.members)


class Meeting:
    """What data-parallel training does in each step: no rank begins its update before all have their gradients, and who stands still lets nobody on (E2)."""

    def __init__(self, ranks: int) -> None:
        self._ranks, self._there = ranks, 0
        self._all = asyncio.Event()

    async def joined(self) -> None:
        self._there += 1
        if self._there < self._ranks:
            await self._all.wait()
            return
        before, self._all, self._there = self._all, asyncio.Event(), 0
        before.set()


class Worker:
    """One agent with one rank."""

    def __init__(self, simulation: _Simulation, member: Member) -> None:
        world = simulation.world
        self.simulation, self.world, self.number = simulation, world, member.worker
        self.random = random.Random(f"{world.seed}/{member.worker}")
        self.emergency_speed = self._speed()
        grace = int(world.budget)
        config = AgentConfig(
            "ns", "job", UID, member.worker, 1, world.workers, 1, StorageConfig("memory://x"),
            every_steps=world.every, grace_seconds=grace, local_dir="", local_volume="node" if world.node else "pod",
        )  # fmt: skip
        folder = simulation.folder
        settings = Settings(config, ("true",), member.pod_name, member.pod_uid, "", "node", "", 0, {}, folder, None)
        record = Record(UID, member.worker, member.pod_uid)
        record.begin(1)
        record.claim = ClaimInfo(1, "life", clock.now()) if member.worker == 0 else None
        record.fresh = record.loaded = True
        self.shared = s = Shared(
            settings=settings,
            order=AttemptOrder(UID, 1, simulation.members, 1, True, RestoreOrder()),
            record=record,
            metrics=Metrics(member.worker),
            threads=Threads(self),
            arena=_NoArena(folder),
            node=simulation.node(member.worker) if world.node else None,
            crew=Crew(range(member.worker, member.worker + 1)),
            changes=Changes(),
            end=lambda exit, detail: simulation.ended.setdefault(member.worker, simulation.loop.time()),
            fail=lambda detail: None,
            supersede=lambda newest: None,
            store=JobStore(simulation.bucket, "ns", "job", UID),
            incarnation="life",
            experience=self._experience(),
        )
        self.writing = Writing(s, lambda m: self.evacuation.sealed(m))
        self.gates = Gates(s, self.writing)
        self.saves = Saves(s)
        self.periodic = Periodic(s, self.saves)
        self.rounds = Rounds(s, self.gates, self.saves, self.periodic)
        self.evacuation = Evacuation(
            s, self.gates, self.rounds, self.periodic, SimpleNamespace(arm=lambda seconds, code: None)
        )
        s.mesh = Mesh(world, self.number, simulation.members, lambda: simulation.workers)
        self.rank = SimulatedRank(self)
        self._tasks: list[asyncio.Future[Any]] = []

    def start(self) -> None:
        entry = self.shared.crew.ranks[self.number]
        entry.loaded = entry.stepped = True
        entry.plan = wire.Plan(1, self.world.state_bytes, ())
        entry.book = SlotBook(2)
        entry.link = SimpleNamespace(open=True, send=self.rank.told)
        self._tasks.append(asyncio.ensure_future(self.rank.train()))

    def _speed(self) -> float:
        return self.world.bytes_per_second * math.exp(self.random.gauss(0, self.world.unsteady))

    def speed_of(self, *, emergency: bool) -> float:
        return self.emergency_speed if emergency else self._speed() * self.world.beside

    def _experience(self) -> Experience:
        """What this pod has measured before the simulation begins: its first save, at full speed, and others beside training."""
        found = Experience()
        for n in range(self.world.earlier_flushes):
            size, speed = self.world.state_bytes, self._speed() * (1 if n == 0 else self.world.beside)
            found.flushed(logical=size, sent=size, seconds=size / speed, emergency=n == 0, based=True)
            found.committed(self.world.request)
            found.copied(size, self.world.copy)
            if self.world.node:
                found.on_node(size, size / self.world.node)
        return found

    # ---- what attempt.py does with the words of a rank

    def passed(self, boundary: int, seconds: float) -> None:
        entry = self.shared.crew.ranks[self.number]
        entry.boundary = max(entry.boundary, boundary)
        entry.passed_at = clock.monotonic()
        self.shared.experience.stepped(seconds)
        self.shared.record.boundary, self.shared.record.step_seconds = entry.boundary, seconds
        self.shared.changes.bump()

    def captured(self, message: wire.CapturedSlot) -> None:
        s = self.shared
        entry = s.crew.ranks[self.number]
        entry.book.take(message)
        entry.boundary = max(entry.boundary, message.boundary)
        s.experience.copied(entry.plan.image_bytes, message.copy_seconds)
        self.gates.captured(entry, message)
        if message.kind != "round":
            offer = messages.SaveOffer(1, self.number, message.boundary)
            self._tasks.append(asyncio.ensure_future(_quietly(s.mesh.ask(0, offer, until=clock.Deadline.after(60)))))
        s.changes.bump()

    async def peer(self, message: Any) -> Any:
        match message:
            case messages.RoundRequest():
                running = self.rounds.request(
                    message.cause, evacuate=message.evacuate, deadline=message.deadline, worker=message.worker
                )
                return messages.RoundAnswer(max(running.number, 1))
            case messages.CloseGates():
                return await self.gates.close_gates(message)
            case messages.ReleaseGates():
                return await self.gates.release(message)
            case messages.OpenGates():
                self.gates.open(message)
            case messages.SaveOffer():
                self.periodic.offered(message)
            case messages.FlushOrder():
                return await self.writing.ordered(message)
            case messages.Committed():
                self.writing.committed(message)
        return None


class SimulatedRank:
    """A training process: steps of an update window each, a helper that answers at once, two slots."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.world, self.random = worker, worker.world, worker.random
        self.boundary = 0
        self.in_window = False
        self.at_rest = True
        """Stands at its gate."""
        self.closed, self.round, self.target = False, 0, None
        self.holds: dict[int, int] = {}
        self.held: set[int] = set()
        self.changed = asyncio.Event()
        self._copying: asyncio.Future[None] | None = None
        self._hung = False
        self._ends = 0.0
        self._heard = -math.inf
        self._told = 0
        self._lasted = 0.0

    def until_boundary(self) -> float:
        return max(0.0, self._ends - self.worker.simulation.loop.time())

    def hang(self) -> None:
        self._hung = True

    def told(self, message: Any) -> None:
        if self._hung:
            return
        match message:
            case wire.CloseGate():
                if message.round > self.round:
                    self.closed, self.round, self.target = True, message.round, None
                self._say_passed()
                under_way = self.in_window if self.world.mid_step else not self.at_rest
                vote = wire.Vote(message.round, self.boundary + under_way)
                asyncio.get_running_loop().call_soon(self._vote, vote)
            case wire.ReleaseGate() if message.round == self.round:
                self.target = message.target
                if self.world.mid_step and self.target == self.boundary and not self.in_window:
                    self._capture_beside()
            case wire.OpenGate() if message.round >= self.round:
                self.closed = False
            case wire.SlotFree():
                self.held.discard(message.slot)
        self.changed.set()

    def _vote(self, vote: wire.Vote) -> None:
        self.worker.shared.crew.ranks[self.worker.number].vote = vote
        self.worker.shared.changes.bump()

    async def train(self) -> None:
        loop = self.worker.simulation.loop
        while True:
            seconds = self.world.step * max(0.2, self.random.gauss(1, self.world.jitter))
            began = loop.time()
            self._ends = began + seconds
            await asyncio.sleep(seconds * (1 - self.world.window))
            if self._hung:
                return
            await self.worker.simulation.meeting.joined()
            if self.world.mid_step:
                await self._gate()
            self.in_window = True
            await asyncio.sleep(seconds * self.world.window)
            self.boundary += 1
            self.in_window = False
            self._lasted = loop.time() - began
            if loop.time() - self._heard >= TOLD_SECONDS:
                self._say_passed()
            if self.closed and self.target == self.boundary:
                await self._capture("round")
            if not self.world.mid_step:
                await self._gate()
            due = (self.boundary + self.world.phase) % self.world.every == 0
            if due and self.boundary not in self.holds.values() and not self.closed:
                await self._capture("periodic")

    def _say_passed(self) -> None:
        """As the library does: not every boundary of short steps is told, but the last one always before a vote (`flush_passed`)."""
        self._heard = self.worker.simulation.loop.time()
        if self.boundary > self._told:
            self._told = self.boundary
            self.worker.passed(self.boundary, self._lasted)

    async def _gate(self) -> None:
        """Stands while the gate is closed and this rank is not let go any further."""
        self.at_rest = True
        while self.closed and (self.target is None or self.boundary >= self.target):
            if self.target == self.boundary and self.boundary not in self.holds.values() and self._copying is None:
                await self._capture("round")
                continue
            self.changed.clear()
            await self.changed.wait()
        self.at_rest = False

    def _capture_beside(self) -> None:
        self._copying = asyncio.ensure_future(self._capture("round"))
        self._copying.add_done_callback(lambda _: setattr(self, "_copying", None) or self.changed.set())

    async def _capture(self, kind: str) -> None:
        boundary, seconds = self.boundary, 0.0
        slot = next((s for s, b in self.holds.items() if b == boundary), None)
        if slot is None:
            while len(self.held) == 2:
                self.changed.clear()
                await self.changed.wait()
            slot = min((s for s in (0, 1) if s not in self.held), key=lambda s: self.holds.get(s, 0))
            seconds = self.world.copy * self.random.uniform(0.9, 1.1)
            await asyncio.sleep(seconds)
        self.holds[slot] = boundary
        self.held.add(slot)
        self.worker.captured(
            wire.CapturedSlot(slot, 1, boundary, kind, self.round, seconds or 1e-3, boundary, 0, 0, {}, {})
        )


class Successor:
    """The agent that comes to a worker's node for the next attempt, as far as it finishes what lies there."""

    def __init__(self, simulation: _Simulation, member: Member, node: "Node", gang: "Mapping[int, Successor]") -> None:
        self.simulation, self.world, self.number = simulation, simulation.world, member.worker
        self.random = random.Random(f"{self.world.seed}/{member.worker}/returned")
        config = AgentConfig("ns", "job", UID, member.worker, 2, self.world.workers, 1, StorageConfig("memory://x"))
        settings = Settings(config, ("true",), "pod", "uid", "", "node", "", 0, {}, simulation.folder, None)
        record = Record(UID, member.worker, "uid")
        record.begin(2)
        threads, experience, metrics = Threads(self), Experience(), Metrics(member.worker)
        self.shared = s = Shared(
            settings=settings,
            order=AttemptOrder(UID, 2, simulation.members, 1, True, RestoreOrder()),
            record=record,
            metrics=metrics,
            threads=threads,
            arena=_NoArena(simulation.folder),
            node=node,
            crew=Crew(range(member.worker, member.worker + 1)),
            changes=Changes(),
            end=lambda exit, detail: None,
            fail=lambda detail: None,
            supersede=lambda newest: None,
            store=JobStore(simulation.bucket, "ns", "job", UID),
            experience=experience,
        )
        self.unfinished = Unfinished(node, lambda: s.store, threads, experience, metrics, record)
        s.mesh = Mesh(self.world, self.number, simulation.members, lambda: gang)

    def speed_of(self, *, emergency: bool) -> float:
        return self.world.bytes_per_second * math.exp(self.random.gauss(0, self.world.unsteady))

    async def peer(self, message: Any) -> Any:
        match message:
            case messages.Unfinished():
                return messages.UnfinishedCopies(2, self.number, await self.unfinished.copies())
        return None


class Node(LocalTier):
    """A node's directory without images: bytes are a number here too."""

    def read_chunk_into(self, manifest: RankManifest, index: int, view: memoryview) -> None:
        """What the image would hold."""


class Threads:
    """Metadata of the store takes one request's time."""

    def __init__(self, worker: "Worker | Successor") -> None:
        self.worker = worker
        self._line = asyncio.Lock()
        self.link = SimpleNamespace(requests=0, new_refusals=lambda: 0)
        self.throttle = Throttle()
        self.sending = None
        """Connections are not warmed to a bucket in memory."""

    async def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        await asyncio.sleep(self.worker.world.request * self.worker.random.uniform(0.7, 1.5))
        result = function(*arguments, **named)
        if isinstance(result, tuple) and result and isinstance(result[0], CommitRecord):
            self.worker.simulation.commits.append((self.worker.simulation.loop.time(), result[0]))
        return result

    async def on_node(self, function: Callable[..., Any], *arguments: Any) -> Any:
        await asyncio.sleep(NODE_CALL_SECONDS)
        return function(*arguments)

    async def send(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A piece of what is finished from a node: they share one line."""
        async with self._line:
            await asyncio.sleep(self.worker.world.state_bytes / PIECES / self.worker.speed_of(emergency=True))
            return function(*arguments)


class Mesh:
    """Messages arrive after a while."""

    def __init__(
        self, world: World, own: int, members: tuple[Member, ...], gang: Callable[[], Mapping[int, Any]]
    ) -> None:
        self.latency, self.own, self.gang = world.latency, own, gang
        self.workers = tuple(m.worker for m in members)

    async def ask(self, worker: int, message: Any, *, until: clock.Deadline, round: int = 0) -> Any:
        latency = 0.0 if worker == self.own else self.latency
        while not until.passed:
            await asyncio.sleep(latency)
            try:
                answer = await peers._while(until, self.gang()[worker].peer(message))
            except TimeoutError:
                break
            await asyncio.sleep(latency)
            if not isinstance(answer, peers.Later):
                return answer
        raise peers.PeerSilent(f"worker {worker} did not answer {type(message).__name__}")

    async def ask_all(self, message: Any, *, until: clock.Deadline, round: int = 0) -> dict[int, Any]:
        answers = await asyncio.gather(
            *(self.ask(w, message, until=until) for w in self.workers), return_exceptions=True
        )
        return dict(zip(self.workers, answers, strict=True))


class _NoArena(Arena):
    def note(self, *arguments: Any, **named: Any) -> None:
        """Hints are of no use in a simulation."""


async def _write(
    job: Any,
    store: JobStore,
    node: Any,
    threads: Threads,
    stop: Any,
    *,
    progress: Progress,
    on_node_durable: Callable[[datetime], None] = lambda at: None,
    on_node_whole: Callable[..., Coroutine[Any, Any, None]] | None = None,
    **_: Any,
) -> Any:
    """flush.write, with time passing where bytes would go: to node and store at the same time, each at its own pace."""
    worker = threads.worker
    (part,) = job.parts
    names = (f"{part.rank}/{part.boundary}/{n}" for n in range(PIECES))
    chunks = tuple(Chunk(hashlib.blake2b(n.encode(), digest_size=32).hexdigest(), PIECE_BYTES, job.ref) for n in names)
    manifest = RankManifest(
        UID, job.ref.attempt, job.ref.save, part.rank, job.world_size, part.boundary, PIECES * PIECE_BYTES, PIECE_BYTES, chunks
    )  # fmt: skip
    entries = (entry_of(manifest),)

    async def whole() -> None:
        if on_node_whole is not None:
            await on_node_whole((manifest,), entries)

    on_node = _nothing()
    if node is not None:
        on_node = asyncio.ensure_future(_to_node(part.image_bytes, worker, stop, on_node_durable, whole))
    try:
        if job.to_store:
            await _to_store(job, part.image_bytes, worker, stop, progress, beside_node=node is not None)
            store.create_manifest(manifest)
        else:
            await asyncio.wait([on_node])
            if on_node.result() is None:
                raise SaveGivenUp(stop.reason or "the time is up")
    except BaseException:
        stop.set("another part of the save failed")
        await asyncio.wait([on_node])
        raise
    known: dict[str, Any] = {
        "manifests": (manifest,),
        "entries": entries,
        "refers_to": (),
        "bytes_logical": part.image_bytes,
        "bytes_sent": part.image_bytes,
        "bytes_stored": part.image_bytes,
        "node_durable_at": on_node.result() if on_node.done() else None,
        "at_its_pace": True,
        "on_node": on_node,
        "unread": on_node,
    }
    return flush.Written(**known)


async def _to_node(
    size: int,
    worker: Worker,
    stop: Any,
    durable: Callable[[datetime], None],
    whole: Callable[[], Coroutine[Any, Any, None]],
) -> datetime | None:
    left = size / worker.world.node
    while left > 0:
        if stop.wanted:
            return None
        piece = min(SLICE_SECONDS, left, max(1e-3, stop.at - worker.simulation.loop.time()))
        await asyncio.sleep(piece)
        left -= piece
    at = clock.now()
    durable(at)
    await whole()
    return at


async def _to_store(job: Any, size: int, worker: Worker, stop: Any, progress: Progress, *, beside_node: bool) -> None:
    world, loop = worker.world, worker.simulation.loop
    order = worker.writing._flushes[job.ref.save].order
    speed = worker.speed_of(emergency=order.emergency or order.full_speed) / (1.05 if beside_node else 1.0)
    left, stall = size / speed, world.stall if order.emergency else 0.0
    at_once = min(size, REQUESTS * CHUNK_BYTES)
    progress.begins(at_once)
    answered = 0
    while left + stall > 0:
        if stop.wanted:
            raise SaveGivenUp(stop.reason or "the time is up")
        piece = min(SLICE_SECONDS, left + stall, max(1e-3, stop.at - loop.time()))
        await asyncio.sleep(piece)
        stall, left = max(0.0, stall - piece), left - max(0.0, piece - stall)
        gone = int(size - max(0.0, left) * speed)
        while gone - answered >= at_once:
            answered += at_once
            progress.ends(at_once, stored=True)
            progress.begins(at_once)
    await asyncio.sleep(world.request)


def claims_parent(chosen: Any) -> ParentRef:
    return ParentRef(chosen.record.job_uid, chosen.record.attempt, chosen.record.save)


def _nothing() -> "asyncio.Task[datetime | None]":
    async def nothing() -> datetime | None:
        return None

    return asyncio.ensure_future(nothing())


async def _quietly(coroutine: Coroutine[Any, Any, Any]) -> None:
    with contextlib.suppress(Exception):
        await coroutine
