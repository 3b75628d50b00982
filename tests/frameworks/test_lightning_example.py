"""Example 04, as its docstring says: told to go at a random moment, killed without notice at another, and compared bit by bit with a run that knew no agent."""

import random
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.frameworks.interrupted import KEPT, LIMIT, interrupted, newest_saved

EXAMPLE = Path(__file__).parents[2] / "examples" / "04-lightning" / "train.py"
EPOCHS, BATCHES = 20, 24


class Said(NamedTuple):
    losses: dict[int, str]
    samples: dict[int, str]
    """Epoch and samples, by step."""
    digest: str


def said(text: str) -> Said:
    found = re.search(r"^digest (\w+)$", text, re.M)
    lines = re.findall(r"^loss (\d+) (\S+) (\d+ \[.*\])$", text, re.M)
    return Said({int(n): loss for n, loss, _ in lines}, {int(n): s for n, _, s in lines}, found[1] if found else "")


def test_a_run_that_was_told_to_go_and_one_that_was_killed_are_bitwise_the_same(tmp_path: Path) -> None:
    example = [sys.executable, str(EXAMPLE), "--epochs", str(EPOCHS)]
    whole = said(subprocess.run(example, env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True).stdout)
    assert sorted(whole.losses) == list(range(1, EPOCHS * BATCHES + 1))
    agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path), "--every-steps", "7", "--"]
    moment = random.Random()
    seen = [
        said(interrupted([*agent, *example], moment.randrange(20, 60), signal.SIGTERM, moment)),
        said(interrupted([*agent, *example], moment.randrange(120, 200), signal.SIGKILL, moment)),
    ]
    saved = newest_saved(tmp_path)
    seen += [
        said(interrupted([*agent, *example], moment.randrange(260, 330), signal.SIGTERM, moment)),
    ]
    last = said(
        subprocess.run([*agent, *example], env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True).stdout
    )
    for part in (*seen, last):
        assert part.losses == {n: whole.losses[n] for n in part.losses}
        assert part.samples == {n: whole.samples[n] for n in part.samples}, "the same samples in each step"
    assert set().union(*(part.losses for part in (*seen, last))) == set(whole.losses)
    assert last.digest == whole.digest, "weights, optimizer and schedule"
    told, killed, again, end = (sorted(part.losses) for part in (*seen, last))
    assert killed[0] == told[-1] + 1, "told, nothing is done again"
    assert saved < again[0] <= killed[-1] + 1, (
        "killed, what came since the last checkpoint is done again, and nothing before"
    )
    assert end[0] == again[-1] + 1


def test_each_sample_came_once_in_each_epoch(tmp_path: Path) -> None:
    """What the test above compares with is right by itself."""
    example = [sys.executable, str(EXAMPLE), "--epochs", "2"]
    whole = said(subprocess.run(example, env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True).stdout)
    epochs: dict[str, Counter[int]] = {}
    for text in whole.samples.values():
        epoch, _, samples = text.partition(" ")
        epochs.setdefault(epoch, Counter()).update(map(int, samples.strip("[]").split(",")))
    assert epochs == {epoch: Counter(range(1500)) for epoch in ("0", "1")}


def test_the_example_adds_two_lines_to_plain_lightning() -> None:
    assert sum(line.rstrip().endswith("# (holdfast)") for line in EXAMPLE.read_text().splitlines()) == 2
