"""Builds: what is missing, in which order, beside what; and that a stopped one leaves nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hack.cluster.artefacts.artefact import Artefact, Workshop
from hack.cluster.build import build, missing, plan, startable
from hack.cluster.cache import Cache
from hack.cluster.errors import ClusterError
from hack.cluster.paths import REPOSITORY
from hack.cluster.processes import start_time
from hack.cluster.progress import Step, summary


def writes_a_file(workshop: Workshop, directory: Path) -> None:
    workshop.run("touch", directory / "made")


def artefact(
    name: str,
    seconds: int = 1,
    *needs: Artefact,
    make: Callable[[Workshop, Path], None] = writes_a_file,
    mostly_waits: bool = False,
) -> Artefact:
    return Artefact(
        name=name,
        what=name,
        usual_seconds=seconds,
        made_from=(name,),
        make=make,
        needs=needs,
        mostly_waits=mostly_waits,
    )


def names(artefacts: list[Artefact]) -> list[str]:
    return [one.name for one in artefacts]


def quiet(_line: str) -> None:
    pass


def test_what_is_needed_is_missing_too_and_listed_once(tmp_path: Path) -> None:
    base = artefact("base")
    assert sorted(names(missing([artefact("a", 1, base), artefact("b", 1, base)], Cache(tmp_path)))) == [
        "a",
        "b",
        "base",
    ]


def test_what_is_built_is_not_missing(tmp_path: Path) -> None:
    cache, base = Cache(tmp_path), artefact("base")
    build([base], cache, quiet)
    assert names(missing([artefact("a", 1, base)], cache)) == ["a"]


def test_the_longest_chain_comes_first() -> None:
    base = artefact("base", 30)
    images = artefact("images", 60, base)
    assert names(plan([artefact("tool", 80), images, base])) == ["base", "tool", "images"]


def test_as_many_builds_as_cores_run_and_one_that_waits_comes_on_top() -> None:
    waiting = [artefact("c"), artefact("download", mostly_waits=True)]
    running = [artefact("a"), artefact("b")]
    chosen = startable(waiting, running, cores=2)
    assert chosen is not None
    assert chosen.name == "download"
    assert startable(waiting[:1], running, cores=2) is None
    assert startable(waiting[:1], running[:1], cores=2) is waiting[0]


def test_nothing_starts_before_what_it_needs() -> None:
    base = artefact("base")
    images = artefact("images", 1, base)
    assert startable([images], [base], cores=8) is None
    assert startable([images], [], cores=8) is images


def test_an_artefact_changes_its_key_with_what_it_needs() -> None:
    other = Artefact(name="base", what="", usual_seconds=1, made_from=("other",), make=writes_a_file)
    assert artefact("images", 1, artefact("base")).key != artefact("images", 1, other).key


def test_a_failed_build_ends_the_others_and_says_which_it_was(tmp_path: Path) -> None:
    def fails(workshop: Workshop, _directory: Path) -> None:
        workshop.run("sh", "-c", "echo no such thing; exit 3")

    def lasts(workshop: Workshop, _directory: Path) -> None:
        workshop.run("sleep", "60")

    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"ended with 3.*no such thing"):
        build([artefact("bad", make=fails), artefact("long", make=lasts)], Cache(tmp_path), quiet)
    assert time.monotonic() - began < 10
    assert list((tmp_path / "artefacts").iterdir()) == []


STOPPED = """
import sys
from pathlib import Path
from hack.cluster.artefacts.artefact import Artefact
from hack.cluster.build import build
from hack.cluster.cache import Cache

def make(workshop, directory):
    (directory / "half").touch()
    pid = directory.parent.parent / "pid"
    workshop.run("sh", "-c", f"sleep 60 & echo $! > {pid}.new; mv {pid}.new {pid}; wait")

part = Artefact(name="long", what="long", usual_seconds=1, made_from=("x",), make=make)
build([part], Cache(Path(sys.argv[1])), print)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_program_and_leaves_no_half_artefact(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", STOPPED, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as builder:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        grandchild = int((tmp_path / "pid").read_text())
        assert start_time(grandchild) is not None
        builder.send_signal(number)
        builder.communicate(timeout=20)
    assert builder.returncode != 0
    assert start_time(grandchild) is None
    assert list((tmp_path / "artefacts").iterdir()) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_build_outside_the_main_thread_works_too(tmp_path: Path) -> None:
    one = artefact("one")
    thread = threading.Thread(target=build, args=([one], Cache(tmp_path), quiet))
    thread.start()
    thread.join()
    assert one.is_built(Cache(tmp_path))


def test_the_progress_line_names_what_runs_how_long_and_how_long_it_takes() -> None:
    steps = [
        Step("a", "torch", 60, "building", 12.4),
        Step("b", "Helm", 120, "built", 100),
        Step("c", "x", 1, "waiting", 0),
    ]
    assert summary(steps) == "building (1 of 3 done): torch 12 s of about 60 s"
