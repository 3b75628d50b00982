"""One worker in the middle of a restore, without processes: the real Restoring, arena and threads, over a bucket in memory."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from worlds import World, ref

from holdfast_agent.arena import Arena
from holdfast_agent.crew import Changes, Crew
from holdfast_agent.metrics import Metrics
from holdfast_agent.peers import LATER
from holdfast_agent.record import Record
from holdfast_agent.restoring import Restoring
from holdfast_agent.shared import Shared
from holdfast_agent.threads import Threads
from holdfast_api import peers
from holdfast_api.config import StorageConfig
from holdfast_api.manifest import ParentRef
from holdfast_store.local import LocalTier
from holdfast_store.memory import MemoryBucket

IMAGE = b"aaaabbbbccccdddd"


class Member:
    """Worker 0 of attempt 2, which is told to continue 1/1."""

    def __init__(self, folder: Path, *, node: bool = False) -> None:
        self.bucket = MemoryBucket()
        self.world = World(self.bucket).claimed(1).saved(1, 1, IMAGE)
        (folder / "local").mkdir()
        self.node = LocalTier(folder / "local", "ns", "job", self.world.uid) if node else None
        self.record = Record(self.world.uid, 0, "pod")
        self.shared = Shared(
            settings=SimpleNamespace(  # type: ignore[arg-type]
                config=SimpleNamespace(worker=0, job_uid=self.world.uid, storage=StorageConfig("memory://")),
            ),
            order=SimpleNamespace(attempt=2, members=(), world_size=1, ranks_of=lambda worker: range(1)),  # type: ignore[arg-type]
            record=self.record,
            metrics=Metrics(0),
            threads=Threads(),
            arena=Arena(folder / "memory"),
            node=self.node,
            crew=Crew(range(1)),
            changes=Changes(),
            end=lambda *_: None,
            fail=lambda *_: None,
            supersede=lambda *_: None,
            store=self.world.store,
        )
        self.restoring = Restoring(self.shared)

    def resolved(self, choice: int = 1, save: int = 1) -> peers.Resolved:
        _, text = self.world.store._records.commit(ref(1, save))
        return peers.Resolved(2, "life", ParentRef(self.world.uid, 1, save), text, False, choice)

    def prefetch(self, save: int = 1) -> None:
        """The lead says what it would resolve now."""
        _, text = self.world.store._records.commit(ref(1, save))
        self.restoring.prefetch(peers.Prefetch(2, ParentRef(self.world.uid, 1, save), text))

    async def prefetched(self, save: int = 1) -> None:
        self.prefetch(save)
        assert self.restoring._ahead is not None
        await self.restoring._ahead.task

    async def fetched(self, choice: int = 1, save: int = 1) -> Any:
        """As the lead does it: asked until there is an answer."""
        message = self.resolved(choice, save)
        while (answer := await self.restoring.resolved(message)) is LATER:
            pass
        return answer

    def image(self, slot: int = 0) -> bytes:
        return self.shared.arena.path(0, slot).read_bytes()[: len(IMAGE)]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)
