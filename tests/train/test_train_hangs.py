"""Real processes that really hang: found, explained, and started again in their pod from the newest state (holdfast_agent/hang_watch.py)."""

from pathlib import Path

import pytest

from holdfast_api.messages import AgentPhase, HangLimits, HangReport
from tests.agent.conftest import Gang, eventually

SCRIPT = str(Path(__file__).with_name("hang_ranks.py"))
SOON = HangLimits(factor=2, step_seconds=4, data_seconds=4, evaluation_seconds=600, start_seconds=600)
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def job(tmp_path: Path):
    made: list[Gang] = []

    def make(kind: str, limits: HangLimits = SOON) -> Gang:
        fields = {"every_steps": 30, "chunk_bytes": 1 << 20}
        g = Gang(
            tmp_path / "job",
            workers=1,
            processes=2,
            trainer=(kind,),
            script=SCRIPT,
            config=fields,
            hangs=limits,
            operator_url=NOWHERE,
        )
        made.append(g)
        return g.start().begin()

    yield make
    for g in made:
        g.close()


def hung(g: Gang) -> HangReport:
    def found():
        report = g.pods[0].report().hang
        return report if report is not None and report.restarts else None

    try:
        return eventually(found, "a hang is found", 150)
    except AssertionError as e:
        raise AssertionError(g.pods[0].words()) from e


def log_of(g: Gang) -> str:
    return (g.pods[0].folder / "agent.log").read_text()


@pytest.mark.parametrize(
    ("kind", "culprits", "words", "goes_on_from"),
    [
        # The helper copies what stands still while the main thread hangs: nothing is lost.
        ("forward", (1,), " in forward): not in", 34),
        ("loader", (1,), "in a data loader", 34),
        ("collective", (), "in different places", 34),
        # The helper cannot run: the newest checkpoint is gone back to.
        ("lock", (1,), "in forward", 30),
        ("stopped", (1,), "stopped by a signal", 30),
    ],
)
def test_a_rank_that_hangs_is_named_and_training_goes_on_in_the_same_pod(job, kind, culprits, words, goes_on_from):
    g = job(kind)
    found = hung(g)
    assert found.culprits == culprits, found
    assert words in found.why, found
    assert f"oundary {goes_on_from}" in found.saved, found
    eventually(lambda: g.pods[0].report().phase is AgentPhase.FAILED, "the attempt has failed")
    if kind == "loader":
        assert "in __getitem__" in log_of(g), "the forked worker's stack shows where the data are stuck"
    pid = g.pods[0].process.pid
    g.begin()
    want = {f"2 {rank} restored {goes_on_from}" for rank in range(2)}
    eventually(lambda: want <= set(g.lines()), f"goes on from {goes_on_from}", 150)
    eventually(lambda: g.pods[0].report().boundary > goes_on_from + 5, "trains on", 150)
    assert g.pods[0].process.pid == pid


def test_starts_evaluations_and_waits_for_data_may_take_their_time(job):
    """Each takes longer than a step may; the other rank waits in a collective meanwhile, and is late by itself."""
    g = job(
        "patient", HangLimits(factor=2, step_seconds=4, data_seconds=600, evaluation_seconds=600, start_seconds=600)
    )
    eventually(lambda: g.pods[0].report().boundary > 40, "trains on", 150)
    report = g.pods[0].report()
    assert (report.attempt, report.phase) == (1, AgentPhase.TRAINING)


def test_ranks_tell_what_is_their_own_of_a_step(job):
    g = job("none")
    pace = eventually(lambda: (p := g.pods[0].report().pace) and all(r.busy_seconds for r in p) and p, "is told", 150)
    assert [r.rank for r in pace] == [0, 1]
    for rank in pace:
        assert 0 < rank.busy_seconds < rank.step_seconds
        assert 0 < rank.update_seconds < rank.step_seconds
        assert 0 < rank.data_seconds < rank.step_seconds
