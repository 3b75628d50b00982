"""Nothing in the cluster knows what the cloud has announced: the notifier asks, publishes, and the job is gone from the machine before its deadline.

The metadata service is a stand-in on this machine (tests/notifier/stand_ins.py), which the real DaemonSet of the chart reaches over the nodes' network.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from hack.cluster.errors import Unsupported
from hack.demo import install
from hack.demo.kube import KubectlFailed, wait_for
from holdfast_api import node_notices
from holdfast_notifier.aws import SPOT
from tests.cluster.outcome import STEPS
from tests.notifier.stand_ins import Imds

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
ENV = {"STEPS": STEPS, "SLEEP": "0.1"}


class Metadata:
    """The stand-in, on a thread of its own. `said` may be changed at any time."""

    def __init__(self, host: str) -> None:
        self._imds, self._ready, self._stop = Imds(), threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._host = host
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        async with self._imds.running(self._host):
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> "Metadata":
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    @property
    def url(self) -> str:
        return self._imds.url

    def asked(self) -> list[str]:
        """The last questions."""
        return self._imds.calls[-8:]

    def announces(self, deadline: datetime | None) -> None:
        if deadline is None:
            self._imds.said.clear()
        else:
            self._imds.said[SPOT] = json.dumps({"action": "terminate", "time": deadline.strftime("%Y-%m-%dT%H:%M:%SZ")})


def condition(lab: Any, node: str) -> dict[str, Any]:
    conditions = lab.kube.get("node", node)["status"]["conditions"]
    return next((c for c in conditions if c["type"] == node_notices.CONDITION), {})


def words_of_the_notifier(lab: Any) -> str:
    """Its log, its pod, and what befell it, for a failure's message."""
    where = ("-n", "holdfast-system")
    asked = [
        ("logs", *where, "daemonset/holdfast-notifier", "--tail=40", "--previous=false"),
        ("get", "pods", *where, "-o", "wide"),
        ("get", "events", *where),
    ]
    said = []
    for call in asked:
        try:
            said.append(lab.kube.run(*call))
        except KubectlFailed as e:
            said.append(str(e))
    return "\n".join(said)[-8000:]


@pytest.fixture
def announced(lab: Any) -> Iterator[tuple[Metadata, str]]:
    """The notifier of the chart on one node, and what it hears. Afterwards neither the DaemonSet nor a standing condition is left."""
    if not lab.cluster.owns_machines:
        raise Unsupported("pods of a cluster that was there already do not reach a stand-in on this machine")
    node = lab.cluster.node_names[-1]
    helm = lab.cluster.bin / "helm"
    with Metadata(str(urlsplit(lab.bucket.endpoint).hostname)) as metadata:
        try:
            install.install_chart(
                lab.kube, helm, "notifier.enabled=true", "notifier.cloud=aws", "notifier.pollSeconds=0.5",
                f"notifier.extraArgs[0]=--metadata-url={metadata.url}", f"notifier.nodeSelector.kubernetes\\.io/hostname={node}",
                image=lab.cluster.operator_image,
            )  # fmt: skip
            yield metadata, node
        finally:
            install.install_chart(lab.kube, helm, image=lab.cluster.operator_image)
            calm = {"type": node_notices.CONDITION, "status": "False", "reason": "TestIsOver", "message": ""}
            body = json.dumps({"status": {"conditions": [calm]}})
            lab.kube.run("patch", "node", node, "--subresource=status", "--type=strategic", "--patch", body)


def test_what_the_cloud_announces_about_a_machine_ends_in_an_exact_resume_elsewhere(
    lab: Any, announced: tuple[Metadata, str], outcome: Any
) -> None:
    metadata, node = announced
    wait_for(
        "the notifier says that nothing is announced", lambda: condition(lab, node).get("status") == "False", timeout=60
    )
    job = lab.start(env=ENV)
    job.wait_step(15)
    (worker,) = [w for w in (0, 1) if job.node_of(w) == node]
    deadline = (datetime.now(UTC) + timedelta(seconds=100)).replace(microsecond=0)
    metadata.announces(deadline)
    status = job.wait(
        "resumed elsewhere", lambda s: s.get("preemptions") and s["preemptions"][-1].get("resumedAt"), timeout=90
    )
    entry = status["preemptions"][-1]
    assert (entry["cause"], entry["source"], entry["nodes"]) == ("spot", "notifier:aws/spot-instance-action", [node])
    assert entry["workers"] == [worker]
    assert datetime.fromisoformat(entry["deadline"]) == deadline
    assert entry["stepsLost"] == 0
    assert datetime.fromisoformat(entry["sealedAt"]) < deadline
    assert job.node_of(worker) != node
    outcome.of(job)
    metadata.announces(None)
    try:
        wait_for("the notice is withdrawn", lambda: condition(lab, node).get("status") == "False", timeout=60)
    except TimeoutError as e:
        raise AssertionError(f"{e}\n{condition(lab, node)}\n{metadata.asked()}\n{words_of_the_notifier(lab)}") from None
