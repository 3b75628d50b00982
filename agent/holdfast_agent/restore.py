"""Brings the images of this worker's ranks into slots, every chunk verified by the thread that got it (C3).

Sources in order: the slot itself (container restart, new attempt in place), the node's directory, the store. A chunk that is absent or bad in one is taken
from the next; if the store's is bad too, the checkpoint is rejected. A node's directory that cannot be read costs a fetch from the store. A store that
cannot be reached is not the checkpoint's fault: the try ends with what it said, so that it can be reported, and the next try goes on from there.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from holdfast_agent.arena import Arena, Mapped
from holdfast_agent.errors import AgentError, CheckpointBad
from holdfast_agent.threads import Stop, Threads, persist
from holdfast_api.manifest import Chunk, CommitRecord, RankManifest
from holdfast_store.chunks import digest
from holdfast_store.errors import Absent, Corrupt, StoreError
from holdfast_store.job import JobStore
from holdfast_store.local import LocalTier

log = logging.getLogger(__name__)
PATIENCE_SECONDS = 12.0
"""With a store that is away, for one call: then the try ends and the reason is reported, within 30 s (fault scenario 48)."""
STORE_TRIES = 2
"""A chunk damaged on the way is fetched again once before the checkpoint is blamed."""


@dataclass(frozen=True, slots=True)
class Image:
    """One rank's verified image."""

    rank: int
    slot: int
    path: Path
    manifest: RankManifest


class Source(Protocol):
    """A place where chunks may be. Raises Absent or Corrupt; what it raises beside that ends the try."""

    name: str

    def read(self, manifest: RankManifest, index: int, view: memoryview) -> None: ...


class InPlace:
    """The slot already holds it: nothing is copied."""

    name = "arena"

    def read(self, manifest: RankManifest, index: int, view: memoryview) -> None:
        if digest(view) != manifest.chunks[index].digest:
            raise Absent(f"chunk {index} is not in the slot")


class OnNode:
    """A copy, never the truth: whatever keeps it from being read (EIO, no permission, a link in its place) costs a fetch and blocks nothing (C3)."""

    name = "local"

    def __init__(self, node: LocalTier) -> None:
        self._node = node
        self._said = False

    def read(self, manifest: RankManifest, index: int, view: memoryview) -> None:
        try:
            self._node.read_chunk_into(manifest, index, view)
        except (Absent, Corrupt):
            raise
        except (StoreError, OSError) as e:
            if not self._said:
                self._said = True  # a disk that fails does so for every chunk
                log.warning("the node's copy cannot be read, the store is asked instead: %s: %s", type(e).__name__, e)
            raise Absent(f"the node's copy cannot be read: {e}") from e


class InStore:
    name = "store"

    def __init__(self, store: JobStore, stop: Stop) -> None:
        """`store` tries once: repeating is `persist`'s."""
        self._store = store
        self._stop = stop

    def read(self, manifest: RankManifest, index: int, view: memoryview) -> None:
        chunk: Chunk = manifest.chunks[index]
        for left in reversed(range(STORE_TRIES)):
            try:
                return persist(self._stop, lambda: self._store.get_chunk_into(chunk, view), patience=PATIENCE_SECONDS)
            except Corrupt:
                if not left:
                    raise
        return None


class Tally:
    """Bytes by source, counted from chunk threads; of one restore, however many tries it takes."""

    def __init__(self, note: Callable[[str, int], None]) -> None:
        self._lock = threading.Lock()
        self._note = note
        self.distrusted: set[str] = set()
        """Chunks that did not verify in the store: never referred to again (B5)."""
        self._there: set[tuple[int, int]] = set()

    def add(self, source: str, rank: int, index: int, count: int) -> None:
        """Each chunk once: a later try finds in the slot what an earlier one has fetched."""
        with self._lock:
            if (rank, index) not in self._there:
                self._there.add((rank, index))
                self._note(source, count)

    def begun(self, rank: int) -> bool:
        """An earlier try has left something in the rank's slot."""
        with self._lock:
            return any(r == rank for r, _ in self._there)

    def distrust(self, name: str) -> None:
        with self._lock:
            self.distrusted.add(name)


def fetch_chunk(
    manifest: RankManifest, index: int, view: memoryview, sources: list[Source], tally: Tally, stop: Stop
) -> None:
    """One chunk from the first source whose bytes verify. Raises CheckpointBad naming what every source said."""
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


async def fetch(
    record: CommitRecord,
    ranks: range,
    *,
    store: JobStore,
    node: LocalTier | None,
    arena: Arena,
    threads: Threads,
    tally: Tally,
    stop: Stop,
) -> dict[int, Image]:
    """`store` is that of the record's own job uid. Raises CheckpointBad, MemoryTooSmall, or a StoreError that is not the checkpoint's fault.

    `stop` is of this try; `tally` of the restore, so that the next try looks into the slots first.
    """
    store = store.until(0.0)  # without retries of its own, which would go on after `stop`
    try:
        manifests = {
            r: await threads.call(persist, stop, _reading(store, record, r), patience=PATIENCE_SECONDS) for r in ranks
        }
    except (Absent, Corrupt) as e:
        raise CheckpointBad(f"manifest: {e}") from e
    for manifest in manifests.values():
        if sum(c.length for c in manifest.chunks) != manifest.image_bytes:
            raise CheckpointBad(
                f"rank {manifest.rank}: the chunks do not add up to the image's {manifest.image_bytes} bytes"
            )
    slots = {r: arena.find(r, record.job_uid, record.ref) for r in ranks}
    targets = {r: slots[r] or 0 for r in ranks}
    await threads.call(arena.ensure, {(r, targets[r]): manifests[r].image_bytes for r in ranks})
    images = {}
    failures: list[BaseException] = []
    for rank in ranks:
        sources: list[Source] = [InPlace()] if slots[rank] is not None or tally.begun(rank) else []
        sources += [OnNode(node)] if node is not None else []
        sources.append(InStore(store, stop))
        path = arena.path(rank, targets[rank])
        failures += await _fetch_image(manifests[rank], path, sources, threads, tally, stop)
        images[rank] = Image(rank, targets[rank], path, manifests[rank])
    for failure in sorted(failures, key=_weight):
        raise failure
    for image in images.values():
        arena.note(image.rank, image.slot, record.job_uid, record.ref)
    return images


def _weight(failure: BaseException) -> int:
    """What says most comes first: a bad checkpoint, then the store's own words, then what was given up for them."""
    return 0 if isinstance(failure, CheckpointBad) else 1 if isinstance(failure, StoreError) else 2


def _fetch_or_end(
    manifest: RankManifest, index: int, view: memoryview, sources: list[Source], tally: Tally, stop: Stop
) -> None:
    """A store that is away is so for every chunk: the first that has lost patience ends the try for all."""
    try:
        fetch_chunk(manifest, index, view, sources, tally, stop)
    except StoreError as e:
        stop.set(f"the store: {e}")
        raise


async def _fetch_image(
    manifest: RankManifest, path: Path, sources: list[Source], threads: Threads, tally: Tally, stop: Stop
) -> list[BaseException]:
    """All chunks of one image into `path`; the failures, empty if it is whole."""
    loop = asyncio.get_running_loop()
    mapped = Mapped(path, manifest.image_bytes, write=True)
    jobs = []
    offset = 0
    views = []
    for index, chunk in enumerate(manifest.chunks):
        view = mapped.view[offset : offset + chunk.length]
        views.append(view)
        offset += chunk.length
        jobs.append(loop.run_in_executor(threads.chunks, _fetch_or_end, manifest, index, view, sources, tally, stop))
    try:
        results = await asyncio.gather(*jobs, return_exceptions=True)
    except asyncio.CancelledError:
        stop.set("the restore was given up")
        await asyncio.wait(jobs)
        raise
    finally:
        if all(j.done() for j in jobs):
            for view in views:
                view.release()
            mapped.close()
    return [r for r in results if isinstance(r, BaseException)]


def _reading(store: JobStore, record: CommitRecord, rank: int) -> Callable[[], RankManifest]:
    return lambda: store.read_manifest(record, rank)
