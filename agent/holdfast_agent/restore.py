"""Brings the images of this worker's ranks into slots, every chunk verified once, by the thread that got it (C3).

Sources in order: the slot itself (container restart, new attempt in place), another rank's slot, the node's directory, the memory of other workers, the store.
A chunk that is absent or bad in one is taken from the next; if the store's is bad too, the checkpoint is rejected, with what each source said. A node's
directory or a worker that cannot be read costs a fetch from the next. A store that cannot be reached is not the checkpoint's fault: the try ends with what
it said, so that it can be reported, and the next try goes on from there.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from holdfast_agent import prefault, targets
from holdfast_agent.arena import Arena
from holdfast_agent.contents import Contents
from holdfast_agent.errors import AgentError, CheckpointBad, NoRoom
from holdfast_agent.giving import Giving
from holdfast_agent.mappings import Mappings
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
    """The slot is believed to hold it: nothing is copied."""

    name = "arena"

    def read(self, manifest: RankManifest, index: int, view: memoryview) -> None:
        if digest(view) != manifest.chunks[index].digest:
            raise Absent(f"chunk {index} is not in the slot")


class Twin:
    """Another rank of this worker has just got a chunk of the same content: replicas are read once (J4)."""

    name = "arena"

    def __init__(self, views: dict[str, memoryview]) -> None:
        """`views`: verified ones, by digest."""
        self._views = views

    def read(self, manifest: RankManifest, index: int, view: memoryview) -> None:
        found = self._views.get(manifest.chunks[index].digest)
        if found is None or found.nbytes != view.nbytes:
            raise Absent(f"chunk {index} is in no other rank's slot")
        view[:] = found
        if digest(view) != manifest.chunks[index].digest:
            raise Absent(f"chunk {index} was not copied as it was")


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

    def __init__(self, note: Callable[[str, int], None], contents: Contents | None = None) -> None:
        """`contents`: what an earlier fetch of the same attempt has left in the slots."""
        self._lock = threading.Lock()
        self._note = note
        self.contents = contents if contents is not None else Contents()
        self.distrusted: set[str] = set()
        """Chunks that did not verify in the store: never referred to again (B5)."""
        self._there: set[tuple[int, int]] = set()

    def add(self, source: str, rank: int, index: int, count: int) -> None:
        """Each chunk once, from wherever it came first."""
        with self._lock:
            if (rank, index) not in self._there:
                self._there.add((rank, index))
                self._note(source, count)

    def distrust(self, name: str) -> None:
        with self._lock:
            self.distrusted.add(name)


@dataclass(slots=True)
class Piece:
    """One chunk of one rank's image on its way into the slot."""

    manifest: RankManifest
    index: int
    slot: int
    offset: int
    view: memoryview
    believed: bool
    """The slot is believed to hold it."""

    @property
    def chunk(self) -> Chunk:
        return self.manifest.chunks[self.index]

    def is_known(self, contents: Contents) -> bool:
        c = self.chunk
        return contents.holds(self.manifest.rank, self.slot, self.offset, c.digest, c.length)


def fetch_chunk(piece: Piece, sources: list[Source], tally: Tally, stop: Stop) -> None:
    """One chunk from the first source whose bytes verify. Raises CheckpointBad naming what every source said."""
    found = []
    manifest, index = piece.manifest, piece.index
    if piece.is_known(tally.contents):
        return
    prefault.populate(piece.view)
    tally.contents.about_to_write(manifest.rank, piece.slot, piece.offset, len(piece.view))
    for source in sources if not piece.believed else [InPlace(), *sources]:
        if stop.wanted:
            raise AgentError("the restore was given up")
        try:
            source.read(manifest, index, piece.view)
        except (Absent, Corrupt) as e:
            found.append(f"{source.name}: {e}")
            if source.name == "store":
                tally.distrust(piece.chunk.digest)
            continue
        tally.contents.verified(manifest.rank, piece.slot, piece.offset, piece.chunk.digest, piece.chunk.length)
        tally.add(source.name, manifest.rank, index, len(piece.view))
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
    ahead: bool = False,
    members: Source | None = None,
    giving: Giving | None = None,
    begun: Callable[[RankManifest, Path], None] = lambda manifest, path: None,
) -> dict[int, Image]:
    """`store` is that of the record's own job uid. Raises CheckpointBad, MemoryTooSmall, or a StoreError that is not the checkpoint's fault.

    `stop` is of this try; `tally` of the restore, so that the next try looks into the slots first. `ahead`: before the claim, so that nothing that may be
    worth more is overwritten; NoRoom if there is no other place. `members`: what other workers hold; `giving` hears what they may ask for in return. `begun` is
    called for each rank once the file exists that its image will lie in.
    """
    store = store.until(0.0)  # without retries of its own, which would go on after `stop`
    manifests = await manifests_of(record, ranks, store, threads, stop)
    wanted = targets.Content(record.job_uid, record.ref)
    slots: dict[int, int] = {}
    believed: dict[int, bool] = {}
    for rank in ranks:
        held = arena.contents(rank)
        slot = targets.choose(held, wanted, begun=tally.contents.slot_of(rank), spare_newer=ahead)
        if slot is None:
            raise NoRoom(f"every slot of rank {rank} holds something newer than {record.ref}")
        slots[rank], believed[rank] = slot, held.get(slot) == wanted
    if giving is not None:
        for rank in ranks:
            if believed[rank]:
                giving.holds(manifests[rank], arena.path(rank, slots[rank]))
        giving.known()
    await threads.call(arena.ensure, {(r, slots[r]): manifests[r].image_bytes for r in ranks})
    for rank in ranks:
        begun(manifests[rank], arena.path(rank, slots[rank]))
    with _mapped(manifests, slots, believed, arena, threads.slots) as opened:
        sources: list[Source] = [OnNode(node)] if node is not None else []
        if members is not None:
            sources.append(members)
        sources.append(InStore(store, stop))
        failures = await _fetch_pieces(opened, sources, threads, tally, stop)
    for failure in sorted(failures, key=weight):
        raise failure
    for rank, slot in slots.items():
        arena.note(rank, slot, record.job_uid, record.ref)
        if giving is not None:
            giving.holds(manifests[rank], arena.path(rank, slot))
    return {r: Image(r, slots[r], arena.path(r, slots[r]), manifests[r]) for r in ranks}


async def manifests_of(
    record: CommitRecord, ranks: range, store: JobStore, threads: Threads, stop: Stop
) -> dict[int, RankManifest]:
    reading = [threads.call(persist, stop, _reading(store, record, r), patience=PATIENCE_SECONDS) for r in ranks]
    found = await asyncio.gather(*reading, return_exceptions=True)
    for result in found:
        if isinstance(result, Absent | Corrupt):
            raise CheckpointBad(f"manifest: {result}") from result
    manifests = {}
    for rank, result in zip(ranks, found, strict=True):
        if isinstance(result, BaseException):
            raise result
        if sum(c.length for c in result.chunks) != result.image_bytes:
            raise CheckpointBad(f"rank {rank}: the chunks do not add up to the image's {result.image_bytes} bytes")
        manifests[rank] = result
    return manifests


def weight(failure: BaseException) -> int:
    """What says most comes first: a bad checkpoint, then the store's own words, then what was given up for them."""
    return 0 if isinstance(failure, CheckpointBad) else 1 if isinstance(failure, StoreError) else 2


def _fetch_or_end(piece: Piece, sources: list[Source], tally: Tally, stop: Stop) -> None:
    """A store that is away is so for every chunk: the first that has lost patience ends the try for all."""
    try:
        fetch_chunk(piece, sources, tally, stop)
    except StoreError as e:
        stop.set(f"the store: {e}")
        raise


@dataclass(slots=True)
class _Opened:
    """The slots of all ranks in this process's memory, cut into pieces; `busy` while threads may write into them."""

    pieces: list[Piece] = field(default_factory=list)
    busy: bool = False


@contextlib.contextmanager
def _mapped(
    manifests: dict[int, RankManifest],
    slots: dict[int, int],
    believed: dict[int, bool],
    arena: Arena,
    mappings: Mappings,
) -> Iterator[_Opened]:
    opened, uses = _Opened(), []
    try:
        for rank, manifest in manifests.items():
            use = mappings.write(arena.path(rank, slots[rank]), manifest.image_bytes)
            uses.append(use)
            offset = 0
            for index, chunk in enumerate(manifest.chunks):
                view = use.view[offset : offset + chunk.length]
                opened.pieces.append(Piece(manifest, index, slots[rank], offset, view, believed[rank]))
                offset += chunk.length
        yield opened
    finally:
        if not opened.busy:
            for piece in opened.pieces:
                piece.view.release()
            for use in uses:
                use.close()


async def _fetch_pieces(
    opened: _Opened, sources: list[Source], threads: Threads, tally: Tally, stop: Stop
) -> list[BaseException]:
    """All chunks of all ranks, side by side: no rank waits for another one's last chunk. The failures, empty if everything is there."""
    first: dict[str, Piece] = {}
    again = []
    for piece in opened.pieces:
        if first.setdefault(piece.chunk.digest, piece) is not piece:
            again.append(piece)
    failures = await _in_threads(opened, [*first.values()], sources, threads, tally, stop)
    if again and not failures:
        twins = {name: piece.view for name, piece in first.items()}
        failures = await _in_threads(opened, again, [Twin(twins), *sources], threads, tally, stop)
    return failures


async def _in_threads(
    opened: _Opened, pieces: list[Piece], sources: list[Source], threads: Threads, tally: Tally, stop: Stop
) -> list[BaseException]:
    loop = asyncio.get_running_loop()
    jobs = [loop.run_in_executor(threads.chunks, _fetch_or_end, p, sources, tally, stop) for p in pieces]
    if not jobs:
        return []
    opened.busy = True
    cancelled: asyncio.CancelledError | None = None
    try:
        while not all(j.done() for j in jobs):
            try:
                # However often it is given up: what ends before its threads lets them write into a slot that somebody else has by then.
                await asyncio.wait(jobs)
            except asyncio.CancelledError as e:
                stop.set("the restore was given up")
                cancelled = e
    finally:
        opened.busy = not all(j.done() for j in jobs)
    if cancelled is not None:
        raise cancelled
    results = await asyncio.gather(*jobs, return_exceptions=True)
    return [r for r in results if isinstance(r, BaseException)]


def _reading(store: JobStore, record: CommitRecord, rank: int) -> Callable[[], RankManifest]:
    return lambda: store.read_manifest(record, rank)
