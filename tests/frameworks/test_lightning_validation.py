"""E2, E3: a notice that comes while Lightning validates. The boundary lies behind the validation: one that is over in time is waited for; of one that is not,
what was saved before it is resumed from, which `save_before_validation` keeps near."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frameworks.interrupted import KEPT, LIMIT, children

SCRIPT = Path(__file__).with_name("lightning_validates.py")


def lines(text: str) -> list[tuple[int, str]]:
    return [(int(n), loss) for n, loss in re.findall(r"^loss (\d+) (\S+)$", text, re.M)]


def told_in_validation(line: list[str], at: int, gone_after: float) -> list[tuple[int, str]]:
    """Steps. So many seconds after the notice the machine is gone."""
    running = subprocess.Popen(line, env=KEPT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    text = ""
    try:
        assert running.stdout is not None
        for printed in running.stdout:
            text += printed
            if printed.startswith(f"validation {at}"):
                running.send_signal(signal.SIGTERM)
                break
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(gone_after)
        for pid in (*children(running.pid), running.pid) if running.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        text += running.stdout.read()
        running.wait(LIMIT)
        return lines(text)
    finally:
        running.kill()


@pytest.mark.parametrize(
    ("seconds", "gone_after", "options", "lost"),
    [(2.0, LIMIT, [], 0), (600.0, 8.0, ["before"], 1), (600.0, 8.0, [], 7)],
    ids=[
        "a short validation is waited for",
        "before a long one its step is saved",
        "without that all since the last save is done again",
    ],
)
def test_a_notice_in_a_validation(
    tmp_path: Path, seconds: float, gone_after: float, options: list[str], lost: int
) -> None:
    whole = subprocess.run(
        [sys.executable, str(SCRIPT), "0"], env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True
    )
    want = dict(lines(whole.stdout))
    assert sorted(want) == list(range(1, 61))
    agent = [
        sys.executable,
        "-m",
        "holdfast_agent",
        "run",
        "--local",
        str(tmp_path),
        "--every-steps",
        "1000",
        "--",
        sys.executable,
        str(SCRIPT),
    ]
    done = told_in_validation([*agent, str(seconds), *options], 7, gone_after)
    rest = subprocess.run([*agent, "0", *options], env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True)
    again = lines(rest.stdout)
    assert done[-1][0] + 1 - again[0][0] == lost, (done[-1], again[0])
    assert all(want[n] == loss for n, loss in [*done, *again]), "what is done again is the same"
    assert {n for n, _ in [*done, *again]} == set(want)
