"""s3://: where the bucket stands in the address, how the store is asked to encrypt, and credentials that end and are renewed during a run (faults 46)."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from holdfast_api.config import StorageConfig
from holdfast_store.bound import Bound
from holdfast_store.errors import Denied, Misconfigured
from holdfast_store.opening import open_bucket
from holdfast_store.s3 import S3Bucket, settings_from

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
LISTING = (
    b"<ListBucketResult><Name>bucket</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
)


class FakeS3:
    """Fake: takes every object, shows nothing, and admits only the session tokens that `admits` holds (all, while it is None)."""

    def __init__(self) -> None:
        self.heads: list[tuple[str, str, dict[str, str]]] = []
        self.admits: set[str] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _go(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {k.lower(): v for k, v in self.headers.items()}
                outer.heads.append((self.command, self.path, headers))
                admitted = outer.admits is None or headers.get("x-amz-security-token") in outer.admits
                body = LISTING if admitted else b"<Error><Code>ExpiredToken</Code><Message>ended</Message></Error>"
                self.send_response(200 if admitted else 400)
                self.send_header("ETag", '"e"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = _go

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    server = FakeS3()
    yield server
    server.close()


# Addressing


@pytest.mark.parametrize(
    ("addressing", "bucket", "endpoint", "virtual"),
    [
        ("", "bucket", "", True),
        ("", "buck.et", "", False),
        ("", "bucket", "https://minio.example", False),
        ("path", "bucket", "", False),
        ("virtual", "bucket", "https://storage.example", True),
        ("virtual", "buck.et", "http://storage.example", True),
    ],
)
def test_where_the_bucket_stands_in_the_address(addressing: str, bucket: str, endpoint: str, virtual: bool) -> None:
    settings = settings_from(StorageConfig(f"s3://{bucket}/p", endpoint, addressing=addressing), {})
    assert settings.virtual_host is virtual


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        (
            StorageConfig("s3://bucket/p", "http://10.0.0.1:9000", addressing="virtual"),
            "addressing Virtual.*write Path",
        ),
        (StorageConfig("s3://buck.et/p", addressing="virtual"), "addressing Virtual.*write Path"),
        (StorageConfig("s3://bucket/p", addressing="sideways"), "write Path or Virtual"),
        (StorageConfig("s3://bucket/p", encryption="rot13"), "write SSE-S3 or SSE-KMS"),
        (StorageConfig("s3://bucket/p", encryption="AES256", kms_key_id="k"), "kmsKeyId.*SSE-KMS"),
    ],
)
def test_what_cannot_be_is_refused_by_field_value_and_remedy(storage: StorageConfig, words: str) -> None:
    with pytest.raises(Misconfigured, match=words):
        open_bucket(storage, KEYS)


def test_both_libraries_put_the_bucket_into_the_name_of_the_host(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake stands in as the machine's proxy, so that it is asked for hosts that do not exist."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, s3.endpoint)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    storage = StorageConfig("s3://bucket/p", "http://storage.example:9000", "us-east-1", addressing="virtual")
    bucket = S3Bucket.from_config(storage, KEYS)
    bucket.put("a/x", b"1")
    bucket.check()
    assert {(method, headers["host"], path.partition("?")[0]) for method, path, headers in s3.heads} == {
        ("PUT", "bucket.storage.example:9000", "http://bucket.storage.example:9000/p/a/x"),
        ("GET", "bucket.storage.example:9000", "http://bucket.storage.example:9000/"),
    }


# Encryption


@pytest.mark.parametrize(
    ("encryption", "key", "expected"),
    [
        ("", "", {}),
        ("AES256", "", {"x-amz-server-side-encryption": "AES256"}),
        ("aws:kms", "", {"x-amz-server-side-encryption": "aws:kms"}),
        (
            "aws:kms",
            "arn:k",
            {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "arn:k"},
        ),
    ],
)
def test_every_object_asks_for_its_encryption(s3: FakeS3, encryption: str, key: str, expected: dict[str, str]) -> None:
    bucket = S3Bucket.from_config(
        StorageConfig("s3://bucket/p", s3.endpoint, "us-east-1", encryption=encryption, kms_key_id=key), KEYS
    )
    bucket.put("a/x", b"1")
    bucket.create("a/y", b"2")
    for _, _, headers in s3.heads:
        assert {k: v for k, v in headers.items() if "encryption" in k} == expected


def test_the_payload_is_not_hashed_a_second_time_for_the_signature_and_has_its_checksum(s3: FakeS3) -> None:
    """Three quarters of a second of a core for each GB; what makes it safe is the checksum that the server compares (B6)."""
    bucket = S3Bucket.from_config(StorageConfig("s3://bucket/p", s3.endpoint, "us-east-1"), KEYS)
    bucket.create("a/x", bytes(100_000), bound=Bound(60))
    bucket.put("a/y", b"2")
    for _, _, headers in s3.heads:
        assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert headers["x-amz-checksum-crc64nvme"]
    assert len(s3.heads) == 2


# Credentials that end


PROGRAM = """\
import datetime, json, pathlib
count = pathlib.Path({count!r})
number = int(count.read_text()) + 1 if count.exists() else 1
count.write_text(str(number))
ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds={seconds})
print(json.dumps({{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "token-%d" % number, "Expiration": ends.isoformat()}}))
"""


@pytest.fixture
def only_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A chain with nothing but the configuration file."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ROLE_ARN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


def write_profile(folder: Path, *, seconds: int) -> None:
    (folder / "give.py").write_text(PROGRAM.format(count=str(folder / "count"), seconds=seconds))
    (folder / "config").write_text(f"[default]\ncredential_process = {sys.executable} {folder / 'give.py'}\n")


def test_credentials_are_renewed_before_they_end(s3: FakeS3, only_profile: Path) -> None:
    """Also those that end within seconds: obstore must not keep what it was given."""
    write_profile(only_profile, seconds=2)
    bucket = S3Bucket.from_config(StorageConfig("s3://bucket/p", s3.endpoint, "us-east-1"), {})
    bucket.put("a/1", b"1")
    time.sleep(2.5)
    bucket.put("a/2", b"2")
    first, second = (headers["x-amz-security-token"] for _, _, headers in s3.heads)
    assert first != second


def test_credentials_that_a_server_calls_ended_are_renewed_and_the_write_goes_on(
    s3: FakeS3, only_profile: Path
) -> None:
    write_profile(only_profile, seconds=60)  # sooner than boto3's own margin: each question renews
    bucket = open_bucket(StorageConfig("s3://bucket/p", s3.endpoint, "us-east-1"), {}, retry_seconds=20)
    bucket.put("a/1", b"1")
    used = s3.heads[-1][2]["x-amz-security-token"]
    s3.admits = {f"token-{n}" for n in range(1, 50)} - {used}
    bucket.put("a/2", b"2")
    assert s3.heads[-1][2]["x-amz-security-token"] != used
    s3.admits -= {s3.heads[-1][2]["x-amz-security-token"]}
    assert list(bucket.list("a/")) == []


@pytest.mark.parametrize("call", ["put", "list", "get"])
def test_ended_credentials_without_newer_ones_are_denied_and_not_tried_for_ever(s3: FakeS3, call: str) -> None:
    s3.admits = set()
    bucket = open_bucket(
        StorageConfig("s3://bucket/p", s3.endpoint, "us-east-1"), KEYS | {"AWS_SESSION_TOKEN": "old"}, retry_seconds=600
    )
    calls = {
        "put": lambda: bucket.put("a/1", b"1"),
        "list": lambda: bucket.list("a/"),
        "get": lambda: bucket.get_into("a/1", memoryview(bytearray(1))),
    }
    with pytest.raises(Denied, match="ExpiredToken"):
        calls[call]()
    assert len(s3.heads) <= 4


class FakeSts:
    """Fake of the token service: a web identity becomes a session whose name is the identity's token."""

    def __init__(self) -> None:
        self.asked: list[dict[str, list[str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                outer.asked.append(query)
                ends = (datetime.now(UTC) + timedelta(seconds=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
                text = (
                    "<AssumeRoleWithWebIdentityResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><AssumeRoleWithWebIdentityResult>"
                    f"<Credentials><AccessKeyId>a</AccessKeyId><SecretAccessKey>b</SecretAccessKey><SessionToken>of-{query['WebIdentityToken'][0]}"
                    f"</SessionToken><Expiration>{ends}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>"
                    "</AssumeRoleWithWebIdentityResponse>"
                ).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def test_a_web_identity_is_exchanged_again_when_its_session_ends(
    s3: FakeS3, only_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Kubernetes gives a pod on AWS: a token file that the kubelet rewrites, and a role."""
    sts, token = FakeSts(), only_profile / "token"
    token.write_text("first")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{sts.server.server_port}")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/trainer")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    bucket = S3Bucket.from_config(StorageConfig("s3://bucket/p", s3.endpoint, "us-east-1"), {})
    bucket.put("a/1", b"1")
    token.write_text("second")
    time.sleep(3.5)
    bucket.put("a/2", b"2")
    bucket.check()
    sts.server.shutdown()
    assert [headers["x-amz-security-token"] for _, _, headers in s3.heads] == ["of-first", "of-second", "of-second"]
    assert json.dumps(sts.asked).count("role/trainer") >= 2
