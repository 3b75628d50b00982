"""The matrix can fail: a library that forgets something is found, and a life that hangs ends by its limit, with stacks."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.matrix import lives
from tests.matrix.moments import HANGS
from tests.matrix.worlds import Moment, World, draw


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with lives.server(tmp_path_factory.mktemp("server")) as path:
        yield path


def world(*moments: Moment) -> World:
    """One rank, with everything that can be forgotten."""
    return dataclasses.replace(
        draw(1, 0, torchdata=False), loop="accumulation kept", precision="fp32", loader="map", distribution="one", ranks=1, optimizer="AdamW",
        scheduler="step", epochs=2, outer=False, every_steps=1, pace_seconds=0.002, moments=moments,
    )  # fmt: skip


NOTICE = Moment("forward", at=8, how="notice")


@pytest.mark.parametrize("forgets", ["generators", "place in the data", "optimizer state", "gradients"])
def test_a_library_that_forgets_something_is_found(
    server: str, tmp_path: Path, forgets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATRIX_FORGETS", forgets)
    outcome = lives.run(world(NOTICE), tmp_path / "world", server)
    assert any(w.startswith("life 1, rank 0, step ") for w in outcome.wrong), outcome.wrong


def test_one_that_forgets_nothing_is_not(server: str, tmp_path: Path) -> None:
    outcome = lives.run(world(NOTICE, Moment("data", at=9, how="killed agent")), tmp_path / "world", server)
    assert outcome.wrong == []
    assert len(outcome.moments) == 2


def test_a_life_that_hangs_ends_by_its_limit_and_shows_what_every_process_does(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "LIMIT_SECONDS", 12.0)
    monkeypatch.setattr(lives, "STACKS_SECONDS", 1.0)
    outcome = lives.run(world(dataclasses.replace(NOTICE, how=HANGS)), tmp_path / "world", server)
    (said, _) = outcome.wrong
    assert "life-0 (hangs in forward at 8" in said
    assert "in _fire" in said, "the training process stands here"
    assert "-- agent" in said
    assert "holdfast_agent" in said.split("-- agent")[1]
