"""The state file, and that nothing is ended but what was recorded."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from hack.cluster.errors import ClusterError
from hack.cluster.processes import Recorded, end, start_time
from hack.cluster.settings import Settings
from hack.cluster.state import SERVICE_PREFIX, State, Store


def settings() -> Settings:
    return Settings(kube="kube", archives=("pause.tar", "base.tar"), templates="t", apiserver_arguments=("--v=1",))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "state")
    made.create(settings())
    return made


def test_a_state_read_back_is_the_same() -> None:
    state = State(settings(), {"etcd": Recorded(1, 2)}, {"s3_access_key": "x"})
    assert State.from_json(state.to_json()) == state


def test_only_its_owner_may_read_the_file(store: Store) -> None:
    assert store.file.stat().st_mode & 0o077 == 0


def test_no_change_is_lost_when_many_programs_change_it(store: Store) -> None:
    def note(number: int) -> None:
        with store.changing() as state:
            state.notes[str(number)] = "x"

    threads = [threading.Thread(target=note, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.read().notes) == 12


def test_a_change_that_fails_is_not_kept(store: Store) -> None:
    def fails() -> None:
        with store.changing() as state:
            state.notes["x"] = "y"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert store.read().notes == {}


def test_a_process_is_started_once_and_written_down(store: Store) -> None:
    first = store.spawn("sleeper", ["sleep", "60"])
    try:
        assert store.spawn("sleeper", ["sleep", "60"]) == first
        assert store.read().processes == {"sleeper": first}
        assert store.read().missing_processes() == []
    finally:
        end(first)
    assert store.read().missing_processes() == ["sleeper"]


def test_a_service_beside_the_cluster_that_ended_is_no_missing_part(store: Store) -> None:
    with store.changing() as state:
        state.processes[SERVICE_PREFIX + "s3"] = Recorded(1, 0)
    assert store.read().missing_processes() == []


def test_a_pid_that_was_given_to_another_process_is_let_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        started = start_time(other.pid)
        assert started is not None
        end(Recorded(other.pid, started - 1), signal.SIGKILL)
        assert other.poll() is None
        other.kill()


def test_a_process_that_ignores_sigterm_is_killed_after_some_patience(store: Store) -> None:
    stubborn = store.spawn("stubborn", ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    end(stubborn, patience_seconds=0.3)
    assert not stubborn.alive()


def test_without_a_cluster_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="start one with hack/cluster/up"):
        Store(tmp_path).read()


def test_we_are_alive() -> None:
    started = start_time(os.getpid())
    assert started is not None
    assert Recorded(os.getpid(), started).alive()
