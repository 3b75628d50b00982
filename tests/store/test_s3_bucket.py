"""S3: errors are read for what they mean (B7), every upload is one checked PUT (B6, J3), a cut request leaves nothing."""

import contextlib
import http.server
import itertools
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from proxy import Proxy
from s3_server import BUCKET, S3Server

from hack.certificates import server_side
from holdfast_api.config import StorageConfig
from holdfast_api.messages import RestoreOrder
from holdfast_store.bound import Bound
from holdfast_store.errors import Absent, AlreadyExists, Denied, Misconfigured, StoreError, Unavailable
from holdfast_store.job import JobStore
from holdfast_store.opening import open_bucket
from holdfast_store.s3 import S3Bucket

pytestmark = pytest.mark.s3
_number = itertools.count()


def a_bucket(server: S3Server, *, bucket: str = BUCKET, endpoint: str = "", **environ: str) -> S3Bucket:
    return S3Bucket.from_config(
        server.config(f"errors/{next(_number)}", bucket=bucket, endpoint=endpoint), server.environ | environ
    )


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    proxy = Proxy(s3_server.endpoint)
    yield proxy
    proxy.close()


def every_call(bucket: S3Bucket) -> list[object]:
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


def test_an_unknown_access_key_is_denied_and_never_read_as_no_checkpoint(s3_server: S3Server) -> None:
    """This server answers 404 XAdminUserNotFound."""
    for call in every_call(a_bucket(s3_server, AWS_ACCESS_KEY_ID="nobody")):
        with pytest.raises(Denied):
            call()  # type: ignore[operator]


def test_a_wrong_secret_is_denied_and_the_message_holds_no_secret(s3_server: S3Server) -> None:
    for call in every_call(a_bucket(s3_server, AWS_SECRET_ACCESS_KEY="wrong-secret-canary")):
        with pytest.raises(Denied, match="secretName") as caught:
            call()  # type: ignore[operator]
        assert "wrong-secret-canary" not in str(caught.value)
        assert "StringToSign" not in str(caught.value)


def test_a_bucket_that_does_not_exist_is_misconfigured(s3_server: S3Server) -> None:
    for call in every_call(a_bucket(s3_server, bucket="not-there")):
        with pytest.raises(Misconfigured, match="not-there"):
            call()  # type: ignore[operator]


def test_a_server_that_is_not_there_is_unavailable(s3_server: S3Server) -> None:
    for call in every_call(a_bucket(s3_server, endpoint="http://127.0.0.1:1")):
        with pytest.raises(Unavailable):
            call()  # type: ignore[operator]


@pytest.mark.parametrize("broken", [{"AWS_ACCESS_KEY_ID": "nobody"}, {"AWS_SECRET_ACCESS_KEY": "wrong"}])
def test_no_fresh_start_is_offered_by_a_store_that_does_not_let_us_in(
    s3_server: S3Server, broken: dict[str, str]
) -> None:
    store = JobStore(a_bucket(s3_server, **broken), "ns", "job", "uid-1")
    with pytest.raises(Denied):
        store.resolve(RestoreOrder(), 1)
    with pytest.raises(Denied):
        store.ever_committed()


def test_absence_is_believed_only_after_the_bucket_has_been_seen(s3_server: S3Server) -> None:
    """Some servers answer NoSuchKey also where the bucket is missing."""
    bucket, checks = a_bucket(s3_server), []
    real = bucket.check
    bucket.check = lambda: (checks.append(1), real())[1]  # type: ignore[method-assign, func-returns-value]
    for _ in range(2):
        with pytest.raises(Absent):
            bucket.get("a/x", max_bytes=1)
    assert checks == [1]


@pytest.mark.parametrize("ends", [False, True], ids=["without an end", "with an end, as chunks are sent"])
def test_every_object_is_one_put_with_a_checksum_that_the_server_compares(
    s3_server: S3Server, proxy: Proxy, ends: bool
) -> None:
    """B6, J3. By default the library would make a multipart upload of it."""
    bucket = a_bucket(s3_server, endpoint=proxy.endpoint)
    bucket.create("a/big", bytes(20 << 20), bound=Bound(60) if ends else None)
    bucket.put("a/other", bytes(6 << 20))
    assert not proxy.requests("POST")
    puts = [head.decode().lower() for head in proxy.requests("PUT")]
    assert len(puts) == 2
    assert all("x-amz-checksum-crc64nvme:" in head and "uploadid" not in head for head in puts)
    assert "if-none-match: *" in puts[0]
    assert "if-none-match" not in puts[1]


def test_a_put_that_is_cut_in_the_middle_never_becomes_visible(s3_server: S3Server, proxy: Proxy) -> None:
    bucket, direct = a_bucket(s3_server, endpoint=proxy.endpoint), a_bucket(s3_server)
    for number, cut in enumerate((2_000, 300_000, 4 << 20)):
        proxy.cut_after = cut
        with pytest.raises(Unavailable):
            bucket.create(f"a/{number}", bytes(8 << 20))
    time.sleep(0.5)
    prefix = bucket.settings.prefix
    assert not [p for p in (s3_server.data / BUCKET / prefix).rglob("*") if p.is_file()]
    assert list(direct.list("")) == []


UPLOADER = textwrap.dedent("""
    import sys
    from holdfast_api.config import StorageConfig
    from holdfast_store.s3 import S3Bucket
    bucket = S3Bucket.from_config(StorageConfig(sys.argv[1], sys.argv[2], "us-east-1"), {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testsecret"})
    data = bytes(48 << 20)
    print("ready", flush=True)
    for n in range(1000):
        bucket.create(f"killed/{n}", data)
""")


def test_an_uploader_that_is_killed_leaves_whole_objects_only(s3_server: S3Server) -> None:
    config = s3_server.config("killed-uploader")
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", UPLOADER, config.uri, config.endpoint], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.kill()
        process.wait(30)
        time.sleep(0.3)
        bucket = open_bucket(config, s3_server.environ)
        assert {info.size for info in bucket.list("")} <= {48 << 20}
        bucket.delete([info.key for info in bucket.list("")])


def test_a_create_whose_answer_is_lost_meets_its_own_object_when_repeated(s3_server: S3Server, proxy: Proxy) -> None:
    config = s3_server.config("lost-answer", endpoint=proxy.endpoint)
    bucket = open_bucket(config, s3_server.environ, retry_seconds=20)
    bucket.check()
    proxy.swallow_answers = 1
    with pytest.raises(AlreadyExists):
        bucket.create("a/x", b"ours")
    assert bucket.get("a/x", max_bytes=10) == b"ours"


def test_more_objects_than_fit_on_a_page_are_all_listed_and_deleted(s3_server: S3Server) -> None:
    bucket = a_bucket(s3_server)
    names = [f"many/{n:04d}" for n in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: bucket.put(name, b"x"), names))
    assert sorted(o.key for o in bucket.list("many/")) == names
    bucket.delete(names)
    assert list(bucket.list("many/")) == []


def test_two_prefixes_of_a_bucket_do_not_see_each_other(s3_server: S3Server) -> None:
    one, two = a_bucket(s3_server), a_bucket(s3_server)
    one.create("a/x", b"1")
    assert list(two.list("")) == []
    with pytest.raises(Absent):
        two.head("a/x")


def test_credentials_that_rotate_are_asked_for_again_and_missing_ones_are_denied(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    bucket = S3Bucket.from_config(s3_server.config("rotating"), {})
    for call in every_call(bucket):
        with pytest.raises(Denied, match="no credentials"):
            call()  # type: ignore[operator]
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id=test\naws_secret_access_key=testsecret\n")
    fresh = S3Bucket.from_config(s3_server.config("rotating"), {})
    fresh.put("a/x", b"1")
    assert fresh.get("a/x", max_bytes=1) == b"1"


@contextlib.contextmanager
def a_tls_server(folder: Path) -> Iterator[tuple[str, Path]]:
    """Speaks TLS with a certificate of an authority of its own, and answers 501 to everything."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    context = server_side(folder)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://localhost:{server.server_port}", folder / "ca.pem"
    finally:
        server.shutdown()
        server.server_close()


def test_a_certificate_of_an_unknown_authority_is_refused_and_a_named_one_accepted(
    s3_server: S3Server, tmp_path: Path
) -> None:
    """S16."""
    with a_tls_server(tmp_path) as (endpoint, certificate):
        for call in every_call(a_bucket(s3_server, endpoint=endpoint)):
            with pytest.raises(Misconfigured, match="AWS_CA_BUNDLE"):
                call()  # type: ignore[operator]
        for call in every_call(a_bucket(s3_server, endpoint=endpoint, AWS_CA_BUNDLE=str(certificate))):
            with pytest.raises(Misconfigured, match="501"):  # the server's own answer: the conversation has begun
                call()  # type: ignore[operator]
    with pytest.raises(Misconfigured, match="AWS_CA_BUNDLE"):
        a_bucket(s3_server, AWS_CA_BUNDLE=str(tmp_path / "none.pem"))


def test_errors_are_of_our_own_kind_whatever_the_server_says(s3_server: S3Server) -> None:
    bucket = a_bucket(s3_server)
    bucket.create("a/x", b"1")
    with pytest.raises(StoreError):
        bucket.create("a/x/below", b"1")  # this server keeps objects as files
    assert bucket.get("a/x", max_bytes=1) == b"1"


@pytest.mark.parametrize(
    ("uri", "endpoint"),
    [
        ("s3://", ""),
        ("s3://B/x", ""),
        ("s3://bucket/a/../b", ""),
        ("s3://bucket/a b", ""),
        ("s3://bucket?x", ""),
        ("s3://bucket/x", "host:9000"),
    ],
)
def test_a_place_that_is_not_understood_is_refused_with_the_remedy(uri: str, endpoint: str) -> None:
    with pytest.raises(Misconfigured, match="write"):
        open_bucket(StorageConfig(uri, endpoint), {})


def test_half_a_key_pair_is_refused() -> None:
    with pytest.raises(Misconfigured, match="without the other"):
        open_bucket(StorageConfig("s3://bucket/x"), {"AWS_ACCESS_KEY_ID": "a"})
