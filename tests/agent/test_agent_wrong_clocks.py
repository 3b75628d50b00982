"""Real agents on machines whose clocks are wrong, each its own way; the test is the operator, with the right time (F1)."""

import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

from holdfast_api.messages import AgentPhase, Exit, Stage
from holdfast_api.names import EXIT_CODES

CUSTOMIZE = """
import json, os, time
ahead = json.loads(os.environ.get("AHEAD_SECONDS", "{}")).get(os.environ.get("HOLDFAST_POD_NAME", ""), 0.0)
right = time.time
time.time = lambda: right() + ahead
"""
"""Stands for a machine with another time: the agent's Python imports it before anything else."""


def clocks(folder: Path, **ahead: float) -> dict[str, str]:
    """Environment of agents whose machines are `ahead` seconds ahead, by pod: `pod_0_1=-25`."""
    (folder / "clocks").mkdir()
    (folder / "clocks" / "sitecustomize.py").write_text(CUSTOMIZE)
    path = os.pathsep.join((str(folder / "clocks"), os.environ.get("PYTHONPATH", "")))
    return {"PYTHONPATH": path, "AHEAD_SECONDS": json.dumps({k.replace("_", "-"): v for k, v in ahead.items()})}


def test_agents_whose_clocks_are_most_of_a_minute_apart_mean_the_same_moment(gang, tmp_path):
    g = gang(
        workers=2, trainer=("1000", "--step-seconds", "0.05"), environ=clocks(tmp_path, pod_0_1=-25.0, pod_1_1=25.0)
    )
    began = datetime.now(UTC)
    g.start().begin()
    g.wait_for_boundary(3)
    g.notice(1, seconds=30)
    g.wait_for_phase(AgentPhase.SEALED, *g.pods.values())
    ended = datetime.now(UTC)
    allowed = timedelta(seconds=4)
    for pod, ahead in zip(g.pods.values(), (-25, 25), strict=True):
        report = pod.report()
        for stage in (Stage.QUIESCED, Stage.SEALED):
            at = report.stages[stage.value]
            assert began - allowed <= at <= ended + allowed, (pod.worker, stage, at)
        # What it is by its own clock is still told: the operator compares.
        assert abs((report.sent_at - datetime.now(UTC)).total_seconds() - ahead) < 15
    (plan,) = [p for pod in g.pods.values() for p in pod.report().plans if p.outcome == "committed"]
    assert 0 < (plan.deadline - plan.at).total_seconds() < 31 + 4
    assert g.commits()


def test_an_agent_whose_machine_is_behind_does_not_overstay(gang, tmp_path):
    """By its own clock it would have the better part of a minute more than there is."""
    g = gang(
        workers=2,
        trainer=("1000", "--step-seconds", "60"),
        config={"sigterm_floor_seconds": 60, "grace_seconds": 60},
        environ=clocks(tmp_path, pod_0_1=-45.0, pod_1_1=-45.0),
    )
    g.start().begin()
    g.wait_for_phase(AgentPhase.TRAINING)
    g.notice(1, source="pod:deletionTimestamp", seconds=4)
    g.pods[1].kill(signal.SIGTERM)
    assert g.pods[1].wait(30) == EXIT_CODES[Exit.PREEMPTED_NOTHING_NEW], g.pods[1].words()
