"""How others send the same bytes to an S3 server, each at its best settings here, each with a checksum that the server can verify; and the plainest client."""

import base64
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.harness.contender import Contender, Kind, Rounds
from benchmarks.harness.servers import BUCKET, CREDENTIALS, Server
from benchmarks.harness.usage import metered
from benchmarks.nvme_flush.peers import version_of

CHUNK_BYTES = 16 << 20
IN_FLIGHT = 8
OBSTORE = "obstore"
Send = Callable[[str], None]
"""Sends the whole state under a prefix; acknowledged when it returns."""


def contender(
    name: str, kind: Kind, package: str, settings: str, count: int, prepare: Callable[[], Send], environ: dict[str, str]
) -> Contender:
    def rounds() -> Rounds:
        os.environ.update(
            environ
            | {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        )
        send = prepare()
        number = 0
        yield None
        while True:
            number += 1
            with metered(count) as work:
                send(f"{name.replace(' ', '-').replace(',', '')}/{number}")
            yield work.sample()
            yield None

    return Contender(name, kind, rounds, version_of(package) if package else "", settings)


def pieces(view: memoryview) -> list[memoryview]:
    return [view[at : at + CHUNK_BYTES] for at in range(0, len(view), CHUNK_BYTES)]


def clients(server: Server, view: memoryview, path: Path, *, signed: bool) -> list[Contender]:
    """`path`: a file in memory with the same bytes, for those that read files. `signed`: the server looks at signatures, so the plain client cannot play."""
    count = len(view)
    environ = server.environ | ({"SSL_CERT_FILE": str(server.ca)} if server.ca else {})
    peers: list[tuple[str, str, str, Callable[[], Send]]] = [
        (
            OBSTORE,
            "obstore",
            f"16 MiB PUTs, {IN_FLIGHT} threads, CRC64NVME, unsigned payload",
            lambda: _obstore(server, view),
        ),
        (
            "awscrt",
            "awscrt",
            "multipart, 16 MiB parts from a file in memory, CRC64NVME in the trailer",
            lambda: _awscrt(server, path),
        ),
        (
            "s3torchconnector",
            "s3torchconnector",
            "S3Writer, 16 MiB parts, throughput target 100 Gb/s",
            lambda: _s3torch(server, view),
        ),
        (
            "boto3, tuned",
            "boto3",
            f"upload_file, 16 MiB parts, {IN_FLIGHT} threads, its default checksum",
            lambda: _boto3(server, path),
        ),
        ("s5cmd", "s5cmd", "cp from a file in memory, 16 MiB parts, 16 at once", lambda: _s5cmd(server, path)),
    ]
    found = [
        contender(name, Kind.PEER, package, settings, count, prepare, environ)
        for name, package, settings, prepare in peers
    ]
    if not signed:
        found = [*(_floor(server, view, threads) for threads in (IN_FLIGHT, 2 * IN_FLIGHT)), *found]
    return found


def _floor(server: Server, view: memoryview, threads: int) -> Contender:
    name, settings = f"plain PUT, {threads} connections", "stdlib sockets, CRC64NVME of every chunk before it is sent"
    return contender(name, Kind.FLOOR, "", settings, len(view), lambda: _plain(server, view, threads), server.environ)


def _plain(server: Server, view: memoryview, threads: int) -> Send:
    from awscrt.checksums import crc64nvme

    class Line:
        """A kept connection per thread."""

        def __init__(self) -> None:
            self.socket = socket.create_connection(("127.0.0.1", server.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def put(self, key: str, data: memoryview) -> None:
            checksum = base64.b64encode(crc64nvme(data).to_bytes(8, "big")).decode()
            head = (
                f"PUT /{BUCKET}/{key} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: {len(data)}\r\n"
                f"x-amz-content-sha256: UNSIGNED-PAYLOAD\r\nx-amz-checksum-crc64nvme: {checksum}\r\n\r\n"
            )
            self.socket.sendall(head.encode())
            self.socket.sendall(data)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += self.socket.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200"), answer[:100]

    pool = ThreadPoolExecutor(threads)
    lines = [Line() for _ in range(threads)]

    def send(prefix: str) -> None:
        def one(number: int) -> None:
            line = lines.pop()
            line.put(f"{prefix}/{number}", pieces(view)[number])
            lines.append(line)

        list(pool.map(one, range(len(pieces(view)))))
        lines[0].put(f"{prefix}/commit", memoryview(b"{}"))

    return send


def _obstore(server: Server, view: memoryview) -> Send:
    import obstore

    store = obstore.store.S3Store(
        BUCKET,
        endpoint=server.endpoint,
        region="us-east-1",
        access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        virtual_hosted_style_request=False,
        checksum_algorithm="CRC64NVME",
        unsigned_payload=True,
        client_options={"allow_http": True, "timeout": "120s"}
        | ({"root_certificate": server.ca.read_bytes()} if server.ca else {}),
    )
    pool = ThreadPoolExecutor(IN_FLIGHT)

    def send(prefix: str) -> None:
        list(
            pool.map(
                lambda n: obstore.put(store, f"{prefix}/{n}", pieces(view)[n], use_multipart=False),
                range(len(pieces(view))),
            )
        )
        obstore.put(store, f"{prefix}/commit", b"{}", use_multipart=False)

    return send


def _boto3(server: Server, path: Path) -> Send:
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        config=Config(max_pool_connections=32, s3={"addressing_style": "path", "payload_signing_enabled": False}),
    )
    transfer = TransferConfig(
        multipart_threshold=CHUNK_BYTES,
        multipart_chunksize=CHUNK_BYTES,
        max_concurrency=IN_FLIGHT,
        preferred_transfer_client="classic",
    )

    def send(prefix: str) -> None:
        client.upload_file(str(path), BUCKET, f"{prefix}/state", Config=transfer)
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/commit", Body=b"{}")

    return send


def _awscrt(server: Server, path: Path) -> Send:
    from awscrt.auth import AwsCredentialsProvider, AwsSigningAlgorithm, AwsSigningConfig
    from awscrt.http import HttpHeaders, HttpRequest
    from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup
    from awscrt.s3 import (
        S3ChecksumAlgorithm,
        S3ChecksumConfig,
        S3ChecksumLocation,
        S3Client,
        S3RequestTlsMode,
        S3RequestType,
    )

    group = EventLoopGroup(len(os.sched_getaffinity(0)))
    bootstrap = ClientBootstrap(group, DefaultHostResolver(group))
    provider = AwsCredentialsProvider.new_static(CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
    signing = AwsSigningConfig(
        algorithm=AwsSigningAlgorithm.V4, credentials_provider=provider, region="us-east-1", service="s3", use_double_uri_encode=False,
        should_normalize_uri_path=False, signed_body_value="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    )  # fmt: skip
    client = S3Client(
        bootstrap=bootstrap,
        region="us-east-1",
        signing_config=signing,
        tls_mode=S3RequestTlsMode.ENABLED if server.ca else S3RequestTlsMode.DISABLED,
        tls_connection_options=_tls(server.ca) if server.ca else None,
        part_size=CHUNK_BYTES,
        throughput_target_gbps=100.0,
    )
    checksum = S3ChecksumConfig(algorithm=S3ChecksumAlgorithm.CRC64NVME, location=S3ChecksumLocation.TRAILER)

    def send(prefix: str) -> None:
        headers = HttpHeaders(
            [
                ("Host", server.endpoint.partition("//")[2]),
                ("Content-Length", str(path.stat().st_size)),
                ("Content-Type", "application/octet-stream"),
            ]
        )
        request = HttpRequest("PUT", f"/{BUCKET}/{prefix}/state", headers)
        made = client.make_request(
            type=S3RequestType.PUT_OBJECT, request=request, send_filepath=str(path), checksum_config=checksum
        )
        made.finished_future.result(120)

    return send


def _tls(authority: Path) -> Any:
    from awscrt.io import ClientTlsContext, TlsContextOptions

    options = TlsContextOptions()
    options.override_default_trust_store_from_path(None, str(authority))
    return ClientTlsContext(options).new_connection_options()


def _s3torch(server: Server, view: memoryview) -> Send:
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client

    config = S3ClientConfig(throughput_target_gbps=100.0, part_size=CHUNK_BYTES, force_path_style=True)
    client = S3Client("us-east-1", endpoint=server.endpoint, s3client_config=config)

    def send(prefix: str) -> None:
        writer = client.put_object(BUCKET, f"{prefix}/state")
        for piece in pieces(view):
            writer.write(piece)
        writer.close()

    return send


def _s5cmd(server: Server, path: Path) -> Send:
    program = Path(sys.executable).parent / "s5cmd"
    found = str(program) if program.exists() else shutil.which("s5cmd")
    if not found:
        raise FileNotFoundError("s5cmd is not installed")

    def send(prefix: str) -> None:
        subprocess.run(
            [found, "--endpoint-url", server.endpoint, "cp", "--concurrency", "16", "--part-size", "16", str(path), f"s3://{BUCKET}/{prefix}/state"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    return send
