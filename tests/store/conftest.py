"""Backends for the tests of the store: every behaviour is shown on a directory, in memory, on a real S3 server and on emulators of GCS and Azure."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import emulators
from s3_server import S3Server, binary_or_outcome, running
from worlds import World

from holdfast_api.config import StorageConfig
from holdfast_store.bucket import Bucket
from holdfast_store.memory import MemoryBucket
from holdfast_store.opening import open_bucket

_number = itertools.count()
BACKENDS = ["file", "memory", *(pytest.param(name, marks=pytest.mark.s3) for name in ("s3", "gcs", "azure"))]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running(binary_or_outcome(), tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[emulators.Emulator]:
    with emulators.gcs() as server:
        yield server


@pytest.fixture(scope="session")
def azure_server() -> Iterator[emulators.Emulator]:
    with emulators.azure() as server:
        yield server


@pytest.fixture(params=BACKENDS)
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    """An empty bucket. On a server: a prefix of its own."""
    if request.param == "memory":
        return MemoryBucket()
    if request.param == "file":
        return open_bucket(StorageConfig(tmp_path.as_uri()), {})
    server: S3Server | emulators.Emulator = request.getfixturevalue(f"{request.param}_server")
    return open_bucket(server.config(f"tests/{next(_number)}"), server.environ, retry_seconds=5)


@pytest.fixture
def world(bucket: Bucket) -> World:
    return World(bucket)
