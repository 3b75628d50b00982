"""K1, K2, E2: ranks of Hugging Face's Trainer (DistributedDataParallel on gloo) under a real agent, told to go at a random moment, resumed, and compared with
ranks that knew no agent. Three, because two cannot show in which order gradients are added."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

LENGTHS = {"map": 53, "stream": 56}
SCRIPT = Path(__file__).with_name("trainer_ranks.py")
KEPT = {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "RANK", "WORLD_SIZE", "LOCAL_RANK"))}
LIMIT = 300


def reference(directory: Path, ranks: int, reads: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(directory), reads],
            env=KEPT | place | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(ranks)
    ]
    try:
        errors = [rank.communicate(timeout=LIMIT)[1] for rank in started]
        assert [rank.returncode for rank in started] == [0] * ranks, errors
    finally:
        for rank in started:
            rank.kill()


def written(directory: Path, rank: int) -> list[dict[str, Any]]:
    path = directory / f"rank-{rank}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(("ranks", "reads"), [(3, "map"), (2, "stream")])
def test_ranks_go_on_bitwise(ranks: int, reads: str, tmp_path: Path) -> None:
    """A stream is read by the first rank, which hands its batches out."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    reference(whole, ranks, reads)
    agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path / "saved"), "--every-steps", "5"]
    line = [*agent, "--processes", str(ranks), "--", sys.executable, str(SCRIPT), str(resumed), reads]
    told = subprocess.Popen(line, env=KEPT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    moment = random.Random()
    try:
        limit, wanted = time.monotonic() + LIMIT, moment.randrange(10, 200)
        while len(written(resumed, 0)) < wanted:
            assert time.monotonic() < limit
            assert told.poll() is None, "it was over before it was told"
            time.sleep(0.01)
        time.sleep(moment.random() * 0.05)
        told.send_signal(signal.SIGTERM)
        told.wait(LIMIT)
    finally:
        told.kill()
    first = [written(resumed, rank) for rank in range(ranks)]
    assert not any("digest" in entry for entries in first for entry in entries)
    subprocess.run(line, env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True)
    for rank in range(ranks):
        want, begun = written(whole, rank), first[rank]
        rest = written(resumed, rank)[len(begun) :]
        assert begun == want[: len(begun)]
        assert rest == want[len(want) - len(rest) :]
        twice = want[len(want) - len(rest) : len(begun)]
        assert len(rest) + len(begun) >= len(want), f"rank {rank}: something was left out"
        assert not any("step" in entry for entry in twice), (
            f"rank {rank}: only batches of an update that was not made come again, and the log of the one before"
        )
    samples = [s for rank in range(ranks) for e in first_epoch(written(whole, rank)) for s in e.get("samples", [])]
    assert set(samples) == set(range(LENGTHS[reads]))


def first_epoch(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ends = next(n for n, e in enumerate(entries) if e.get("epoch", 0) >= 1)
    return entries[:ends]
