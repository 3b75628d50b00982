"""The programs behind `make`: what stands in the way is one line, and what they started is ended in its own way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hack.cluster.paths import REPOSITORY

#: Runs a program the way scripts/test runs pytest.
RUNS = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.SourceFileLoader("script", sys.argv[1])
script = importlib.util.module_from_spec(importlib.util.spec_from_loader("script", loader))
loader.exec_module(script)
script.venv.said_in_one_line(lambda: script.run([sys.executable, "-c", sys.argv[2], sys.argv[3]]))
"""
TAKES_DOWN = """
import pathlib, sys, time
at = pathlib.Path(sys.argv[1])
try:
    (at / "up").touch()
    time.sleep(60)
except KeyboardInterrupt:
    (at / "taken-down").touch()
"""


def test_sigterm_lets_the_running_program_take_down_what_it_made(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNS, str(REPOSITORY / "scripts/test"), TAKES_DOWN, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as runner:
        limit = time.monotonic() + 20
        while not (tmp_path / "up").exists():
            assert time.monotonic() < limit
            time.sleep(0.02)
        runner.send_signal(signal.SIGTERM)
        said = runner.communicate(timeout=20)[1]
    assert (tmp_path / "taken-down").exists()
    assert runner.returncode not in (0, -signal.SIGTERM)
    assert said.strip() == "stopped by SIGTERM"


@pytest.mark.parametrize("script", [["demo"], ["test", "cluster"]])
def test_what_a_foreign_cluster_must_be_told_is_one_line(script: list[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "AWS_"))}
    command = [sys.executable, str(REPOSITORY / "scripts" / script[0]), *script[1:]]
    environment |= {"HOLDFAST_USE_CURRENT_CLUSTER": "1", "KUBECONFIG": "/nowhere"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "set HOLDFAST_OPERATOR_IMAGE, HOLDFAST_TRAINER_IMAGE" in done.stderr
