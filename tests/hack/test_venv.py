"""The Python environment: one of the builds, stopped as cleanly as they are, never taken for complete when it is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hack import venv
from hack.cluster.artefacts.artefact import Artefact
from hack.cluster.build import build
from hack.cluster.cache import Cache
from hack.cluster.errors import ClusterError
from hack.cluster.paths import REPOSITORY
from hack.cluster.processes import start_time

#: `FAKE -m venv HOME` makes an environment whose python notes how pip was called.
FAKE = """#!/bin/sh
home=$3
mkdir -p "$home/bin" "$home/lib/python3.11/site-packages"
printf '#!/bin/sh\\necho "$@" >> "%s"\\n%s\\n' "$CALLS" "$SLEEP" > "$home/bin/python"
chmod +x "$home/bin/python"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip's calls are noted."""
    program = tmp_path / "python3.11"
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setattr(venv, "interpreter", lambda: str(program))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SLEEP", "")
    return tmp_path / "calls"


def test_it_needs_no_torch_to_be_made_only_the_path_where_torch_will_lie(tmp_path: Path, fake: Path) -> None:
    cache = Cache(tmp_path / "cache")
    part = venv.environment(cache, tmp_path / "torch-to-come")
    assert part.needs == (), "so it is built beside torch and Kubernetes"
    assert part.mostly_waits
    build([part], cache, lambda _: None)
    home = venv.python_of(part, cache).parents[1]
    (pth,) = home.glob("lib/*/site-packages/torch-cpu.pth")
    assert pth.read_text().strip() == str(tmp_path / "torch-to-come")
    assert [line.split()[4] for line in fake.read_text().splitlines()] == ["install"] * 3


def test_with_a_gpu_torch_is_installed_into_it(tmp_path: Path, fake: Path) -> None:
    cache = Cache(tmp_path / "cache")
    build([venv.environment(cache, None)], cache, lambda _: None)
    assert "requirements-torch.lock" in fake.read_text()
    assert not list((tmp_path / "cache").rglob("torch-cpu.pth"))


def test_a_complete_one_is_made_once_and_one_that_was_deleted_again(tmp_path: Path, fake: Path) -> None:
    cache = Cache(tmp_path / "cache")
    part = venv.environment(cache, tmp_path / "torch")
    build([part], cache, lambda _: None)
    calls = fake.read_text()
    venv.forget_if_lost(part, cache)
    build([part], cache, lambda _: None)
    assert fake.read_text() == calls
    (venv.python_of(part, cache).parents[1] / "complete").unlink()
    venv.forget_if_lost(part, cache)
    build([part], cache, lambda _: None)
    assert fake.read_text() == calls * 2


def test_pip_that_fails_leaves_no_half_environment_and_says_which_step_it_was(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEEP", "exit 3")
    cache = Cache(tmp_path / "cache")
    with pytest.raises(ClusterError, match="ended with 3"):
        build([venv.environment(cache, tmp_path / "torch")], cache, lambda _: None)
    assert not list((tmp_path / "cache").glob("venv-*"))


STOPPED = """
import sys
from pathlib import Path
from hack import venv
from hack.cluster.build import build
from hack.cluster.cache import Cache

venv.interpreter = lambda: sys.argv[2]
cache = Cache(Path(sys.argv[1]))
venv.said_in_one_line(lambda: build([venv.environment(cache, Path("/torch"))], cache))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_pip_runs_leaves_neither_programs_nor_half_an_environment(
    tmp_path: Path, fake: Path, number: signal.Signals
) -> None:
    pid = tmp_path / "pid"
    sleeps = f"sleep 60 & echo $! > {pid}.new; mv {pid}.new {pid}; wait"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SLEEP": sleeps}
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "cache"), str(tmp_path / "python3.11")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as builder:
        limit = time.monotonic() + 20
        while not pid.exists():
            assert time.monotonic() < limit
            time.sleep(0.02)
        assert list((tmp_path / "cache").glob("venv-*")), "half made"
        builder.send_signal(number)
        said = builder.communicate(timeout=20)[1]
    assert builder.returncode != 0
    assert "Traceback" not in said
    assert start_time(int(pid.read_text())) is None
    assert not list((tmp_path / "cache").glob("venv-*"))
    assert list((tmp_path / "cache" / "artefacts").iterdir()) == []


def test_what_the_machine_lacks_is_said_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr(venv, "build", lambda parts, *_: built.append(parts))

    def lacks() -> list[Artefact]:
        raise ClusterError("no Go: install Go")

    with pytest.raises(SystemExit) as end:
        venv.said_in_one_line(lambda: venv.ensure(lacks))
    assert end.value.code == "no Go: install Go"
    assert built == []


def test_everything_is_one_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Side by side, not one after the other."""
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(venv, "has_gpu", lambda: False)
    monkeypatch.setattr(venv.preflight, "require_toolchain", lambda *_: None)
    monkeypatch.setattr(venv, "python_of", lambda *_: tmp_path)
    built: list[list[str]] = []
    monkeypatch.setattr(venv, "build", lambda parts, *_: built.append([p.name for p in parts]))
    kube = Artefact(name="kube", what="", usual_seconds=1, made_from=(), make=lambda *_: None)
    venv.ensure(lambda: [kube])
    assert built == [["environment", "torch", "kube"]]
