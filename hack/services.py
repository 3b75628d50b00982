"""The S3 server and Prometheus beside a cluster, as processes of its state file, so that `down` ends them too."""

import json
import os
import secrets
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hack.cluster.errors import ClusterError
from hack.cluster.processes import end
from hack.cluster.state import SERVICE_PREFIX, Store

S3 = SERVICE_PREFIX + "s3"
S3_PORT = 7070
S3_REGION = "us-east-1"
PROMETHEUS = SERVICE_PREFIX + "prometheus"
PROMETHEUS_PORT = 9090
API_PROXY = SERVICE_PREFIX + "api-proxy"


@dataclass(frozen=True)
class S3Info:
    """How to reach one bucket, from the host and from pods alike."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    bucket: str

    def environment(self) -> dict[str, str]:
        """The variables that boto3, obstore and the agent read."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": self.region,
        }

    def secret(self, name: str, namespace: str = "default") -> dict[str, Any]:
        """The Kubernetes Secret for a job's `spec.checkpoint.storage.secretName`."""
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "type": "Opaque",
            "stringData": self.environment(),
        }

    def secret_json(self, name: str, namespace: str = "default") -> str:
        """For `kubectl apply -f -`."""
        return json.dumps(self.secret(name, namespace))


def start_s3(store: Store, programs: Path, address: str, bucket: str, port: int = S3_PORT) -> S3Info:
    """Starts the server unless it runs, and makes the bucket; the data stays when the server is stopped."""
    if len(bucket) < 3:
        raise ValueError(f"bucket {bucket!r}: S3 wants three characters or more")
    access_key, secret_key = _credentials(store)
    data = s3_data(store)
    # A bucket of this server is a directory.
    (data / bucket).mkdir(parents=True, exist_ok=True)
    endpoint = f"http://{address}:{port}"
    # An explicit address: with a port alone the server listens on every interface of the machine.
    argv: list[str | Path] = [programs / "versitygw", "--port", f"{address}:{port}", "--quiet", "posix", data]
    keys = {"ROOT_ACCESS_KEY": access_key, "ROOT_SECRET_KEY": secret_key}
    store.spawn(S3, argv, keys)
    _wait_open(store, S3, address, port)
    return S3Info(endpoint, access_key, secret_key, S3_REGION, bucket)


def s3_data(store: Store) -> Path:
    """A directory per bucket."""
    return store.directory / "s3"


def start_prometheus(store: Store, programs: Path, config: Path, address: str, port: int = PROMETHEUS_PORT) -> str:
    """Starts Prometheus with the given configuration, in place of one that runs; returns its base URL."""
    stop(store, PROMETHEUS)
    data = store.directory / "prometheus"
    argv: list[str | Path] = [
        programs / "prometheus",
        f"--config.file={config.resolve()}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address={address}:{port}",
        "--web.enable-lifecycle",
    ]
    store.spawn(PROMETHEUS, argv)
    url = f"http://{address}:{port}"
    _wait_answer(store, PROMETHEUS, f"{url}/-/ready")
    return url


def start_api_proxy(store: Store, programs: Path, kubeconfig: Path) -> str:
    """`HOST:PORT` of a `kubectl proxy` that runs from now on, with the person's own rights, for this machine only."""
    known = store.read()
    running = known.processes.get(API_PROXY)
    if running is not None and running.alive() and API_PROXY in known.notes:
        return known.notes[API_PROXY]
    stop(store, API_PROXY)
    port = free_port()
    argv: list[str | Path] = [programs / "kubectl", f"--kubeconfig={kubeconfig}", "proxy", f"--port={port}"]
    store.spawn(API_PROXY, argv)
    _wait_open(store, API_PROXY, "127.0.0.1", port)
    with store.changing() as state:
        state.notes[API_PROXY] = f"127.0.0.1:{port}"
    return f"127.0.0.1:{port}"


def free_port() -> int:
    """A port of this machine that nobody listens on: the usual ones may be a person's own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def end_all(store: Store) -> None:
    """Ends every process that the state file records and forgets them; what they have written stays."""
    if store.exists():
        for process in store.read().processes.values():
            end(process)
        store.file.unlink()


def stop(store: Store, name: str) -> None:
    """Ends one of these services; its data stays for the next start. Harmless when it is not there."""
    process = store.read().processes.get(name)
    if process is not None:
        end(process)
        store.forget(name)


def _credentials(store: Store) -> tuple[str, str]:
    """Made once for a cluster, kept in its state file, which only its owner may read."""
    with store.changing() as state:
        access_key = state.notes.setdefault("s3_access_key", "holdfast" + secrets.token_hex(4))
        secret_key = state.notes.setdefault("s3_secret_key", secrets.token_urlsafe(24))
    return access_key, secret_key


def _wait_open(store: Store, name: str, address: str, port: int, patience_seconds: float = 20.0) -> None:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError as problem:
            _give_up_or_wait(store, name, deadline, problem)


def _wait_answer(store: Store, name: str, url: str, patience_seconds: float = 30.0) -> None:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (OSError, urllib.error.URLError) as problem:
            _give_up_or_wait(store, name, deadline, problem)


def _give_up_or_wait(store: Store, name: str, deadline: float, problem: Exception) -> None:
    process = store.read().processes[name]
    if not process.alive():
        raise ClusterError(f"{name} ended: see {store.log(name)}") from problem
    if time.monotonic() > deadline:
        raise ClusterError(f"{name} does not answer ({problem}): see {store.log(name)}") from problem
    time.sleep(0.05)


def from_environment(bucket: str, environment: Mapping[str, str] = os.environ) -> S3Info:
    """The bucket of a cluster that is not ours, from the usual variables."""
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    absent = [name for name in names if not environment.get(name)]
    if absent:
        raise ClusterError(f"on a cluster of your own, name a bucket's server and keys: set {', '.join(absent)}")
    endpoint, access_key, secret_key = (environment[name] for name in names)
    region = environment.get("AWS_REGION", S3_REGION)
    return S3Info(endpoint, access_key, secret_key, region, environment.get("HOLDFAST_BUCKET") or bucket)
