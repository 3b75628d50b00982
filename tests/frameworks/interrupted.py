"""An example under a real agent that is told to go, or lost, while it trains. Examples print a line that begins with a mark and the step
(`loss STEP ...`) for each step, and `digest ...` at their end."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

KEPT = {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "RANK", "WORLD_SIZE", "LOCAL_RANK"))}
LIMIT = 240


def interrupted(line: list[str], after: int, how: signal.Signals, moment: random.Random, mark: str = "loss") -> str:
    """What it has printed. Runs until it has printed step `after`, and a moment longer, then signals the agent; by SIGKILL also the ranks, as the loss of a
    machine would."""
    running = subprocess.Popen(line, env=KEPT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    text = ""
    try:
        assert running.stdout is not None
        for printed in running.stdout:
            text += printed
            if printed.startswith(f"{mark} {after} "):
                time.sleep(moment.random() * 0.05)
                ranks = children(running.pid) if how is signal.SIGKILL else []
                for pid in (running.pid, *ranks):
                    os.kill(pid, how)
                break
        text += running.stdout.read()
        running.wait(LIMIT)
    finally:
        running.kill()
    assert f"{mark} {after} " in text
    assert "\ndigest " not in text, "it was over before it was stopped"
    return text


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def newest_saved(job: Path) -> int:
    """The boundary of the newest checkpoint below the directory of `run --local`."""
    return max(json.loads(record.read_text())["progress"]["boundary"] for record in job.rglob("commit.json"))
