"""Questions about the bucket go through one client, from any thread; one that was made without credentials is made anew."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from holdfast_api.config import StorageConfig
from holdfast_store.errors import Denied
from holdfast_store.s3 import S3Bucket, settings_from
from holdfast_store.s3_credentials import session_from

EMPTY = (
    b"<ListBucketResult><Name>bucket</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
)


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A server with one empty bucket."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(EMPTY)))
            self.end_headers()
            self.wfile.write(EMPTY)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Counting:
    """A session that counts the clients it makes."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.made = 0

    def client(self, *args: Any, **kwargs: Any) -> Any:
        self.made += 1
        return self._session.client(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def a_bucket(endpoint: str, environ: dict[str, str]) -> tuple[S3Bucket, Counting]:
    session = Counting(session_from(environ, region="us-east-1"))
    return S3Bucket(
        settings_from(StorageConfig("s3://bucket/prefix", endpoint, "us-east-1"), environ), session
    ), session


def test_many_threads_ask_through_one_client(endpoint: str) -> None:
    bucket, session = a_bucket(endpoint, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: (list(bucket.list(f"{n}/")), bucket.list_folders(f"{n}/")), range(64)))
    bucket.check()
    assert found == [([], [])] * 64
    assert session.made == 1


def test_credentials_that_come_later_are_found(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    bucket, session = a_bucket(endpoint, {})
    for _ in range(2):
        with pytest.raises(Denied, match="no credentials"):
            list(bucket.list("x/"))
    with pytest.raises(Denied, match="no credentials"):
        bucket.check()
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id=a\naws_secret_access_key=b\n")
    assert list(bucket.list("x/")) == []
    bucket.check()
    assert session.made == 4
