"""One worker with one rank, without processes and sockets: the parts of an attempt over a store in memory, for tests that order what happens when."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

from holdfast_agent.arena import Arena
from holdfast_agent.clock import Deadline, now
from holdfast_agent.crew import Changes, Crew
from holdfast_agent.finish import Finish
from holdfast_agent.gates import Gates
from holdfast_agent.metrics import Metrics
from holdfast_agent.peers import Mesh
from holdfast_agent.periodic import Periodic
from holdfast_agent.record import Record
from holdfast_agent.rounds import Rounds
from holdfast_agent.saves import Saves, info_of
from holdfast_agent.settings import Settings
from holdfast_agent.shared import Shared
from holdfast_agent.slots import SlotBook
from holdfast_agent.threads import Threads
from holdfast_agent.writing import Writing
from holdfast_api import peers
from holdfast_api import ranks as wire
from holdfast_api.config import AgentConfig, StorageConfig
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import Claim, CommitRecord, ParentRef
from holdfast_api.messages import AttemptOrder, ClaimInfo, Member, RestoreOrder
from holdfast_store.job import JobStore
from holdfast_store.memory import Fault, MemoryBucket

UID = "5f0c9d9e-0000-4000-8000-000000000001"
CHUNK = 4096
FROZEN, MOVING = b"f" * CHUNK, CHUNK
"""An image is one chunk that never changes and one that is its boundary's."""


def image(boundary: int) -> bytes:
    return FROZEN + boundary.to_bytes(8, "big") * (MOVING // 8)


class Barrier:
    """Holds one kind of call to the store until `free`."""

    def __init__(self, operation: str, key: str) -> None:
        self.operation, self.key = operation, key
        self.reached, self.free = threading.Event(), threading.Event()
        self.armed = True

    def __call__(self, operation: str, key: str) -> None:
        if self.armed and (operation, self.key in key) == (self.operation, True):
            self.armed = False
            self.reached.set()
            assert self.free.wait(60)


class Lone:
    """Made inside a running event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        faults: tuple[Fault, ...] = (),
        before_call: Callable[[str, str], None] | None = None,
        after: "Lone | None" = None,
        every_steps: int = 0,
    ):
        """`after`: the next attempt, continuing the newest checkpoint of that one in the same store."""
        self.bucket = after.bucket if after else MemoryBucket(faults, before_call=before_call)
        self.attempt = after.attempt + 1 if after else 1
        self.store = JobStore(self.bucket, "ns", "job", UID)
        config = AgentConfig("ns", "job", UID, 0, 1, 1, 1, StorageConfig("memory://x"), chunk_bytes=CHUNK)
        config = dataclasses.replace(config, every_steps=every_steps)
        settings = Settings(config, ("true",), "pod", "pod-uid", "", "node", "", 0, {}, folder / "token", None)
        member = Member(0, "pod", "pod-uid", 1)
        record = Record(UID, 0, "pod-uid")
        record.begin(self.attempt)
        record.claim = ClaimInfo(self.attempt, "life", now())
        record.fresh, record.loaded = after is None, True
        last = after.commits()[-1] if after else None
        parent = ParentRef(UID, last.attempt, last.save) if last else None
        self.store.claim(Claim(UID, self.attempt, "life", (member,), parent, now()))
        arena = Arena(folder / "arena")
        self.shared = s = Shared(
            settings=settings,
            order=AttemptOrder(UID, self.attempt, (member,), 1, True, RestoreOrder()),
            record=record,
            metrics=Metrics(0),
            threads=Threads(),
            arena=arena,
            node=None,
            crew=Crew(range(1)),
            changes=Changes(),
            end=lambda exit, detail: None,
            fail=lambda detail: None,
            supersede=lambda newest: None,
            store=self.store,
            incarnation="life",
        )
        self.orders: list[peers.FlushOrder] = []
        self.sealed: list[peers.Committed] = []
        self.writing = Writing(s, self.sealed.append)
        self.gates = Gates(s, self.writing)
        self.saves = Saves(s)
        self.periodic = Periodic(s, self.saves)
        self.rounds = Rounds(s, self.gates, self.saves, self.periodic)
        self.finish = Finish(s, self.writing, self.saves, self.periodic, self.rounds)
        s.mesh = Mesh(self.attempt, (member,), 0, self.peer, None, b"", UID)
        self.rank = s.crew.ranks[0]
        self.rank.loaded = self.rank.stepped = True
        self.rank.plan = wire.Plan(1, len(image(0)), ())
        self.rank.book = SlotBook(2)
        if last is not None:
            s.base, s.last, record.restored = last, info_of(last), info_of(last)
            s.base_manifests = {0: self.store.read_manifest(last, 0)}
            s.offered.add(parent)
        arena.ensure({(0, 0): len(image(0)), (0, 1): len(image(0))})

    @staticmethod
    def a_record() -> Record:
        record = Record(UID, 0, "pod-uid")
        record.begin(1)
        return record

    async def peer(self, message):
        match message:
            case peers.FlushOrder():
                self.orders.append(message)
                return await self.writing.ordered(message)
            case peers.Committed():
                self.writing.committed(message)
            case peers.SaveOffer():
                self.periodic.offered(message)
            case peers.CloseGates():
                return await self.gates.close_gates(message)
            case peers.ReleaseGates():
                return await self.gates.release(message)
            case peers.OpenGates():
                self.gates.open(message)
        return None

    def capture(self, slot: int, boundary: int, kind: str = "periodic") -> None:
        """The rank writes the slot and hands it over."""
        with self.shared.arena.path(0, slot).open("r+b") as file:
            file.write(image(boundary))
        self.rank.book.take(wire.CapturedSlot(slot, 1, boundary, kind, 0, 0.0, boundary, 0, 0, {}, {}))
        self.rank.boundary = boundary

    def done(self, boundary: int) -> None:
        self.rank.done_at = boundary
        self.finish.begin()

    def offer(self, boundary: int) -> None:
        self.periodic.offered(peers.SaveOffer(self.attempt, 0, boundary))

    def commits(self) -> list[CommitRecord]:
        """In the store, oldest first."""
        found = []
        for save in range(1, self.shared.highest_save + 1):
            key = f"{self.store.prefix}checkpoints/{self.attempt:010d}/{save:010d}/commit.json"
            if key in self.bucket.objects:
                found.append(self.store.read_commit(CheckpointRef(self.attempt, save))[0])
        return found

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        async def met() -> bool:
            return await self.shared.changes.until(lambda: bool(condition()), Deadline.after(30))

        assert await met(), what or "the condition was not met"

    async def close(self) -> None:
        await self.finish.close()
        await self.rounds.cancel(reopen=False)
        await self.periodic.close()
        await self.saves.close()
        await self.gates.end()
        await self.writing.close()
        self.shared.threads.close()


async def in_thread(event: threading.Event) -> None:
    await asyncio.to_thread(event.wait, 30)
    assert event.is_set()
