"""A notice that is taken back: training goes on, unless a rank has ended meanwhile, which is then judged as at any other time."""

import os
import signal
from pathlib import Path

import pytest

from holdfast_api.messages import AgentPhase
from tests.agent.conftest import eventually


def a_rank_of(pod) -> int:
    agent = pod.process.pid
    return int(Path(f"/proc/{agent}/task/{agent}/children").read_text().split()[0])


def test_training_goes_on_after_a_notice_was_taken_back(gang):
    g = gang(workers=2, trainer=("1000", "--step-seconds", "0.02")).start().begin()
    g.wait_for_boundary(3)
    g.notice(1)
    g.wait_for_phase(AgentPhase.SEALED)
    at = g.pods[0].report().boundary
    g.notice(1, withdrawn=True)
    g.wait_for_boundary(at + 3)


@pytest.mark.parametrize("worker", [0, 1])
def test_a_rank_that_died_during_an_evacuation_that_is_taken_back_is_a_failure(gang, worker):
    """Nobody would ever hear of it: the job would stand there as Running."""
    g = gang(workers=2, trainer=("1000", "--step-seconds", "0.02")).start().begin()
    g.wait_for_boundary(3)
    g.notice(1)
    g.wait_for_phase(AgentPhase.SEALED)
    os.kill(a_rank_of(g.pods[worker]), signal.SIGKILL)
    eventually(lambda: "rank" in g.pods[worker].words(), "the agent has seen it")
    g.notice(1, withdrawn=True)
    eventually(lambda: g.pods[worker].report().phase is AgentPhase.FAILED, f"a failure; {g.pods[worker].words()}")
    assert "signal 9" in g.pods[worker].report().exit_detail
