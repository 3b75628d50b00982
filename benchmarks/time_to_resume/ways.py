"""The ways in which a worker of a running job is taken, one after the other from the same job; and what its status says of each."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.ground import Ground
from benchmarks.time_to_resume.pods import Pods, is_leaving
from hack.demo import install
from hack.demo.kube import wait_for

VICTIM = 1
"""Worker that goes: the lead stays, as the pod that holds the rendezvous stays with the peers."""
QUOTA = "no-second-pod"
SETTLE_SECONDS = 3.0
"""Between "it trains" and the next loss: the old pod has gone by then."""


@dataclass(frozen=True, slots=True)
class Way:
    name: str
    title: str
    notice: bool
    """It was announced, with at least 15 s."""
    take: Callable[["Taker"], None]
    refuse: bool = False
    """A quota refuses a second pod of the worker (F5)."""


class Taker:
    """Of one job."""

    def __init__(self, ground: Ground, pods: Pods, job: str, every: int) -> None:
        self.ground, self.pods, self.job, self._every = ground, pods, job, every

    def one(self, way: Way) -> dict[str, Any]:
        """Waits until the job is well, takes the worker, waits until it trains again. Milliseconds, from the job's status."""
        self._settled()
        before = self.ground.status(self.job)["attempt"]["number"]
        if way.refuse:
            self._refuse()
        try:
            way.take(self)
            found: dict[str, Any] = wait_for(f"{self.job} resumes ({way.name})", lambda: self._resumed(before), timeout=180, every=0.5)  # fmt: skip
        finally:
            if way.refuse:
                self.ground.kube.run("delete", "resourcequota", QUOTA, "-n", self.ground.namespace)
        return {
            "way": way.name,
            "total_ms": found["totalMilliseconds"],
            "phases_ms": {p["name"]: p["milliseconds"] for p in found["phases"]},
            "steps_lost": found.get("stepsLost", 0),
            "cause": found["cause"],
            "source": found.get("source", ""),
        }

    def victim(self) -> dict[str, Any]:
        found = install.pods_of(self.ground.kube, self.ground.namespace, self.job)
        return next(p for p in found if p["metadata"]["labels"]["holdfast.dev/worker"] == str(VICTIM) and not is_leaving(p))  # fmt: skip

    def in_victim(self, *command: str) -> None:
        self.ground.kube.run(
            "exec", self.victim()["metadata"]["name"], "-n", self.ground.namespace, "-c", "trainer", "--", *command
        )

    def _settled(self) -> None:
        """It trains, has a checkpoint of this attempt (so that failures start to count anew), and nothing of the last round is left."""

        def well() -> bool:
            status = self.ground.status(self.job)
            attempt, newest = status.get("attempt") or {}, status.get("lastCheckpoint") or {}
            fresh = newest.get("name", "").startswith(f"{attempt.get('number')}/") and newest.get("cause") == "periodic"
            pods = install.pods_of(self.ground.kube, self.ground.namespace, self.job)
            return status.get("phase") == "Running" and fresh and not any(is_leaving(p) for p in pods)

        wait_for(f"{self.job} is settled", well, timeout=120, every=0.5)
        time.sleep(SETTLE_SECONDS)

    def _resumed(self, before: int) -> dict[str, Any] | None:
        entries = self.ground.status(self.job).get("preemptions") or []
        return next((p for p in entries if p["attempt"] >= before and p.get("resumedAt")), None)

    def _refuse(self) -> None:
        """As many pods as there are, and no more."""
        count = len(install.pods_of(self.ground.kube, self.ground.namespace, self.job))
        meta = {"name": QUOTA, "namespace": self.ground.namespace}
        spec = {"hard": {"pods": str(count)}}
        self.ground.kube.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": spec})

        def counted() -> Any:
            found = self.ground.kube.find("resourcequota", QUOTA, namespace=self.ground.namespace) or {}
            return (found.get("status") or {}).get("used")

        wait_for("the quota counts", counted, timeout=30)


def _evict(taker: Taker) -> None:
    taker.pods.evict(taker.victim()["metadata"]["name"])


def _crash(taker: Taker) -> None:
    """The first training process of the worker; agent, pod and the other ranks are well."""
    taker.in_victim("python", "-c", KILL_RANK)


def _kill_agent(taker: Taker) -> None:
    """From outside the pod: inside, nobody can kill PID 1. By its environment: the other worker may be on the same node."""
    victim = taker.victim()
    node = taker.ground.cluster.node(victim["spec"]["nodeName"])
    node.run("python3", "-c", KILL_AGENT, victim["metadata"]["uid"])


def _vanish(taker: Taker) -> None:
    """All of it at once: its processes, then its object. A pod that is only deleted, with no grace at all, still gets two seconds, in which it saves."""
    victim = taker.victim()
    _kill_agent(taker)
    taker.pods.delete(victim["metadata"]["name"], grace=0)


KILL_AGENT = """
import os, signal, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        about, command = (open(f"/proc/{pid}/{what}", "rb").read() for what in ("environ", "cmdline"))
    except OSError:
        continue
    if b"holdfast-agent" in command and sys.argv[1].encode() in about:
        os.kill(int(pid), signal.SIGKILL)
"""
KILL_RANK = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        parent = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
        stdin = os.readlink(f"/proc/{pid}/fd/0")
    except OSError:
        continue
    if parent == 1 and stdin == os.devnull:  # one that waits to become a rank has a pipe there
        os.kill(int(pid), signal.SIGKILL)
        break
"""

WAYS = (
    Way("handover", "evicted; the replacement comes up while it saves", True, _evict),
    Way("no-handover", "evicted; a quota refuses a second pod", True, _evict, refuse=True),
    Way("in-place", "a training process is killed: all pods stay, ranks start again in them", False, _crash),
    Way("container", "the agent is killed: its container starts again in its pod", False, _kill_agent),
    Way("no-notice", "killed, and its pod removed, unannounced", False, _vanish),
)
