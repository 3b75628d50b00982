"""Servers that speak the interfaces of Google Cloud Storage and Azure Blob Storage, for tests. Neither is the service itself.

Azure: Azurite, Microsoft's emulator, which checks shared keys; `make test` installs it where npm is. Google: a small fake of our own (`fake_gcs`), because
the emulators that can be installed know only the JSON interface for writes, and the client library writes by XML.
"""

import base64
import contextlib
import hashlib
import hmac
import http.client
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_gcs import FakeGcs
from s3_server import free_port, wait_open

from holdfast_api.config import StorageConfig

BUCKET = "checkpoints"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key that every emulator of Azure has; it is in Microsoft's documentation."""


@dataclass(frozen=True)
class Emulator:
    scheme: str
    endpoint: str
    environ: dict[str, str]

    def config(self, prefix: str, *, bucket: str = BUCKET, endpoint: str = "") -> StorageConfig:
        return StorageConfig(f"{self.scheme}://{bucket}/{prefix}", endpoint or self.endpoint)


def find(name: str) -> str:
    """The program, else the test is skipped: with the line that installs it."""
    cache = Path(
        os.environ.get("HOLDFAST_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "holdfast"
    ).expanduser()
    folders = [Path(folder) for folder in (os.environ.get("HOLDFAST_TOOLCHAIN"),) if folder]
    folders += sorted(cache.glob("artefacts/azurite-*/node_modules/.bin"))
    found = next((str(folder / name) for folder in folders if (folder / name).exists()), None) or shutil.which(name)
    if found is None and os.environ.get("HOLDFAST_TOOLCHAIN") and shutil.which("npm"):
        pytest.fail(f"{name} is not installed although npm is: run `make test`, which installs it")
    if found is None:
        pytest.skip(f"{name} is not installed: `make test` installs it where npm is; this emulator's tests are not run")
    return found


@contextlib.contextmanager
def gcs() -> Iterator[Emulator]:
    with FakeGcs(BUCKET) as server:
        yield Emulator("gs", server.endpoint, {})


@contextlib.contextmanager
def azure() -> Iterator[Emulator]:
    port = free_port()
    argv = [
        find("azurite-blob"),
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        str(port),
        "--silent",
        "--inMemoryPersistence",
    ]
    with _process([*argv, "--skipApiVersionCheck", "--disableTelemetry"], port):
        _make_container(port)
        environ = {"AZURE_STORAGE_ACCOUNT_KEY": KEY}
        yield Emulator("az", f"http://127.0.0.1:{port}/{ACCOUNT}", environ)


@contextlib.contextmanager
def _process(argv: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_open(port, process)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _make_container(port: int) -> None:
    date, path = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), f"/{ACCOUNT}/{BUCKET}"
    text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:2023-11-03\n/{ACCOUNT}{path}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": "2023-11-03", "authorization": f"SharedKey {ACCOUNT}:{signature}"}
    _ask(port, "PUT", f"{path}?restype=container", b"", headers)


def _ask(port: int, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers)
    assert connection.getresponse().status in (200, 201)
    connection.close()
