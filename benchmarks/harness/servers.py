"""S3 servers to measure against: the limited sink, and a real one where it has been built."""

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hack import certificates, s3_server
from hack.s3_server import BUCKET, CREDENTIALS
from holdfast_api.config import StorageConfig


@dataclass(frozen=True)
class Server:
    port: int
    name: str
    ca: Path | None = None
    """The authority to trust; with it the server speaks TLS."""

    @property
    def endpoint(self) -> str:
        return f"https://localhost:{self.port}" if self.ca else f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """What ours and the AWS libraries read. The sink takes any credentials."""
        return CREDENTIALS | ({"AWS_CA_BUNDLE": str(self.ca)} if self.ca else {})

    def config(self, prefix: str) -> StorageConfig:
        return StorageConfig(f"s3://{BUCKET}/{prefix}", self.endpoint, "us-east-1")


class SinkServer(Server):
    """The limited one (sink.py)."""

    def limit(self, bytes_per_second: float) -> None:
        self._call("PUT", f"/-/rate?bytes={bytes_per_second}")

    def forget(self) -> None:
        self._call("PUT", "/-/forget")

    def stats(self) -> dict[str, Any]:
        return self._call("GET", "/-/stats")

    def _call(self, method: str, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(urllib.request.Request(self.endpoint + path, method=method), timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@contextlib.contextmanager
def sink(folder: Path, *, keep: Path | None = None) -> Iterator[SinkServer]:
    """`keep`: the folder in which bodies are kept, to be read back; without one they are read and dropped."""
    port_file = folder / "sink-port"
    port_file.unlink(missing_ok=True)
    if keep:
        keep.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.harness.sink",
        str(port_file),
        *(["--keep", str(keep)] if keep else []),
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait(port_file.exists, process)
        yield SinkServer(int(port_file.read_text()), "sink")
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def versitygw(program: Path, folder: Path, *, tls: bool = False) -> Iterator[Server]:
    """`folder` is made. Over TLS it has a certificate of an authority of its own, and connections serve more than one request: else handshakes are measured."""
    folder.mkdir()
    certificate = None
    if tls:
        certificates.server_side(folder)
        certificate = folder / "server.pem", folder / "key.pem"
    with s3_server.running(program, folder / "data", keep_alive=tls, certificate=certificate) as server:
        yield Server(server.port, "versitygw", folder / "ca.pem" if tls else None)


def _wait(condition: Any, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 30
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{process.args!r} did not come up")
        time.sleep(0.02)
