"""The same under a real agent on one machine: `--processes` is another number at each start."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reshard_script import HOLD, SAMPLES

SCRIPT = Path(__file__).with_name("reshard_script.py")
LIMIT = 240


def begun(folder: Path, processes: int, stop: int, *options: str) -> tuple[subprocess.Popen[str], Path]:
    """The agent's process, and where its ranks write."""
    out = folder / f"{processes}-{stop}"
    out.mkdir()
    agent = [
        sys.executable,
        "-m",
        "holdfast_agent",
        "run",
        "--local",
        str(folder / "saved"),
        "--processes",
        str(processes),
    ]
    line = [*agent, "--chunk-mib", "1", *options, "--", sys.executable, str(SCRIPT), str(out), str(stop)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "RANK", "WORLD_SIZE"))}
    environment = kept | {"OMP_NUM_THREADS": "1"}
    log = (out / "agent.log").open("w")
    return subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True), out


def started(folder: Path, processes: int, stop: int, *options: str) -> tuple[list[dict[str, Any]], str]:
    """What each rank found, and the agent's log."""
    agent, out = begun(folder, processes, stop, *options)
    code, said = agent.wait(LIMIT), (out / "agent.log").read_text()
    assert code == 0, said[-4000:]
    return [json.loads((out / f"{r}.json").read_text()) for r in range(processes)], said


def killed(folder: Path, processes: int, stop: int, when: Callable[[Path], object], *options: str) -> Path:
    """An agent, and its ranks with it, that is killed as soon as `when(where its ranks write)`."""
    agent, out = begun(folder, processes, stop, *options)
    end = time.monotonic() + LIMIT
    while not when(out):
        assert agent.poll() is None, (out / "agent.log").read_text()[-4000:]
        assert time.monotonic() < end
        time.sleep(0.002)
    agent.kill()
    agent.wait()
    return out


def samples_of(found: list[dict[str, Any]]) -> Counter[int]:
    return Counter(i for rank in found for i in rank["samples"])


def test_runs_of_two_three_and_one_ranks_are_one_run(tmp_path: Path) -> None:
    two, _ = started(tmp_path, 2, 3)
    three, said = started(tmp_path, 3, 5)
    assert [r["first"] for r in three] == [3] * 3
    assert three[0]["given"] == two[0]["ended"], "whole tensors are what they were, bit by bit"
    assert "a batch of all ranks together had 8 samples when the checkpoint was made, and has 12 now" in said
    read, needed = map(int, re.search(r"(\d+) bytes of its chunks hold the (\d+) bytes", said).groups())  # type: ignore[union-attr]
    assert needed <= read

    damaged = _newest_chunk(tmp_path / "saved")
    damaged.chmod(0o600)
    damaged.write_bytes(bytes(len(damaged.read_bytes())))
    again, said = started(tmp_path, 1, 1000)
    assert again[0]["first"] == 3, "a chunk that does not verify costs the checkpoint, not the run: the next older one"
    assert again[0]["given"] == two[0]["ended"]
    assert set(samples_of(two) + samples_of(again)) == set(range(SAMPLES))
    assert max((samples_of(two) + samples_of(again)).values()) == 1, "each once: one rank needs no padding"


def test_a_kill_in_such_a_restore_or_in_the_first_save_after_it_costs_nothing_that_was_committed(
    tmp_path: Path,
) -> None:
    """Whatever the next start goes on from is what a run had at that boundary, bit by bit; of the lives that led there no sample is lost or comes twice."""
    saved = tmp_path / "saved"
    started(tmp_path, 2, 3)
    moments: list[tuple[int, Callable[[Path], object]]] = [
        (3, lambda out: "bytes of its chunks hold" in (out / "agent.log").read_text()),
        (4, lambda _: any(saved.rglob("checkpoints/*3/*1/chunks/*"))),
    ]
    if os.environ.get("HOLDFAST_RESHARD") == "all":
        moments += [
            (1, lambda _: any(saved.rglob("attempts/*4.json"))),
            (2, lambda _: any(saved.rglob("checkpoints/*5/*1/rank-*.json"))),
        ]
    lives = [(tmp_path / "2-3", 2)]
    for processes, when in moments:
        lives.append((killed(tmp_path, processes, HOLD, when, "--every-steps", "1"), processes))
    again, _ = started(tmp_path, 1, 2000)
    first, given, everything = again[0]["first"], again[0]["given"], samples_of(again)
    assert first >= 3
    while first:
        files = [[life / f"{r}-at-{first}.json" for r in range(processes)] for life, processes in lives]
        notes = [[json.loads(f.read_text()) for f in of] for of in files if of[0].exists()]
        (life,) = (of for of in notes if of[0]["had"] == given)
        everything += samples_of(life)
        first, given = life[0]["first"], life[0]["given"]
    assert everything == Counter(range(SAMPLES))


def _newest_chunk(saved: Path) -> Path:
    """A large one of the newest checkpoint."""
    chunks = [p for p in saved.rglob("chunks/*") if p.is_file()]
    newest = max(p.parents[1] for p in chunks)
    return max((p for p in chunks if p.parents[1] == newest), key=lambda p: p.stat().st_size)
