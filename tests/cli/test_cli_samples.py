"""`holdfast samples`: what it says of epochs, and its exit codes."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result
from worlds import World, ref

from holdfast_api.manifest import TensorEntry
from holdfast_cli.__main__ import app
from holdfast_store.file import FileBucket
from holdfast_store.samples import STATE_NAME, expected_sum

JOB = ["--namespace", "ns", "--job", "job"]


def page(epoch: int, seen: int, *, share: int = 0, **others: Any) -> dict[str, Any]:
    indices = [n for n in range(8) if seen >> n & 1]
    total = sum(expected_sum(n + 1) - expected_sum(n) for n in indices) % 2**64
    rule = {"kind": "exact", "size": 8, "share": [share, 2], "once": True, "drops": 0, "cuts": 0, "pads": 0}
    known = {"epoch": epoch, "count": len(indices), "again": 0, "sum": f"{total:016x}", "left": False}
    return known | {"seen": {"$bytes": base64.b64encode(bytes([seen])).decode()}} | rule | others


def image(now: dict[str, Any], before: dict[str, Any] | None = None) -> bytes:
    """Something before it, then the state: not at the beginning of a chunk."""
    ledger = {"now": now, "before": before, "closed": [before] if before else [], "older": 0}
    state = {"positions": {"loader": {"epoch": now["epoch"], "ledger": ledger}}}
    return b"xxxxxx" + json.dumps(state).encode().ljust(2500)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(FileBucket(tmp_path)).claimed(1)
    world.tensors = (TensorEntry(STATE_NAME, "uint8", (2500,), 6, 2500),)
    return world


def call(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["samples", tmp_path.as_uri(), *JOB, *arguments])


def test_ranks_are_added_together_and_each_epoch_is_named(world: World, tmp_path: Path) -> None:
    world.saved(1, 1, [image(page(0, 0b0011)), image(page(0, 0b1100, share=1))])
    second = [image(page(1, 1), page(0, 0b01010011)), image(page(1, 2, share=1), page(0, 0b10101100, share=1))]
    world.saved(1, 2, second)
    result = call(tmp_path)
    assert result.exit_code == 0, result.output
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["LOADER", "EPOCH", "SAMPLES", "OF", "STANDING", "DETAIL"],
        ["loader", "0", "8", "8", "exactly-once"],
        ["loader", "1", "2", "8", "running"],
    ]
    plain = json.loads(call(tmp_path, "-o", "json").stdout)
    assert [(e["epoch"], e["standing"]) for e in plain] == [(0, "exactly-once"), (1, "running")]


def test_a_lost_sample_is_exit_code_one(world: World, tmp_path: Path) -> None:
    world.saved(
        1, 1, [image(page(1, 1), page(0, 0b01010011)), image(page(1, 2, share=1), page(0, 0b00101100, share=1))]
    )
    result = call(tmp_path)
    assert result.exit_code == 1
    assert "wrong" in result.stdout
    assert "1 of 8 samples missing" in result.stdout


def test_two_attempts_of_which_the_second_went_back_too_far(world: World, tmp_path: Path) -> None:
    world.saved(1, 1, [image(page(0, 0b0011)), image(page(0, 0b1100, share=1))])
    world.claimed(2, ref(1, 1))
    world.saved(2, 1, [image(page(0, 0b0001)), image(page(0, 0b1100, share=1))])
    result = call(tmp_path)
    assert result.exit_code == 1
    assert "rank 0, from 1/1 to 2/1: 2 samples had been handed out, then 1" in result.stdout


@pytest.mark.parametrize(
    ("state", "words"),
    [(b"{", "no JSON"), (b"{}", "cannot be read"), (b'{"positions":{}}', "hold no ledger")],
)
def test_what_cannot_be_read_is_one_line(world: World, tmp_path: Path, state: bytes, words: str) -> None:
    world.saved(1, 1, b"xxxxxx" + state.ljust(2500))
    result = call(tmp_path)
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_job_without_a_checkpoint_or_of_images_without_a_state(world: World, tmp_path: Path) -> None:
    assert "no usable checkpoint" in call(tmp_path).stderr
    world.tensors = ()
    world.saved(1, 1)
    result = call(tmp_path)
    assert (result.exit_code, "does not name it" in result.stderr) == (1, True)
