"""One run at a time has the machine's cluster; who comes second waits, says for whom, and goes on when the first is gone, also killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hack.cluster import turn

HOLD = """
import sys, time
from pathlib import Path
from hack.cluster import turn
with turn.taken("make demo", Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGINT])
def test_the_second_waits_for_the_first_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ends: signal.Signals
) -> None:
    path = tmp_path / "locks" / "turn"
    top = Path(turn.__file__).resolve().parents[2]
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(top)},
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "has it\n"
    end = threading.Timer(0.5, lambda: first.send_signal(ends))
    end.start()
    with turn.taken("make test", path):
        assert "make test" in path.read_text()
        assert first.wait(30) != 0, "it had gone by then"
    assert f"make demo (process {first.pid})" in capsys.readouterr().out
    assert path.read_text() == ""
    with turn.taken("make test", path):
        assert capsys.readouterr().out == "", "nobody has it any more"
