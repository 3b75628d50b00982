"""An export that is killed at any moment leaves nothing that looks whole, and nothing that is in the way of the next one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.foreign import JOB, call, stored

KILLED = Path(__file__).parent / "killed_exports.py"


def tries(folder: Path, *options: str) -> list[dict[str, Any]]:
    line = [sys.executable, str(KILLED), str(folder), "export", (folder / "bucket").as_uri(), *JOB, *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(said) for said in done.stdout.splitlines()]


@pytest.mark.parametrize("options", [["--max-shard-size", "60KB"], []], ids=["shards", "one file"])
def test_killed_before_any_call_the_target_is_whole_or_not_there(tmp_path: Path, options: list[str]) -> None:
    stored(tmp_path)
    found = tries(tmp_path, *options)
    whole = found[-1]["files"]
    assert len(whole) > (1 if options else 0)
    assert found[-1] == {"code": 0, "there": True, "files": whole, "left": 0}
    killed = found[:-1]
    assert len(killed) > 10
    assert {t["code"] for t in killed} == {-signal.SIGKILL}
    assert [t["files"] for t in killed if t["there"]] == [whole for t in killed if t["there"]], "whole, or not there"
    assert {t["there"] for t in killed} == {True, False}, "after the last rename it is there"
    assert any(t["left"] for t in killed)


def test_what_a_killed_export_has_left_is_named_and_in_nobodys_way(tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / ".holdfast-export-dead").mkdir()
    result = call("export", tmp_path / "bucket", "--to", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (said,) = result.stderr.splitlines()
    assert said.endswith(f"of no use: {tmp_path / '.holdfast-export-dead'}")
    assert (tmp_path / ".holdfast-export-dead").exists(), "it is not ours to remove"


def test_one_that_runs_is_not_taken_for_one_that_was_killed(tmp_path: Path) -> None:
    from holdfast_cli.export import beside, left_behind

    with beside(tmp_path / "out", None):
        assert len(list(tmp_path.glob(".holdfast-export-*"))) == 2
        assert left_behind(tmp_path) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["state-dict", "dcp"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_one_that_is_ended_while_torch_writes_leaves_no_target_and_no_process(
    tmp_path: Path, kind: str, how: signal.Signals
) -> None:
    """The converter is a process of its own: it ends with the command. It stands in `torch.save` while the signal comes."""
    stored(tmp_path)
    (tmp_path / "holdfast_stands.py").write_text(
        "import os, sys, time\nfrom holdfast.interop import outputs, __main__ as program\n"
        "def stands(*_, **__):\n    open(os.environ['HOME'] + '/stands', 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
        "outputs.torch.save = outputs.dcp.save = stands\nsys.exit(program.main())\n"
    )
    program = tmp_path / "python"  # what the command starts in place of Python
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/holdfast_stands.py\n")
    program.chmod(0o755)
    start = f"import sys; from holdfast_cli.__main__ import main; sys.executable = {str(program)!r}; sys.argv[0] = 'holdfast'; main()"
    line = [
        sys.executable,
        "-c",
        start,
        "export",
        (tmp_path / "bucket").as_uri(),
        *JOB,
        "--to",
        str(tmp_path / "target"),
        "-f",
        kind,
    ]
    running = subprocess.Popen(line, env={**os.environ, "HOME": str(tmp_path)}, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "stands").exists() or not (tmp_path / "stands").read_text():
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.05)
        running.send_signal(how)
        running.wait(60)
    finally:
        running.kill()
    assert not (tmp_path / "target").exists()
    converter = int((tmp_path / "stands").read_text())
    while (
        Path(f"/proc/{converter}/cmdline").exists()
        and b"holdfast_stands" in Path(f"/proc/{converter}/cmdline").read_bytes()
    ):
        assert time.monotonic() < until, "the converter outlives the command"
        time.sleep(0.05)
    assert bool(list(tmp_path.glob(".holdfast-export-*"))) == (how is signal.SIGKILL)
