"""A real S3 server for tests: finds versitygw, runs it on a free port of the loopback interface, ends it by its own process."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast_api.config import StorageConfig

BUCKET = "checkpoints"
ACCESS_KEY, SECRET_KEY = "test", "testsecret"


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    data: Path
    """Its folder: a bucket is a directory in it."""

    @property
    def environ(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}

    def config(self, prefix: str, *, bucket: str = BUCKET, endpoint: str = "") -> StorageConfig:
        return StorageConfig(f"s3://{bucket}/{prefix}", endpoint or self.endpoint, "us-east-1")


def find_binary() -> Path | None:
    """In the toolchain that `make test` names, on PATH, or where an earlier `make test` has built it."""
    folder = os.environ.get("HOLDFAST_TOOLCHAIN")
    if folder and (Path(folder) / "versitygw").exists():
        return Path(folder) / "versitygw"
    if found := shutil.which("versitygw"):
        return Path(found)
    cache = Path(
        os.environ.get("HOLDFAST_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "holdfast"
    ).expanduser()
    built = sorted(cache.glob("artefacts/versitygw-*/versitygw"), key=lambda p: p.stat().st_mtime)
    return built[-1] if built else None


def binary_or_outcome() -> Path:
    """The program. Without it a test run on a laptop skips; one that promised it (CI, `make test`) fails."""
    found = find_binary()
    if found:
        return found
    message = "the S3 server versitygw is not installed: run `make test`, which builds it, or put it on PATH"
    if os.environ.get("CI") == "true" or os.environ.get("HOLDFAST_TOOLCHAIN"):
        pytest.fail(message)
    pytest.skip(message)


@contextlib.contextmanager
def running(binary: Path, data: Path, *, keep_alive: bool = False) -> Iterator[S3Server]:
    """`keep_alive`: connections serve more than one request, as those of S3 do."""
    (data / BUCKET).mkdir(parents=True)
    port = free_port()
    environment = {**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    process = subprocess.Popen(
        [binary, "--port", f"127.0.0.1:{port}", "--quiet", *(["--keep-alive"] if keep_alive else []), "posix", data],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_open(port, process)
        yield S3Server(f"http://127.0.0.1:{port}", data)
    finally:
        process.terminate()
        process.wait(timeout=30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_open(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None, "the S3 server ended at once"
        time.sleep(0.1)
    raise AssertionError("the S3 server did not open its port")
