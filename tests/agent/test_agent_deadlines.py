"""F3: what is assumed at SIGTERM holds until the deadline is told; from then on the told one counts, also if it is later."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from holdfast_agent.rounds import earliest
from holdfast_api.messages import AgentPhase, Exit
from holdfast_api.names import EXIT_CODES
from tests.agent.conftest import eventually

T = datetime(2026, 1, 1, tzinfo=UTC)


def later(seconds: float) -> datetime:
    return T + timedelta(seconds=seconds)


def test_the_earliest_of_everybodys_newest_word_counts() -> None:
    assert earliest({}, later(9)) == later(9)
    assert earliest({1: later(15), -1: later(60)}, later(9)) == later(15)
    assert earliest({1: later(120), -1: later(60)}, later(15)) == later(60)


def test_a_deadline_that_is_told_after_sigterm_lengthens_what_was_assumed(gang):
    """The kubelet's SIGTERM beats the operator's notice: with the assumed 4 s the ranks could not even reach a boundary."""
    config = {"sigterm_floor_seconds": 4, "grace_seconds": 60}
    g = gang(workers=2, trainer=("1000", "--step-seconds", "5"), config=config).start().begin()
    g.wait_for_boundary(1)
    g.pods[1].kill(signal.SIGTERM)
    eventually(lambda: g.pods[1].report().notices, "SIGTERM is taken in")
    g.notice(1, source="pod:deletionTimestamp", seconds=40)
    assert g.pods[1].wait() == EXIT_CODES[Exit.PREEMPTED_SEALED], g.pods[1].words()
    ((_, boundary, _),) = g.commits()
    assert boundary >= 1


def test_an_assumed_deadline_that_nobody_lengthens_is_kept(gang):
    config = {"sigterm_floor_seconds": 2, "grace_seconds": 60}
    g = gang(workers=2, trainer=("1000", "--step-seconds", "30"), config=config).start().begin()
    g.wait_for_phase(AgentPhase.TRAINING)
    g.pods[1].kill(signal.SIGTERM)
    assert g.pods[1].wait(20) == EXIT_CODES[Exit.PREEMPTED_NOTHING_NEW], g.pods[1].words()
    assert g.commits() == []


def test_the_watchdog_can_be_set_to_a_later_moment_and_still_ends_a_process_that_hangs() -> None:
    script = "import time; from holdfast_agent.signals import Watchdog; w = Watchdog(); w.arm({}, 3); w.arm({}, 4); time.sleep({}); print('lived')"

    def run(*seconds: float) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", script.format(*seconds)], capture_output=True, text=True, env=os.environ, check=False
        )
        return done.returncode, done.stdout.strip()

    assert run(0.5, 60, 1.5) == (0, "lived")
    assert run(60, 0.5, 30) == (4, "")
