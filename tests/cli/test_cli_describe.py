"""`holdfast describe`: what a checkpoint says about its run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result
from worlds import World

from holdfast_api.manifest import MetricPoint
from holdfast_cli.__main__ import app
from holdfast_store.file import FileBucket

JOB = ["--namespace", "ns", "--job", "job"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(FileBucket(tmp_path)).claimed(1)
    record = replace(
        world.prepared(1, 1),
        run={"git_commit": "abc123", "driver": "missing: no NVIDIA driver", "odd": "a\x1b[2J\nb"},
        config={"model.layers": "12", "by hand": "no json"},
        metrics={"loss": 0.5},
        history=(MetricPoint(3, {"loss": 0.75}), MetricPoint(4, {"loss": 0.5})),
        timings={"flush": 1.25},
    )
    world.store.commit(record)
    return world


def call(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["describe", tmp_path.as_uri(), *JOB, *arguments])


def test_everything_recorded_is_shown_and_what_is_missing_says_so(world: World, tmp_path: Path) -> None:
    result = call(tmp_path)
    assert result.exit_code == 0, result.output
    for words in (
        "checkpoint 1/1",
        "abc123",
        "missing: no NVIDIA driver",
        "model.layers  12",
        "step 3  loss=0.75",
        "flush  1.250",
    ):
        assert words in result.stdout
    assert "\x1b" not in result.stdout
    world.saved(1, 2)
    assert call(tmp_path).stdout.count("missing: none recorded") == 5


def test_json_is_for_scripts(world: World, tmp_path: Path) -> None:
    plain = json.loads(call(tmp_path, "-c", "1/1", "-o", "json").stdout)
    assert plain["config"] == {"model.layers": 12, "by hand": "no json"}
    assert plain["history"][-1] == {"step": 4, "loss": 0.5}
    listed = CliRunner().invoke(app, ["checkpoints", tmp_path.as_uri(), *JOB, "-o", "json"])
    assert json.loads(listed.stdout)[0]["run"]["git_commit"] == "abc123"


def test_a_checkpoint_that_is_not_there_is_exit_code_one(world: World, tmp_path: Path) -> None:
    missing = call(tmp_path, "-c", "9/9")
    assert (missing.exit_code, "9/9 does not exist" in missing.stderr) == (1, True)
    (tmp_path / "empty").mkdir()
    World(FileBucket(tmp_path / "empty")).claimed(1)
    nothing = call(tmp_path / "empty")
    assert (nothing.exit_code, "no usable checkpoint" in nothing.stderr) == (1, True)
