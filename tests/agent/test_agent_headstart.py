"""On a laptop the ranks begin before the agent is whole (headstart.py): what lies before their start, that nobody is refused, that each runs once."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast_agent import headstart, laptop, rank_socket, spawning
from holdfast_agent.errors import ConfigurationWrong
from holdfast_agent.settings import Settings

WAIT_SECONDS = 60
CONNECTS = "import os, socket; socket.socket(socket.AF_UNIX).connect(os.environ['HOLDFAST_SOCKET'])"
NOT_BEFORE = ("asyncio", "ssl", "aiohttp", "prometheus_client", "stamina", "obstore", "boto3", "blake3", "torch")
"""What takes long to import."""


@pytest.fixture
def held(tmp_path):
    held = laptop.take(tmp_path / "job")
    yield held
    shutil.rmtree(laptop._memory(held), ignore_errors=True)


def ready(held: laptop.Laptop, *command: str, processes: int = 1) -> Settings:
    return laptop.settings(
        held, held.folder.parent, command, processes=processes, every_steps=1, every_seconds=0, chunk_bytes=16 << 20
    )


def ended(begun: headstart.HeadStart) -> list[int]:
    for spawned in begun.processes:
        os.close(spawned.stderr)
    return [spawned.popen.wait(WAIT_SECONDS) for spawned in begun.processes]


def test_nothing_that_takes_long_to_import_lies_before_the_ranks_own_start():
    look = f"import sys, holdfast_agent.__main__; print([m for m in {NOT_BEFORE} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_rank_that_connects_before_the_agent_serves_waits_and_is_not_refused(held):
    settings = ready(held, sys.executable, "-c", CONNECTS, processes=2)
    begun = headstart.begin(held, settings, laptop.order(settings, held.next_attempt()))
    assert ended(begun) == [0, 0]


def test_the_agent_takes_over_what_has_begun_and_starts_no_rank_twice(tmp_path):
    log = tmp_path / "log"
    says = f"import os; open({str(log)!r}, 'a').write(os.environ['HOLDFAST_ATTEMPT'] + os.environ['RANK'] + '\\n')"
    agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path / "job"), "--processes", "2", "--"]
    for _ in range(2):
        done = subprocess.run([*agent, sys.executable, "-c", says], capture_output=True, timeout=WAIT_SECONDS)
        assert done.returncode == 0, done.stderr
    assert sorted(log.read_text().split()) == ["10", "11", "20", "21"]


def test_a_rank_that_ended_before_anybody_watched_is_reported_with_its_words(tmp_path):
    agent = [sys.executable, "-m", "holdfast_agent", "run", "--local", str(tmp_path / "job"), "--"]
    done = subprocess.run(
        [*agent, "sh", "-c", "echo the reason >&2; exit 3"], capture_output=True, timeout=WAIT_SECONDS
    )
    assert done.returncode == 70
    assert b"the reason" in done.stderr
    assert b"exit status 3" in done.stderr


def test_a_command_that_no_process_can_be_given_ends_in_words(held):
    settings = ready(held, "true", "x" * (1 << 22))
    with pytest.raises(ConfigurationWrong, match="the training processes cannot be started: Argument list too long"):
        headstart.begin(held, settings, laptop.order(settings, 1))


def test_a_memory_volume_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationWrong, match=r"the memory volume .*/file/below cannot be used: Not a directory"):
        rank_socket.listen(tmp_path / "file" / "below")


def test_a_socket_that_an_ended_agent_has_left_is_replaced_and_is_nobody_elses(tmp_path):
    for _ in range(2):
        listening = rank_socket.listen(tmp_path)
        assert listening.path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(listening.path))
        listening.socket.close()


def test_a_path_that_is_too_long_for_a_socket_is_another_one(tmp_path):
    deep = tmp_path / ("d" * 120)
    listening = rank_socket.listen(deep)
    assert listening.path.parent != deep
    listening.socket.close()
    shutil.rmtree(listening.path.parent)


def test_what_is_begun_is_exactly_what_the_attempt_would_start(held):
    """Otherwise the launcher would start a second process for the rank."""
    settings = ready(held, "true", processes=3)
    order = laptop.order(settings, 7)
    begun = headstart.begin(held, settings, order)
    assert [s.spec for s in begun.processes] == spawning.specs(settings, order, str(begun.listening.path))
    assert [(s.spec.rank, s.spec.attempt, s.spec.world_size) for s in begun.processes] == [(n, 7, 3) for n in range(3)]
    assert Path(begun.listening.path).is_socket()
    assert ended(begun) == [0, 0, 0]
