"""Example 02, as its docstring says: told to go, killed without notice, told again, in the middle of epochs, and compared bit by bit with a run that knew no
agent."""

import random
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.frameworks.interrupted import KEPT, LIMIT, interrupted, newest_saved

EXAMPLE = Path(__file__).parents[2] / "examples" / "02-accelerate" / "train.py"
EPOCHS, BATCHES, EVERY = 12, 29, 7


def said(text: str) -> tuple[dict[int, str], str]:
    """Losses by step, and the digest if it got there."""
    found = re.search(r"^digest (\w+)$", text, re.M)
    return {int(n): loss for n, loss in re.findall(r"^loss (\d+) (\S+)$", text, re.M)}, found[1] if found else ""


def test_a_run_that_was_told_to_go_and_one_that_was_killed_are_bitwise_the_same(tmp_path: Path) -> None:
    example = [sys.executable, str(EXAMPLE), "--epochs", str(EPOCHS)]
    whole = subprocess.run(example, env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True)
    losses, digest = said(whole.stdout)
    assert sorted(losses) == list(range(1, EPOCHS * BATCHES + 1))
    agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path), "--every-steps", str(EVERY), "--"]
    moment = random.Random()
    seen = [
        said(interrupted([*agent, *example], moment.randrange(20, 60), signal.SIGTERM, moment))[0],
        said(interrupted([*agent, *example], moment.randrange(100, 160), signal.SIGKILL, moment))[0],
    ]
    saved = newest_saved(tmp_path)
    seen += [
        said(interrupted([*agent, *example], moment.randrange(200, 260), signal.SIGTERM, moment))[0],
    ]
    last = subprocess.run([*agent, *example], env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True)
    rest, resumed = said(last.stdout)
    for part in (*seen, rest):
        assert part == {n: losses[n] for n in part}
    assert set().union(*seen, rest) == set(losses)
    assert resumed == digest
    told, killed, again, end = (sorted(part) for part in (*seen, rest))
    assert killed[0] == told[-1] + 1, "told, nothing is done again"
    assert saved < again[0] <= killed[-1] + 1, (
        "killed, what came since the last checkpoint is done again, and nothing before"
    )
    assert end[0] == again[-1] + 1


def test_the_example_marks_what_is_added() -> None:
    assert sum(line.rstrip().endswith("# (holdfast)") for line in EXAMPLE.read_text().splitlines()) == 6
