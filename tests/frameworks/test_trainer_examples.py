"""Examples 03 and 05, a GPT-2 and a ViT, as their docstrings say: told to go at a random moment, killed without notice at another, told again, and compared bit
by bit with a run that knew no agent."""

import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.frameworks.interrupted import KEPT, LIMIT, interrupted, newest_saved

EXAMPLES = Path(__file__).parents[2] / "examples"


class Example(NamedTuple):
    path: Path
    epochs: int
    steps: int
    """In an epoch."""
    best: str
    """Of what an evaluation says, what shows that something was learned."""


GPT2 = Example(EXAMPLES / "03-gpt2-trainer" / "train.py", 12, 19, "eval_loss")
VIT = Example(EXAMPLES / "05-vit-trainer" / "train.py", 9, 24, "eval_accuracy")
BOTH = pytest.mark.parametrize("example", [GPT2, VIT], ids=["GPT-2", "ViT"])


class Said(NamedTuple):
    logs: dict[tuple[int, str], str]
    """What was logged, by step and kind."""
    digest: str

    @property
    def steps(self) -> list[int]:
        return sorted(step for step, kind in self.logs if kind == "loss")


def said(text: str) -> Said:
    found = re.search(r"^digest (\w+)$", text, re.M)
    lines = re.findall(r"^log (\d+) (.*)$", text, re.M)
    return Said({(int(n), next(iter(json.loads(logs)))): logs for n, logs in lines}, found[1] if found else "")


def cut_short(line: list[str], after: int, how: signal.Signals, moment: random.Random) -> Said:
    found = said(interrupted(line, after, how, moment, mark="log"))
    assert found.logs
    return found


def whole(line: list[str]) -> Said:
    return said(subprocess.run(line, env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True).stdout)


@BOTH
def test_a_run_that_was_told_to_go_and_one_that_was_killed_are_bitwise_the_same(
    example: Example, tmp_path: Path
) -> None:
    script = [sys.executable, str(example.path), "--epochs", str(example.epochs)]
    want = whole(script)
    steps = example.epochs * example.steps
    assert want.steps == list(range(1, steps + 1))
    evaluations = [json.loads(logs)[example.best] for (_, kind), logs in want.logs.items() if kind == "eval_loss"]
    assert len(evaluations) >= example.epochs
    assert evaluations[-1] != evaluations[0], "something is learned"
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
        *script,
    ]
    moment = random.Random()
    seen = [
        cut_short(line, moment.randrange(20, steps // 6), signal.SIGTERM, moment),
        cut_short(line, moment.randrange(steps // 3, steps // 2), signal.SIGKILL, moment),
    ]
    saved = newest_saved(tmp_path)
    seen += [
        cut_short(line, moment.randrange(2 * steps // 3, 3 * steps // 4), signal.SIGTERM, moment),
        whole(line),
    ]
    for part in seen:
        assert part.logs == {key: want.logs[key] for key in part.logs}
    assert set().union(*(part.logs for part in seen)) == set(want.logs)
    assert seen[-1].digest == want.digest, "weights, optimizer and schedule"
    told, killed, again, end = (part.steps for part in seen)
    # What follows a boundary, its log, comes again where an update had begun; the update does not.
    assert killed[0] in (told[-1], told[-1] + 1), "told, nothing is trained on again"
    assert saved <= again[0] <= killed[-1] + 1, (
        "killed, what came since the last checkpoint is done again, and nothing before"
    )
    assert end[0] in (again[-1], again[-1] + 1)


@BOTH
def test_the_example_adds_two_lines_to_the_plain_trainer(example: Example) -> None:
    assert sum(line.rstrip().endswith("# (holdfast)") for line in example.path.read_text().splitlines()) == 2
