"""Outside Kubernetes (A10): one command, a directory, Ctrl-C."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast_agent import laptop
from holdfast_agent.errors import ConfigurationWrong
from holdfast_api.manifest import REPLICAS, SUSPECT
from holdfast_store.records import parse_commit, self_proving

TRAINER = str(Path(__file__).with_name("fake_trainer.py"))
WAIT_SECONDS = 60


@pytest.fixture
def run(tmp_path):
    """run(steps, options...) starts one in the same directory; all are ended after the test."""
    processes = []

    def start(steps: int, *options: str, trainer: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [sys.executable, TRAINER, str(steps), "--log", str(tmp_path / "log"), *trainer]
        log = (tmp_path / "agent.log").open("ab")
        agent = [
            sys.executable,
            "-m",
            "holdfast_agent",
            "run",
            "--local",
            str(tmp_path / "job"),
            *options,
            "--",
            *command,
        ]
        processes.append(subprocess.Popen(agent, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
    if (tmp_path / "job" / ".holdfast").exists() and not any(p.poll() is None for p in processes):
        shutil.rmtree(laptop._memory(laptop.take(tmp_path / "job")), ignore_errors=True)


def wait_for_line(folder: Path, name: str, text: str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        if (folder / name).exists() and text in (folder / name).read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{text!r} is not in {name}: {(folder / 'agent.log').read_text()[-3000:]}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_once_and_the_next_start_resumes_from_there(run, tmp_path, number):
    first = run(100000, "--every-steps", "10", "--processes", "2")
    wait_for_line(tmp_path, "agent.log", "committed at boundary 10")
    first.send_signal(number)
    assert first.wait(WAIT_SECONDS) == 72, (tmp_path / "agent.log").read_text()
    text = (tmp_path / "agent.log").read_text()
    assert text.count("(sigterm)") == 1
    sealed = int(text.rsplit(" (sigterm)", 1)[0].rsplit(" ", 1)[1])

    second = run(sealed + 5, "--every-steps", "10", "--processes", "2")
    assert second.wait(WAIT_SECONDS) == 0
    assert sorted((tmp_path / "log").read_text().splitlines()[2:]) == sorted(
        f"2 {rank} {what}" for rank in (0, 1) for what in (f"restored {sealed}", f"finished {sealed + 5}")
    )


def test_a_killed_agent_takes_its_ranks_along_and_the_next_start_resumes_from_the_last_commit(run, tmp_path):
    first = run(100000, "--every-steps", "10")
    wait_for_line(tmp_path, "agent.log", "committed at boundary 20")
    rank = int(Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()[0])
    first.kill()
    first.wait()
    end = time.monotonic() + WAIT_SECONDS
    while Path(f"/proc/{rank}").exists() and "Z" not in Path(f"/proc/{rank}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.05)
    second = run(100000, "--every-steps", "10")
    wait_for_line(tmp_path, "log", "2 0 restored")
    second.send_signal(signal.SIGTERM)
    assert second.wait(WAIT_SECONDS) == 72


def test_a_suspect_checkpoint_is_kept_and_resumed_from_only_if_a_person_says_so(run, tmp_path):
    """J4. That copies differ is written into the record as the lead does it: no rank makes such damage on order."""
    first = run(100000, "--every-steps", "10")
    wait_for_line(tmp_path, "agent.log", "committed at boundary 20")
    first.kill()
    first.wait()
    paths = sorted((tmp_path / "job").rglob("commit.json"))
    records = [parse_commit(str(path), path.read_bytes()) for path in paths]
    odd = records[-1].run | {REPLICAS: SUSPECT + "rank 1 is not like rank 0"}
    paths[-1].write_bytes(self_proving(dataclasses.replace(records[-1], run=odd)))
    older, newest = (record.progress.boundary for record in records[-2:])
    options = (["--accept-suspect"], ["--trust", str(records[-1].ref)], [])
    for attempt, (option, boundary) in enumerate(zip(options, (newest, newest, older), strict=True), 2):
        agent = run(100000, "--every-steps", "1000000", *option)
        wait_for_line(tmp_path, "log", f"{attempt} 0 restored {boundary}")
        agent.kill()  # before it commits anything: the next one chooses from the same
        agent.wait()
    assert paths[-1].exists()


def test_two_runs_on_one_machine_do_not_meet_at_one_port(tmp_path):
    """Both are attempt 1."""
    ports = set()
    for name in ("one", "other"):
        log = tmp_path / name
        own = [sys.executable, TRAINER, "3", "--log", str(log), "--environment", str(tmp_path / f"{name}.env")]
        line = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path / f"{name}-job"), "--", *own]
        assert subprocess.run(line, stdin=subprocess.DEVNULL, check=False, timeout=WAIT_SECONDS).returncode == 0
        values = dict(x.partition("=")[::2] for x in (tmp_path / f"{name}.env").read_text().splitlines())
        ports.add(values["MASTER_PORT"])
    assert len(ports) == 2


def test_a_second_ctrl_c_ends_hard(run, tmp_path):
    # A step of 30 s: the round waits for it, the person does not.
    first = run(100000, "--every-steps", "1", trainer=("--step-seconds", "30"))
    wait_for_line(tmp_path, "log", "fresh")
    first.send_signal(signal.SIGINT)
    time.sleep(1)
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    assert first.wait(WAIT_SECONDS) == 130


def test_a_second_agent_on_the_directory_is_refused(run, tmp_path):
    run(100000)
    wait_for_line(tmp_path, "log", "fresh")
    second = run(10)
    assert second.wait(WAIT_SECONDS) == 71
    assert "another holdfast-agent runs on" in (tmp_path / "agent.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--local", "{dir}", "--workers", "2", "--", "true"], "--workers is 2"),
        (["run", "--local", "{dir}"], "no command"),
        (["run", "--local", "{dir}/file/x", "--", "true"], "--local"),
        (["run", "--", "true"], "HOLDFAST_AGENT_CONFIG is not set"),
        (["run", "--local", "{dir}", "--processes", "0", "--", "true"], "processes_per_worker is 0"),
        (["run", "--local", "{dir}", "--every-steps", "0", "--", "true"], "--every-steps is 0; write 1 or more"),
        (["run", "--local", "{dir}", "--every-seconds", "-5", "--", "true"], "--every-seconds is -5"),
        (["run", "--local", "{dir}", "--chunk-mib", "0", "--", "true"], "chunk_bytes is 0"),
        (["run", "--local", "{dir}", "--trust", "newest", "--", "true"], "--trust: 'newest' is not ATTEMPT/SAVE"),
    ],
)
def test_a_wrong_command_line_or_environment_ends_with_71_and_words_without_a_traceback(tmp_path, arguments, words):
    (tmp_path / "file").write_text("")
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST")}
    arguments = [a.format(dir=tmp_path) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "holdfast_agent", *arguments], capture_output=True, text=True, env=environ
    )
    assert done.returncode == 71
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_cannot_be_run_is_a_failure_of_the_trainer_with_the_reason(tmp_path):
    agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path / "job"), "--", "no-such-program"]
    done = subprocess.run(agent, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 70
    assert "cannot start 'no-such-program'" in done.stderr


def test_a_script_that_cannot_load_a_checkpoint_of_another_number_of_processes_is_refused_and_nothing_is_lost(
    run, tmp_path
):
    assert run(3).wait(WAIT_SECONDS) == 0
    assert run(5, "--processes", "2").wait(WAIT_SECONDS) == 70
    text = (tmp_path / "agent.log").read_text()
    assert "was made by 1 ranks, this attempt has 2" in text
    assert run(5).wait(WAIT_SECONDS) == 0
    assert "3 0 restored 3" in (tmp_path / "log").read_text()


def test_an_attempt_file_that_cannot_be_read_is_not_guessed(tmp_path):
    laptop.take(tmp_path).lock.close()
    (tmp_path / ".holdfast" / "job.json").write_text("{")
    with pytest.raises(ConfigurationWrong, match=r"job\.json cannot be read"):
        laptop.take(tmp_path)


def test_what_a_killed_agent_left_in_shared_memory_is_where_the_next_start_resumes_from(run, tmp_path):
    """J6: the arena outlives the processes that use it."""
    agent = run(100_000, "--every-steps", "10")
    wait_for_line(tmp_path, "agent.log", "is committed at boundary 20")
    agent.kill()
    agent.wait()
    agent = run(100_000, "--every-steps", "10")
    wait_for_line(tmp_path, "log", "2 0 restored")
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(WAIT_SECONDS) == 72
    report = next((tmp_path / "job" / "local").rglob("0000000002.reports/0.json"))
    fetched = json.loads(report.read_text())["fetched_from"]
    assert fetched.get("arena", 0) > 0, fetched
