"""What the benchmarks on a cluster stand on: an installed operator, a namespace with a bucket, nodes that can be changed, agents that say what they hear.

All of it is taken away again when the `with` block ends, however it ends.
"""

import json
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kubernetes import client, config

from benchmarks import agent_tap
from hack.cluster import api, turn
from hack.demo import install
from hack.demo.kube import Kube, KubectlFailed, wait_for

TOP = Path(__file__).resolve().parents[1]
TAP_DIR = "/tap"


@dataclass(frozen=True, slots=True)
class Moment:
    """A write to the API server: when it was sent, when the answer was there (Unix time)."""

    sent: float
    acked: float


class Nodes:
    """Changes taints over one kept-open connection: starting kubectl would cost more than what is measured."""

    def __init__(self, kubeconfig: Path) -> None:
        self._client = config.new_client_from_config(config_file=str(kubeconfig))
        self._core = client.CoreV1Api(self._client)

    def close(self) -> None:
        self._client.close()

    def has_taint(self, node: str, key: str) -> bool:
        return any(t["key"] == key for t in self._taints(node))

    def put_taint(self, node: str, key: str, effect: str) -> Moment:
        others = [t for t in self._taints(node) if t["key"] != key]
        return self._write(node, [*others, {"key": key, "value": str(int(time.time())), "effect": effect}])

    def take_taint(self, node: str, key: str) -> Moment:
        return self._write(node, [t for t in self._taints(node) if t["key"] != key])

    def _taints(self, node: str) -> list[dict[str, Any]]:
        found = json.loads(self._core.read_node(node, _preload_content=False).data)
        return list(found["spec"].get("taints") or [])

    def _write(self, node: str, taints: list[dict[str, Any]]) -> Moment:
        body = {"spec": {"taints": taints or None}}
        sent = time.time()
        answer = self._core.patch_node(node, body, _preload_content=False)
        acked = time.time()
        answer.read()
        return Moment(sent, acked)


@dataclass(frozen=True, slots=True)
class Receipt:
    """One agent took notices in: its worker, when by the wall clock, and every notice that it has since."""

    worker: int
    at: float
    notices: tuple[dict[str, Any], ...]

    def find(self, worker: int, source: str, *, withdrawn: bool) -> dict[str, Any] | None:
        """The notice about `worker` from `source`, if it stands (or was taken back) as said."""
        for n in self.notices:
            if (n["worker"], n["source"], n["withdrawn"]) == (worker, source, withdrawn):
                return n
        return None


@dataclass(slots=True)
class _Followed:
    process: "subprocess.Popen[bytes]"
    path: Path
    read: int = 0


@dataclass(slots=True)
class Agents:
    """Follows the output of pods and picks out what the taps in them print."""

    kube: Kube
    namespace: str
    folder: Path
    receipts: list[Receipt] = field(default_factory=list)
    _followed: dict[str, _Followed] = field(default_factory=dict)

    def follow(self, pod: str) -> None:
        if pod not in self._followed:
            path = self.folder / f"{pod}.log"
            self._followed[pod] = _Followed(self.kube.follow(pod, self.namespace, path), path)

    def wait(self, what: str, test: Callable[[list[Receipt]], Any], *, timeout: float) -> Any:
        """The first true result of `test(all receipts)`."""

        def look() -> Any:
            for f in self._followed.values():
                self._read(f)
            return test(self.receipts)

        return wait_for(what, look, timeout=timeout, every=0.01)

    def close(self) -> None:
        for f in self._followed.values():
            f.process.terminate()
            f.process.wait(10)

    def _read(self, f: _Followed) -> None:
        with f.path.open("rb") as file:
            file.seek(f.read)
            whole, newline, _ = file.read().rpartition(b"\n")
        f.read += len(whole) + len(newline)
        for line in whole.decode(errors="replace").splitlines():
            if line.startswith(agent_tap.MARK):
                found = json.loads(line.removeprefix(agent_tap.MARK))
                self.receipts.append(Receipt(found["worker"], found["at"], tuple(found["notices"])))


def seconds_of(moment: str) -> float:
    """Unix time of a time in a message."""
    return datetime.fromisoformat(moment).timestamp()


@dataclass(frozen=True, slots=True)
class Usage:
    """The operator's process, from /proc of its container."""

    resident_mib: float
    anonymous_mib: float
    peak_mib: float
    cpu_seconds: float
    threads: int
    at: float


class Operator:
    """The installed operator."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    def restart(self) -> None:
        """A new process, so that its memory is that of a beginning and not of whatever was done before."""
        self._kube.run(
            "rollout", "restart", "deployment", "-l", "app.kubernetes.io/name=holdfast", "-n", install.SYSTEM
        )
        self._kube.run("rollout", "status", "deployment", "-l", "app.kubernetes.io/name=holdfast", "-n", install.SYSTEM,
                       "--timeout=90s", timeout=100)  # fmt: skip

    def pod(self) -> str:
        pods = self._kube.get("pods", namespace=install.SYSTEM, selector="app.kubernetes.io/name=holdfast")["items"]
        running = [p for p in pods if p["status"]["phase"] == "Running" and not p["metadata"].get("deletionTimestamp")]
        if len(running) != 1:
            raise KubectlFailed(f"{len(running)} operators run")
        return str(running[0]["metadata"]["name"])

    def usage(self) -> Usage:
        text = self._kube.run("exec", self.pod(), "-n", install.SYSTEM, "--", "cat", "/proc/1/status", "/proc/1/stat")
        *lines, stat = text.strip().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        ticks = stat.rpartition(")")[2].split()
        return Usage(
            resident_mib=int(status["VmRSS"].split()[0]) / 1024,
            anonymous_mib=int(status["RssAnon"].split()[0]) / 1024,
            peak_mib=int(status["VmHWM"].split()[0]) / 1024,
            cpu_seconds=(int(ticks[11]) + int(ticks[12])) / 100,
            threads=int(status["Threads"]),
            at=time.time(),
        )

    def metrics(self) -> dict[str, float]:
        """`name{labels}` -> value, as the operator's /metrics prints them, read through the API server."""
        path = f"/api/v1/namespaces/{install.SYSTEM}/pods/{self.pod()}:8472/proxy/metrics"
        return parsed(self._kube.run("get", "--raw", path).splitlines())

    def status_writes(self) -> dict[str, float]:
        """The same of the API server, about writes to the status of jobs: nobody but the operator does that."""
        lines = self._kube.run("get", "--raw", "/metrics").splitlines()
        return parsed([x for x in lines if x.startswith(STATUS_WRITES) and all(label in x for label in _STATUS_LABELS)])


STATUS_WRITES = "apiserver_request_duration_seconds"
_STATUS_LABELS = ('resource="trainingjobs"', 'subresource="status"', 'verb="PUT"')


def parsed(lines: list[str]) -> dict[str, float]:
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if x and x[0] != "#")}


class Ground:
    """`with Ground("name", script) as ground:`."""

    def __init__(self, name: str, script: Path, *, taints: tuple[str, ...]) -> None:
        self._script, self._taints = script, taints
        self.namespace = f"bench-{name}-{uuid.uuid4().hex[:6]}"
        self._folder = tempfile.TemporaryDirectory(prefix="holdfast-bench-")
        self._jobs: list[str] = []
        self._turn = turn.taken("make bench")

    def __enter__(self) -> Self:
        self._turn.__enter__()
        try:
            self._begin()
        except BaseException:
            self._end(wait=False)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Waited for: what comes next is not to be measured while this goes. After a failure or Ctrl-C nobody waits.
        self._end(wait=error is None)

    def _begin(self) -> None:
        say("cluster, and the chart of this checkout")
        self.cluster = api.ensure_cluster(nodes=2, grace=12, images=True)
        self.kube = Kube(self.cluster.bin / "kubectl", self.cluster.kubeconfig)
        self.nodes = Nodes(self.cluster.kubeconfig)
        self.agents = Agents(self.kube, self.namespace, Path(self._folder.name))
        self.operator = Operator(self.kube)
        self._clean_nodes()
        install.install_chart(self.kube, self.cluster.bin / "helm")
        s3 = self.cluster.s3("benchmarks")
        bucket = install.Bucket(s3.endpoint, s3.access_key, s3.secret_key, s3.region, s3.bucket)
        install.prepare_namespace(self.kube, self.namespace, bucket, script=self._script)
        tap = {"sitecustomize.py": (TOP / "benchmarks/agent_tap.py").read_text()}
        meta = {"name": "tap", "namespace": self.namespace}
        self.kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": tap})
        others = self.kube.run("get", "trainingjobs", "-A", "-o", "name").split()
        if others:
            say(f"note: {len(others)} other jobs are on this cluster and cost the same operator time")

    def _end(self, *, wait: bool) -> None:
        """Nodes first: a notice that stays would outlive its benchmark."""
        try:
            if hasattr(self, "nodes"):
                self._clean_nodes()
                self.agents.close()
                how = ("--timeout=60s",) if wait else ("--wait=false",)
                self.kube.run("delete", "namespace", self.namespace, "--ignore-not-found", *how, timeout=70)
                self.nodes.close()
        except (KubectlFailed, subprocess.TimeoutExpired) as e:
            say(f"not everything could be taken away: {e}")
        finally:
            self._folder.cleanup()
            self._turn.__exit__(None, None, None)

    def _clean_nodes(self) -> None:
        for node in self.cluster.node_names:
            for key in self._taints:
                if self.nodes.has_taint(node, key):
                    self.nodes.take_taint(node, key)

    # ---- jobs

    def start(self, name: str, **options: Any) -> None:
        """A job of two workers of half a core each, with a tap in each agent; returns when it trains."""
        manifest = install.training_job(
            name, self.namespace, f"s3://benchmarks/{self.namespace}", torch_path=self.cluster.torch_path_in_pod, **options
        )  # fmt: skip
        pod = manifest["spec"]["template"]["spec"]
        container = pod["containers"][0]
        search = next((e for e in container["env"] if e["name"] == "PYTHONPATH"), None)
        if search is None:
            container["env"].append({"name": "PYTHONPATH", "value": TAP_DIR})
        else:
            search["value"] = f"{TAP_DIR}:{search['value']}"
        # As a training job has them; without any, everything else on the machine would come before it.
        container["resources"] = {"requests": {"cpu": "500m"}}
        container["volumeMounts"].append({"name": "tap", "mountPath": TAP_DIR})
        pod["volumes"].append({"name": "tap", "configMap": {"name": "tap"}})
        self.kube.apply(manifest)
        wait_for(f"job {name} trains", lambda: self.trains(name), timeout=120)
        for p in install.pods_of(self.kube, self.namespace, name):
            self.agents.follow(p["metadata"]["name"])

    def stop(self, name: str) -> None:
        self.kube.run("delete", "trainingjob", name, "-n", self.namespace, "--wait=true", timeout=90)
        gone = lambda: not install.pods_of(self.kube, self.namespace, name)  # noqa: E731
        wait_for(f"pods of {name} are gone", gone, timeout=90)

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.kube.get("trainingjob", name, namespace=self.namespace).get("status", {})
        return found

    def trains(self, name: str) -> bool:
        status = self.status(name)
        parent = int((status.get("attempt") or {}).get("parentStep", 0))
        return bool(status.get("phase") == "Running" and status.get("step", 0) > parent + 3)

    def workers(self, name: str) -> dict[int, str]:
        """Worker -> node."""
        pods = install.pods_of(self.kube, self.namespace, name)
        return {int(p["metadata"]["labels"]["holdfast.dev/worker"]): p["spec"]["nodeName"] for p in pods}


def say(text: str) -> None:
    print(f"  {text}", flush=True)
