"""The S3 server versitygw by itself, for tests and benchmarks on one machine: found where it has been built, run on a free port of the loopback interface,
ended by its own process. The server beside a cluster is `services`."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.cache import Cache
from holdfast_api.config import StorageConfig

BUCKET = "checkpoints"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testsecret"}
"""Of the server's own root."""
UP_WITHIN_SECONDS = 30.0


@dataclass(frozen=True)
class S3Server:
    port: int
    data: Path
    """Its folder: a bucket is a directory in it."""
    scheme: str = "http"

    @property
    def endpoint(self) -> str:
        """By the name that is in its certificate (certificates.py) where it speaks TLS."""
        return f"{self.scheme}://{'localhost' if self.scheme == 'https' else '127.0.0.1'}:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        return dict(CREDENTIALS)

    def config(self, prefix: str, *, bucket: str = BUCKET, endpoint: str = "") -> StorageConfig:
        return StorageConfig(f"s3://{bucket}/{prefix}", endpoint or self.endpoint, "us-east-1")


def find() -> Path | None:
    """In the toolchain that HOLDFAST_TOOLCHAIN names, on PATH, or where an earlier `make test` has built it; the newest."""
    folder = os.environ.get("HOLDFAST_TOOLCHAIN")
    if folder and (Path(folder) / "versitygw").exists():
        return Path(folder) / "versitygw"
    if found := shutil.which("versitygw"):
        return Path(found)
    built = Cache().directory.glob("artefacts/*/versitygw")
    return max(built, key=lambda p: p.stat().st_mtime, default=None)


@contextlib.contextmanager
def running(
    program: Path, data: Path, *, keep_alive: bool = False, certificate: tuple[Path, Path] | None = None
) -> Iterator[S3Server]:
    """`data` becomes a folder on a disk: the server wants extended attributes. `keep_alive`: connections serve more than one request, as those of S3 do.
    `certificate`: chain and key, in PEM; the server then speaks TLS. RuntimeError if it does not come up."""
    (data / BUCKET).mkdir(parents=True)
    port = free_port()
    options = ["--keep-alive"] if keep_alive else []
    if certificate:
        options += ["--cert", str(certificate[0]), "--key", str(certificate[1])]
    process = subprocess.Popen(
        [program, "--port", f"127.0.0.1:{port}", "--quiet", *options, "posix", data],
        env={
            **os.environ,
            "ROOT_ACCESS_KEY": CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "ROOT_SECRET_KEY": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        },
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_open(port, process)
        yield S3Server(port, data, "https" if certificate else "http")
    finally:
        process.terminate()
        process.wait(timeout=30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_open(port: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + UP_WITHIN_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} did not open port {port}")
