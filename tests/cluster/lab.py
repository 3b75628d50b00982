"""What a test on the real cluster works with: a namespace, jobs in it, and the operator as it shows itself."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hack.demo import curves, install, metrics
from hack.demo.kube import Kube, wait_for


@dataclass
class Job:
    """A TrainingJob in its test's namespace."""

    kube: Kube
    namespace: str
    name: str

    def object(self) -> dict[str, Any]:
        return self.kube.get("trainingjob", self.name, namespace=self.namespace)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.object().get("status", {})
        return found

    def wait(self, what: str, test: Callable[[dict[str, Any]], Any], timeout: float = 90) -> dict[str, Any]:
        """Waits until `test(status)` is true and returns that status; on a time-out the message holds the status."""
        seen: dict[str, Any] = {}

        def look() -> bool:
            nonlocal seen
            seen = self.status()
            return bool(test(seen))

        try:
            wait_for(what, look, timeout=timeout)
        except TimeoutError as e:
            raise AssertionError(f"{e}\n{json.dumps(seen, indent=1)[:6000]}") from None
        return seen

    def wait_step(self, step: int, timeout: float = 90) -> dict[str, Any]:
        return self.wait(f"step {step}", lambda s: s.get("step", 0) >= step, timeout)

    def wait_succeeded(self, timeout: float = 180) -> dict[str, Any]:
        status = self.wait("the job ends", lambda s: s.get("phase") in ("Succeeded", "Failed"), timeout)
        assert status["phase"] == "Succeeded", json.dumps(status, indent=1)[:6000]
        return status

    def wait_condition(self, *, reason: str = "", text: str = "", timeout: float = 30) -> dict[str, Any]:
        """A condition with this reason and text in its message, where a user looks first."""

        def found() -> dict[str, Any] | None:
            for c in self.status().get("conditions", []):
                if (not reason or c["reason"] == reason) and text in c.get("message", ""):
                    return dict(c)
            return None

        try:
            condition: dict[str, Any] = wait_for(f"a condition {reason!r} with {text!r}", found, timeout=timeout)
        except TimeoutError as e:
            raise AssertionError(f"{e}\n{json.dumps(self.status(), indent=1)[:6000]}") from None
        return condition

    def pods(self) -> list[dict[str, Any]]:
        return install.pods_of(self.kube, self.namespace, self.name)

    def node_of(self, worker: int) -> str:
        pods = [p for p in self.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == str(worker)]
        return str(pods[-1]["spec"].get("nodeName", ""))

    def run(self) -> curves.Run:
        """What rank 0 printed, over all pods of worker 0 that are still there."""
        leads = [p for p in self.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == "0"]
        return curves.read_run(*(self.kube.logs(p["metadata"]["name"], self.namespace) for p in leads))

    def pod_of(self, worker: int) -> dict[str, Any]:
        """The newest pod of a worker."""
        return [p for p in self.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == str(worker)][-1]

    def wait_resumed(self, timeout: float = 120) -> dict[str, Any]:
        """Until every interruption so far is recovered from, and there is one."""
        return self.wait(
            "resumed", lambda s: s.get("preemptions") and all(p.get("resumedAt") for p in s["preemptions"]), timeout
        )

    def events(self) -> list[str]:
        found = self.kube.get("events", namespace=self.namespace)["items"]
        return [f"{e['reason']}: {e['message']}" for e in found if e["involvedObject"]["name"] == self.name]


class Operator:
    """The installed operator, as its Deployment and its page of metrics show it."""

    NAMESPACE, SELECTOR = "holdfast-system", "app.kubernetes.io/name=holdfast"
    RESUMES = metrics.Sum("holdfast_time_to_resume_seconds_count", "cause", (("phase", "total"),))

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    def pods(self) -> list[dict[str, Any]]:
        """Those that are not on their way out."""
        found = self._kube.get("pods", namespace=self.NAMESPACE, selector=self.SELECTOR)["items"]
        return [p for p in found if "deletionTimestamp" not in p["metadata"]]

    def node(self) -> str:
        return str(self.pods()[0]["spec"]["nodeName"])

    def scale(self, replicas: int) -> None:
        """Returns when there is none left, or when the new one is Ready."""
        self._kube.run("scale", "deployment/holdfast", "-n", self.NAMESPACE, f"--replicas={replicas}")
        if replicas:
            self._kube.run(
                "rollout", "status", "deployment/holdfast", "-n", self.NAMESPACE, "--timeout=120s", timeout=130
            )
        else:
            gone = ("wait", "--for=delete", "pod", "-n", self.NAMESPACE, "-l", self.SELECTOR, "--timeout=60s")
            self._kube.run(*gone, timeout=70)

    def resumes(self) -> "Resumes":
        """How many times to resume it has observed, by cause (I9)."""

        def page() -> Resumes | None:
            for pod in self.pods():
                meta = pod["metadata"]
                text = self._kube.run(
                    "get", "--raw", metrics.page_path(self.NAMESPACE, meta["name"], metrics.OPERATOR_PORT)
                )
                if "holdfast_leader 1.0" in text:
                    restarts = sum(c["restartCount"] for c in pod["status"].get("containerStatuses", []))
                    found = self.RESUMES.of(text)
                    return Resumes((meta["uid"], restarts), Counter({labels["cause"]: int(n) for labels, n in found}))
            return None

        found: Resumes = wait_for("the operator's page of metrics", page, timeout=120)
        return found


@dataclass(frozen=True)
class Resumes:
    """Observations of one life of the operator: another one begins to count at zero."""

    life: tuple[str, int]
    by_cause: Counter[str]

    def since(self, before: "Resumes") -> Counter[str]:
        """Those after `before`."""
        return self.by_cause - before.by_cause if self.life == before.life else +self.by_cause


class Lab:
    """One test's namespace."""

    def __init__(self, kube: Kube, cluster: Any, bucket: install.Bucket, namespace: str) -> None:
        self.kube, self.cluster, self.bucket, self.namespace = kube, cluster, bucket, namespace
        self.uri = f"s3://{bucket.name}/{namespace}"
        self.operator = Operator(kube)

    def manifest(self, name: str = "small", *, env: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
        """The small training job: 2 workers of 1 rank, a checkpoint every 10 steps."""
        spec = {"processesPerWorker": 1, **changes.pop("spec", {})}
        return install.training_job(
            name, self.namespace, changes.pop("uri", self.uri), torch_path=self.cluster.torch_path_in_pod,
            image=self.cluster.trainer_image, environment=env, spec=spec, **changes,
        )  # fmt: skip

    def start(self, name: str = "small", **changes: Any) -> Job:
        self.kube.apply(self.manifest(name, **changes))
        return self.job(name)

    def job(self, name: str) -> Job:
        """A job that the test has applied by itself."""
        return Job(self.kube, self.namespace, name)

    def data(self, job: Job) -> Path:
        """The job's prefix as files below the S3 server."""
        uid = job.object()["metadata"]["uid"]
        return Path(self.cluster.s3_data) / self.bucket.name / self.namespace / self.namespace / f"{job.name}-{uid}"
