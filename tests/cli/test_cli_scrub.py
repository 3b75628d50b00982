"""`holdfast scrub`: what a person and a script get to see, with a real directory, and what an interruption leaves."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from on_node import put_image
from typer.testing import CliRunner, Result
from worlds import World, ref

from holdfast_api import layout
from holdfast_cli.__main__ import app
from holdfast_store.chunks import digest
from holdfast_store.file import FileBucket
from holdfast_store.local import LocalTier
from holdfast_store.scrub import read_notes

JOB = ["--namespace", "ns", "--job", "job"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "store").mkdir()
    world = World(FileBucket(tmp_path / "store")).claimed(1)
    world.saved(1, 1, b"aaaabbbb").saved(1, 2, b"aaaacccc", base=ref(1, 1))
    return world.saved(1, 3, b"ddddeeee")


def call(world: World, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["scrub", world.store.bucket.uri, *JOB, *map(str, arguments)])


def chunk(world: World, at: int, content: bytes) -> Path:
    root = Path(world.store.bucket.uri.removeprefix("file://"))
    return root / world.store.prefix / layout.chunk_key(ref(1, at), digest(content))


def test_a_whole_store_is_told_line_by_line_with_exit_code_zero(world: World) -> None:
    result = call(world)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["CHECKPOINT", "VERDICT", "CHUNKS", "READ", "DETAIL"]
    assert [line[:3] for line in lines[1:4]] == [["1/3", "intact", "2"], ["1/2", "intact", "2"], ["1/1", "intact", "1"]]
    assert result.stdout.splitlines()[-1] == "3 checkpoints, 20 B read"


def test_damage_is_exit_code_one_and_named_for_people_and_programs(world: World) -> None:
    chunk(world, 1, b"aaaa").write_bytes(b"aaa?")
    result = call(world)
    assert result.exit_code == 1
    told = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "DAMAGED" in told["1/1"]
    assert "DAMAGED" in told["1/2"], "it refers to the chunk too"
    assert digest(b"aaaa") in told["1/2"]
    plain = json.loads(call(world, "-o", "json").stdout)
    assert (plain["intact"], [c["verdict"] for c in plain["checkpoints"]]) == (False, ["intact", "damaged", "damaged"])
    listed = CliRunner().invoke(app, ["checkpoints", world.store.bucket.uri, *JOB])
    assert listed.exit_code == 0
    assert "1/1: a scrub has found damage in the store" in listed.stderr


def test_a_nodes_directory_mends_it(world: World, tmp_path: Path) -> None:
    node = tmp_path / "node"
    node.mkdir()
    put_image(LocalTier(node, "ns", "job", "uid-1"), ref(1, 3), 0, b"ddddeeee")
    chunk(world, 3, b"eeee").write_bytes(b"")
    assert call(world, "--no-mend", "--local-dir", node).exit_code == 1
    result = call(world, "--local-dir", node)
    assert result.exit_code == 0, result.output
    assert "mended" in result.stdout
    assert chunk(world, 3, b"eeee").read_bytes() == b"eeee"
    assert call(world).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--local-dir", "/nonexistent/holdfast"], 2, "--local-dir /nonexistent/holdfast is no directory"),
        (["--bytes-per-second", "-1"], 2, "bytes-per-second"),
        (["--uid", "uid-9"], 1, "ns/job (uid-9) has no checkpoint"),
    ],
)
def test_mistakes_are_one_line(world: World, arguments: list[str], code: int, said: str) -> None:
    result = call(world, *arguments)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_an_interrupted_scrub_says_so_and_the_next_one_goes_on(world: World) -> None:
    """A real process, a real signal, while it waits for its pace."""
    arguments = [sys.executable, "-m", "holdfast_cli", "scrub", world.store.bucket.uri, *JOB]
    slow = subprocess.Popen(
        [*arguments, "--bytes-per-second", "2"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    notes = Path(world.store.bucket.uri.removeprefix("file://")) / world.store.prefix / layout.scrub_key()
    try:
        while not (notes.parent.parent / "checkpoints/0000000001/0000000003/verdicts").exists():
            assert slow.poll() is None, slow.stderr.read()
            slow.poll()
            _wait()
        slow.send_signal(signal.SIGINT)
        _, said = slow.communicate(timeout=60)
    finally:
        slow.kill()
    assert slow.returncode == 130, said
    assert "the next `holdfast scrub` goes on from here" in said
    assert "Traceback" not in said
    left = read_notes(world.store)
    assert left is not None
    assert ref(1, 3) in left.done
    result = call(world, "-o", "json")
    assert "1/3" in [c["checkpoint"] for c in json.loads(result.stdout)["readBefore"]]
    assert "1/3" not in [c["checkpoint"] for c in json.loads(result.stdout)["checkpoints"]]


def _wait() -> None:
    import time

    time.sleep(0.1)
