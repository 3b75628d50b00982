"""The environment of the benchmark's peers: made beside the project's own, which it finds and does not repeat."""

import sys
from pathlib import Path

import pytest

from hack import peers, venv
from hack.cluster.build import build
from hack.cluster.cache import Cache

FAKE = """#!/bin/sh
home=$3
mkdir -p "$home/bin" "$home/lib/python3.11/site-packages"
printf '#!/bin/sh\\necho "$@" >> "%s"\\n%s\\n' "$CALLS" "$THEN" > "$home/bin/python"
chmod +x "$home/bin/python"
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "python3.11"
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setattr(peers, "interpreter", lambda: str(program))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("THEN", "")
    monkeypatch.setenv("HOLDFAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "calls"


def test_it_installs_what_the_lock_names_by_hash_and_finds_the_rest(tmp_path: Path, calls: Path) -> None:
    cache = Cache(tmp_path / "cache")
    part = peers.environment(cache, Path("/project"), ("/project/site-packages", "/torch"))
    build([part], cache, lambda _: None)
    assert "--no-deps --require-hashes" in calls.read_text()
    home = venv.python_of(part, cache).parents[1]
    (pth,) = home.glob("lib/*/site-packages/project.pth")
    assert pth.read_text().splitlines() == ["/project/site-packages", "/torch"]


def test_torch_is_not_in_the_lock_so_it_is_never_there_twice() -> None:
    names = {line.split("==")[0] for line in peers.LOCK.read_text().splitlines() if "==" in line}
    assert not {n for n in names if n == "torch" or n.startswith("nvidia-cu")}
    assert {
        "torchsnapshot",
        "torch-checkpointing",
        "s3torchconnector",
        "dlrover",
        "transformers",
        "s5cmd",
        "awscrt",
    } <= names


def test_peers_that_cannot_be_installed_are_a_reason_and_no_failure(
    calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEN", "exit 3")
    monkeypatch.setattr(sys, "prefix", "/project")
    python, reason = peers.ensure()
    assert python is None
    assert "could not be installed" in reason
