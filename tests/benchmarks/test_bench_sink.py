"""The sink behaves as S3 does where clients look, and takes no more than its rate."""

import base64
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import servers
from benchmarks.harness.sink import Rate, _decoded, crc64nvme
from holdfast_store import probe
from holdfast_store.errors import Absent, AlreadyExists
from holdfast_store.opening import open_bucket


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[servers.SinkServer]:
    with servers.sink(tmp_path, keep=tmp_path / "objects") as server:
        yield server


def test_the_store_takes_it_for_a_store_that_keeps_every_promise(sink: servers.SinkServer) -> None:
    bucket = open_bucket(sink.config("p"), servers.CREDENTIALS, retry_seconds=1)
    result = probe.probe(bucket, prefix="probe/")
    assert (result.conditional_writes, result.lists_after_write, result.checksums) == (True, True, True)


def test_what_is_put_is_there_once_and_can_be_read_back(sink: servers.SinkServer) -> None:
    bucket = open_bucket(sink.config("p"), servers.CREDENTIALS, retry_seconds=1)
    large = bytes(range(256)) * (8 << 10)
    bucket.put("a/large", large)
    bucket.create("a/small", b"x")
    with pytest.raises(AlreadyExists):
        bucket.create("a/small", b"y")
    into = bytearray(len(large))
    bucket.get_into("a/large", memoryview(into))
    assert (bytes(into), bucket.get("a/small", max_bytes=9)) == (large, b"x")
    assert [o.key for o in bucket.list("a/")] == ["a/large", "a/small"]
    bucket.delete(["a/small"])
    with pytest.raises(Absent):
        bucket.get("a/small", max_bytes=9)
    assert set(sink.stats()["keys"]) == {"p/a/large"}
    sink.forget()
    assert sink.stats()["keys"] == {}


def test_the_checksum_is_the_one_of_the_standard() -> None:
    assert crc64nvme(b"123456789") == 0xAE8B14860A799888
    assert base64.b64encode(crc64nvme(b"").to_bytes(8, "big")) == b"AAAAAAAAAAA="


def test_pieces_of_a_signed_stream_are_put_together() -> None:
    assert _decoded(b"3;chunk-signature=x\r\nabc\r\n2\r\nde\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n") == b"abcde"


def test_all_connections_share_one_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """In slept time, not in time that passes: sleeping is replaced by a clock that moves."""
    clock, lock = [0.0], threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            clock[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", sleep)
    rate = Rate()
    rate.bytes_per_second = 1000.0
    for _ in range(100):
        rate.spend(100)
    assert clock[0] == pytest.approx(10.0, abs=0.2)
