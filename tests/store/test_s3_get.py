"""Two ways to read an object, one meaning of every answer (B7); a server that hangs costs seconds; what is downloaded is what was stored."""

import asyncio
import itertools
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.credentials import ReadOnlyCredentials
from proxy import Proxy
from s3_server import BUCKET, S3Server

from holdfast_api.config import StorageConfig
from holdfast_store import patience, plain_get
from holdfast_store.errors import Absent, Corrupt, Denied, Misconfigured, StoreError, Unavailable
from holdfast_store.retry import Persistent
from holdfast_store.s3 import S3Bucket
from holdfast_store.s3_get import Signed

_number = itertools.count()
MIB = 1 << 20


def a_bucket(server: S3Server, *, short: bool, bucket: str = BUCKET, endpoint: str = "", **environ: str) -> S3Bucket:
    config = server.config(f"gets/{next(_number)}", bucket=bucket, endpoint=endpoint)
    made = S3Bucket.from_config(config, server.environ | environ)
    assert made._short_way is not None
    if not short:
        made._short_way = None
    return made


both_ways = pytest.mark.parametrize("short", [True, False])
pytestmark = pytest.mark.s3


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    proxy = Proxy(s3_server.endpoint)
    yield proxy
    proxy.close()


@both_ways
@pytest.mark.parametrize("size", [0, 1, 4096, 300_001, 16 * MIB])
def test_what_was_stored_is_what_is_read(s3_server: S3Server, short: bool, size: int) -> None:
    bucket, data = a_bucket(s3_server, short=short), secrets.token_bytes(size)
    bucket.create("a/x", data)
    view = bytearray(size)
    bucket.get_into("a/x", memoryview(view))
    assert bytes(view) == data
    assert bucket.get("a/x", max_bytes=size) == data


def test_the_short_way_is_really_taken(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = a_bucket(s3_server, short=True)
    bucket.create("a/x", b"1234")
    monkeypatch.setattr(bucket, "_download", None)
    view = bytearray(4)
    bucket.get_into("a/x", memoryview(view))
    assert bytes(view) == b"1234"


def test_names_that_must_be_encoded_are_signed_as_they_are_sent(s3_server: S3Server) -> None:
    config = s3_server.config("with=sign/a_b-c.d")
    bucket = S3Bucket.from_config(config, s3_server.environ)
    bucket.create("a/x_y-z.1", b"1234")
    view = bytearray(4)
    bucket.get_into("a/x_y-z.1", memoryview(view))
    assert bytes(view) == b"1234"


FAILURES: dict[str, tuple[dict[str, Any], str, type[StoreError]]] = {
    "a key that is not there": ({}, "a/none", Absent),
    "a bucket that is not there": ({"bucket": "not-there"}, "a/x", Misconfigured),
    "an unknown access key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "a/x", Denied),
    "a wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "a/x", Denied),
    "nobody listens": ({"endpoint": "http://127.0.0.1:1"}, "a/x", Unavailable),
}


@both_ways
@pytest.mark.parametrize("what", FAILURES)
def test_both_ways_say_the_same_about_a_refusal(s3_server: S3Server, short: bool, what: str) -> None:
    made, key, error = FAILURES[what]
    with pytest.raises(error):
        a_bucket(s3_server, short=short, **made).get_into(key, memoryview(bytearray(1)))


@both_ways
@pytest.mark.parametrize("length", [1, 3, 5])
def test_an_object_of_another_length_is_corrupt(s3_server: S3Server, short: bool, length: int) -> None:
    bucket = a_bucket(s3_server, short=short)
    bucket.create("a/x", b"1234")
    with pytest.raises(Corrupt, match=f"4 bytes where {length}"):
        bucket.get_into("a/x", memoryview(bytearray(length)))


@both_ways
def test_a_connection_that_is_accepted_and_never_answered_is_left_for_another_one(
    s3_server: S3Server, proxy: Proxy, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.4)
    bucket = a_bucket(s3_server, short=short)
    bucket.create("a/x", b"12" * MIB)
    fresh = S3Bucket.from_config(StorageConfig(bucket.uri, proxy.endpoint, "us-east-1"), s3_server.environ)
    if not short:
        fresh._short_way = None
    proxy.silent_connections = 2
    view = bytearray(2 * MIB)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"byte|answer"):
            fresh.get_into("a/x", memoryview(view))
    fresh.get_into("a/x", memoryview(view))
    assert bytes(view) == b"12" * MIB


@both_ways
def test_a_connection_that_falls_silent_in_the_middle_is_left_for_another_one(
    s3_server: S3Server, proxy: Proxy, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.4)
    bucket, data = a_bucket(s3_server, short=short, endpoint=proxy.endpoint), secrets.token_bytes(8 * MIB)
    bucket.create("a/x", data)
    proxy.pause_after = 3 * MIB
    view = bytearray(8 * MIB)
    with pytest.raises(Unavailable, match="byte"):
        bucket.get_into("a/x", memoryview(view))
    bucket.get_into("a/x", memoryview(view))
    assert bytes(view) == data


def test_a_small_object_over_a_silent_connection_is_left_as_well(
    s3_server: S3Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SILENT_SECONDS", 0.4)
    bucket = a_bucket(s3_server, short=True)
    bucket.create("a/x", b"1234")
    through = S3Bucket.from_config(StorageConfig(bucket.uri, proxy.endpoint, "us-east-1"), s3_server.environ)
    proxy.silent_connections = 1
    assert Persistent(through, retry_seconds=20).get("a/x", max_bytes=10) == b"1234"


@both_ways
def test_many_threads_read_at_once(s3_server: S3Server, short: bool) -> None:
    bucket = a_bucket(s3_server, short=short)
    data = [secrets.token_bytes(300_000 + n) for n in range(24)]
    for n, content in enumerate(data):
        bucket.create(f"a/{n}", content)

    def read(n: int) -> bytes:
        view = bytearray(len(data[n]))
        bucket.get_into(f"a/{n}", memoryview(view))
        return bytes(view)

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(read, range(24))) == data


async def test_a_thread_whose_event_loop_runs_may_read_as_well(s3_server: S3Server) -> None:
    bucket = a_bucket(s3_server, short=False)
    bucket.create("a/x", b"1234")
    assert bucket.get("a/x", max_bytes=4) == b"1234"
    await asyncio.sleep(0)
    with pytest.raises(Absent):
        bucket.get("a/none", max_bytes=4)


def test_an_answer_that_the_short_way_does_not_know_is_read_by_the_other(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = a_bucket(s3_server, short=True)
    bucket.create("a/x", b"1234")
    monkeypatch.setattr(plain_get, "_STATUS", re.compile(rb"HTTP/9"))
    view = bytearray(4)
    bucket.get_into("a/x", memoryview(view))
    assert bytes(view) == b"1234"


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_not_gone_around(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Signed.to("http://store:9000", "b", None, "r") is not None
    monkeypatch.setenv("no_proxy", "localhost")
    assert Signed.to("http://store:9000", "b", None, "r") is not None
    monkeypatch.setenv(variable, "http://proxy:3128")
    assert Signed.to("http://store:9000", "b", None, "r") is None


@pytest.mark.parametrize("endpoint", ["", "https://store", "http://", "http://a b:1", "http://h:99999"])
def test_the_short_way_is_for_plain_endpoints_that_are_right(endpoint: str) -> None:
    assert Signed.to(endpoint, "b", None, "r") is None


def test_credentials_that_rotate_are_used_from_the_next_request_on(s3_server: S3Server, proxy: Proxy) -> None:
    bucket = a_bucket(s3_server, short=True, endpoint=proxy.endpoint)
    bucket.create("a/x", b"1234")
    way = bucket._short_way
    assert way is not None

    class Rotating:
        def __init__(self, keys: list[str]) -> None:
            self.keys = keys

        def get_frozen_credentials(self) -> Any:
            return ReadOnlyCredentials(self.keys.pop(0), "testsecret", None)

    way._credentials = Rotating(["old", "test"])
    view = memoryview(bytearray(4))
    with pytest.raises(Denied):
        bucket.get_into("a/x", view)
    bucket.get_into("a/x", view)
    assert bytes(view) == b"1234"
    assert [b"Credential=old" in head for head in proxy.requests("GET")][-2:] == [True, False]
