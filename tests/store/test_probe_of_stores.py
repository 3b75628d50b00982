"""B8: the probe believes a good store, and finds each of the ways in which others are not good."""

import contextlib
import time

import pytest
from moto.server import ThreadedMotoServer
from s3_server import BUCKET

from holdfast_api.config import StorageConfig
from holdfast_store.bound import Bound
from holdfast_store.bucket import Bucket, Buffer
from holdfast_store.errors import AlreadyExists, Denied, Unavailable
from holdfast_store.memory import Effect, Fault, MemoryBucket
from holdfast_store.opening import open_bucket
from holdfast_store.probe import probe


def test_a_good_store_passes_and_nothing_is_left_behind(bucket: Bucket) -> None:
    result = probe(bucket, prefix="ns/job-uid/")
    assert (result.conditional_writes, result.lists_after_write, result.checksums) == (
        True,
        True,
        bucket.verifies_uploads,
    )
    assert bool(result.note) != bucket.verifies_uploads
    assert list(bucket.list("")) == []


def test_a_store_that_ignores_create_only_is_found_at_once() -> None:
    bucket = MemoryBucket([Fault(Effect.NOT_EXCLUSIVE, "create", times=0)])
    result = probe(bucket, prefix="")
    assert not result.conditional_writes
    assert "If-None-Match" in result.note
    assert bucket.objects == {}


class HurriedBucket(MemoryBucket):
    """Fake: exclusive in sequence, not under concurrency, as several S3 clones are: it looks, and later writes."""

    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        there = key in self.objects
        time.sleep(0.02)
        if there:
            raise AlreadyExists(key)
        self.put(key, data)


class PoliteBucket(MemoryBucket):
    """Fake: keeps what the first one wrote, and tells everybody who came at the same time that he was the first."""

    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        there = key in self.objects
        time.sleep(0.02)
        if there:
            raise AlreadyExists(key)
        with contextlib.suppress(AlreadyExists):
            super().create(key, data, bound=bound)


class RudeBucket(MemoryBucket):
    """Fake: tells everybody but the first one that he has lost, and writes what he brought."""

    def create(self, key: str, data: Buffer, *, bound: Bound | None = None) -> None:
        there = key in self.objects
        self.put(key, data)
        if there:
            raise AlreadyExists(key)


@pytest.mark.parametrize("kind", [HurriedBucket, PoliteBucket, RudeBucket])
def test_a_store_that_is_exclusive_only_while_nobody_hurries_is_found_by_concurrent_writers(
    kind: type[MemoryBucket],
) -> None:
    """The last writer's content stays, or the first one's, or the claim of one is another's: two gangs believe that they are the same attempt (A3, A4)."""
    result = probe(kind(), prefix="", rounds=4)
    assert not result.conditional_writes
    assert "concurrent" in result.note


def test_a_store_that_lists_late_is_found() -> None:
    result = probe(MemoryBucket([Fault(Effect.STALE, "list", times=2)]), prefix="")
    assert not result.lists_after_write
    assert "listing" in result.note


class UncheckedBucket(MemoryBucket):
    """Fake: takes uploads whose checksum does not fit, and overwrites of stale versions."""

    def replace_missing_version(self, key: str, data: Buffer) -> None:
        self.put(key, data)

    def refuses_wrong_checksum(self, key: str) -> bool:
        self.put(key, b"damaged")
        return False


def test_a_store_that_checks_neither_checksums_nor_versions_is_found() -> None:
    bucket = UncheckedBucket()
    result = probe(bucket, prefix="")
    assert (result.conditional_writes, result.checksums) == (False, False)
    assert "stale" in result.note
    assert "checksum" in result.note
    assert bucket.objects == {}


def test_a_probe_without_an_answer_says_nothing_rather_than_something_wrong() -> None:
    with pytest.raises(Unavailable):
        probe(MemoryBucket([Fault(Effect.UNAVAILABLE, "create", times=0)]), prefix="")
    with pytest.raises(Denied):
        probe(MemoryBucket([Fault(Effect.DENIED, "create", times=0)]), prefix="")


def test_a_round_in_which_some_writers_got_no_answer_condemns_nobody() -> None:
    result = probe(MemoryBucket([Fault(Effect.LOST_ANSWER, "create", "round-0", times=0)]), prefix="", rounds=2)
    assert result.conditional_writes


def test_a_server_that_does_not_check_is_found_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto keeps conditional writes and ignores checksums."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environ = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        bucket = open_bucket(
            StorageConfig(f"s3://{BUCKET}/p", f"http://{host}:{port}", "us-east-1"), environ, retry_seconds=5
        )
        bucket.inner.administration().create_bucket(Bucket=BUCKET)  # type: ignore[attr-defined]
        result = probe(bucket, prefix="", rounds=1)
    finally:
        server.stop()
    assert (result.conditional_writes, result.lists_after_write, result.checksums) == (True, True, False)
    assert "found only when it is read" in result.note
