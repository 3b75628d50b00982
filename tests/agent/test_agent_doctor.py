"""`holdfast-agent doctor`: what a machine gives, in words and as JSON, before training depends on it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast_agent import doctor, forms, memory
from holdfast_agent.forms import Form
from holdfast_agent.memory import MIB, Room
from holdfast_api.config import StorageConfig
from holdfast_store import direct
from holdfast_store.direct import Mode


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST")} | environ
    command = [sys.executable, "-m", "holdfast_agent", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean, check=False)


ROOM = Room(limit=1000 * MIB, used=100 * MIB, free_on_volume=5000 * MIB, in_memory=True)


def test_it_says_which_form_an_image_gets_and_what_would_fit():
    assert doctor.arena(ROOM, 1, 300 * MIB, 2).words == "two slots of 300 MiB"
    one = doctor.arena(ROOM, 1, 500 * MIB, 2)
    assert (one.ok, one.facts["form"]) == (True, "one-slot")
    assert "limits.memory of the trainer container to at least 1158Mi" in one.words
    none = doctor.arena(ROOM, 1, 950 * MIB, 2)
    assert not none.ok
    assert "not even one slot" in none.words
    unknown = doctor.arena(ROOM, 1, 0, 2)
    assert unknown.words.startswith("image of each rank: two-slots up to 424 MiB, one-slot up to 900 MiB")


@pytest.mark.parametrize("ranks", [1, 3, 8])
@pytest.mark.parametrize("form", Form)
def test_the_largest_image_fits_and_the_next_does_not(ranks, form):
    size = forms.largest(ROOM, form, ranks)
    assert size > 0
    most = form.slots
    assert forms.choose(ROOM, 0, {0: size}, {}, ranks, most).form is form
    more = dict.fromkeys(range(ranks), size + 1)
    total = sum(forms.rounded(s) for s in more.values()) * form.slots
    spare = ROOM.limit // forms.HEADROOM if form is Form.TWO_SLOTS else 0
    assert memory.missing(ROOM, total, total, spare=spare)


def test_a_directory_is_examined_as_run_would_use_it_and_nothing_is_left_behind(tmp_path):
    done = run("--local", str(tmp_path), "--image-mib", "3", "-o", "json")
    assert done.returncode == 0, done
    answer = json.loads(done.stdout)
    assert answer["ok"]
    checks = {c["name"]: c for c in answer["checks"]}
    assert checks.keys() == {"arena", "node", "store"}
    assert checks["arena"]["facts"]["form"] == "two-slots"
    assert checks["store"]["words"] == f"{tmp_path.as_uri()} answers"
    assert list(tmp_path.iterdir()) == []


def test_what_has_to_be_changed_is_said_and_ends_with_1(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--local", str(tmp_path / "file/absent"), "--image-mib", str(1 << 24))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith("BAD  arena  not even one slot for each rank fits")
    assert lines[2].startswith("BAD  store")
    assert lines[2].endswith(f"absent cannot be made: {tmp_path / 'file'} is no directory")


def test_a_directory_that_run_would_make_is_nothing_to_change(tmp_path):
    done = run("--local", str(tmp_path / "a/b"))
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[2] == f"ok   store  {tmp_path / 'a/b'} is not there yet: `run --local` makes it"
    assert list(tmp_path.iterdir()) == []


def test_outside_a_pod_it_says_what_is_missing():
    done = run()
    assert (done.returncode, done.stdout) == (71, "")
    assert "HOLDFAST_AGENT_CONFIG is not set" in done.stderr


def test_an_absurd_size_is_refused_by_name(tmp_path):
    done = run("--local", str(tmp_path), "--image-mib", "-1")
    assert (done.returncode, done.stdout) == (71, "")
    assert "--image-mib is -1" in done.stderr


def test_how_the_node_is_written_is_said_and_nothing_is_left_behind(tmp_path, monkeypatch):
    for mode, words in (
        (Mode(True, "ext4"), "ext4, direct"),
        (Mode(False, "tmpfs", "it lies in memory, not on a disk"), "tmpfs, buffered: it lies in memory, not on a disk"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(direct, "probe", lambda folder, mode=mode: mode)
            answer = doctor.direct_io(tmp_path)
        assert (answer.ok, answer.words) == (True, f"{tmp_path}: {words}")
        assert answer.facts["directIo"] is mode.direct
    assert doctor.direct_io(tmp_path).ok
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def refused(folder: Path) -> Mode:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(direct, "probe", refused)
    answer = doctor.direct_io(tmp_path)
    assert (answer.ok, answer.words) == (
        False,
        f"{tmp_path} cannot be written: Read-only file system: no copy is kept on the node",
    )


def test_a_store_of_no_known_kind_is_said_with_what_is_known():
    answer = doctor.store(StorageConfig("ftp://somewhere"), {})
    assert not answer.ok
    assert "this release reads s3://" in answer.words
