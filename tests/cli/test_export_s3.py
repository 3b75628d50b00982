"""`holdfast export` from a real S3 server: the same bytes as from a directory; a damaged chunk, a cut connection and a server that is gone leave no target."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from holdfast_cli.__main__ import app
from holdfast_store.opening import open_bucket
from tests.cli.foreign import JOB, Net, same, stored
from tests.store.proxy import Proxy
from tests.store.s3_server import BUCKET, S3Server, binary_or_outcome, running

pytestmark = pytest.mark.s3


class Place:
    """A checkpoint in a bucket, behind a proxy that does as it is told."""

    def __init__(self, folder: Path, server: S3Server) -> None:
        self.server, self.proxy = server, Proxy(server.endpoint)
        self.model: Net
        self.model, *_ = stored(folder, into=open_bucket(server.config("exports"), server.environ, retry_seconds=5))

    def arguments(self, *more: str | Path) -> list[str]:
        return ["export", f"s3://{BUCKET}/exports", *JOB, "--endpoint", self.proxy.endpoint, *map(str, more)]

    def call(self, *more: str | Path) -> Result:
        return CliRunner().invoke(app, self.arguments(*more), env=self.server.environ)

    @property
    def chunks(self) -> list[Path]:
        return sorted(self.server.data.glob(f"{BUCKET}/exports/local/*/checkpoints/*/*/chunks/*"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with running(binary_or_outcome(), tmp_path / "s3") as server:
        place = Place(tmp_path, server)
        yield place
        place.proxy.close()


def test_every_format_is_bit_by_bit_what_was_saved(tmp_path: Path, place: Place) -> None:
    want = dict(sorted(place.model.state_dict().items()))
    result = place.call("--to", tmp_path / "out", "--max-shard-size", "80KB", "-o", "json")
    assert result.exit_code == 0, result.output
    shards = [n for n in json.loads(result.stdout)["files"] if n.endswith(".safetensors")]
    assert len(shards) > 1
    assert same(dict(sorted({k: v for n in shards for k, v in load_file(tmp_path / "out" / n).items()}.items())), want)
    result = place.call("--to", tmp_path / "w.pt", "-f", "state-dict")
    assert result.exit_code == 0, result.output
    assert same(dict(sorted(torch.load(tmp_path / "w.pt", weights_only=True).items())), want)


def test_a_damaged_object_ends_it_by_name_and_leaves_no_target(tmp_path: Path, place: Place) -> None:
    outcomes = set()
    for number, chunk in enumerate(place.chunks):
        content = chunk.read_bytes()
        chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        result = place.call("--to", tmp_path / f"out{number}", "--retry-seconds", "0")
        outcomes.add(result.exit_code)
        if result.exit_code:
            assert chunk.name in result.stderr
        assert (tmp_path / f"out{number}").exists() == (result.exit_code == 0)
        chunk.write_bytes(content)
    assert outcomes == {0, 1}
    assert not list(tmp_path.glob(".*"))


def test_a_server_that_is_gone_is_one_line_and_no_target(tmp_path: Path, place: Place) -> None:
    place.proxy.close()
    result = place.call("--to", tmp_path / "out", "--retry-seconds", "0.1")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_while_it_reads_from_the_store_it_leaves_no_target_and_is_done_anew(
    tmp_path: Path, place: Place, how: signal.Signals
) -> None:
    place.proxy.pause_after = 20_000  # in the middle of a chunk the server falls silent
    line = [sys.executable, "-m", "holdfast_cli", *place.arguments("--to", tmp_path / "out")]
    running = subprocess.Popen(line, env={**os.environ, **place.server.environ}, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while place.proxy.pause_after is not None:
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
        running.send_signal(how)
        assert running.wait(120) != 0
    finally:
        running.kill()
    assert not (tmp_path / "out").exists()
    assert bool(list(tmp_path.glob(".holdfast-export-*"))) == (how is signal.SIGKILL)
    result = place.call("--to", tmp_path / "out")
    assert result.exit_code == 0, result.output
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert same(dict(sorted(loaded.items())), dict(sorted(place.model.state_dict().items())))
