"""The S3 server beside a cluster, for jobs and for people."""

from pathlib import Path

import pytest

from hack import kind, services
from hack.cluster.errors import ClusterError
from hack.cluster.settings import Settings
from hack.cluster.state import Store
from hack.services import S3Info

#: Prints how it was called and stays.
FAKE_SERVER = """#!/usr/bin/env python3
import os, socket, sys
host, port = sys.argv[2].split(":")
print(sys.argv[1:], os.environ["ROOT_ACCESS_KEY"], flush=True)
listener = socket.create_server((host, int(port)))
while True:
    listener.accept()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    made.create(Settings(kube="", archives=(), templates=""))
    return made


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    server = tmp_path / "bin" / "versitygw"
    server.write_text(FAKE_SERVER)
    server.chmod(0o755)
    return tmp_path / "bin"


def test_the_server_listens_on_one_address_and_keeps_its_keys_over_a_stop(store: Store, programs: Path) -> None:
    first = services.start_s3(store, programs, "127.0.0.1", "training", port=17071)
    try:
        assert (services.s3_data(store) / "training").is_dir()
        assert "'--port', '127.0.0.1:17071'" in store.log(services.S3).read_text()
        assert services.start_s3(store, programs, "127.0.0.1", "training", port=17071) == first
        services.stop(store, services.S3)
        assert services.S3 not in store.read().processes
        assert services.start_s3(store, programs, "127.0.0.1", "training", port=17071) == first
    finally:
        services.stop(store, services.S3)


def test_a_server_that_ends_at_once_is_an_error_that_names_its_log(store: Store, programs: Path) -> None:
    (programs / "versitygw").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ClusterError, match=r"ended: see .*s3\.log"):
        services.start_s3(store, programs, "127.0.0.1", "training", port=17072)


def test_a_name_that_is_no_bucket_is_refused(store: Store, programs: Path) -> None:
    with pytest.raises(ValueError, match="three characters"):
        services.start_s3(store, programs, "127.0.0.1", "ab")


def test_the_secret_holds_what_the_agent_reads() -> None:
    secret = S3Info("http://10.0.0.1:7070", "key", "hidden", "us-east-1", "training").secret("bucket", "team")
    assert secret["metadata"] == {"name": "bucket", "namespace": "team"}
    assert secret["stringData"] == {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hidden",
        "AWS_ENDPOINT_URL": "http://10.0.0.1:7070",
        "AWS_REGION": "us-east-1",
    }


def test_on_a_cluster_of_ones_own_the_bucket_comes_from_the_environment() -> None:
    given = {"AWS_ENDPOINT_URL": "https://s3.example", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert services.from_environment("x", given).endpoint == "https://s3.example"
    with pytest.raises(ClusterError, match="AWS_SECRET_ACCESS_KEY"):
        services.from_environment("x", {**given, "AWS_SECRET_ACCESS_KEY": ""})


def test_kind_has_workers_that_see_torch() -> None:
    nodes = kind.configuration(2, 12, Path("/cache/torch"))["nodes"]
    assert isinstance(nodes, list)
    assert [node["role"] for node in nodes] == ["control-plane", "worker", "worker"]
    assert nodes[1]["extraMounts"][0]["containerPath"] == "/mnt/shared"
