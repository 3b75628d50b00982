"""Example 01, executed as its README says: under a real agent on one machine, stopped by SIGTERM, started again, compared bit by bit with a run that
knew no agent."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "01-bytes-gpt"
STEPS = 12
SMALL = [
    "--width",
    "32",
    "--layers",
    "2",
    "--heads",
    "2",
    "--context",
    "32",
    "--megabytes",
    "0.05",
    "--steps",
    str(STEPS),
]
LIMIT = 240


def command(directory: Path, name: str) -> list[str]:
    outputs = ["--losses", str(directory / f"{name}.jsonl"), "--digest", str(directory / f"{name}.digest")]
    return [sys.executable, str(EXAMPLE / "train.py"), *SMALL, *outputs]


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "RANK", "WORLD_SIZE"))}
    return (
        kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | extra
    )  # the ranks are more than the GPUs may be


RANKS = 2


def reference(directory: Path) -> list[str]:
    """Both ranks without any agent, started by hand; what they said on stderr."""
    place = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            command(directory, "reference"), env=environment(RANK=str(r), **place), stderr=subprocess.PIPE, text=True
        )
        for r in range(RANKS)
    ]
    try:
        said = [rank.communicate(timeout=LIMIT)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * RANKS, said
    finally:
        for rank in ranks:
            rank.kill()
    return said


def test_the_example_is_bitwise_the_same_without_agent_and_with_one_that_is_stopped(tmp_path: Path) -> None:
    said = reference(tmp_path)
    assert [text.count("NOTHING IS SAVED") for text in said] == [1, 0], "said once"
    agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path / "saved"), "--every-steps", "5"]
    line = [*agent, "--processes", str(RANKS), "--chunk-mib", "1", "--", *command(tmp_path, "resumed")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    stopped = subprocess.Popen(line, env=environment(STEP_SLEEP="0.5"), **quiet)  # type: ignore[call-overload]
    try:
        losses, limit = tmp_path / "resumed.jsonl", time.monotonic() + LIMIT
        while not (losses.exists() and len(losses.read_text().splitlines()) >= 3):
            assert time.monotonic() < limit, "no third step"
            assert stopped.poll() is None, f"the agent ended with {stopped.returncode}"
            time.sleep(0.05)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(LIMIT) == 72, "preempted, sealed"
    finally:
        stopped.kill()
    assert len(losses.read_text().splitlines()) < STEPS
    second = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=True)
    start = re.search(rf"rank 0 of {RANKS} starts at boundary (\d+)", second.stdout)
    assert start is not None
    assert 3 <= int(start[1]) < STEPS
    assert curve(tmp_path / "resumed.jsonl") == curve(tmp_path / "reference.jsonl")
    assert (tmp_path / "resumed.digest").read_text() == (tmp_path / "reference.digest").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def curve(path: Path) -> dict[int, set[str]]:
    """Step -> the losses it had; a step that was done again must have had the same."""
    found: dict[int, set[str]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        found.setdefault(entry["step"], set()).add(entry["loss"])
    assert set(found) == set(range(1, STEPS + 1))
    return found


def test_the_example_adds_at_most_five_lines_to_plain_pytorch() -> None:
    source = (EXAMPLE / "train.py").read_text()
    assert sum(line.rstrip().endswith("# (holdfast)") for line in source.splitlines()) <= 5
    assert len(source.splitlines()) < 200


def test_the_job_is_short_and_a_training_job() -> None:
    text = (EXAMPLE / "job.yaml").read_text()
    assert len(text.splitlines()) < 25
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("holdfast.dev/v1alpha1", "TrainingJob")
    assert job["spec"]["template"]["spec"]["containers"][0]["command"]
