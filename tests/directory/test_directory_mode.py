"""A script that knows nothing of Holdfast, a real agent, and whatever ends them: the next start has a whole checkpoint, and the last digest is right."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_agent import laptop
from holdfast_directory.script import Script

SCRIPT = str(Path(__file__).with_name("writes_its_own.py"))
WAIT_SECONDS = 60
Start = Callable[..., subprocess.Popen[bytes]]


def right(steps: int) -> str:
    digest = hashlib.sha256(b"start").hexdigest()
    for step in range(1, steps + 1):
        digest = hashlib.sha256(f"{digest} {step}".encode()).hexdigest()
    return digest


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(steps, script options, directory options): an agent over the same store and the same directory."""
    running: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "agent.log").open("ab")

    def begin(steps: int, *script: str, mode: tuple[str, ...] = ("--quiet-seconds", "1")) -> subprocess.Popen[bytes]:
        out = str(tmp_path / "out")
        own = [sys.executable, SCRIPT, out, str(steps), "--log", str(tmp_path / "log"), *script]
        ranks = [sys.executable, "-m", "holdfast_directory", out, *mode, "--", *own]
        agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path / "job"), "--", *ranks]
        running.append(subprocess.Popen(agent, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
    if (tmp_path / "job" / ".holdfast").exists():
        shutil.rmtree(laptop._memory(laptop.take(tmp_path / "job")), ignore_errors=True)


@pytest.fixture
def said(tmp_path: Path) -> Callable[..., None]:
    """said(text, file="log") waits for it."""

    def wait(text: str, file: str = "log") -> None:
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            if (tmp_path / file).exists() and text in (tmp_path / file).read_text():
                return
            time.sleep(0.05)
        raise AssertionError(f"{text!r} is not in {file}: {(tmp_path / 'agent.log').read_text()[-4000:]}")

    return wait


def commits(tmp_path: Path) -> int:
    return len(list((tmp_path / "job").rglob("commit.json")))


def log_of(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


def test_a_run_to_its_end_is_committed_and_nothing_else_happens(start: Start, tmp_path: Path) -> None:
    agent = start(60, "--every", "20")
    assert agent.wait(WAIT_SECONDS) == 0, (tmp_path / "agent.log").read_text()[-3000:]
    assert log_of(tmp_path) == ["fresh", f"finished 60 {right(60)}"]
    assert commits(tmp_path) >= 1
    assert not (tmp_path / "out" / ".holdfast" / "incoming").exists()
    # what was the last checkpoint comes back on a machine that has nothing
    shutil.rmtree(tmp_path / "out")
    assert start(80, "--every", "20").wait(WAIT_SECONDS) == 0
    assert log_of(tmp_path)[2:] == ["resumed 60 checkpoint-60", f"finished 80 {right(80)}"]


@pytest.mark.parametrize("directory", ["kept", "gone"])
def test_a_killed_agent_takes_the_script_with_it_and_the_next_one_resumes(
    start: Start, said: Callable[..., None], tmp_path: Path, directory: str
) -> None:
    agent = start(100_000, "--every", "100", "--slow")
    said("committed", "agent.log")
    agent.kill()
    agent.wait()
    time.sleep(0.3)
    before = sorted(p.name for p in (tmp_path / "out").iterdir())
    time.sleep(1.5)
    assert before == sorted(p.name for p in (tmp_path / "out").iterdir())  # nobody trains on
    if directory == "gone":
        shutil.rmtree(tmp_path / "out")
    start(100_000, "--every", "100", "--slow")
    said("resumed")
    assert not any("TORN" in line for line in log_of(tmp_path))
    assert log_of(tmp_path)[1].split()[2].startswith("checkpoint-")


def test_a_torn_checkpoint_that_is_newer_is_set_aside_and_not_resumed_from(
    start: Start, said: Callable[..., None], tmp_path: Path
) -> None:
    agent = start(500, "--every", "20", "--torn-at", "400", "--keep", "9")
    assert agent.wait(WAIT_SECONDS) != 0
    assert (tmp_path / "out" / "checkpoint-400" / "model.bin").exists()
    assert commits(tmp_path) >= 1
    assert start(440, "--every", "20", "--keep", "9").wait(WAIT_SECONDS) == 0, (tmp_path / "agent.log").read_text()[
        -3000:
    ]
    assert log_of(tmp_path)[-1] == f"finished 440 {right(440)}"
    assert log_of(tmp_path)[1].startswith("resumed ")
    assert (tmp_path / "out" / ".holdfast" / "aside" / "checkpoint-400" / "model.bin").exists()


@pytest.mark.parametrize("then", ["exit", "go-on"])
def test_a_script_that_saves_when_told_loses_no_step(
    start: Start, said: Callable[..., None], tmp_path: Path, then: str
) -> None:
    agent = start(100_000, "--every", "100000", "--on-signal", then, mode=("--quiet-seconds", "1", "--signal", "USR1"))
    said("fresh")
    time.sleep(1.5)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(WAIT_SECONDS) == 64 or commits(tmp_path) == 1, (tmp_path / "agent.log").read_text()[-3000:]
    told = next(line for line in log_of(tmp_path) if line.startswith("told"))
    assert told.endswith("True")
    assert commits(tmp_path) == 1
    shutil.rmtree(tmp_path / "out")
    at = int(told.split()[1])
    start(at + 10)
    said("finished")
    assert log_of(tmp_path)[-2:] == [f"resumed {at} checkpoint-{at}", f"finished {at + 10} {right(at + 10)}"]


def test_a_script_that_was_told_has_not_finished_when_the_notice_is_taken_back_before_it_ends(tmp_path: Path) -> None:
    script = Script(tmp_path, ["sleep", "60"], signal.SIGUSR1)
    script.start(None)
    try:
        script.tell(30.0)
        assert script.told
        assert script.asked
        script.untell()
        assert script.told
        assert not script.asked
    finally:
        assert script._child is not None
        script._child.kill()
        script._child.wait()


def test_what_a_killed_script_left_before_anything_was_committed_is_not_committed(
    start: Start, said: Callable[..., None], tmp_path: Path
) -> None:
    """Attempt 1 died while it wrote; nothing changes in that folder any more."""
    torn = tmp_path / "out" / "checkpoint-7"
    torn.mkdir(parents=True)
    (torn / "model.bin").write_bytes(b"half")
    start(100_000, "--every", "100000", "--waits", mode=("--quiet-seconds", "0.2"))
    said("waits")
    time.sleep(4)
    assert "is whole" not in (tmp_path / "agent.log").read_text()
    assert commits(tmp_path) == 0


@pytest.mark.parametrize(
    ("writes", "says"),
    [
        ("os.mkdir(f'{o}/checkpoint-2'); os.mkfifo(f'{o}/checkpoint-2/pipe')", "checkpoint-2/pipe is neither a file"),
        ("", "nothing in"),
    ],
)
def test_a_job_whose_last_checkpoint_cannot_be_kept_says_so_at_its_end(
    start: Start, tmp_path: Path, writes: str, says: str
) -> None:
    """The operator shows it with `Succeeded` (UNSAVED)."""
    script = [sys.executable, "-c", f"import os, sys; o = sys.argv[1]; {writes}", str(tmp_path / "out")]
    ranks = [sys.executable, "-m", "holdfast_directory", str(tmp_path / "out"), "--quiet-seconds", "0.5", "--", *script]
    agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path / "job"), "--", *ranks]
    done = subprocess.run(agent, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"ending: finished the last checkpoint is NOT SAVED: {says}" in done.stderr.replace("checkpoint-2: ", "")


def test_a_notice_without_a_signal_seals_what_is_whole(start: Start, said: Callable[..., None], tmp_path: Path) -> None:
    agent = start(100_000, "--every", "100")
    said("is whole: boundary 1", "agent.log")
    began = time.monotonic()
    agent.send_signal(signal.SIGTERM)
    agent.wait(WAIT_SECONDS)
    assert time.monotonic() - began < WAIT_SECONDS / 2  # 120 s of grace are not waited for
    assert commits(tmp_path) >= 1


def test_a_crash_is_passed_on_and_what_was_whole_is_kept(start: Start, tmp_path: Path) -> None:
    agent = start(1000, "--every", "10", "--pointer", "--crash-at", "45", mode=())
    assert agent.wait(WAIT_SECONDS) != 0
    assert "exit status 5" in (tmp_path / "agent.log").read_text()
    shutil.rmtree(tmp_path / "out")
    assert start(60, "--every", "10", "--pointer", mode=()).wait(WAIT_SECONDS) == 0
    assert log_of(tmp_path)[-2:] == ["resumed 40 checkpoint-40", f"finished 60 {right(60)}"]
    assert (tmp_path / "out" / "latest").read_text() == "checkpoint-60"


def test_kills_at_random_moments_end_in_the_right_digest(start: Start, tmp_path: Path) -> None:
    steps, every = 240, "15"
    for life in range(40):
        agent = start(steps, "--every", every, "--pointer", "--slow", "--seconds", "0.005", mode=())
        try:
            agent.wait(2.5 + 0.37 * (life % 7))
            break
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
        if life % 3 == 1:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert log_of(tmp_path)[-1] == f"finished {steps} {right(steps)}"
    assert not any("TORN" in line for line in log_of(tmp_path))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["out", "--pattern", "("], "--pattern '(' is no regular expression"),
        (["out", "--quiet-seconds", "-1"], "--quiet-seconds is -1.0; write seconds between 0 and 86400"),
        (["out", "--quiet-seconds", "nan"], "--quiet-seconds is nan"),
        (["out", "--signal", "KILL"], "--signal is 'KILL'; write a signal that a script can catch"),
        (["out", "--signal", "5"], "--signal is '5'"),
        (["out", "--marker", "../x"], "--marker is '../x'"),
        (["/proc/out"], "PATH /proc/out cannot be made"),
        (["out", "--"], "no command"),
        (["out", "unset"], "HOLDFAST_SOCKET is not set"),
        (["out", "world"], "WORLD_SIZE is 2"),
    ],
)
def test_wrong_options_are_named(options: list[str], says: str, tmp_path: Path) -> None:
    env = dict(os.environ) | {"HOLDFAST_SOCKET": "/nowhere", "WORLD_SIZE": "2" if "world" in options else "1"}
    if "unset" in options:
        del env["HOLDFAST_SOCKET"]
    command = [o for o in options if o not in ("unset", "world")] + ([] if "--" in options else ["--", "true"])
    done = subprocess.run(
        [sys.executable, "-m", "holdfast_directory", *command],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 71
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_that_several_ranks_made_through_the_library_is_refused_and_stays(
    start: Start, tmp_path: Path
) -> None:
    """Of another number of ranks, which directory mode never has: it must neither wait for ever nor begin anew."""
    trainer = [sys.executable, str(Path(__file__).parents[1] / "agent" / "fake_trainer.py")]
    agent = [
        sys.executable,
        "-m",
        "holdfast_agent",
        "run",
        "--local",
        str(tmp_path / "job"),
        "--processes",
        "2",
        "--",
        *trainer,
    ]
    assert subprocess.run([*agent, "3"], capture_output=True, timeout=WAIT_SECONDS).returncode == 0
    assert commits(tmp_path) == 1
    assert start(60, "--every", "20").wait(WAIT_SECONDS) == 70
    said = (tmp_path / "agent.log").read_text()
    assert "was made by 2 ranks through the library, which directory mode cannot read" in said
    assert not (tmp_path / "log").exists(), "the script has not run"
    assert commits(tmp_path) == 1
    again = subprocess.run([*agent, "5", "--log", str(tmp_path / "log")], capture_output=True, timeout=WAIT_SECONDS)
    assert again.returncode == 0
    assert sorted(log_of(tmp_path))[:2] == ["3 0 finished 5", "3 0 restored 3"]
