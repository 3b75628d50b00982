"""A flush to a real S3 server through a network that hangs, refuses, cuts and slows (faults 43, 44): whole before the deadline, or given up at it."""

import asyncio
import itertools
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent import flush, sending
from holdfast_agent.errors import SaveGivenUp
from holdfast_agent.threads import Stop, Threads
from holdfast_agent.warming import Warming
from holdfast_api.config import StorageConfig
from holdfast_api.layout import CheckpointRef
from holdfast_store import cut
from holdfast_store.bound import Bound
from holdfast_store.bucket import Buffer
from holdfast_store.errors import Unavailable
from holdfast_store.job import JobStore
from holdfast_store.memory import MemoryBucket
from holdfast_store.opening import open_bucket
from tests.store.proxy import Proxy
from tests.store.s3_server import S3Server, binary_or_outcome, running

pytestmark = pytest.mark.s3
CHUNK, CHUNKS = 256 << 10, 24
_number = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running(binary_or_outcome(), tmp_path_factory.mktemp("s3"), keep_alive=True) as found:
        yield found


class Far:
    """An image, and a store behind a proxy."""

    def __init__(self, folder: Path, server: S3Server) -> None:
        self.proxy = Proxy(server.endpoint)
        prefix = f"flush/{next(_number)}"
        self.near = self._store(server, server.endpoint, prefix)
        self.store = self._store(server, self.proxy.endpoint, prefix)
        self.image = os.urandom(CHUNK * CHUNKS)
        self.slot = folder / "slot"
        self.slot.write_bytes(self.image)
        self.threads = Threads()

    @staticmethod
    def _store(server: S3Server, endpoint: str, prefix: str) -> JobStore:
        bucket = open_bucket(server.config(prefix, endpoint=endpoint), server.environ)
        return JobStore(bucket, "ns", "job", "uid")

    def write(self, *, seconds: float = 60.0, emergency: bool = True, stop: Stop | None = None) -> flush.Written:
        stop = stop or Stop()
        stop.at = time.monotonic() + seconds
        part = flush.Part(0, self.slot, len(self.image), 7, ())
        job = flush.Job("uid", CheckpointRef(1, 1), 1, CHUNK, (part,), emergency=emergency)
        try:
            return asyncio.run(flush.write(job, self.store.until(stop.at), None, self.threads, stop))
        finally:
            self.proxy.close()

    def arrived(self, written: flush.Written) -> bool:
        data = memoryview(bytearray(len(self.image)))
        for number, chunk in enumerate(written.manifests[0].chunks):
            self.near.get_chunk_into(chunk, data[number * CHUNK : (number + 1) * CHUNK])
        return bytes(data) == self.image


@pytest.fixture
def far(tmp_path: Path, server: S3Server) -> Far:
    return Far(tmp_path, server)


def test_without_faults_everything_arrives_and_nothing_is_cut(far: Far) -> None:
    written = far.write()
    assert far.arrived(written)
    assert written.bytes_sent == len(far.image)
    assert far.threads.link.refused == 0


def test_uploads_that_hang_do_not_use_up_the_deadline(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time-out of their own they would hang for the client's two minutes, and the save with them."""
    far.proxy.hangs = lambda number: number in (1, 2, 5)
    monkeypatch.setattr(sending, "seconds_for", lambda *args, tried, **named: 1.0 * 2**tried)
    written = far.write(seconds=60)
    assert far.arrived(written)
    assert far.threads.link.refused >= 3
    assert [far.proxy.hung.acquire(blocking=False) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("emergency", [True, False])
def test_a_store_that_asks_for_less_gets_less_and_everything(far: Far, emergency: bool) -> None:
    """Fault 43: a third of all uploads are answered with SlowDown."""
    dice = random.Random(7)
    far.proxy.refuses = lambda number: dice.random() < 0.3
    written = far.write(emergency=emergency)
    assert far.arrived(written)
    assert far.threads.link.refused > 0
    assert far.threads.link.requests < 24


def test_a_store_that_refuses_everything_for_a_while_is_waited_for(far: Far) -> None:
    until = time.monotonic() + 2.0
    far.proxy.refuses = lambda number: time.monotonic() < until
    assert far.arrived(far.write())


def test_a_store_that_refuses_until_the_deadline_ends_the_save_at_it(far: Far) -> None:
    far.proxy.refuses = lambda number: True
    with pytest.raises((Unavailable, SaveGivenUp)):
        far.write(seconds=2.0)


def test_uploads_that_hang_until_the_deadline_end_with_it(far: Far) -> None:
    far.proxy.hangs = lambda number: True
    with pytest.raises((Unavailable, SaveGivenUp)):
        far.write(seconds=2.0)


def test_an_upload_whose_answer_is_lost_is_found_there_by_the_next_try(far: Far) -> None:
    """Fault 44."""
    far.proxy.swallow_answers = 3
    assert far.arrived(far.write())


def test_a_connection_that_is_cut_in_the_middle_leaves_nothing_and_is_tried_again(far: Far) -> None:
    cut = iter([200_000, None])
    far.proxy.cut_after = next(cut)

    def heal(number: int) -> bool:
        if number > 4:
            far.proxy.cut_after = None
        return False

    far.proxy.hangs = heal
    assert far.arrived(far.write())


def test_connections_are_open_before_they_are_needed(far: Far) -> None:
    """As many at once as uploads were last found good, and not again a moment later; a store that is away is no error."""
    warming = Warming()
    assert warming.begin(far.store, 1, far.threads.sending, requests=12) == 12
    assert warming.begin(far.store, 1, far.threads.sending, requests=12) == 0
    far.threads.sending.shutdown(wait=True)
    before = far.proxy.accepted
    assert before >= 2
    assert len(far.proxy.requests("HEAD")) == 12
    far.threads = Threads()
    assert far.arrived(far.write())
    assert far.proxy.accepted - before < 8, "most uploads went over connections that were open"


def test_a_store_that_is_away_or_local_is_not_warmed_and_nothing_fails(far: Far, tmp_path: Path) -> None:
    far.proxy.close()
    assert Warming().begin(far.store, 1, far.threads.sending, requests=0) == 8
    far.threads.sending.shutdown(wait=True)
    assert Warming().begin(None, 1, far.threads.sending, requests=0) == 0
    local = JobStore(open_bucket(StorageConfig(tmp_path.as_uri()), {}), "ns", "job", "uid")
    assert Warming().begin(local, 1, far.threads.sending, requests=0) == 0


class Endless(MemoryBucket):
    """Fake: requests for some keys are never answered, and end only when they are cut. (Of a real server that is silent TCP despairs after 30 s.)"""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part
        self.hung = threading.Semaphore(0)

    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        if self.part not in key:
            return super().create(key, data)
        assert bound is not None, f"{key} could not be cut"

        async def never() -> None:
            self.hung.release()
            await asyncio.get_running_loop().create_future()

        with pytest.raises(TimeoutError):
            cut.within(bound, never)
        raise Unavailable("cut")


@pytest.mark.parametrize("part", ["/chunks/", "/rank-"])
def test_a_save_that_is_stopped_waits_for_no_request_in_flight(
    far: Far, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank with one slot stands until nobody reads it."""
    monkeypatch.setattr(sending, "seconds_for", lambda *args, **named: 10.0**6)
    bucket, stop, ended = Endless(part), Stop(), threading.Event()
    far.store = JobStore(bucket, "ns", "job", "uid")

    def saver() -> None:
        with pytest.raises(SaveGivenUp, match="save 2 is newer"):
            far.write(seconds=10**6, stop=stop)
        ended.set()

    threading.Thread(target=saver, daemon=True).start()
    assert bucket.hung.acquire(timeout=60)
    assert not ended.is_set()
    stop.set("save 2 is newer")
    assert ended.wait(60), "the request was waited for"
    assert far.threads.link.refused == 0, "that it was cut says nothing about the store"


class HangsOnce(MemoryBucket):
    """Fake: the first request for a chunk is on a dead connection, and ends only when it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.hung = threading.Event()
        self._first = threading.Semaphore(1)

    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        if "/chunks/" not in key or not self._first.acquire(blocking=False):
            return super().create(key, data)
        assert bound is not None

        async def never() -> None:
            self.hung.set()
            await asyncio.get_running_loop().create_future()

        with pytest.raises(TimeoutError):
            cut.within(bound, never)
        raise Unavailable("cut")


@pytest.mark.parametrize("taken_over", [True, False])
def test_a_request_in_flight_gets_no_more_than_a_deadline_that_has_moved_leaves_it(
    far: Far, taken_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1: a save that had an hour has half a minute now. What hangs is cut while there is time for another try."""
    monkeypatch.setattr(sending, "seconds_for", lambda *args, left, **named: 10.0**6 if left > 3600 else 0.1)
    bucket, stop, done = HangsOnce(), Stop(), threading.Event()
    far.store = far.near = JobStore(bucket, "ns", "job", "uid")

    def saver() -> None:
        assert far.arrived(far.write(seconds=10**6, stop=stop, emergency=False))
        done.set()

    threading.Thread(target=saver, daemon=True).start()
    assert bucket.hung.wait(60)
    end = time.monotonic() + 60
    while sum("/chunks/" in key for key in bucket.objects) < CHUNKS - 1 and time.monotonic() < end:
        time.sleep(0.01)
    assert not done.is_set()
    try:
        stop.move(time.monotonic() + 600)
        if taken_over:
            stop.hurry()
        assert done.wait(60), "the request was waited for"
    finally:
        stop.set("the test is over")


def test_a_save_that_is_stopped_cuts_its_requests_to_a_real_server(far: Far) -> None:
    far.proxy.hangs = lambda number: True
    stop = Stop()
    threading.Thread(target=lambda: (far.proxy.hung.acquire(), stop.set("save 2 is newer")), daemon=True).start()
    with pytest.raises(SaveGivenUp, match="save 2 is newer"):
        far.write(seconds=3600, stop=stop)


def test_a_slow_link_of_unknown_speed_is_not_begun_again_and_again(far: Far) -> None:
    """Eight requests share what one was expected to have. Only the scout is cut, as if connections were dead; with all of them cut together nothing of
    the first seconds was of use, and at a short deadline nothing arrived at all."""
    far.proxy.bytes_per_second = 8 * CHUNK / 5  # each of the first eight takes 5 s, where 2 s were allowed
    written = far.write(seconds=600)
    assert far.arrived(written)
    assert 1 <= far.threads.link.refused < 8, "never all of them; on a busy machine some more than the scout"


def test_connections_that_are_dead_are_found_out_by_the_scout_when_nothing_is_known(far: Far) -> None:
    """Without it all would be waited for until the deadline; once its second try has ended, the others are cut as well."""
    far.proxy.hangs = lambda number: number <= 8
    written = far.write(seconds=20)
    assert far.arrived(written)
    assert far.threads.link.refused >= 8
