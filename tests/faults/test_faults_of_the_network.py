"""Fault scenarios 15, 43, 44, 69, 70: a real S3 server behind a network that refuses, loses, cuts, delays and changes what passes.

In each: what is acknowledged is whole and is what was saved; what is not is retried within the deadline or given up in words; nothing is taken for "no
checkpoint yet" (B7), and nothing of our own for somebody else's (A4).
"""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_store.bucket import Bucket
from holdfast_store.errors import StoreError
from holdfast_store.opening import open_bucket
from tests.faults import points, saving
from tests.faults.bad_network import BadNetwork, Fate, Request, Storm
from tests.faults.saving import NEW, NEXT, OLD, Place
from tests.store.s3_server import S3Server, binary_or_outcome, running

pytestmark = [pytest.mark.s3, pytest.mark.timeout(600)]
_number = itertools.count()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running(binary_or_outcome(), tmp_path_factory.mktemp("s3")) as server:
        yield server


class Job:
    """A place whose store is a prefix of the server, reached well (`bucket`) or through the bad network (`bad`)."""

    def __init__(self, server: S3Server, folder: Path) -> None:
        prefix = f"faults/{next(_number)}"
        self.place = Place(folder / prefix.replace("/", "-")).make()
        self.network = BadNetwork(server.endpoint)
        self.bucket: Bucket = open_bucket(server.config(prefix), server.environ, retry_seconds=10)
        self.bad: Bucket = open_bucket(
            server.config(prefix, endpoint=self.network.endpoint), server.environ, retry_seconds=4
        )

    def save(self, number: int, boundary: int, fate: Callable[[Request], Fate], *, patience: float = 30.0) -> None:
        self.network.fate = fate
        saving.save(self.place, 1, number, boundary, bucket=self.bad, patience=patience)

    def start_elsewhere(self, bucket: Bucket | None = None) -> saving.Resumed:
        """From another node, over a good network."""
        other = Place(self.place.root.with_name(f"{self.place.root.name}-{next(_number)}")).make()
        return saving.next_start(other, claim=False, bucket=bucket or self.bucket, with_node=False)

    def goes_on(self) -> None:
        """What was left does not block the next save, and is swept."""
        saving.save(self.place, 1, 3, NEXT, bucket=self.bucket)
        assert self.start_elsewhere().boundary == NEXT


@pytest.fixture
def job(s3: S3Server, tmp_path: Path) -> Iterator[Job]:
    made = Job(s3, tmp_path)
    saving.first_save(made.place, bucket=made.bucket)
    yield made
    made.network.close()


def some(share: float) -> Callable[[Request], bool]:
    rng = random.Random(points.seed())
    return lambda request: rng.random() < share


def first_of_each(fate: Fate, methods: tuple[str, ...] = ("PUT",)) -> Callable[[Request], Fate]:
    """Strikes each object once."""
    met: set[str] = set()

    def decide(request: Request) -> Fate:
        if request.method not in methods or request.path in met:
            return Fate.PASS
        met.add(request.path)
        return fate

    return decide


def test_a_store_that_refuses_a_third_of_all_requests_gets_the_checkpoint(job: Job) -> None:
    """Scenario 43."""
    strikes = some(0.3)
    job.save(2, NEW, lambda request: Fate.BUSY if strikes(request) else Fate.PASS)
    assert job.network.struck(Fate.BUSY)
    assert job.start_elsewhere().boundary == NEW


def test_a_store_that_refuses_everything_for_a_while_gets_it_later(job: Job) -> None:
    job.save(2, NEW, Storm(2.0))
    assert len(job.network.struck(Fate.BUSY)) > 1
    assert job.start_elsewhere().boundary == NEW


def test_a_store_that_refuses_until_the_deadline_keeps_the_old_checkpoint_and_the_node_has_the_new_image(
    job: Job,
) -> None:
    with pytest.raises(StoreError):
        job.save(2, NEW, lambda request: Fate.BUSY if request.method == "PUT" else Fate.PASS, patience=2.0)
    assert saving.whole_on_node(job.place, NEW)
    assert job.start_elsewhere().boundary == OLD
    job.goes_on()


@pytest.mark.parametrize("fate", [Fate.LOST_ANSWER, Fate.CUT, Fate.RESET])
def test_every_upload_is_disturbed_once_and_all_of_it_is_there(job: Job, fate: Fate) -> None:
    """Scenarios 44, 69: the repeated request of an object that has arrived is our own success; one that was cut has left nothing."""
    job.save(2, NEW, first_of_each(fate))
    assert any(r.is_chunk for r in job.network.struck(fate))
    assert any("commit.json" in r.path for r in job.network.struck(fate))
    assert job.start_elsewhere().boundary == NEW
    job.goes_on()


def test_a_claim_whose_answer_was_lost_is_ours(job: Job) -> None:
    """A4: never a false "superseded"."""
    job.network.fate = first_of_each(Fate.LOST_ANSWER)
    resumed = saving.next_start(job.place, bucket=job.bad)
    assert resumed.attempt == 2
    assert any("attempts/" in r.path for r in job.network.struck(Fate.LOST_ANSWER))
    assert job.place.store(job.bucket).newest_claim().incarnation == "life-2"


def test_an_upload_that_is_cut_and_never_repeated_is_no_part_of_a_checkpoint(job: Job) -> None:
    """Scenario 69: the server compares the checksum; half an object has no name."""
    with pytest.raises(StoreError):
        job.save(
            2,
            NEW,
            lambda request: Fate.CUT if request.method == "PUT" and request.is_chunk else Fate.PASS,
            patience=2.0,
        )
    prefix = job.place.store(job.bucket).prefix
    assert not list(job.bucket.list(f"{prefix}checkpoints/0000000001/0000000002/"))
    assert job.start_elsewhere().boundary == OLD
    job.goes_on()


@pytest.mark.parametrize("fate", [Fate.TRUNCATED, Fate.FLIPPED, Fate.RESET, Fate.BUSY])
def test_every_download_is_disturbed_once_and_what_is_loaded_is_what_was_saved(job: Job, fate: Fate) -> None:
    """Scenario 15: fetched again once before the checkpoint is blamed."""
    job.save(2, NEW, lambda request: Fate.PASS)
    job.network.fate = (
        first_of_each(fate, ("GET",)) if fate is not Fate.FLIPPED else _chunks_only(first_of_each(fate, ("GET",)))
    )
    assert job.start_elsewhere(job.bad).boundary == NEW
    assert job.network.struck(fate)


def _chunks_only(rule: Callable[[Request], Fate]) -> Callable[[Request], Fate]:
    """A manifest is fetched once: a bit that turns over on the way there ends the try, and the next one reads it anew."""
    return lambda request: rule(request) if request.is_chunk else Fate.PASS


def test_a_chunk_that_always_arrives_damaged_ends_in_the_older_checkpoint(job: Job) -> None:
    job.save(2, NEW, lambda request: Fate.PASS)
    job.network.fate = lambda request: (
        Fate.FLIPPED if request.is_chunk and "/0000000002/" in request.path else Fate.PASS
    )
    resumed = job.start_elsewhere(job.bad)
    assert resumed.boundary == OLD
    assert resumed.rejected


def test_somebody_elses_page_is_never_an_empty_store(job: Job) -> None:
    """Scenario 70, C1: not "no checkpoint yet"."""
    job.network.fate = lambda request: Fate.HTML
    with pytest.raises(StoreError):
        job.start_elsewhere(job.bad)
    job.network.fate = lambda request: Fate.HTML if "list-type" in request.path else Fate.PASS
    with pytest.raises(StoreError):
        job.start_elsewhere(job.bad)


def test_one_connection_that_never_answers_costs_a_try_and_not_the_save(job: Job) -> None:
    """A half-open connection, or a server that answers byte by byte: the request is ended, and the next one goes through."""
    done = threading.Event()

    def one(request: Request) -> Fate:
        if request.method == "PUT" and request.is_chunk and not done.is_set():
            done.set()
            return Fate.HANG
        return Fate.PASS

    job.save(2, NEW, one, patience=60.0)
    assert job.start_elsewhere().boundary == NEW
