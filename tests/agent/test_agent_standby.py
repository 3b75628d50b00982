"""A process that was started ahead (standby.py) is the one that would have been started: the same script, arguments, environment, exit and last words."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_agent import standby
from holdfast_agent.launcher import Launcher, Process
from holdfast_agent.spawning import RankSpec
from holdfast_agent.standby import script_of
from holdfast_api.messages import AgentPhase
from tests.agent.conftest import eventually

SPEC = RankSpec(3, 1, 4, 2, 1, 7, "10.0.0.1", 29507, "/run/socket")
TELLS = """
import json, os, sys, beside
out = {"pid": os.getpid(), "argv": sys.argv, "name": __name__, "file": __file__, "path": sys.path[0], "in": os.readlink("/proc/self/fd/0"), "cwd": os.getcwd(),
       "environment": dict(os.environ), "main": sys.modules["__main__"].__dict__ is globals(), "imported": "colorsys" in sys.modules}
open(sys.argv[1], "w").write(json.dumps(out))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(standby, "MODULES", ("colorsys", "no_such_module"))


@pytest.fixture
def script(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "beside.py").write_text("")
    (folder / "train.py").write_text(TELLS)
    return folder / "train.py"


async def ended(process: Process) -> int:
    return await asyncio.wait_for(process.ended, 60)


def launcher() -> Launcher:
    return Launcher(asyncio.get_running_loop())


def told(path) -> dict:
    return json.loads(path.read_text())


def without(found: dict, *names: str) -> dict:
    return {k: v for k, v in found.items() if k not in names}


async def test_what_waited_runs_the_script_as_python_would_have(script, tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_POD_UID", "secret to ranks")
    monkeypatch.setenv("OF_THE_USER", "kept")
    command = (sys.executable, "-u", str(script))
    launch = launcher()
    cold = launch.start(SPEC, (*command, str(tmp_path / "cold"), "--x"))
    assert await ended(cold) == 0
    launch.prepare([0, 1], (*command, str(tmp_path / "warm"), "--x"))
    waiting = {p.popen.pid for p in launch._standby.values()}
    warm = launch.start(SPEC, (*command, str(tmp_path / "warm"), "--x"))
    assert await ended(warm) == 0
    a, b = told(tmp_path / "cold"), told(tmp_path / "warm")
    assert b["pid"] == warm.popen.pid
    assert b["pid"] in waiting
    assert (warm.rank, b["environment"]["RANK"], b["environment"]["HOLDFAST_ATTEMPT"]) == (3, "3", "7")
    assert (a["imported"], b["imported"]) == (False, True)
    assert b["argv"] == [str(script), str(tmp_path / "warm"), "--x"]
    assert without(a, "pid", "argv", "imported") == without(b, "pid", "argv", "imported")
    assert "HOLDFAST_POD_UID" not in b["environment"]
    assert b["main"]
    for process in launch._standby.values():
        launch.kill([process])


async def test_children_that_import_the_main_module_find_it(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import multiprocessing as m, sys\n"
        "def work(x):\n    open(sys.argv[1] if len(sys.argv) > 1 else x, 'w').write('done')\n"
        "if __name__ == '__main__':\n    p = m.get_context('spawn').Process(target=work, args=(sys.argv[1],))\n"
        "    p.start()\n    p.join()\n    sys.exit(p.exitcode)\n"
    )
    command, launch = (sys.executable, str(script), str(tmp_path / "out")), launcher()
    launch.prepare([1], command)
    assert await ended(launch.start(SPEC, command)) == 0
    assert (tmp_path / "out").read_text() == "done"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("raise ValueError('the loss is gone')", 1, "ValueError: the loss is gone"),
        ("import sys; sys.exit(7)", 7, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("def f(:", 1, "SyntaxError"),
    ],
)
async def test_it_ends_as_the_script_ends_and_its_last_words_are_kept(tmp_path, body, status, words):
    script = tmp_path / "train.py"
    script.write_text(body)
    command, launch = (sys.executable, str(script)), launcher()
    launch.prepare([1], command)
    process = launch.start(SPEC, command)
    assert await ended(process) == status
    while words not in process.last_words:
        await asyncio.sleep(0.01)


async def test_a_script_that_is_not_there_is_reported_as_python_does(tmp_path):
    command, launch = (sys.executable, str(tmp_path / "none.py")), launcher()
    launch.prepare([1], command)
    assert await ended(launch.start(SPEC, command)) == 2


async def test_one_that_died_waiting_is_replaced_by_a_plain_start(script, tmp_path):
    command, launch = (sys.executable, str(script), str(tmp_path / "out")), launcher()
    launch.prepare([1], command)
    (dead,) = launch._standby.values()
    os.kill(dead.popen.pid, signal.SIGKILL)
    assert await ended(dead) == -signal.SIGKILL
    process = launch.start(SPEC, command)
    assert process is not dead
    assert await ended(process) == 0
    assert told(tmp_path / "out")["imported"] is False


async def test_each_is_used_once_and_one_that_waits_is_not_doubled(script, tmp_path):
    command, launch = (sys.executable, str(script), str(tmp_path / "out")), launcher()
    launch.prepare([1], command)
    launch.prepare([1], command)
    (waiting,) = launch._standby.values()
    assert launch.start(SPEC, command) is waiting
    second = launch.start(replace(SPEC, attempt=8), command)
    assert second is not waiting
    assert [await ended(p) for p in (waiting, second)] == [0, 0]
    launch.prepare([1], command)
    assert [p.popen.pid for p in launch._standby.values()] != [waiting.popen.pid]
    launch.kill(list(launch._standby.values()))


async def test_who_waits_ends_with_the_agent(script):
    launch = launcher()
    launch.prepare([1], (sys.executable, str(script)))
    (waiting,) = launch._standby.values()
    waiting.popen.stdin.close()  # as the kernel does
    assert await ended(waiting) == 0


@pytest.mark.parametrize(
    "command",
    [
        ("torchrun", "train.py"), ("python", "-m", "train"), ("python", "-c", "x.py"), ("sh", "-c", "python train.py"), ("python",), (),
        ("python", "-u"), ("python", "-X", "dev", "train.py"), ("holdfast-directory", "--", "python", "train.py"), ("python", "folder"),
        ("python2", "train.py"), ("/usr/bin/python3-dbg", "train.py"),
    ],
)  # fmt: skip
def test_what_only_the_command_itself_can_start_is_not_prepared(command):
    assert script_of(command) is None


def test_what_can_be_prepared():
    assert script_of(("/usr/bin/python3.11", "-u", "a/train.py", "-m", "x")).command == ("a/train.py", "-m", "x")
    assert script_of(("python", "train.py")).python == ("python",)


async def test_a_command_that_cannot_be_prepared_starts_as_ever(tmp_path):
    command, launch = (sys.executable, "-c", "raise SystemExit(5)"), launcher()
    launch.prepare([1], command)
    assert not launch._standby
    assert await ended(launch.start(SPEC, command)) == 5


# ---- whole agents


def waiting(agent: int) -> set[int]:
    """Children of the agent that were started ahead, whatever they are by now."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return {int(c) for c in children if standby.PROGRAM in Path(f"/proc/{c}/cmdline").read_text()}


def in_wait(gang, worker: int, besides: frozenset[int] = frozenset()) -> int:
    """The one that waits in this worker's pod now."""
    (found,) = eventually(lambda: waiting(gang.pods[worker].process.pid) - besides, f"one waits in worker {worker}")
    return found


def test_ranks_wait_in_a_pod_without_an_attempt_and_beside_those_that_train(gang, tmp_path):
    """F5: a replacement's, while the old pod saves; a survivor's, for its start in place."""
    (tmp_path / "stub/torch").mkdir(parents=True)
    (tmp_path / "stub/torch/__init__.py").write_text("raise ImportError('this trainer needs none')")
    path = os.pathsep.join([str(tmp_path / "stub"), *filter(None, [os.environ.get("PYTHONPATH")])])
    g = gang(config={"warm_start": True}, environ={"PYTHONPATH": path}).start()
    first = {w: in_wait(g, w) for w in (0, 1)}
    g.begin().wait_for_commit(10)
    second = in_wait(g, 0, frozenset({first[0]}))
    assert first[0] in waiting(g.pods[0].process.pid), "it is the rank now"
    g.notice(1)
    g.wait_for_phase(AgentPhase.SEALED)
    sealed = g.commits()[-1]
    g.pods[1].kill(signal.SIGTERM)
    assert g.pods[1].wait() == 72
    g.new_pod(1)
    replacement = in_wait(g, 1)
    g.begin().wait_for_commit(sealed[1] + 10)
    assert waiting(g.pods[0].process.pid) >= {second}, "the survivor's rank"
    assert first[0] not in waiting(g.pods[0].process.pid)
    assert replacement in waiting(g.pods[1].process.pid)


def test_who_waits_ends_with_a_job_that_ends_well(gang):
    g = gang(
        trainer=("35",),
        workers=1,
        config={"warm_start": True},
        environ={"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    g.start()
    agent = g.pods[0].process.pid
    in_wait(g, 0)
    g.begin()
    known = set()

    def over() -> bool:
        nonlocal known
        if g.pods[0].process.poll() is None:
            with contextlib.suppress(OSError):
                known |= waiting(agent)
            return False
        return True

    eventually(over, "the job ends")
    assert g.pods[0].wait() == 0
    assert known
    eventually(lambda: not any(Path(f"/proc/{p}").exists() for p in known), "nobody is left")


def test_nobody_waits_unless_it_was_asked_for(gang):
    g = gang().start().begin()
    g.wait_for_commit(10)
    assert not waiting(g.pods[0].process.pid)
