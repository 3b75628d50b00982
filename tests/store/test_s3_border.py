"""An endpoint that no library can use is Misconfigured with the field, the value and the remedy; nothing but StoreError leaves the backend."""

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_api.config import StorageConfig
from holdfast_store.errors import Misconfigured, StoreError
from holdfast_store.opening import open_bucket
from holdfast_store.s3 import S3Bucket, settings_from
from holdfast_store.s3_border import border, endpoint_problem
from holdfast_store.s3_credentials import session_from

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
BAD = [
    "http://", "https:///x", "http://my host:9000", "http://h\n:1", "https://[::1", "http://[nonsense]:1", "http://h:99999", "http://h:abc", "http://h:0",
    "http://büro:1", "http://a_b:9000", "http://-a:1", "http://a..b:1", "http://%zz:1", "ftp://h:1", "h:9000", "http://h:1?x=1", "http://h#x",
]  # fmt: skip
GOOD = [
    "http://h", "https://h:9000/", "http://minio.storage.svc.cluster.local:9000", "http://127.0.0.1:9000", "HTTP://h:1", "http://[::1]:9000",
    "https://h:9000/gateway",
]  # fmt: skip


def config(endpoint: str) -> StorageConfig:
    return StorageConfig("s3://bucket/prefix", endpoint=endpoint)


@pytest.mark.parametrize("endpoint", BAD)
def test_an_endpoint_that_cannot_be_used_is_refused_with_field_value_and_remedy(endpoint: str) -> None:
    with pytest.raises(Misconfigured, match=r"spec\.checkpoint\.storage\.endpoint .*write http") as caught:
        open_bucket(config(endpoint), KEYS)
    assert repr(endpoint) in str(caught.value)


def test_the_variable_is_named_where_the_endpoint_comes_from_one() -> None:
    with pytest.raises(Misconfigured, match="AWS_ENDPOINT_URL_S3 'http://'"):
        open_bucket(config(""), KEYS | {"AWS_ENDPOINT_URL_S3": "http://"})


def test_a_password_in_an_endpoint_is_refused_and_not_repeated() -> None:
    with pytest.raises(Misconfigured, match="secretName") as caught:
        open_bucket(config("http://user:canary@h:9000"), KEYS)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("endpoint", GOOD)
def test_an_endpoint_that_can_be_used_is_taken_by_both_libraries(endpoint: str) -> None:
    settings = settings_from(config(endpoint), KEYS)
    assert settings.endpoint == endpoint.rstrip("/")
    S3Bucket(settings, session_from(KEYS, region="us-east-1")).administration()


@given(st.text(max_size=30) | st.text("htps:/[]@.-_%09az ?#", max_size=30).map("http://{}".format))
def test_whatever_is_written_there_there_is_an_answer(endpoint: str) -> None:
    assert isinstance(endpoint_problem(endpoint), str)


@pytest.mark.parametrize("endpoint", ["http://", "http://my host:9000", "https://[::1", "http://h:99999"])
def test_nothing_but_our_own_errors_leaves_the_backend_even_if_the_settings_are_wrong(endpoint: str) -> None:
    """The libraries answer with ValueError, and with a panic, which is no Exception."""
    settings = dataclasses.replace(settings_from(config("http://h"), KEYS), endpoint=endpoint)
    calls: list[Callable[[S3Bucket], object]] = [
        lambda bucket: bucket.check(),
        lambda bucket: bucket.get("a/x", max_bytes=1),
        lambda bucket: bucket.head("a/x"),
        lambda bucket: bucket.list_level("a/"),
        lambda bucket: bucket.put("a/x", b"1"),
        lambda bucket: bucket.delete(["a/x"]),
    ]
    for call in calls:
        with pytest.raises(StoreError):
            call(S3Bucket(settings, session_from(KEYS, region="us-east-1")))


def test_a_panic_becomes_an_error_of_ours_and_an_interrupt_stays_one() -> None:
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(Misconfigured, match="called unwrap"), border("s3://b"):
        raise panic("called unwrap")
    with pytest.raises(KeyboardInterrupt), border("s3://b"):
        raise KeyboardInterrupt
