"""What every checkpoint says about its run: found out without being told, given, or "missing: " and why."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent

import holdfast
from holdfast import describe
from holdfast.describe import Dataset, History, fingerprint, flat
from holdfast_api import codec, names
from holdfast_api.manifest import MetricPoint
from holdfast_api.peers import Flushed


def captured(agent: FakeAgent, *, steps: int = 1, **described: Any) -> Any:
    """The message of the last capture of a run that was described so."""
    ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
    ckpt.describe(**described)
    ckpt.restore()
    for step in range(steps):
        ckpt.step(loss=1.0 / (step + 1))
    ckpt.finish()
    return agent.newest().message


def test_facts_are_found_out_without_being_told(agent: FakeAgent) -> None:
    run = captured(agent).run
    assert run["world"] == "1 ranks, 1 on each worker"
    assert f"torch=={torch.__version__.split('+')[0]}" in run["packages"]
    for name in ("git_commit", "git_dirty", "run_id", "dataset", "gpu", "driver", "device", "exact", "loop"):
        assert run[name], name


def test_what_is_missing_says_so_and_what_to_do(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(names.ENV_RUN_ID, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    run = captured(agent).run
    assert run["git_commit"] == f"missing: git cannot be started (FileNotFoundError); set {names.ENV_GIT_COMMIT}"
    assert run["run_id"].startswith("missing: describe(run_id=...)")
    assert run["dataset"].startswith("missing: describe(dataset=...)")


def test_the_machine_s_gpus_are_named_by_the_kernel_or_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe, "NVIDIA", tmp_path)
    assert (describe._gpu(), describe._driver()) == (
        "missing: no NVIDIA GPU on this machine",
        "missing: no NVIDIA driver on this machine",
    )
    for number, model in enumerate(["H100", "H100", "T4"]):
        (tmp_path / "gpus" / str(number)).mkdir(parents=True)
        (tmp_path / "gpus" / str(number) / "information").write_text(f"Model: \t\t NVIDIA {model}\nIRQ: 3\n")
    (tmp_path / "version").write_text("NVRM version: 1.2\nGCC\n")
    assert (describe._gpu(), describe._driver()) == ("2 x NVIDIA H100, 1 x NVIDIA T4", "NVRM version: 1.2")


def test_the_code_s_commit_and_whether_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    script = tmp_path / "train.py"
    monkeypatch.setattr("__main__.__file__", str(script), raising=False)
    monkeypatch.delenv(names.ENV_GIT_COMMIT, raising=False)
    assert describe._git()["git_commit"].startswith("missing: fatal: not a git repository")
    script.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    found = describe._git()
    assert (len(found["git_commit"]), found["git_dirty"]) == (40, "false")
    (tmp_path / "untracked").touch()
    assert describe._git()["git_dirty"] == "false"
    script.write_text("2")
    assert describe._git() == found | {"git_dirty": "true"}
    monkeypatch.setenv(names.ENV_GIT_COMMIT, "abc-dirty")
    assert describe._git() == {"git_commit": "abc", "git_dirty": "true"}


def test_a_git_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "git"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(describe, "GIT_SECONDS", 0.2)
    monkeypatch.delenv(names.ENV_GIT_COMMIT, raising=False)
    assert "took longer" in describe._git()["git_commit"]


def test_hyper_parameters_are_kept_by_dotted_name(agent: FakeAgent) -> None:
    message = captured(agent, config={"lr": 1e-3, "model": {"layers": 2, "norm": None}, "sizes": [1, 2], "empty": {}})
    assert message.config == {
        "lr": "0.001",
        "model.layers": "2",
        "model.norm": "null",
        "sizes": "[1, 2]",
        "empty": "{}",
    }


def test_odd_hyper_parameters_are_text_and_too_many_are_refused() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert flat({"f": float("nan"), "p": Path("/x")}) == {"f": '"nan"', "p": "\"PosixPath('/x')\""}
    assert len(flat(loop)) == 1
    assert flat({}) == {}
    with pytest.raises(ValueError, match=r"config has 7\d{4} characters; 65536 are kept"):
        flat({"data": "x" * 70_000})


def test_the_run_id_comes_from_whoever_knows_it(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.ENV_RUN_ID, "of the environment")
    assert captured(agent).run["run_id"] == "of the environment"
    assert captured(agent, run_id="given").run["run_id"] == "given"


def test_the_tail_of_the_metrics_is_bounded_and_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("holdfast.describe.time.monotonic", lambda: float(next(clock)))
    history = History()
    for boundary in range(100):
        history.note(boundary, {"loss": float(boundary)})
    assert [b for b, _ in history.points] == list(range(68, 100))
    monkeypatch.setattr("holdfast.describe.time.monotonic", lambda: 99.5)
    history.note(100, {"loss": 1.0})
    assert history.points[-1][0] == 99


def test_a_history_of_many_metrics_still_fits_into_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that did not fit would cost every save of a job with several workers."""
    monkeypatch.setattr(History, "SECONDS", 0.0)
    history, norms = History(), {f"grad_norm/model.layers.{i}.self_attn.q_proj.weight": i / 7 for i in range(3000)}
    for boundary in range(100):
        history.note(boundary, norms)
    points = tuple(MetricPoint(b, v) for b, v in history.points)
    assert points[-1].boundary == 99
    assert len(codec.to_json(Flushed(1, 1, (), metrics=norms, history=points))) < codec.MAX_MESSAGE_BYTES / 4


def test_the_history_is_in_the_record(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(History, "SECONDS", 0.0)
    message = captured(agent, steps=3)
    assert [(p.boundary, p.values) for p in message.history] == [
        (1, {"loss": 1.0}),
        (2, {"loss": 0.5}),
        (3, {"loss": 1 / 3}),
    ]


# Data files


def files(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"text {number}")
    return folder


def test_a_fingerprint_is_of_names_sizes_and_contents_and_not_of_where_they_lie(tmp_path: Path) -> None:
    first = fingerprint([files(tmp_path / "a", 3)])
    assert first == fingerprint([files(tmp_path / "b", 3)])
    assert (first.files, first.bytes) == (3, 18)
    assert fingerprint(sorted((tmp_path / "a").iterdir(), reverse=True)) == first
    (tmp_path / "a/1.txt").write_text("text X")
    assert fingerprint([tmp_path / "a"]).fingerprint != first.fingerprint
    with pytest.raises(ValueError, match="names no file"):
        fingerprint([])
    with pytest.raises(FileNotFoundError):
        fingerprint([tmp_path / "none"])


def test_fewer_data_files_than_before_are_refused_unless_that_was_allowed(agent: FakeAgent, tmp_path: Path) -> None:
    message = captured(agent, data_files=[files(tmp_path / "data", 4)])
    assert message.run["dataset"].endswith("(4 files, 24 bytes)")
    agent.restore_from = {0: [agent.newest()]}

    def start(**options: Any) -> int:
        ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
        ckpt.describe(data_files=tmp_path / "data")
        return ckpt.restore(**options)

    files(tmp_path / "data", 3)
    with pytest.raises(
        holdfast.RestoreError, match=r'3 files of 18 bytes here, 4 files of 24 .*allow=\("data-files",\)'
    ):
        start()
    assert start(allow=("data-files",)) == 1
    files(tmp_path / "data", 5)
    assert start() == 1, "more than before: the order of samples tells whether that matters"


def test_a_checkpoint_that_was_not_described_goes_on_with_one_that_is(agent: FakeAgent, tmp_path: Path) -> None:
    captured(agent)
    agent.restore_from = {0: [agent.newest()]}
    ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
    ckpt.describe(dataset="v1")
    assert ckpt.restore() == 1


def test_describing_too_late_or_twice_over_is_said() -> None:
    ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
    with pytest.raises(ValueError, match="give one of them"):
        ckpt.describe(dataset="x", data_files=["y"])
    ckpt.restore()
    with pytest.raises(RuntimeError, match="before restore"):
        ckpt.describe(run_id="late")


def test_a_data_set_that_knows_its_fingerprint_is_asked() -> None:
    class Loader:
        class dataset:
            _fingerprint = "f00"

    assert describe.of_loaders([object(), Loader()]) == Dataset("f00")
