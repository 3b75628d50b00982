"""A job that cannot have all its workers goes on with fewer, in the pods that stay, and grows again once there is room (spec.elastic)."""

from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_a_job_goes_on_with_one_worker_while_no_node_takes_another_and_grows_back(lab: Any) -> None:
    elastic = {"minWorkers": 1, "waitSeconds": 5, "growAfterSeconds": 10}
    job = lab.start(env={"STEPS": "500", "SLEEP": "0.1"}, spec={"elastic": elastic})
    job.wait_step(15)
    stays, goes = job.node_of(0), job.node_of(1)
    assert stays != goes
    survivor = next(p["metadata"]["uid"] for p in job.pods() if p["metadata"]["labels"]["holdfast.dev/worker"] == "0")
    for node in (stays, goes):
        lab.kube.run("cordon", node)
    lab.kube.run("taint", "node", goes, "aws-node-termination-handler/spot-itn=test:NoSchedule")
    status = job.wait("one worker trains", lambda s: _trains_with(s, 1), 120)
    assert [m["podUid"] for m in status["attempt"]["members"]] == [survivor]
    alone = status["attempt"]["number"]
    assert "with 1 workers (spec.workers is 2)" in job.wait_condition(reason="Unschedulable")["message"]

    lab.kube.run("uncordon", stays)
    status = job.wait("two workers train", lambda s: _trains_with(s, 2), 120)
    assert status["attempt"]["number"] > alone
    assert survivor in [m["podUid"] for m in status["attempt"]["members"]]

    status = job.wait_succeeded()
    assert [(p["cause"], p["stepsLost"]) for p in status["preemptions"]] == [("spot", 0), ("resize", 0)]
    assert (status["counts"]["preemptions"], status["counts"]["failures"]) == (1, 0)


def _trains_with(status: dict[str, Any], workers: int) -> bool:
    attempt = status.get("attempt") or {}
    return len(attempt.get("members", [])) == workers and "firstStepAt" in attempt and status.get("phase") == "Running"
