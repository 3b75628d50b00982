"""Example 02, as its docstring says: killed in the middle of epochs, twice, and compared bit by bit with a run that knew no agent."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "02-accelerate" / "train.py"
KEPT = {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "RANK", "WORLD_SIZE"))}
LIMIT = 240


def said(text: str) -> tuple[dict[int, str], str]:
    """Losses by step, and the digest if it got there."""
    found = re.search(r"^digest (\w+)$", text, re.M)
    return {int(n): loss for n, loss in re.findall(r"^loss (\d+) (\S+)$", text, re.M)}, found[1] if found else ""


def interrupted(line: list[str], at: int, how: signal.Signals) -> dict[int, str]:
    """Runs until it has printed step `at`, then signals the agent."""
    running = subprocess.Popen(line, env=KEPT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    text = ""
    try:
        assert running.stdout is not None
        for printed in running.stdout:
            text += printed
            if printed.startswith(f"loss {at} "):
                running.send_signal(how)
                break
        text += running.stdout.read()
        running.wait(LIMIT)
    finally:
        running.kill()
    losses, digest = said(text)
    assert losses
    assert not digest, "it was over before it was stopped"
    return losses


def test_a_run_that_was_stopped_twice_is_bitwise_the_same(tmp_path: Path) -> None:
    example = [sys.executable, str(EXAMPLE), "--epochs", "12"]
    whole = subprocess.run(example, env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True)
    losses, digest = said(whole.stdout)
    assert len(losses) == 12 * 29
    line = [
        sys.executable,
        "-m",
        "holdfast_agent",
        "run",
        "--local",
        str(tmp_path),
        "--every-steps",
        "7",
        "--",
        *example,
    ]
    seen = [interrupted(line, 40, signal.SIGTERM), interrupted(line, 110, signal.SIGTERM)]
    last = subprocess.run(line, env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True)
    start = re.search(r"starts at boundary (\d+)", last.stdout)
    assert start is not None
    assert int(start[1]) >= 110
    rest, resumed = said(last.stdout)
    for part in (*seen, rest):
        assert part == {n: losses[n] for n in part}
    assert set().union(*seen, rest) == set(losses)
    assert resumed == digest
