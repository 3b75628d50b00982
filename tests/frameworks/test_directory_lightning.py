"""Directory mode with files that a framework really writes: plain Lightning with its own ModelCheckpoint, killed with its machine, goes on elsewhere from the
newest file that was whole, and ends as a run that was never stopped."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.frameworks.interrupted import KEPT, LIMIT, children

SCRIPT = str(Path(__file__).with_name("lightning_writes_its_own.py"))
EPOCHS = 24


def test_a_killed_run_goes_on_elsewhere_from_its_newest_whole_file(tmp_path: Path) -> None:
    line = [sys.executable, SCRIPT]
    whole = subprocess.run(
        [*line, str(tmp_path / "whole"), str(EPOCHS)],
        env=KEPT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    out = tmp_path / "out"
    agent = [
        sys.executable,
        "-m",
        "holdfast_agent",
        "run",
        "--local",
        str(tmp_path / "job"),
        "--",
        sys.executable,
        "-m",
        "holdfast_directory",
        str(out),
    ]
    agent += ["--pattern", r"epoch-(\d+)\.ckpt", "--quiet-seconds", "0.3", "--", *line, str(out), str(EPOCHS)]
    running = subprocess.Popen(agent, env=KEPT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert running.stdout is not None
        for printed in running.stdout:
            if printed.startswith("epoch ") and list((tmp_path / "job").rglob("commit.json")):
                for pid in (running.pid, *children(running.pid)):
                    os.kill(pid, signal.SIGKILL)
                break
        assert "digest" not in running.stdout.read(), "it was over before it was killed"
        running.wait(LIMIT)
    finally:
        running.kill()
    shutil.rmtree(out)  # another machine
    again = subprocess.run(agent, env=KEPT, capture_output=True, text=True, timeout=LIMIT, check=True)
    start = re.search(r"^from epoch-(\d+)\.ckpt$", again.stdout, re.M)
    assert start, again.stdout
    epochs = [int(n) for n in re.findall(r"^epoch (\d+)$", again.stdout, re.M)]
    assert epochs == list(range(int(start[1]) + 1, EPOCHS))
    digest = re.compile(r"^digest \w+$", re.M)
    assert digest.findall(again.stdout) == digest.findall(whole.stdout)
