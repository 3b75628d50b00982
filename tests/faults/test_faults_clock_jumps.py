"""The wall clock of a machine is set while an agent works: an hour ahead or an hour back. What waits goes on waiting as long as it was told to."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast_agent import clock
from holdfast_agent.clock import Deadline, now
from holdfast_api import peers
from tests.agent.lone import Lone

HOUR = 3600.0


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    real, offset = clock._wall, [0.0]
    monkeypatch.setattr(clock, "_wall", lambda: real() + offset[0])

    def by(seconds: float) -> None:
        offset[0] += seconds

    return by


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_what_is_left_of_a_deadline_is_counted_by_the_steady_clock(
    jump: Callable[[float], None], seconds: float
) -> None:
    told, own = Deadline(now() + timedelta(seconds=30)), Deadline.after(30)
    copied = own.copy()
    jump(seconds)
    for deadline in (told, own, copied):
        assert 20 < deadline.remaining <= 30
        assert not deadline.passed


def test_a_moment_that_is_heard_after_the_jump_is_taken_at_its_word(jump: Callable[[float], None]) -> None:
    deadline = Deadline.after(30)
    jump(HOUR)
    deadline.at = now() + timedelta(seconds=10)
    assert 5 < deadline.remaining <= 10
    deadline.tighten(now() - timedelta(seconds=1))
    assert deadline.passed


async def test_a_gate_whose_coordinator_died_opens_although_the_clock_was_set_back(
    tmp_path: Path, jump: Callable[[float], None]
) -> None:
    """E4: the lease is not an hour longer."""
    lone = Lone(tmp_path)
    await lone.gates.close_gates(peers.CloseGates(1, 1, "other", 1.0))
    assert lone.gates.closed
    jump(-HOUR)
    await lone.until(lambda: not lone.gates.closed, "the gate is open")
    await lone.close()
