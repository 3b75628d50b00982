"""The operator or the API server is away while a job is preempted, or while it trains: agents save by themselves, and the rest is caught up with."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from hack.cluster.errors import Unsupported
from hack.demo.kube import wait_for
from tests.cluster.outcome import STEPS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
ENV = {"STEPS": STEPS, "SLEEP": "0.1"}
OUTAGE_SECONDS = 60


def test_a_preemption_that_the_operator_misses_from_its_notice_to_the_end_of_the_machine(
    lab: Any, outcome: Any
) -> None:
    """Fault scenario 34: spot notice, deletion and power cut; then the operator comes back and finds a taint, a missing pod and a store."""
    job = lab.start(env=ENV)
    job.wait_step(15)
    victim, node = job.pod_of(1), job.node_of(1)
    lab.operator.scale(0)
    noticed = datetime.now(UTC)
    lab.kube.run("taint", "node", node, "aws-node-termination-handler/spot-itn=test:NoSchedule")
    lab.kube.run("delete", "pod", victim["metadata"]["name"], "-n", lab.namespace, timeout=60)
    lab.cluster.node(node).off()
    lab.operator.scale(1)
    entry = outcome.of(job)
    assert (entry["cause"], entry["workers"], entry["stepsLost"]) == ("spot", [1], 0)
    assert abs((datetime.fromisoformat(entry["noticedAt"]) - noticed).total_seconds()) < 5, entry


def test_an_api_server_that_is_away_for_a_minute_stops_neither_training_nor_a_save(lab: Any, outcome: Any) -> None:
    """Fault scenario 35. `quiet` only trains; `hit` gets a SIGTERM that nobody can announce or hear of."""
    if not lab.cluster.owns_machines:
        raise Unsupported("the API server of a cluster that was there already is not ours to stop")
    quiet = lab.start("quiet", env={"STEPS": STEPS, "SLEEP": "1.4"})
    hit = lab.start("hit", env={"STEPS": STEPS, "SLEEP": "0.4"})
    quiet.wait_step(2)
    hit.wait_step(5)
    victim, data = hit.pod_of(1), lab.data(hit)
    restarts = lab.operator.resumes().life[1]
    before = set(data.glob("checkpoints/*/*/commit.json"))

    lab.cluster.stop_api()
    went = time.monotonic()
    send_sigterm(lab, victim)
    wait_for("an emergency checkpoint", lambda: set(data.glob("checkpoints/*/*/commit.json")) - before, timeout=30)
    time.sleep(max(0.0, went + OUTAGE_SECONDS - time.monotonic()))  # the outage itself
    lab.cluster.start_api()

    outcome.each(hit)
    entry = outcome.only(hit)
    assert (entry["cause"], entry["workers"], entry["stepsLost"]) == ("sigterm", [1], 0)
    outcome.uninterrupted(quiet)
    assert [c["restartCount"] for p in quiet.pods() for c in p["status"]["containerStatuses"]] == [0, 0]
    assert lab.operator.resumes().life[1] - restarts <= 2, "the operator goes round in circles"


def send_sigterm(lab: Any, pod: dict[str, Any]) -> None:
    """To the agent alone, as a node's own shutdown would."""
    mine = f"grep -q {pod['metadata']['uid']} /proc/$p/cgroup && kill -TERM $p"
    lab.cluster.node(pod["spec"]["nodeName"]).run(
        "sh", "-c", f"for p in $(pgrep -f 'holdfast-agent run'); do {mine}; done; true"
    )
