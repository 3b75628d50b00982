"""One save and one next start, through the doors that an agent uses: `flush.write`, `JobStore.commit`, the node's tier; `resolve`, `restore.fetch`, `claim`.

Small and without a network, so that hundreds of saves can be killed in a minute. The state of rank r at boundary b is a function of (r, b), so that any
mixture is seen.
Everything lies below one folder: `store` (a file:// bucket), `node` (the node's directory), `arena` (the slots), `marks` (what was acknowledged when).
"""

import asyncio
import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from holdfast_agent import flush, laptop, restore, reuse
from holdfast_agent.arena import Arena
from holdfast_agent.errors import CheckpointBad
from holdfast_agent.experience import Experience
from holdfast_agent.metrics import Metrics
from holdfast_agent.record import Record
from holdfast_agent.threads import Stop, Threads
from holdfast_agent.unfinished import Unfinished
from holdfast_api.config import StorageConfig
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import (
    CheckpointKind,
    Chunk,
    Claim,
    CommitRecord,
    ParentRef,
    Pending,
    Progress,
    RankEntry,
    RankManifest,
    TensorEntry,
)
from holdfast_api.messages import Cause, RestoreOrder, UnfinishedCopy
from holdfast_store import chunks, direct
from holdfast_store.bucket import Bucket
from holdfast_store.errors import Absent, AlreadyExists, Corrupt, StoreError
from holdfast_store.file import FileBucket
from holdfast_store.folders import TEMPORARY, UNFINISHED_AFTER_SECONDS
from holdfast_store.job import JobStore
from holdfast_store.local import LocalTier
from holdfast_store.opening import open_bucket
from tests.store.on_node import put_image

direct.SMALLEST_BYTES = direct.ALIGN
"""In the processes that save: small images go the way of large ones, past the page cache where the file system allows it."""

UID = "5f0c9d9e-0000-4000-8000-000000000009"
RANKS = 2
CHUNK = 8192
IMAGE_BYTES = (5 * CHUNK, 3 * CHUNK + 100)
"""The second ends within a block, which direct I/O cannot write as it is."""
FROZEN_BYTES = 2 * CHUNK
"""The head never changes, as frozen layers do not: the second save leans on the first."""
OLD, NEW, NEXT = 10, 20, 30
"""Boundaries: of the checkpoint that is there, of the save that is disturbed, of the one after the next start."""


def state(rank: int, boundary: int) -> bytes:
    def stream(seed: str, count: int) -> bytes:
        return hashlib.shake_256(seed.encode()).digest(count)

    return stream(f"frozen {rank}", FROZEN_BYTES) + stream(f"{rank}/{boundary}", IMAGE_BYTES[rank] - FROZEN_BYTES)


@dataclass(frozen=True)
class Place:
    """Where a job of one worker and two ranks lies."""

    root: Path

    @property
    def store_folder(self) -> Path:
        return self.root / "store"

    @property
    def node_folder(self) -> Path:
        return self.root / "node"

    @property
    def marks(self) -> Path:
        return self.root / "marks"

    def make(self) -> "Place":
        for folder in (self.store_folder, self.node_folder, self.marks):
            folder.mkdir(parents=True, exist_ok=True)
        return self

    def store(self, bucket: Bucket | None = None) -> JobStore:
        return JobStore(
            bucket or open_bucket(StorageConfig(self.store_folder.as_uri()), {}, retry_seconds=1.0), "ns", "job", UID
        )

    def node(self) -> LocalTier:
        return LocalTier(self.node_folder, "ns", "job", UID)

    def arena(self) -> Arena:
        return Arena(self.root / "arena")

    def mark(self, word: str) -> None:
        """Says, as a call that is seen, that something has been promised."""
        os.mkdir(self.marks / word)

    def copy(self, to: Path) -> "Place":
        shutil.copytree(self.root, to, symlinks=True)
        return Place(to)

    def age_unfinished(self) -> None:
        """What writers have left is as old now as it has to be to be swept."""
        long_ago = time.time() - UNFINISHED_AFTER_SECONDS - 60
        for path in self.root.rglob(f"{TEMPORARY}*"):
            os.utime(path, (long_ago, long_ago))

    def objects(self) -> set[str]:
        """Keys of the job in the store, from the folder itself; unfinished files too."""
        job = self.store_folder / "ns" / f"job-{UID}"
        return {str(p.relative_to(job)) for p in job.rglob("*") if p.is_file()}


@dataclass(frozen=True)
class Resumed:
    """What a next start has found. `boundary` is 0 if nothing could be used."""

    attempt: int
    boundary: int
    ref: CheckpointRef | None
    rejected: tuple[str, ...]
    fresh_allowed: bool
    sources: dict[str, int]
    reason: str = ""


class Torn(AssertionError):
    """What was loaded is not the state of one boundary."""


# ---- the save


def first_save(place: Place, *, bucket: Bucket | None = None) -> None:
    """Attempt 1 is claimed and holds a checkpoint, in the store and on the node."""
    place.store(bucket).claim(Claim(UID, 1, "life-1", (), None, datetime.now(UTC)))
    save(place, 1, 1, OLD, bucket=bucket)
    _leave_spare_room(place.node())


def _leave_spare_room(node: LocalTier) -> None:
    """As it is after a few saves: the next image is written over one that was pruned."""
    pruned = CheckpointRef(1, 9)
    for rank in range(RANKS):
        put_image(node, pruned, rank, b"x" * IMAGE_BYTES[rank])
    node.prune({CheckpointRef(1, 1)}, spares_of=range(RANKS))


def first_save_at(root: str) -> None:
    first_save(Place(Path(root)))


def next_life(root: str) -> None:
    """Whatever an earlier one has left: looks, claims, saves."""
    place = Place(Path(root))
    attempt = next_start(place, claim=False).attempt
    place.store().claim(Claim(UID, attempt, f"life-{attempt}", (), None, datetime.now(UTC)))
    save(place, attempt, 1, NEXT)


def continues(root: str) -> None:
    """Takes what an earlier life has left for what it goes on from: looks, claims, saves on top."""
    place = Place(Path(root))
    found = next_start(place)
    save(place, found.attempt, 1, NEXT)


def sees_as_a_fellow(root: str) -> list[str]:
    """Chunks of the second save that another worker would not send, because somebody has (J4)."""
    return sorted(Place(Path(root)).store().chunk_sizes(CheckpointRef(1, 2)))


def sees_as_a_finder(root: str) -> list[str]:
    """Chunks of the second save that whoever finishes it from a node would not send (E6)."""
    store = Place(Path(root)).store()
    ref = CheckpointRef(1, 2)
    manifests = []
    for rank in range(RANKS):
        view = memoryview(state(rank, NEW))
        pieces = [view[at : at + n] for at, n in chunks.ranges(len(view), CHUNK)]
        found = tuple(Chunk(chunks.digest(piece), len(piece), ref) for piece in pieces)
        manifests.append(RankManifest(UID, 1, 2, rank, RANKS, NEW, len(view), CHUNK, found))
    lacking = {manifests[n].chunks[i].digest for n, i in store.missing(manifests)}
    return sorted({c.digest for m in manifests for c in m.chunks} - lacking)


def laptop_begins(directory: str) -> None:
    """An agent outside of Kubernetes takes a directory that does not exist yet and begins an attempt (A10)."""
    assert laptop.take(Path(directory)).next_attempt() == 1


def create_object(root: str) -> str:
    """One object of the store, create-only; how it went, in a word."""
    try:
        FileBucket(Place(Path(root)).store_folder).create("ns/a/b", b"whole" * 1000)
    except AlreadyExists:
        return "exists"
    return "created"


def second_save(root: str) -> None:
    """The one that is disturbed."""
    save(Place(Path(root)), 1, 2, NEW)


def second_save_in_a_second(root: str) -> None:
    """The same with a deadline."""
    save(Place(Path(root)), 1, 2, NEW, patience=1.0)


def on_the_node_alone(root: str) -> None:
    """The one that is disturbed, where there is no time for the store (E6)."""
    place = Place(Path(root))
    asyncio.run(_save(place, 1, 2, NEW, None, 20.0, to_store=False))
    place.mark(f"left-{NEW}")


def returns(root: str) -> None:
    """Whoever comes to the node next finishes what lies there, before anybody claims."""
    finish_left(Place(Path(root)))


def save(
    place: Place, attempt: int, number: int, boundary: int, *, bucket: Bucket | None = None, patience: float = 20.0
) -> CommitRecord:
    record = asyncio.run(_save(place, attempt, number, boundary, bucket, patience))
    assert record is not None
    return record


async def _save(
    place: Place,
    attempt: int,
    number: int,
    boundary: int,
    bucket: Bucket | None,
    patience: float,
    *,
    to_store: bool = True,
) -> CommitRecord | None:
    """As the lead and its only worker do it (saves.py, writing.py)."""
    store, node, arena, threads, stop = place.store(bucket), place.node(), place.arena(), Threads(), Stop()
    stop.at = time.monotonic() + patience
    ref = CheckpointRef(attempt, number)
    slot = number % 2
    try:
        capture(arena, slot, boundary)
        base = _base(store, attempt)
        parts = tuple(
            flush.Part(
                rank,
                arena.path(rank, slot),
                IMAGE_BYTES[rank],
                boundary,
                (TensorEntry("state", "uint8", (IMAGE_BYTES[rank],), 0, IMAGE_BYTES[rank]),),
            )
            for rank in range(RANKS)
        )
        base_has = _referable(store, base, attempt) if base else {}
        job = flush.Job(UID, ref, RANKS, CHUNK, parts, base_has, wait_for_node=True, to_store=to_store)

        async def leave(manifests: tuple[RankManifest, ...], entries: tuple[RankEntry, ...]) -> None:
            at = base.ref if base else None
            pending = Pending(
                UID, attempt, number, 0, f"life-{attempt}", RANKS, at, Cause.EVICTION, Progress(boundary), entries,
                datetime.now(UTC),
            )  # fmt: skip
            await threads.on_node(node.leave, pending, manifests)

        written = await flush.write(
            job, store.until(stop.at), node, threads, stop,
            on_node_durable=lambda at: place.mark(f"node-{boundary}"), on_node_whole=leave,
        )  # fmt: skip
        if not to_store:
            return None
        for rank in range(RANKS):
            arena.note(rank, slot, UID, ref)
        record = _record(ref, boundary, base, written)
        text = store.commit(record, incarnation=f"life-{attempt}")
        place.mark(f"committed-{boundary}")
        try:
            node.write_commit(ref, text)
            node.drop_older(ref)
            node.prune({ref}, spares_of=range(RANKS))
        except (OSError, StoreError):
            pass  # costs the node's copy and nothing else
        return record
    finally:
        threads.close()


def capture(arena: Arena, slot: int, boundary: int) -> None:
    """What the ranks do: the slot holds the boundary afterwards."""
    arena.ensure({(rank, slot): IMAGE_BYTES[rank] for rank in range(RANKS)})
    for rank in range(RANKS):
        with arena.path(rank, slot).open("r+b") as file:
            file.write(state(rank, boundary))


def _base(store: JobStore, attempt: int) -> CommitRecord | None:
    found = store.newest_commit(attempt)
    if found is None and (claim := store.newest_claim()) is not None and claim.parent is not None:
        found = store.read_commit(claim.parent.ref)[0]
    return found


def _referable(store: JobStore, base: CommitRecord, attempt: int) -> dict[str, CheckpointRef]:
    manifests = [store.read_manifest(base, rank) for rank in range(RANKS)]
    return reuse.referable(manifests, attempt=attempt, distrusted=(), doubted=False)


def _record(ref: CheckpointRef, boundary: int, base: CommitRecord | None, written: flush.Written) -> CommitRecord:
    return CommitRecord(
        job_uid=UID, namespace="ns", job="job", attempt=ref.attempt, save=ref.save, kind=CheckpointKind.FULL, cause=Cause.PERIODIC,
        created_at=datetime.now(UTC), progress=Progress(boundary), ranks=written.entries, base=base.ref if base else None,
        refers_to=written.refers_to, bytes_logical=written.bytes_logical, bytes_sent=written.bytes_sent,
    )  # fmt: skip


# ---- the next start


def finish_left(place: Place) -> tuple[UnfinishedCopy, ...]:
    """As an agent does it that has joined attempt 2 (unfinished.py)."""
    return asyncio.run(_finish_left(place))


async def _finish_left(place: Place) -> tuple[UnfinishedCopy, ...]:
    store, threads = place.store(), Threads()
    try:
        finishing = Unfinished(place.node(), lambda: store, threads, Experience(), Metrics(0), Record(UID, 0, "pod"))
        finishing.begin(2)
        assert finishing._task is not None
        await asyncio.wait_for(finishing._task, 60)
        return await finishing.copies()
    finally:
        threads.close()


def next_start(place: Place, *, claim: bool = True, bucket: Bucket | None = None, with_node: bool = True) -> Resumed:
    """As the lead does it (claims.py): the newest checkpoint that verifies, every byte; then the claim. Raises Torn."""
    return asyncio.run(_next_start(place, claim, bucket, with_node))


async def _next_start(place: Place, claim: bool, bucket: Bucket | None, with_node: bool) -> Resumed:
    store, threads = place.store(bucket), Threads()
    newest = store.newest_claim()
    attempt = newest.attempt + 1 if newest else 1
    sources: dict[str, int] = {}
    bad: list[CheckpointRef] = []
    rejected: list[str] = []
    try:
        while True:
            found = store.resolve(RestoreOrder(excluded=tuple(bad)), attempt)
            rejected += [r.reason for r in found.rejections]
            if not found.candidates:
                return Resumed(attempt, 0, None, tuple(rejected), found.fresh_allowed, sources, found.reason)
            record = found.candidates[0].record
            try:
                boundary = await _fetched(place, store, record, threads, sources, with_node)
                break
            except CheckpointBad as e:
                bad.append(record.ref)
                rejected.append(f"{record.ref}: {e}")
        if claim:
            store.claim(
                Claim(
                    UID, attempt, f"life-{attempt}", (), ParentRef(UID, record.attempt, record.save), datetime.now(UTC)
                )
            )
        return Resumed(attempt, boundary, record.ref, tuple(rejected), found.fresh_allowed, sources)
    finally:
        threads.close()


async def _fetched(
    place: Place, store: JobStore, record: CommitRecord, threads: Threads, sources: dict[str, int], with_node: bool
) -> int:
    """The boundary whose state the slots hold now, compared byte by byte."""

    def note(source: str, count: int) -> None:
        sources[source] = sources.get(source, 0) + count

    images = await restore.fetch(
        record, range(RANKS), store=store, node=place.node() if with_node else None, arena=place.arena(),
        threads=threads, tally=restore.Tally(note), stop=Stop(),
    )  # fmt: skip
    for rank, image in images.items():
        with image.path.open("rb") as file:
            content = file.read(image.manifest.image_bytes)
        if content != state(rank, record.progress.boundary):
            raise Torn(f"rank {rank} of {record.ref} does not hold the state of boundary {record.progress.boundary}")
    return record.progress.boundary


# ---- afterwards


def goes_on(place: Place, resumed: Resumed) -> None:
    """Leftovers do not block the next save (B1), and are swept (D4). Raises AssertionError."""
    attempt = resumed.attempt
    record = save(place, attempt, 1, NEXT)
    assert not list(place.node_folder.rglob(f"{TEMPORARY}*")), "an unfinished image takes up room on the node"
    again = next_start(place, claim=False)
    assert (again.boundary, again.ref) == (NEXT, record.ref)
    place.age_unfinished()
    place.store().sweep(attempt=attempt)
    place.node().prune({record.ref})
    assert not list(place.root.rglob(f"{TEMPORARY}*")), "unfinished files are left"
    allowed = {str(ref) for ref in _referred(place)}
    for key in place.objects():
        folder, _, rest = key.partition("/")
        if folder == "checkpoints" and not rest.endswith("/expired.json"):
            number, save_number = rest.split("/")[:2]
            assert f"{int(number)}/{int(save_number)}" in allowed, f"{key} is left of a save that has no commit"
    assert next_start(place, claim=False).boundary == NEXT


def _referred(place: Place) -> set[CheckpointRef]:
    """Every checkpoint that exists, and those whose chunks they lean on."""
    store, found = place.store(), set()
    for path in place.store_folder.glob("ns/*/checkpoints/*/*/commit.json"):
        try:
            record, _ = store.read_commit(CheckpointRef(int(path.parts[-3]), int(path.parts[-2])))
        except (Absent, Corrupt):
            continue
        found |= {record.ref, *record.refers_to}
    return found


def whole_on_node(place: Place, boundary: int) -> bool:
    """Whether the node alone holds every byte of every rank's image of a boundary, under its own name."""
    found = set()
    for path in place.node_folder.rglob("rank-*.safetensors"):
        rank = int(path.stem.removeprefix("rank-"))
        if path.read_bytes() == state(rank, boundary):
            found.add(rank)
    return found == set(range(RANKS))
