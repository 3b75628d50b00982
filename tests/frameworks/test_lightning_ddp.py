"""K1, K2, E2: ranks of Lightning's "ddp" strategy under a real agent, told to go at a random moment, resumed, and compared with ranks that knew no agent.
Three, because two cannot show in which order gradients are added."""

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

SCRIPT = Path(__file__).with_name("lightning_ranks.py")
RANKS = 3
KEPT = {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "RANK", "WORLD_SIZE", "LOCAL_RANK"))}
LIMIT = 300


def reference(directory: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    line = [sys.executable, str(SCRIPT), str(RANKS), str(directory)]
    ranks = [
        subprocess.Popen(
            line,
            env=KEPT | place | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(RANKS)
    ]
    try:
        errors = [rank.communicate(timeout=LIMIT)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * RANKS, errors
    finally:
        for rank in ranks:
            rank.kill()


def written(directory: Path, rank: int) -> list[dict[str, Any]]:
    path = directory / f"rank-{rank}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_three_ranks_go_on_bitwise(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    reference(whole)
    agent = [
        sys.executable,
        "-m",
        "holdfast_agent",
        "run",
        "--local",
        str(tmp_path / "saved"),
        "--every-steps",
        "5",
        "--processes",
        str(RANKS),
        "--",
    ]
    line = [*agent, sys.executable, str(SCRIPT), str(RANKS), str(resumed)]
    told = subprocess.Popen(line, env=KEPT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    moment = random.Random()
    try:
        limit, wanted = time.monotonic() + LIMIT, moment.randrange(5, 60)
        while len(written(resumed, 0)) < wanted:
            assert time.monotonic() < limit
            assert told.poll() is None, "it was over before it was told"
            time.sleep(0.01)
        time.sleep(moment.random() * 0.05)
        told.send_signal(signal.SIGTERM)
        told.wait(LIMIT)
    finally:
        told.kill()
    first = [len(written(resumed, rank)) for rank in range(RANKS)]
    assert not any("digest" in entry for rank in range(RANKS) for entry in written(resumed, rank))
    subprocess.run(line, env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True)
    for rank in range(RANKS):
        assert written(resumed, rank) == written(whole, rank), (
            f"rank {rank}, stopped after {first[rank]} lines: nothing twice, nothing left out"
        )
    samples = [s for rank in range(RANKS) for e in written(resumed, rank) if e.get("epoch") == 4 for s in e["samples"]]
    assert set(samples) == set(range(53))
