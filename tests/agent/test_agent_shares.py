"""J4: what several workers hold alike is sent once, each worker its share; whoever is slow, gone or wrong costs time and never a byte."""

import asyncio
import dataclasses
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from holdfast_agent import flush, shares
from holdfast_agent.clock import Deadline
from holdfast_agent.errors import SaveGivenUp
from holdfast_agent.replicas import PARTS, WHOLE, Compared
from holdfast_agent.threads import Stop, Threads
from holdfast_api.layout import CheckpointRef
from holdfast_api.manifest import TensorEntry
from holdfast_api.messages import Cause
from holdfast_store.chunks import digest
from holdfast_store.errors import Unavailable
from holdfast_store.job import JobStore
from holdfast_store.memory import Effect, Fault, MemoryBucket
from tests.agent.lone import Lone

CHUNK, PIECES = 4096, 24
REF = CheckpointRef(1, 3)
SIZE = (PIECES + 2) * CHUNK
"""A header of the rank's own, what all have, a state of the rank's own."""


def tensors(group: str) -> tuple[TensorEntry, ...]:
    shared = TensorEntry("model.w", "uint8", (PIECES * CHUNK,), CHUNK, PIECES * CHUNK, None, (), (), group)
    return shared, TensorEntry("state", "uint8", (CHUNK,), SIZE - CHUNK, CHUNK, None, (), (), "")


class Two:
    """Two workers of one rank each, with copies of one state, and the store that they write to."""

    def __init__(
        self, root: Path, *, faults: tuple[Fault, ...] = (), before_call: Callable[[str, str], None] | None = None
    ) -> None:
        self.root = root
        self.bucket = MemoryBucket(faults, before_call=before_call)
        self.stops = [Stop(), Stop()]
        self.threads = [Threads(), Threads()]
        common = os.urandom(PIECES * CHUNK)
        self.images = [os.urandom(CHUNK) + common + os.urandom(CHUNK) for _ in range(2)]

    async def write(self, worker: int, *, emergency: bool = False) -> flush.Written:
        slot = self.root / f"slot-{worker}"
        slot.write_bytes(self.images[worker])
        part = flush.Part(worker, slot, SIZE, 7, tensors("0-1"))
        job = flush.Job("uid", REF, 2, CHUNK, (part,), emergency=emergency, worker=worker)
        store = JobStore(self.bucket, "ns", "job", "uid")
        return await flush.write(job, store, None, self.threads[worker], self.stops[worker])

    async def both(self, *, emergency: bool = False) -> list[flush.Written]:
        return list(await asyncio.gather(*(self.write(w, emergency=emergency) for w in range(2))))

    def in_store(self, written: flush.Written) -> bytes:
        (manifest,) = written.manifests
        data = bytearray(SIZE)
        store = JobStore(self.bucket, "ns", "job", "uid")
        for number, chunk in enumerate(manifest.chunks):
            store.get_chunk_into(chunk, memoryview(data)[number * CHUNK : number * CHUNK + chunk.length])
        return bytes(data)

    @property
    def requests(self) -> Counter[str]:
        """Chunks that were sent, and how often."""
        return Counter(key for operation, key in self.bucket.calls if operation == "create" and "chunks/" in key)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long that a busy machine does not matter."""
    monkeypatch.setattr(shares, "LEAST_PATIENCE_SECONDS", 120.0)
    monkeypatch.setattr(shares, "FIRST_LOOK_SECONDS", 120.0)


@pytest.mark.usefixtures("patient")
def test_what_both_hold_is_sent_once_and_each_sends_a_share(tmp_path: Path) -> None:
    two = Two(tmp_path)
    written = asyncio.run(two.both())
    assert [two.in_store(w) for w in written] == two.images
    assert set(two.requests.values()) == {1}, "not one chunk was sent twice"
    assert sum(w.bytes_sent for w in written) == (PIECES + 4) * CHUNK
    assert all(w.bytes_sent > 3 * CHUNK for w in written), "one has not left everything to the other"


@pytest.mark.usefixtures("patient")
def test_what_others_have_stored_counts_as_gone_and_not_as_sent(tmp_path: Path) -> None:
    two = Two(tmp_path)
    one, other = asyncio.run(two.both())
    assert one.bytes_stored + other.bytes_stored == one.bytes_sent + other.bytes_sent
    assert one.bytes_logical == other.bytes_logical == SIZE


@pytest.mark.parametrize("emergency", [False, True])
def test_one_whose_fellow_sends_nothing_sends_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emergency: bool
) -> None:
    monkeypatch.setattr(shares, "LEAST_PATIENCE_SECONDS", 0.2)
    two = Two(tmp_path)
    written = asyncio.run(two.write(0, emergency=emergency))
    assert two.in_store(written) == two.images[0]
    assert written.bytes_sent == SIZE


def test_a_listing_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "LEAST_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(shares, "FIRST_LOOK_SECONDS", 0.2)
    go = threading.Event()
    two = Two(tmp_path, before_call=lambda operation, key: None if operation != "list" else (go.wait(120), None)[1])
    try:
        written = asyncio.run(two.write(0, emergency=True))
        assert not go.is_set()
    finally:
        go.set()
    assert two.in_store(written) == two.images[0]


@pytest.mark.parametrize("effect", [Effect.UNAVAILABLE, Effect.DENIED, Effect.STALE])
def test_a_listing_that_fails_or_lies_behind_costs_requests_and_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effect: Effect
) -> None:
    monkeypatch.setattr(shares, "LEAST_PATIENCE_SECONDS", 0.2)
    two = Two(tmp_path, faults=(Fault(effect, "list", times=0, depth=1000),))
    written = asyncio.run(two.both())
    assert [two.in_store(w) for w in written] == two.images


@pytest.mark.usefixtures("patient")
def test_a_copy_that_differs_is_sent_by_whoever_has_it(tmp_path: Path) -> None:
    two = Two(tmp_path)
    wrong = bytearray(two.images[1])
    wrong[5 * CHUNK + 7] ^= 1
    two.images[1] = bytes(wrong)
    # Only this chunk is nobody else's: who waits for a fellow that will never send it gives up waiting.
    written = asyncio.run(two.both(emergency=True))
    assert [two.in_store(w) for w in written] == two.images


@pytest.mark.usefixtures("patient")
def test_who_waits_in_an_emergency_s_way_waits_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "FIRST_LOOK_SECONDS", 0.1)
    two = Two(tmp_path)

    async def run() -> flush.Written:
        writing = asyncio.ensure_future(two.write(0))
        while len(two.requests) < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert not writing.done(), "it waits for its fellow"
        two.stops[0].hurry()
        return await writing

    assert two.in_store(asyncio.run(run())) == two.images[0]


@pytest.mark.usefixtures("patient")
def test_who_is_stopped_while_waiting_ends(tmp_path: Path) -> None:
    two = Two(tmp_path)

    async def run() -> None:
        writing = asyncio.ensure_future(two.write(0))
        while len(two.requests) < 4:
            await asyncio.sleep(0.01)
        two.stops[0].set("a newer one")
        with pytest.raises(SaveGivenUp, match="a newer one"):
            await writing

    asyncio.run(run())


@pytest.mark.usefixtures("patient")
def test_waiting_for_others_says_nothing_about_the_store(tmp_path: Path) -> None:
    two = Two(tmp_path)

    async def run() -> flush.Written:
        first = asyncio.ensure_future(two.write(0))
        await asyncio.sleep(1.5)
        await two.write(1)
        return await first

    assert asyncio.run(run()).waited_seconds > 0.5


async def test_an_agent_sends_as_the_worker_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Lone(tmp_path)
    config = dataclasses.replace(one.shared.settings.config, worker=1)
    one.shared.settings = dataclasses.replace(one.shared.settings, config=config)
    jobs: list[flush.Job] = []

    async def seen(job: flush.Job, *_: object, **__: object) -> flush.Written:
        jobs.append(job)
        raise SaveGivenUp("seen")

    monkeypatch.setattr(flush, "write", seen)
    one.capture(0, 10)
    with pytest.raises(SaveGivenUp):
        await one.saves.make(10, Cause.PERIODIC, deadline=Deadline.after(60))
    assert [job.worker for job in jobs] == [1]
    await one.close()


def test_a_store_that_verifies_nothing_is_written_by_everyone(tmp_path: Path) -> None:
    """What lies there may be what is left of a request that was cut: put_chunk reads and compares it."""
    two = Two(tmp_path)
    two.bucket.verifies_uploads = False
    written = asyncio.run(two.both())
    assert [two.in_store(w) for w in written] == two.images
    assert not [c for c in two.bucket.calls if c[0] == "list"]
    shared = [k for k, n in two.requests.items() if n == 2]
    assert len(shared) == PIECES


def test_one_of_another_size_is_not_taken_for_the_chunk(tmp_path: Path) -> None:
    store = JobStore(MemoryBucket(), "ns", "job", "uid")
    content = os.urandom(CHUNK)
    store.put_chunk(REF, digest(content), memoryview(content)[:100])
    with ThreadPoolExecutor(1) as pool:
        arrived = shares.Arrived(lambda: store.chunk_sizes(REF), pool)
        assert not arrived.has(digest(content), CHUNK, lambda: 0.0, Stop())
        assert arrived.has(digest(content), 100, lambda: 0.0, Stop())


def test_a_listing_that_fails_is_asked_for_again() -> None:
    answers = iter([Unavailable("busy"), {"a": 1}])

    def listed() -> dict[str, int]:
        answer = next(answers)
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    with ThreadPoolExecutor(1) as pool:
        assert shares.Arrived(listed, pool).has("a", 1, lambda: 60.0, Stop())


def test_a_thread_that_waits_for_others_ends_with_its_save() -> None:
    """Whatever patience it had: the next save needs it."""
    stop, asked, over = Stop(), threading.Event(), threading.Event()

    def patience() -> float:
        asked.set()
        return 0.0 if over.is_set() else 60.0

    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(shares.Arrived(dict, pool).has, "a", 1, patience, stop)
        assert asked.wait(30)
        stop.set("a newer one")
        ended = bool(wait([waiting], timeout=10).done)
        over.set()
    assert ended
    assert waiting.result() is False


@pytest.mark.parametrize(
    ("group", "per_worker", "workers"),
    [("0-3", 1, (0, 1, 2, 3)), ("0-7", 4, (0, 1)), ("0,4,8", 4, (0, 1, 2)), ("0-3", 8, (0,)), ("3,4", 2, (1, 2)),
     ("", 1, ()), ("x", 1, ()), ("1-", 1, (1,)), ("5-2", 1, ()), ("0-99999999999", 1, ()), ("-3", 1, ())],
)  # fmt: skip
def test_ranks_of_a_group_are_ranks_of_workers(group: str, per_worker: int, workers: tuple[int, ...]) -> None:
    assert shares.workers_of(group, per_worker) == workers


def test_only_chunks_of_groups_that_span_workers_are_shared() -> None:
    sides = {"0-3": Compared(chunks=[1, 2]), "0-1" + PARTS: Compared(chunks=[3]), "2,3" + WHOLE: Compared(chunks=[4])}
    assert shares.shared_by(sides, 2) == {1: (0, 1), 2: (0, 1)}
    assert shares.shared_by(sides, 1) == {1: (0, 1, 2, 3), 2: (0, 1, 2, 3), 3: (0, 1), 4: (2, 3)}


def test_each_chunk_has_one_who_sends_it_and_each_worker_a_fair_share() -> None:
    names = [digest(n.to_bytes(4, "big")) for n in range(2000)]
    workers = (0, 2, 5)
    counts = Counter(w for name in names for w in workers if shares.sends(w, name, workers))
    assert sum(counts.values()) == len(names)
    assert all(550 < counts[w] < 790 for w in workers)
    assert shares.sends(1, names[0], workers), "who is not among them sends what it has"


def test_patience_ends_long_before_the_deadline() -> None:
    assert shares.patience(10.0, 1800.0, background=True) == 10.0
    assert shares.patience(0.1, 1800.0, background=True) == shares.LEAST_PATIENCE_SECONDS
    assert shares.patience(900.0, 100.0, background=True) == 50.0
    assert shares.patience(4.0, 1800.0, background=False) == 1.0
    assert shares.patience(4.0, 10.0, background=False) == 0.5
    assert shares.first_look(1800.0) == shares.FIRST_LOOK_SECONDS
    assert shares.first_look(10.0) == 0.5
    assert shares.first_look(0.0) == 0.0
