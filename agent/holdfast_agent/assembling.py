"""Brings parts of a checkpoint of another number of ranks into this worker's slots: each chunk that holds something wanted is read once, verified whole, and
cut up (C3). Nothing else is read.
"""

import asyncio
from collections.abc import Iterable, Mapping
from queue import Empty, SimpleQueue

from holdfast_agent.covering import ChunkJob
from holdfast_agent.errors import AgentError, CheckpointBad
from holdfast_agent.restore import Source, Tally, weight
from holdfast_agent.stopping import Stop
from holdfast_agent.threads import CHUNK_THREADS, Threads
from holdfast_api.manifest import RankManifest
from holdfast_store.errors import Absent, Corrupt, StoreError

BUFFER_BYTES = 256 << 20
"""Chunks in memory at the same time, of all threads."""


class Assembly:
    """What has been done so far, over the tries of one restore: bytes that are in the slots are not fetched again."""

    def __init__(self, jobs: Iterable[ChunkJob], manifests: Mapping[int, RankManifest]) -> None:
        self._jobs = list(jobs)
        self._manifests = manifests
        self._done: set[int] = set()

    @property
    def bytes_to_read(self) -> int:
        """Of the chunks that hold what is wanted."""
        return sum(self._manifests[j.rank].chunks[j.index].length for j in self._jobs)

    async def run(
        self, targets: Mapping[int, memoryview], sources: list[Source], threads: Threads, tally: Tally, stop: Stop
    ) -> None:
        """Fills `targets` (by rank). Raises CheckpointBad, or a StoreError that is not the checkpoint's fault. No thread writes after it has ended."""
        left: SimpleQueue[tuple[int, ChunkJob]] = SimpleQueue()
        todo = [(n, job) for n, job in enumerate(self._jobs) if n not in self._done]
        for item in todo:
            left.put(item)
        if not todo:
            return
        most = max(self._manifests[job.rank].chunks[job.index].length for _, job in todo)
        count = max(1, min(CHUNK_THREADS, BUFFER_BYTES // max(most, 1), len(todo)))
        loop = asyncio.get_running_loop()
        work = [
            loop.run_in_executor(threads.chunks, self._work, left, most, targets, sources, tally, stop)
            for _ in range(count)
        ]
        cancelled: asyncio.CancelledError | None = None
        while not all(w.done() for w in work):
            try:
                await asyncio.wait(work)
            except (
                asyncio.CancelledError
            ) as e:  # what ends before its threads lets them write into a slot that somebody else has by then
                stop.set("the restore was given up")
                cancelled = e
        failures = [f for f in await asyncio.gather(*work, return_exceptions=True) if isinstance(f, BaseException)]
        if cancelled is not None:
            raise cancelled
        for failure in sorted(failures, key=weight):
            raise failure

    def _work(
        self,
        left: SimpleQueue[tuple[int, ChunkJob]],
        most: int,
        targets: Mapping[int, memoryview],
        sources: list[Source],
        tally: Tally,
        stop: Stop,
    ) -> None:
        buffer = memoryview(bytearray(most))
        while True:
            try:
                number, job = left.get_nowait()
            except Empty:
                return
            manifest = self._manifests[job.rank]
            view = buffer[: manifest.chunks[job.index].length]
            try:
                read_chunk(manifest, job.index, view, sources, tally, stop)
            except (StoreError, CheckpointBad) as e:
                stop.set(str(e))  # for all: the others' work is for nothing
                raise
            for cut in job.cuts:
                cut.copy(view, targets[cut.to])
            self._done.add(number)


def read_chunk(
    manifest: RankManifest, index: int, view: memoryview, sources: list[Source], tally: Tally, stop: Stop
) -> None:
    """One chunk from the first source whose bytes verify. Raises CheckpointBad naming what every source said, StoreError."""
    found = []
    for source in sources:
        if stop.wanted:
            raise AgentError("the restore was given up")
        try:
            source.read(manifest, index, view)
        except (Absent, Corrupt) as e:
            found.append(f"{source.name}: {e}")
            if source.name == "store":
                tally.distrust(manifest.chunks[index].digest)
            continue
        tally.add(source.name, manifest.rank, index, len(view))
        return
    raise CheckpointBad(f"rank {manifest.rank}, chunk {index} of {len(manifest.chunks)}: " + "; ".join(found[-2:]))
