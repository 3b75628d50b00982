"""The real code under random interleavings of attempts, zombies, deletions, sweeps and deaths: no usable checkpoint is ever lost (SAFE, ALIVE)."""

import pytest
from interleaving import Rules, Stage

from holdfast_store import collect, commits, deletion
from holdfast_store.deletion import Held

SEEDS = range(50)


def first_violation(rules: Rules, seeds: range) -> str:
    return next((found for seed in seeds if (found := Stage(seed, rules).run())), "")


@pytest.mark.parametrize("block", range(3))
def test_no_interleaving_loses_a_usable_checkpoint(block: int) -> None:
    steps = commits_made = deleted = 0
    for seed in SEEDS:
        stage = Stage(seed + 1000 * block, Rules())
        assert stage.run() == ""
        steps += stage.steps
        commits_made += sum(1 for key in stage.bucket.objects if key.endswith("commit.json"))
        deleted += sum(1 for key in stage.bucket.objects if key.endswith("expired.json"))
    assert steps > 5_000  # the actors really ran
    assert commits_made > 50
    assert deleted > 20  # and deleted


def test_the_store_itself_keeps_the_newest_when_the_operator_forgets_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """D5 is kept twice. Without the store's own look a careless order leaves a job with nothing."""
    monkeypatch.setattr(deletion, "why_kept", lambda _: "")
    assert "ALIVE" in first_violation(Rules(operator_keeps_newest=False), range(200))


def test_a_deleter_that_spares_nothing_of_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_held", lambda *_: Held())
    assert "SAFE" in first_violation(Rules(), range(200))


def test_a_sweep_that_takes_saves_in_the_making_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "leftover", lambda *_: "sweep")
    # One interleaving in some two hundred shows it; the range begins shortly before one of them.
    assert "SAFE" in first_violation(Rules(), range(150, 360))


def test_saves_that_lean_on_more_than_their_base_are_refused_and_would_be_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    careless = Rules(agent_uses_its_base_only=False)
    # Few interleavings show it (one in some thousand); the range begins shortly before one of them.
    shows_it = range(2660, 2690)
    assert first_violation(careless, shows_it) == ""
    monkeypatch.setattr(commits, "_check_base", lambda *_: None)
    assert "SAFE" in first_violation(careless, shows_it)
