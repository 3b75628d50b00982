"""What the rounds of time_to_resume are turned into: the peers' moments, the groups, the measures and their goals."""

from typing import Any

import pytest

from benchmarks.time_to_resume import report
from benchmarks.time_to_resume.peers import after, restart


def mark(name: str, at: float, rank: int = 0, **more: Any) -> dict[str, Any]:
    return {"mark": name, "at": at, "rank": rank, **more}


START = [
    mark("step", 100.5, step=20),  # the old ranks, before they knew
    *(mark("start", 103.0 + r, r) for r in (0, 1)),
    *(mark("imported", 106.0 + r, r) for r in (0, 1)),
    *(mark("joined", 108.0 + r, r) for r in (0, 1)),
    *(mark("loaded", 109.0 + r, r, step=10) for r in (0, 1)),
    *(mark("step", 111.0 + s, step=11 + s) for s in range(12)),
]


def test_a_restart_ends_with_the_first_new_step_and_says_what_was_done_again() -> None:
    found = restart(after(START), 100.0, 20)
    assert (found.total_ms, found.caught_up_ms, found.steps_lost) == (11_000.0, 21_000.0, 10)
    assert sum(found.phases_ms.values()) == pytest.approx(found.total_ms)
    assert found.phases_ms["pods and launcher"] == 4000.0  # until the last rank has begun


def test_steps_of_the_old_ranks_are_none_of_the_restart() -> None:
    assert next(m["at"] for m in after(START) if m["mark"] == "step") == 111.0
    assert after(START[:1]) == []


def a_round(kind: str, total: float, lost: int = 0, workers: int = 2, **more: Any) -> dict[str, Any]:
    phases = {"pods and launcher": 3000.0, "import": 6000.0}
    return {"kind": kind, "workers": workers, "total_ms": total, "steps_lost": lost, "phases_ms": phases, **more}


def of(rounds: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(m for m in report.measures(report.grouped(rounds), every=10) if m["id"] == f"time_to_resume.{name}")


def test_the_goals_are_about_the_plain_job_and_the_longest_phase_of_the_same_run() -> None:
    rounds = [a_round("job", 20_000, 9), a_round("gang", 18_000, 9), a_round("handover", 6500)]
    assert (of(rounds, "handover")["ratio"], of(rounds, "handover")["met"]) == (0.325, True)
    assert (of(rounds, "whole")["floor"], of(rounds, "whole")["met"]) == (6000, True)
    slower = [*rounds[:2], a_round("handover", 7100)]
    assert of(slower, "handover")["met"] is False
    assert of(slower, "whole")["met"] is False


def test_without_the_peers_nothing_is_met() -> None:
    assert of([a_round("handover", 6500)], "handover")["met"] is None


def test_one_step_lost_after_a_notice_is_one_too_many_and_an_interval_without_is_not() -> None:
    rounds = [a_round("handover", 1), a_round("no-handover", 1, 1), a_round("no-notice", 1, 10)]
    assert of(rounds, "lost_with_notice")["met"] is False
    assert of(rounds, "lost_without")["met"] is True
    assert of([a_round("in-place", 1, 11)], "lost_without")["met"] is False


def test_a_measurement_in_pieces_names_them() -> None:
    words = report.sources([a_round("spot", 1, at="A", commit="a"), a_round("spot", 1, at="B", commit="b")])
    assert words == "Measured in A (commit a), B (commit b)."
