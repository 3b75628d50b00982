"""S3 servers to measure against: the limited sink, and a real one where it has been built."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast_api.config import StorageConfig

BUCKET = "bench"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testsecret"}
"""Any for the sink; those of the real server's own root on loopback."""


@dataclass(frozen=True)
class Server:
    port: int
    name: str

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

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
def sink(folder: Path, *, keep: bool = False) -> Iterator[SinkServer]:
    """`keep`: bodies are kept in a folder in memory and can be read back."""
    port_file, kept = folder / "sink-port", folder / "sink-objects"
    port_file.unlink(missing_ok=True)
    if keep:
        kept.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.harness.sink",
        str(port_file),
        *(["--keep", str(kept)] if keep else []),
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait(port_file.exists, process)
        yield SinkServer(int(port_file.read_text()), "sink")
    finally:
        process.kill()
        process.wait()


def real_server() -> Path | None:
    """versitygw: named by HOLDFAST_TOOLCHAIN, on PATH, or built by an earlier `make test`."""
    folder = os.environ.get("HOLDFAST_TOOLCHAIN")
    if folder and (Path(folder) / "versitygw").exists():
        return Path(folder) / "versitygw"
    if found := shutil.which("versitygw"):
        return Path(found)
    cache = Path(
        os.environ.get("HOLDFAST_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "holdfast"
    ).expanduser()
    built = sorted(cache.glob("artefacts/*/versitygw"), key=lambda p: p.stat().st_mtime)
    return built[-1] if built else None


@contextlib.contextmanager
def versitygw(program: Path, data: Path) -> Iterator[Server]:
    """`data` is a folder with extended attributes: on a disk, not in memory."""
    (data / BUCKET).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    environ = {
        **os.environ,
        "ROOT_ACCESS_KEY": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "ROOT_SECRET_KEY": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    }
    process = subprocess.Popen(
        [program, "--port", f"127.0.0.1:{port}", "--quiet", "posix", data],
        env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        _wait(answers, process)
        yield Server(port, "versitygw")
    finally:
        process.terminate()
        process.wait(30)


def _wait(condition: Any, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 30
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{process.args!r} did not come up")
        time.sleep(0.02)
