"""What the script has forked: waited for when it has ended well, ended before the next start."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from holdfast_directory import processes
from tests.directory.test_directory_mode import Start, commits, said, start  # noqa: F401  fixtures

FORKS = """
import os, subprocess, sys, time
out, what = sys.argv[1:3]
found = [n for n in os.listdir(out) if n.startswith("checkpoint-")]
if what == "writes-on":
    at = os.path.join(out, "checkpoint-1")
    os.mkdir(at)
    open(os.path.join(at, "a"), "w").write("half")
    code = "import sys, time; time.sleep(3); open(sys.argv[1], 'w').write('whole')"
    subprocess.Popen([sys.executable, "-c", code, os.path.join(at, "a")])
elif not found:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    os.mkdir(os.path.join(out, "checkpoint-1"))
    open(os.path.join(out, "checkpoint-1", "pid"), "w").write(str(child.pid))
    time.sleep(600)
"""


def test_a_process_of_an_earlier_life_is_ended_and_one_whose_keeper_lives_is_not() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    mark = f"HOLDFAST_NOTICE=/nowhere/{os.getpid()}/notice.json"
    name, value = mark.split("=")

    def sleeper(keeper: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ) | {name: value, processes.ENV_KEEPER: str(keeper)}
        return subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True)

    stray, kept, other = sleeper(gone.pid), sleeper(os.getppid()), subprocess.Popen(["sleep", "60"])
    try:
        time.sleep(0.3)
        assert processes.end_strays(mark) == [stray.pid]
        assert stray.wait(10) == -9
        assert kept.poll() is None
        assert other.poll() is None
    finally:
        for process in (stray, kept, other):
            process.kill()
            process.wait()


def begin(tmp_path: Path, what: str) -> subprocess.Popen[bytes]:
    out = str(tmp_path / "out")
    script = [sys.executable, "-c", FORKS, out, what]
    ranks = [sys.executable, "-m", "holdfast_directory", out, "--quiet-seconds", "0.5", "--", *script]
    with (tmp_path / "agent.log").open("ab") as log:
        agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path / "job"), "--", *ranks]
        return subprocess.Popen(agent, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def test_what_a_helper_still_writes_when_the_script_has_ended_well_is_not_taken_half(
    start: Start,  # noqa: F811
    tmp_path: Path,
) -> None:
    assert begin(tmp_path, "writes-on").wait(60) == 0, (tmp_path / "agent.log").read_text()[-3000:]
    assert commits(tmp_path) >= 1
    (tmp_path / "out" / "checkpoint-1" / "a").write_text("what lies there is replaced")
    again = begin(tmp_path, "forks")  # finds a checkpoint, and ends
    assert again.wait(60) == 0
    assert (tmp_path / "out" / "checkpoint-1" / "a").read_text() == "whole"


def test_workers_that_outlive_a_killed_agent_are_ended_before_the_next_restore(
    start: Start,  # noqa: F811
    said: Callable[..., None],  # noqa: F811
    tmp_path: Path,
) -> None:
    agent = begin(tmp_path, "forks")
    said("committed", "agent.log")
    agent.kill()
    agent.wait()
    worker = int((tmp_path / "out" / "checkpoint-1" / "pid").read_text())
    time.sleep(0.5)
    os.kill(worker, 0)  # as a worker of torchrun does, it outlives who started it
    assert begin(tmp_path, "forks").wait(60) == 0
    assert not Path(f"/proc/{worker}/stat").exists() or processes._stat(worker)[0] == "Z"
    assert "are ended" in (tmp_path / "agent.log").read_text()
