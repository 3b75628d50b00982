"""gs:// and az://: absence is proved (B7), what decides is read back (B6), one object is one PUT (J3), tokens never cross a network in clear text."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from emulators import ACCOUNT, BUCKET, KEY, Emulator
from fake_gcs import Answer, FakeGcs
from proxy import Proxy

from hack.certificates import server_side
from holdfast_api.config import StorageConfig
from holdfast_api.layout import CheckpointRef, chunk_key
from holdfast_api.messages import RestoreOrder
from holdfast_store.chunks import digest
from holdfast_store.cloud import CloudBucket
from holdfast_store.errors import Absent, AlreadyExists, Corrupt, Denied, Misconfigured, StoreError, Unavailable
from holdfast_store.gcs import open_gcs
from holdfast_store.job import JobStore
from holdfast_store.opening import open_bucket
from holdfast_store.probe import probe


@pytest.fixture
def google() -> Iterator[FakeGcs]:
    with FakeGcs(BUCKET) as server:
        yield server


def a_bucket(server: FakeGcs, *, bucket: str = BUCKET) -> CloudBucket:
    return open_gcs(StorageConfig(f"gs://{bucket}/p", server.endpoint), {})


def every_call(bucket: CloudBucket) -> list[Callable[[], object]]:
    return [
        bucket.check,
        lambda: bucket.get("a/x", max_bytes=10),
        lambda: bucket.get_into("a/x", memoryview(bytearray(1))),
        lambda: bucket.head("a/x"),
        lambda: list(bucket.list("a/")),
        lambda: bucket.list_level("a/"),
        lambda: bucket.create("a/x", b"1"),
        lambda: bucket.put("a/x", b"1"),
        lambda: bucket.delete(["a/x"]),
    ]


def raises_at_every_call(bucket: CloudBucket, kind: type[StoreError], words: str = ".") -> None:
    for call in every_call(bucket):
        with pytest.raises(kind, match=words):
            call()


# Google: a fake


def test_a_bucket_that_does_not_exist_is_misconfigured(google: FakeGcs) -> None:
    raises_at_every_call(a_bucket(google, bucket="not-there"), Misconfigured, "not-there")


def test_whoever_is_not_let_in_is_denied_and_never_told_that_there_is_nothing(google: FakeGcs) -> None:
    google.admits = lambda token: False
    raises_at_every_call(a_bucket(google), Denied, "GOOGLE_APPLICATION_CREDENTIALS")
    with pytest.raises(Denied):
        JobStore(a_bucket(google), "ns", "job", "uid-1").resolve(RestoreOrder(), 1)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    bucket = open_gcs(StorageConfig(f"gs://{BUCKET}/p", "http://127.0.0.1:1"), {})
    raises_at_every_call(bucket, Unavailable)


PAGE = b"<html><body><h1>Welcome</h1><p>Please log in.</p></body></html>"


class GatewayHandler(http.server.BaseHTTPRequestHandler):
    """Fake: a captive gateway that answers everything with a page, and status 200."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.send_header("Last-Modified", "Thu, 26 Nov 2026 21:00:00 GMT")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), GatewayHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_gateways_page_is_no_empty_bucket(gateway: str, scheme: str) -> None:
    """B7, C1: read as an empty listing it would start a month of training anew."""
    endpoint = gateway if scheme == "gs" else f"{gateway}/{ACCOUNT}"
    bucket = open_bucket(
        StorageConfig(f"{scheme}://{BUCKET}/p", endpoint), {"AZURE_STORAGE_ACCOUNT_KEY": KEY}, retry_seconds=0
    )
    for call in (bucket.check, lambda: list(bucket.list("a/")), lambda: bucket.list_level("a/")):
        with pytest.raises(Unavailable):
            call()
    with pytest.raises(Unavailable):
        JobStore(bucket, "ns", "job", "uid-1").ever_committed()


def test_an_empty_listing_is_believed_only_twice(google: FakeGcs) -> None:
    bucket = a_bucket(google)
    bucket.create("a/x", b"1")
    error_body = b"<Error><Code>InternalError</Code></Error>"
    google.answer_next.append(("GET", Answer(200, body=error_body)))
    assert [o.key for o in bucket.list("a/")] == ["a/x"]
    google.answer_next.append(("GET", Answer(200, body=error_body)))
    assert [o.key for o in bucket.list_level("a/").objects] == ["a/x"]


def test_a_404_without_the_services_word_is_no_absence(google: FakeGcs) -> None:
    bucket = a_bucket(google)
    bucket.check()
    google.answer_next.append(("GET", Answer(404, body=b"Not Found")))
    with pytest.raises(Unavailable):
        bucket.get("a/x", max_bytes=1)
    with pytest.raises(Absent):
        bucket.get("a/x", max_bytes=1)


def test_one_object_is_one_put_and_create_asks_for_generation_0(google: FakeGcs) -> None:
    bucket = a_bucket(google)
    bucket.create("a/big", bytes(20 << 20))
    bucket.put("a/other", bytes(12 << 20))
    sent = [(method, h.get("x-goog-if-generation-match"), h["content-length"]) for method, _, h in google.requests]
    assert sent == [("PUT", "0", str(20 << 20)), ("PUT", None, str(12 << 20))]


def test_a_listing_of_many_pages_is_whole_and_deleted_whole(google: FakeGcs) -> None:
    bucket = a_bucket(google)
    names = [f"many/{n:03d}" for n in range(130)]
    for name in names:
        bucket.put(name, b"x")
    assert sorted(o.key for o in bucket.list("many/")) == names
    assert [o.key for o in bucket.list_level("many/").objects] == names
    bucket.delete([*names[:60], "many/absent", *names[60:]])
    assert list(bucket.list("many/")) == []


def test_a_deletion_that_is_refused_is_never_hidden_by_an_absent_neighbour(google: FakeGcs) -> None:
    bucket = a_bucket(google)
    bucket.put("a/kept", b"x")
    google.answer_next += [("DELETE", Answer(404, "NoSuchKey"))] + [("DELETE", Answer(403, "AccessDenied"))] * 3
    with pytest.raises(Denied):
        bucket.delete(["a/absent", "a/kept"])


def test_a_record_that_was_damaged_on_its_way_is_taken_away_and_written_again(google: FakeGcs) -> None:
    """B6: the service compares no checksum of ours."""
    google.damage_next_put = True
    with pytest.raises(Unavailable, match="has been removed"):
        a_bucket(google).create("a/commit.json", b"truth")
    assert google.objects == {}
    google.damage_next_put = True
    open_bucket(StorageConfig(f"gs://{BUCKET}/p", google.endpoint), {}, retry_seconds=20).create(
        "a/commit.json", b"truth"
    )
    assert google.objects["p/a/commit.json"][1] == b"truth"


def test_a_chunk_that_is_there_is_believed_only_if_it_is_ours(google: FakeGcs) -> None:
    """A cut request whose rest was published must not become part of a checkpoint (faults 69)."""
    bucket, ref = a_bucket(google), CheckpointRef(1, 1)
    store, data = JobStore(bucket, "ns", "job", "uid-1"), bytes(5 << 20)
    key = store.prefix + chunk_key(ref, digest(data))
    assert store.put_chunk(ref, digest(data), memoryview(data))
    assert not store.put_chunk(ref, digest(data), memoryview(data))
    for left in (data[:1000], data[:-1] + b"x"):
        google.objects[f"p/{key}"] = (5, left)
        with pytest.raises(Unavailable, match="has been removed"):
            store.put_chunk(ref, digest(data), memoryview(data))
        assert store.put_chunk(ref, digest(data), memoryview(data))
    assert google.objects[f"p/{key}"][1] == data


def test_a_cut_upload_leaves_nothing(google: FakeGcs) -> None:
    proxy = Proxy(google.endpoint)
    bucket = open_gcs(StorageConfig(f"gs://{BUCKET}/p", proxy.endpoint), {})
    proxy.cut_after = 300_000
    with pytest.raises(Unavailable):
        bucket.create("a/x", bytes(8 << 20))
    proxy.close()
    assert google.objects == {}


def test_the_probe_finds_a_service_that_ignores_conditions(google: FakeGcs) -> None:
    google.ignores_conditions = True
    result = probe(a_bucket(google), prefix="", rounds=1)
    assert not result.conditional_writes
    assert "If-None-Match" in result.note
    assert "stale" in result.note


@pytest.mark.parametrize(
    "uri", ["gs://", "gs://Bucket/x", "gs://bucket/../x", "gs://bucket?x", "az://", "az://a--b/x", "az://b/a b"]
)
def test_a_place_that_is_not_understood_is_refused_with_the_remedy(uri: str) -> None:
    with pytest.raises(Misconfigured, match="write"):
        open_bucket(StorageConfig(uri), {"AZURE_STORAGE_ACCOUNT_NAME": "account"})


@pytest.mark.parametrize(
    "environ",
    [
        {"GOOGLE_APPLICATION_CREDENTIALS": "/not/there.json"},
        {"GOOGLE_SERVICE_ACCOUNT": "/not/there.json"},
        {"GOOGLE_SERVICE_ACCOUNT_KEY": "{}"},
        {
            "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(
                {"private_key": "canary", "private_key_id": "1", "client_email": "a@b"}
            )
        },
    ],
)
def test_credentials_that_cannot_be_read_are_named_at_once_and_not_shown(environ: dict[str, str]) -> None:
    with pytest.raises(Misconfigured, match="credentials") as caught:
        open_gcs(StorageConfig("gs://bucket/x"), environ)
    assert "canary" not in str(caught.value)


def test_no_token_goes_over_a_connection_without_tls(google: FakeGcs) -> None:
    with pytest.raises(Misconfigured, match="https://host:port"):
        open_gcs(StorageConfig("gs://bucket/x", "http://storage.example:80"), {})
    environ = {"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=canary", "AZURE_STORAGE_ACCOUNT_NAME": "account"}
    with pytest.raises(Misconfigured, match="https://host:port") as caught:
        open_bucket(StorageConfig("az://container/x", "http://storage.example:80"), environ)
    assert "canary" not in str(caught.value)
    a_bucket(google).check()
    assert {headers.get("authorization") for _, _, headers in google.requests} <= {"Bearer anonymous", None}


class Metadata:
    """Fake of the metadata server of a Google machine (and of GKE's workload identity): tokens of a few seconds, each given once."""

    def __init__(self) -> None:
        self.given: list[tuple[str, float]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.given.append((f"token-{len(outer.given)}", time.monotonic() + 2))
                text = json.dumps(
                    {"access_token": outer.given[-1][0], "expires_in": 2, "token_type": "Bearer"}
                ).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def admits(self, token: str) -> bool:
        return any(token == given and time.monotonic() < ends for given, ends in self.given)


def test_tokens_that_expire_during_a_run_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults 46."""
    metadata = Metadata()
    for name in ("GCE_METADATA_HOST", "METADATA_HOST"):
        monkeypatch.setenv(name, f"127.0.0.1:{metadata.server.server_port}")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with FakeGcs(BUCKET, admits=metadata.admits, tls=server_side(tmp_path)) as server:
        bucket = open_bucket(
            StorageConfig(f"gs://{BUCKET}/p", server.endpoint),
            {"SSL_CERT_FILE": str(tmp_path / "ca.pem")},
            retry_seconds=0,
        )
        for number in range(3):
            bucket.create(f"a/{number}", b"x")
            time.sleep(1.2)
        assert len(server.objects) == 3
        untrusted = open_gcs(StorageConfig(f"gs://{BUCKET}/p", server.endpoint), {})
        with pytest.raises(Misconfigured, match="SSL_CERT_FILE"):
            untrusted.check()
    metadata.server.shutdown()
    assert len(metadata.given) >= 2


# Azure: Microsoft's emulator


def az(server: Emulator, *, bucket: str = BUCKET, endpoint: str = "", **environ: str) -> CloudBucket:
    opened = open_bucket(
        server.config("errors", bucket=bucket, endpoint=endpoint), server.environ | environ, retry_seconds=0
    )
    inner = opened.inner  # type: ignore[attr-defined]
    assert isinstance(inner, CloudBucket)
    return inner


@pytest.mark.s3
def test_azure_container_and_keys_are_told_apart(azure_server: Emulator) -> None:
    raises_at_every_call(az(azure_server, bucket="not-there"), Misconfigured, "not-there")
    wrong = az(azure_server, AZURE_STORAGE_ACCOUNT_KEY="d3Jvbmctc2VjcmV0LWNhbmFyeQ==")
    raises_at_every_call(wrong, Denied, "secretName")
    with pytest.raises(Misconfigured, match="Invalid Access Key"):
        az(azure_server, AZURE_STORAGE_ACCOUNT_KEY="no base64!")


@pytest.mark.s3
def test_azure_one_object_is_one_put_and_a_cut_one_leaves_nothing(azure_server: Emulator) -> None:
    proxy = Proxy(azure_server.endpoint)
    bucket = az(azure_server, endpoint=f"{proxy.endpoint}/{ACCOUNT}")
    bucket.create("one/big", bytes(20 << 20))
    puts = [head.decode().lower() for head in proxy.requests("PUT")]
    assert len(puts) == 1
    assert "if-none-match: *" in puts[0]
    assert "comp=block" not in puts[0]
    direct = az(azure_server)
    proxy.cut_after = 300_000
    with pytest.raises(Unavailable):
        bucket.create("cut/x", bytes(8 << 20))
    proxy.close()
    time.sleep(0.3)
    assert list(direct.list("cut/")) == []


@pytest.mark.s3
def test_azure_deletes_more_than_fit_into_one_request_and_absent_ones_among_them(azure_server: Emulator) -> None:
    bucket = az(azure_server)
    names = [f"many/{n:03d}" for n in range(300)]
    for name in names:
        bucket.put(name, b"x")
    assert [o.key for o in bucket.list_level("many/").objects] == names
    bucket.delete([*names[:100], "many/absent", *names[100:]])
    assert list(bucket.list("many/")) == []


@pytest.mark.s3
def test_azure_a_second_create_is_refused_whatever_its_size(azure_server: Emulator) -> None:
    bucket = az(azure_server)
    bucket.create("twice/x", b"1")
    for data in (b"1", bytes(5 << 20)):
        with pytest.raises(AlreadyExists):
            bucket.create("twice/x", data)
    with pytest.raises(Corrupt):
        bucket.get("twice/x", max_bytes=0)


def test_an_account_that_nobody_names_is_asked_for() -> None:
    with pytest.raises(Misconfigured, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_bucket(StorageConfig("az://container/x"), {})
    open_bucket(
        StorageConfig("az://container/x", "https://account.blob.core.windows.net"), {"AZURE_STORAGE_ACCOUNT_KEY": KEY}
    )


class FakeAzure:
    """Fake of Azure's identity service and of as much of Blob Storage as a write and a read need, over TLS: tokens of a few seconds, each given once."""

    def __init__(self, folder: Path) -> None:
        self.given: list[tuple[str, float]] = []
        self.asked: list[dict[str, list[str]]] = []
        self.objects: dict[str, bytes] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _go(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.command == "POST" and "/oauth2/" in self.path:
                    outer.asked.append(parse_qs(body.decode()))
                    outer.given.append((f"token-{len(outer.given)}", time.monotonic() + 2))
                    text = {"access_token": outer.given[-1][0], "expires_in": 2, "token_type": "Bearer"}
                    return self._answer(200, json.dumps(text).encode())
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                if not any(token == given and time.monotonic() < ends for given, ends in outer.given):
                    return self._answer(401, b"<Error><Code>InvalidAuthenticationInfo</Code></Error>")
                if self.command == "PUT":
                    outer.objects[self.path] = body
                    return self._answer(201, b"")
                return self._answer(200, outer.objects[self.path])

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("ETag", '"e"')
                self.send_header("Last-Modified", "Thu, 26 Nov 2026 21:00:00 GMT")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = _go

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = server_side(folder).wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"https://localhost:{self.server.server_port}"


def test_azure_workload_identity_is_exchanged_again_when_its_token_ends(tmp_path: Path) -> None:
    """Faults 46; what AKS sets in a pod: a file that the kubelet rewrites, a client, a tenant."""
    azure, file = FakeAzure(tmp_path), tmp_path / "federated"
    file.write_text("first")
    environ = {
        "AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_CLIENT_ID": "client", "AZURE_TENANT_ID": "tenant",
        "AZURE_FEDERATED_TOKEN_FILE": str(file), "AZURE_AUTHORITY_HOST": azure.endpoint, "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
    }  # fmt: skip
    bucket = open_bucket(StorageConfig("az://container/p", azure.endpoint), environ, retry_seconds=0)
    bucket.create("a/1", b"x")
    file.write_text("second")
    time.sleep(2.2)
    bucket.create("a/2", b"y")
    azure.server.shutdown()
    assert set(azure.objects.values()) == {b"x", b"y"}
    assert [query["client_assertion"][0] for query in azure.asked][0 :: len(azure.asked) - 1] == ["first", "second"]
