"""A flush: each chunk hashed once, the node and the store each at its own pace, and a node that fails costs its copy alone (B4, B9, faults 11-13)."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from holdfast_agent import flush, pace
from holdfast_agent.errors import SaveGivenUp
from holdfast_agent.threads import METADATA_THREADS, Stop, Threads
from holdfast_api.layout import CheckpointRef
from holdfast_store.chunks import digest
from holdfast_store.errors import Denied, Full, Misconfigured, StoreError, Unavailable
from holdfast_store.folders import NewFile
from holdfast_store.job import JobStore
from holdfast_store.local import LocalTier
from holdfast_store.memory import Effect, Fault, MemoryBucket
from tests.store.on_node import put_image

CHUNK = 8192
REF, BASE = CheckpointRef(1, 3), CheckpointRef(1, 2)


class Place:
    """Two ranks' slots, a store in memory, a node's directory."""

    def __init__(
        self, root: Path, *, faults: tuple[Fault, ...] = (), before_call: Callable[[str, str], None] | None = None
    ):
        self.root = root
        self.bucket = MemoryBucket(faults, before_call=before_call)
        self.store = JobStore(self.bucket, "ns", "job", "uid")
        (root / "node").mkdir()
        self.node = LocalTier(root / "node", "ns", "job", "uid")
        self.threads = Threads()
        self.stop = Stop()
        self.images = {0: os.urandom(5 * CHUNK), 1: os.urandom(2 * CHUNK + 100)}
        for rank, image in self.images.items():
            (root / f"slot-{rank}").write_bytes(image)
        self.durable: list[datetime] = []
        self.trouble: list[StoreError] = []

    def job(self, **fields: object) -> flush.Job:
        parts = tuple(flush.Part(r, self.root / f"slot-{r}", len(i), 7, ()) for r, i in self.images.items())
        return flush.Job("uid", REF, len(parts), CHUNK, parts, **({"base": BASE} | fields))  # type: ignore[arg-type]

    async def write(self, **fields: object) -> flush.Written:
        return await flush.write(
            self.job(**fields), self.store, self.node, self.threads, self.stop,
            on_node_durable=self.durable.append, on_node_trouble=self.trouble.append,
        )  # fmt: skip

    def on_node(self, rank: int, ref: CheckpointRef = REF) -> bytes | None:
        path = self.root / f"node/ns/job-uid/checkpoints/{ref.attempt:010d}/{ref.save:010d}/rank-{rank}.safetensors"
        return path.read_bytes() if path.exists() else None

    def in_store(self, written: flush.Written, rank: int) -> bytes:
        manifest = written.manifests[rank]
        data = bytearray(manifest.image_bytes)
        for number, chunk in enumerate(manifest.chunks):
            self.store.get_chunk_into(chunk, memoryview(data)[number * CHUNK : number * CHUNK + chunk.length])
        return bytes(data)

    def leftovers(self) -> list[Path]:
        return list((self.root / "node").rglob(".new-*"))


@pytest.mark.parametrize("emergency", [True, False])
def test_store_and_node_hold_every_byte(tmp_path: Path, emergency: bool) -> None:
    place = Place(tmp_path)
    written = asyncio.run(place.write(emergency=emergency))
    for rank, image in place.images.items():
        assert place.on_node(rank) == image == place.in_store(written, rank)
    assert written.node_durable_at == place.durable[0]
    assert (written.bytes_logical, written.bytes_sent, written.bytes_stored) == (7 * CHUNK + 100,) * 3
    assert not place.leftovers()


def test_each_chunk_is_hashed_once_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr(flush, "digest", lambda view: hashed.append(len(view)) or digest(view))
    place = Place(tmp_path)
    asyncio.run(place.write())
    assert sorted(hashed) == sorted([CHUNK] * 7 + [100])


def test_what_the_base_has_is_not_sent_and_is_on_the_node_all_the_same(tmp_path: Path) -> None:
    place = Place(tmp_path)
    first = digest(place.images[0][:CHUNK])
    written = asyncio.run(place.write(base_has={first: BASE}))
    assert written.manifests[0].chunks[0].at == BASE
    assert written.refers_to == (BASE,)
    assert written.bytes_logical - written.bytes_sent == CHUNK
    assert place.on_node(0) == place.images[0]


def test_a_chunk_that_two_ranks_share_is_sent_once(tmp_path: Path) -> None:
    place = Place(tmp_path)
    shared = place.images[0][:CHUNK]
    place.images[1] = shared + place.images[1][CHUNK:]
    (tmp_path / "slot-1").write_bytes(place.images[1])
    written = asyncio.run(place.write())
    assert written.bytes_logical - written.bytes_sent == CHUNK
    assert written.bytes_stored == written.bytes_sent
    sent = [key for operation, key in place.bucket.calls if operation == "create" and "/chunks/" in key]
    assert len(sent) == len(set(sent)), "the second one is not even tried"
    assert place.in_store(written, 1) == place.images[1]


def test_what_lies_there_from_an_earlier_try_is_stored_and_not_sent(tmp_path: Path) -> None:
    place = Place(tmp_path)
    asyncio.run(place.write())
    place.stop = Stop()
    place.bucket.delete([k for k in place.bucket.objects if k.endswith(".json")])
    written = asyncio.run(place.write())
    assert (written.bytes_sent, written.bytes_stored) == (0, 7 * CHUNK + 100)


def test_a_store_that_hangs_does_not_hold_up_the_node(tmp_path: Path) -> None:
    go = threading.Event()
    place = Place(tmp_path, before_call=lambda operation, key: go.wait(60) and None)

    async def run() -> None:
        writing = asyncio.ensure_future(place.write())
        while not place.durable:
            await asyncio.sleep(0.01)
        assert not writing.done()
        assert place.on_node(0) == place.images[0]
        go.set()
        await writing

    asyncio.run(run())


def test_a_disk_that_hangs_does_not_hold_up_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    real = NewFile.write
    monkeypatch.setattr(NewFile, "write", lambda self, view, at: go.wait(60) and real(self, view, at))
    place = Place(tmp_path)

    async def run() -> None:
        written = await place.write(wait_for_node=False)
        assert not written.on_node.done()
        assert written.node_durable_at is None
        assert place.in_store(written, 0) == place.images[0]
        go.set()
        assert await written.on_node == place.durable[0]
        assert place.on_node(1) == place.images[1]

    asyncio.run(run())


def test_a_store_that_refuses_ends_the_save_with_its_own_words_and_nothing_reads_the_slots(tmp_path: Path) -> None:
    place = Place(tmp_path, faults=(Fault(Effect.DENIED, "create", "chunks/", first=3, times=0),))

    async def run() -> None:
        with pytest.raises(Denied):
            await place.write()
        assert not place.leftovers()

    asyncio.run(run())


def test_a_store_that_is_busy_is_asked_again_with_fewer_requests(tmp_path: Path) -> None:
    place = Place(tmp_path, faults=(Fault(Effect.UNAVAILABLE, "create", "chunks/", times=5),))
    written = asyncio.run(place.write())
    assert place.in_store(written, 0) == place.images[0]
    assert place.threads.link.refused == 5
    assert 1 <= place.threads.link.requests < 8


def test_a_stopped_save_ends_and_leaves_no_image(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.stop.set("a newer one")

    async def run() -> None:
        with pytest.raises(SaveGivenUp, match="a newer one"):
            await place.write()

    asyncio.run(run())
    assert place.on_node(0) is None
    assert not place.leftovers()
    assert not place.trouble  # it is not the disk's fault


def test_a_save_that_is_abandoned_is_waited_for(tmp_path: Path) -> None:
    """Whoever frees the slot may believe that nobody reads it."""
    go, reached = threading.Event(), threading.Event()

    def before_call(operation: str, key: str) -> None:
        reached.set()
        assert go.wait(60)

    place = Place(tmp_path, before_call=before_call)

    async def run() -> None:
        writing = asyncio.ensure_future(place.write())
        await asyncio.to_thread(reached.wait)
        writing.cancel()
        await asyncio.sleep(0.05)
        assert not writing.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await writing

    asyncio.run(run())


# ---- faults of the node (11, 12, 13)


class Broken:
    """A system call that fails so many times, with an error that the kernel would give. A fake: real disks do not fail to order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, number: int, times: int, first: int = 1) -> None:
        self._real = getattr(os, call)
        self._number, self._first, self._last = number, first, first + times
        self._lock = threading.Lock()
        self.calls = 0
        monkeypatch.setattr(os, call, self)

    def __call__(self, *args: object, **named: object) -> object:
        with self._lock:
            self.calls += 1
            fails = self._first <= self.calls < self._last
        if fails:
            raise OSError(self._number, "ordered fault")
        return self._real(*args, **named)


@pytest.mark.parametrize("call", ["fdatasync", "pwrite"])
def test_an_image_whose_flush_failed_is_written_again_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Fault 11: the file is abandoned with all that was written into it; a second flush of it would lie."""
    place = Place(tmp_path)
    place.node.mode()
    opened, real = [], NewFile.__init__

    def watched(
        self: NewFile, key: str, parent: int, name: str, temporary: str, *args: object, **named: object
    ) -> None:
        opened.append(temporary)
        real(self, key, parent, name, temporary, *args, **named)

    monkeypatch.setattr(NewFile, "__init__", watched)
    broken = Broken(monkeypatch, call, errno.EIO, times=1)
    written = asyncio.run(place.write())
    assert broken.calls >= 2
    assert len(opened) == len(set(opened)) == 4  # two images, twice
    for rank, image in place.images.items():
        assert place.on_node(rank) == image
    assert written.node_durable_at is not None
    assert not place.trouble
    assert not place.leftovers()


def test_a_disk_that_goes_on_failing_costs_the_copy_and_not_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    place.node.mode()
    Broken(monkeypatch, "fdatasync", errno.EIO, times=99)
    written = asyncio.run(place.write())
    assert place.in_store(written, 0) == place.images[0]
    assert written.node_durable_at is None
    assert [type(e) for e in place.trouble] == [Unavailable]
    assert place.on_node(0) is None
    assert not place.leftovers()


def test_a_full_disk_is_given_the_room_of_leftovers_then_that_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 12."""
    kept: list[tuple[bool, bool]] = []
    place = Place(tmp_path)
    older = CheckpointRef(1, 1)
    for ref in (older, BASE):
        put_image(place.node, ref, 0, b"x" * CHUNK)
    real = os.posix_fallocate

    def full(fd: int, offset: int, size: int) -> None:
        kept.append((place.on_node(0, older) is not None, place.on_node(0, BASE) is not None))
        if len(kept) < 3:
            raise OSError(errno.ENOSPC, "ordered fault")
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    asyncio.run(place.write())
    assert kept[:3] == [(True, True), (False, True), (False, False)]
    assert place.on_node(0) == place.images[0]
    assert not place.trouble


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, Full), (errno.EROFS, Misconfigured)])
@pytest.mark.parametrize("first", [1, 2])
def test_a_disk_that_stays_full_or_takes_no_writes_leaves_the_save_to_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError], first: int
) -> None:
    """Faults 12, 13."""
    place = Place(tmp_path)
    place.node.mode()
    Broken(monkeypatch, "posix_fallocate", number, times=99, first=first)
    written = asyncio.run(place.write())
    assert place.in_store(written, 1) == place.images[1]
    assert [type(e) for e in place.trouble] == [kind]
    assert not place.leftovers()


def test_a_disk_that_fills_up_in_the_middle_is_no_torn_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    place.node.mode()
    Broken(monkeypatch, "pwrite", errno.ENOSPC, times=99, first=4)
    asyncio.run(place.write())
    assert [type(e) for e in place.trouble] == [Full]
    assert (place.on_node(0), place.on_node(1)) == (None, None)
    assert not place.leftovers()


# ---- beside training


def hashers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The thread of each hash, and how it yields."""
    seen: list[tuple[str, int]] = []

    def watched(view: memoryview) -> str:
        nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        seen.append((threading.current_thread().name.partition("_")[0], nice))
        return digest(view)

    monkeypatch.setattr(flush, "digest", watched)
    return seen


def test_hashing_beside_training_has_the_last_claim_on_processors_and_an_emergency_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, seen = Place(tmp_path), hashers(monkeypatch)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    asyncio.run(place.write(emergency=False))
    assert set(seen) == {("background", 19)}
    seen.clear()
    asyncio.run(place.write(emergency=True))
    assert set(seen) == {("hash", own)}


def test_a_save_beside_training_that_gets_no_processor_yields_no_more_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, seen = Place(tmp_path), hashers(monkeypatch)
    monkeypatch.setattr(pace, "BACKGROUND_PATIENCE_SECONDS", 0.0)
    go = threading.Event()
    place.threads.background.submit(go.wait, 60)  # it never gets its turn

    async def run() -> None:
        save = asyncio.ensure_future(place.write(emergency=False))
        try:
            async with asyncio.timeout(30):
                while len(seen) < 8:
                    await asyncio.sleep(0.01)
        finally:
            go.set()
            await save

    asyncio.run(run())
    assert [name for name, _ in seen] == ["hash"] * 8


def test_an_emergency_does_not_wait_for_what_a_thread_of_the_lowest_priority_has_in_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that training is in may keep it from a processor for as long as it lasts."""
    place, go, began = Place(tmp_path), threading.Event(), threading.Event()
    names: list[str] = []

    def starved(view: memoryview) -> str:
        names.append(threading.current_thread().name.partition("_")[0])
        if names[-1] == "background":
            began.set()
            assert go.wait(60)
        return digest(view)

    monkeypatch.setattr(flush, "digest", starved)

    async def run() -> flush.Written:
        save = asyncio.ensure_future(place.write(emergency=False))
        try:
            await asyncio.to_thread(began.wait, 30)
            place.stop.hurry()
            place.stop.move(time.monotonic() + 600)  # said again: nothing is begun a third time
            written = await asyncio.wait_for(save, 30)
            assert not written.unread.done(), "that thread still reads the slot"
        finally:
            go.set()
        await asyncio.wait_for(written.unread, 30)
        return written

    written = asyncio.run(run())
    for rank, image in place.images.items():
        assert place.in_store(written, rank) == image == place.on_node(rank)
    pieces = sum(len(m.chunks) for m in written.manifests)
    assert names.count("background") == 1
    assert names.count("hash") == pieces


def test_a_flush_that_fails_at_its_manifests_ends_when_that_thread_reads_no_slot_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot is the rank's again when it has ended."""
    refused = threading.Event()

    def before_call(call: str, key: str) -> None:
        if call == "create" and key.endswith(("rank-0.json", "rank-1.json")):
            refused.set()
            raise Denied("ordered fault")

    place, go, began = Place(tmp_path, before_call=before_call), threading.Event(), threading.Event()

    def starved(view: memoryview) -> str:
        if threading.current_thread().name.startswith("background"):
            began.set()
            assert go.wait(60)
        return digest(view)

    monkeypatch.setattr(flush, "digest", starved)

    async def run() -> None:
        save = asyncio.ensure_future(place.write(emergency=False))
        try:
            await asyncio.to_thread(began.wait, 30)
            place.stop.hurry()
            assert await asyncio.to_thread(refused.wait, 30)
            await asyncio.wait([save], timeout=0.3)
            assert not save.done(), "that thread still reads the slot"
        finally:
            go.set()
        with pytest.raises(Denied):
            await asyncio.wait_for(save, 30)

    asyncio.run(run())


@pytest.mark.parametrize("end", ["hurry", "set"])
def test_hashing_beside_training_rests_between_pieces_and_nothing_that_is_urgent_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    place, seen = Place(tmp_path), hashers(monkeypatch)
    monkeypatch.setattr(pace, "BACKGROUND_SHARE", 1e-12)  # a piece, then a rest of a year

    async def run() -> None:
        save = asyncio.ensure_future(place.write(emergency=False))
        async with asyncio.timeout(30):
            while not seen:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert len(seen) == 1
            place.stop.hurry() if end == "hurry" else place.stop.set("over")
            if end == "hurry":
                await save
            else:
                with pytest.raises(SaveGivenUp):
                    await save

    asyncio.run(run())
    assert (len(seen) > 1) == (end == "hurry")


def test_an_emergency_never_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    monkeypatch.setattr(pace, "BACKGROUND_SHARE", 1e-12)
    asyncio.run(asyncio.wait_for(place.write(emergency=True), 30))
    assert pace.pace_of(emergency=True, cpus=2).rest(1.0) == 0.0
    assert pace.pace_of(emergency=False, cpus=2).rest(1e-12) == pytest.approx(1.0, rel=1e-3)


def test_manifests_that_the_store_does_not_take_keep_no_claim_and_no_new_slot_waiting(tmp_path: Path) -> None:
    """More ranks than there are threads for metadata, and a store that fails just then."""
    place = Place(tmp_path, faults=(Fault(Effect.UNAVAILABLE, "create", "rank-", times=0),))
    place.images = {rank: os.urandom(CHUNK) for rank in range(METADATA_THREADS + 1)}
    for rank, image in place.images.items():
        (tmp_path / f"slot-{rank}").write_bytes(image)

    async def run() -> None:
        writing = asyncio.ensure_future(place.write())
        while place.stop.failing is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)  # all of them are at it
        try:
            assert await asyncio.wait_for(place.threads.call(lambda: "short work"), 10) == "short work"
        finally:
            place.stop.set("enough")
            with pytest.raises(Unavailable):
                await writing

    asyncio.run(run())
