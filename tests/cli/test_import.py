"""`holdfast import`: what other tools have saved becomes a checkpoint that a job resumes from, bit by bit, and a stranger's pickle runs nothing."""

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed import checkpoint as dcp

from holdfast.errors import RestoreError
from holdfast.interop import imported, pickles
from holdfast.interop.errors import Refused
from holdfast.interop.found import by_form
from holdfast.state import Registry
from tests.cli.foreign import Net, call, same, stored, trained

RESUME = Path(__file__).parent / "resume_imported.py"


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    directory = tmp_path / "bucket"
    directory.mkdir()
    return directory


def brought(bucket: Path, *arguments: str | Path) -> dict[str, Any]:
    result = call("import", bucket, "-o", "json", "--chunk-mib", "1", *arguments)
    assert result.exit_code == 0, result.output
    said: dict[str, Any] = json.loads(result.stdout)
    return said


def taken_out(bucket: Path, uid: str, to: Path) -> dict[str, Any]:
    """Everything that an import has made, through the export."""
    result = call("export", bucket, "--uid", uid, "--to", to, "-f", "state-dict", "--everything")
    assert result.exit_code == 0, result.output
    loaded: dict[str, Any] = torch.load(to, weights_only=True)
    return loaded


def refused(bucket: Path, *arguments: str | Path) -> str:
    result = call("import", bucket, *arguments)
    assert result.exit_code in (1, 2, 3), result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert not list(bucket.glob("local/*/checkpoints/*/*/commit.json")), "nothing was made"
    return str(result.stderr)


@pytest.mark.parametrize("form", ["safetensors", "shards", "state-dict", "dcp"])
def test_weights_go_out_and_in_again_bit_by_bit(tmp_path: Path, bucket: Path, form: str) -> None:
    model, *_ = stored(tmp_path)
    kind = "safetensors" if form == "shards" else form
    size = ["--max-shard-size", "60KB"] if form == "shards" else []
    assert call("export", bucket, "--to", tmp_path / "out", "-f", kind, *size).exit_code == 0
    said = brought(bucket, "--from", tmp_path / "out")
    assert (said["format"], said["parts"], said["boundary"]) == (kind, ["model"], 0)
    assert same(taken_out(bucket, said["jobUid"], tmp_path / "again.pt")["model"], dict(model.state_dict()))


@pytest.mark.parametrize("kind", ["state-dict", "dcp"])
def test_everything_goes_out_and_in_again(tmp_path: Path, bucket: Path, kind: str) -> None:
    model, optimizer, scheduler = stored(tmp_path)
    assert call("export", bucket, "--to", tmp_path / "out", "-f", kind, "--everything").exit_code == 0
    said = brought(bucket, "--from", tmp_path / "out")
    loaded = taken_out(bucket, said["jobUid"], tmp_path / "again.pt")
    assert same(loaded["model"], dict(model.state_dict()))
    assert same(loaded["optimizer"], optimizer.state_dict())
    assert same(loaded["scheduler"], scheduler.state_dict())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_job_resumes_from_what_was_imported(tmp_path: Path, bucket: Path, ranks: int) -> None:
    model, optimizer, scheduler = trained()
    whole = {"net": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(whole, tmp_path / "theirs.pt")
    said = brought(
        bucket,
        "--from",
        tmp_path / "theirs.pt",
        "--part",
        "net=model",
        "--boundary",
        "3",
        "--ranks",
        str(ranks),
        "--anew",
        "best",
    )
    done = resumed(tmp_path, bucket, ranks, said["jobUid"])
    assert done.returncode == 0, done.stderr
    for rank in range(ranks):
        first = torch.load(tmp_path / f"first-{rank}.pt", weights_only=True)
        assert (first["boundary"], first["best"]) == (3, 7)
        assert same(first["model"], dict(model.state_dict()))
        assert same(first["optimizer"], optimizer.state_dict())
        assert same(first["scheduler"], scheduler.state_dict())
    again = resumed(tmp_path, bucket, ranks, said["jobUid"])
    assert again.returncode == 0, again.stderr
    assert torch.load(tmp_path / "first-0.pt", weights_only=True)["boundary"] == 5, "its own checkpoints come first"


def resumed(tmp_path: Path, bucket: Path, ranks: int, uid: str) -> subprocess.CompletedProcess[str]:
    agent = [
        sys.executable,
        "-m",
        "holdfast_agent",
        "run",
        "--local",
        str(bucket),
        "--processes",
        str(ranks),
        "--resume-from",
        uid,
    ]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*agent, "--", sys.executable, str(RESUME), str(tmp_path)],
        capture_output=True,
        text=True,
        env=kept,
        timeout=240,
    )


def test_what_the_files_lack_must_be_named_or_the_start_is_refused(tmp_path: Path, bucket: Path) -> None:
    model, *_ = trained()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    said = brought(bucket, "--from", tmp_path / "weights.pt")
    done = resumed(tmp_path, bucket, 1, said["jobUid"])
    assert done.returncode != 0
    assert "registered here but not in the checkpoint: ['best', 'optimizer', 'scheduler']" in done.stderr


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch was-run",)


@pytest.mark.parametrize("trust", [[], ["--i-trust-this-file"]])
def test_code_in_a_pickle_is_never_run(
    tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch, trust: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, *_ = trained()
    torch.save({"model": model.state_dict(), "evil": Evil(), "hooks": [Evil()]}, tmp_path / "evil.pt")
    if not trust:
        said = refused(bucket, "--from", tmp_path / "evil.pt")
        assert "--i-trust-this-file" in said
        assert "system" in said, "what it would have called"
    else:
        taken = brought(bucket, "--from", tmp_path / "evil.pt", *trust)
        assert taken["parts"] == ["model"]
        assert any("evil" in d for d in taken["dropped"])
    assert not (tmp_path / "was-run").exists()


def test_neither_is_code_in_the_metadata_of_a_dcp_directory(
    tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "dcp"
    directory.mkdir()
    (directory / ".metadata").write_bytes(pickle.dumps(Evil()))
    assert "names posix.system" in refused(bucket, "--from", directory)
    assert not (tmp_path / "was-run").exists()


def test_a_dcp_directory_that_points_outside_is_refused(tmp_path: Path, bucket: Path) -> None:
    dcp.save({"model": {"w": torch.ones(3)}}, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    file = tmp_path / "dcp" / ".metadata"
    (name,) = [p.name for p in (tmp_path / "dcp").glob("*.distcp")]
    file.write_bytes(file.read_bytes().replace(name.encode(), b"../" + name[3:].encode()))
    assert "outside of the directory" in refused(bucket, "--from", tmp_path / "dcp")


def test_neither_is_its_pointing_outside_by_a_path_that_says_another_name(tmp_path: Path, bucket: Path) -> None:
    for name in ("dcp", "elsewhere"):
        dcp.save({"model": {"w": torch.ones(3)}}, checkpoint_id=str(tmp_path / name), no_dist=True)
    file = tmp_path / "dcp" / ".metadata"
    metadata = pickle.loads(file.read_bytes())  # our own
    for info in metadata.storage_data.values():
        info.relative_path = TwoFaced(f"../elsewhere/{info.relative_path}", info.relative_path)
    file.write_bytes(pickle.dumps(metadata))
    assert "which is no name" in refused(bucket, "--from", tmp_path / "dcp")


class TwoFaced:
    """A path that is one file and prints as another."""

    def __init__(self, path: str, said: str) -> None:
        self.path, self.said = path, said

    def __reduce__(self) -> Any:
        return PurePosixPath, (self.path,), (None, {"_str": self.said})


@pytest.mark.parametrize(
    "name", ["collections Counter", "torch._utils _rebuild_tensor_v2", "torch.storage UntypedStorage"]
)
def test_a_file_changes_no_class_or_function_of_the_reader(tmp_path: Path, name: str) -> None:
    """torch writes NAME.patch for a class of an old file that is flagged so and whose source is another: with both set by the file, where it likes."""
    module, kind = name.split()
    target, victim = f"c{module}\n{kind}\n".encode(), tmp_path / "written"

    def text(value: str) -> bytes:
        return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()

    change = target + b"N}(" + text("dump_patches") + b"\x88" + text("__name__") + text(str(victim)) + b"u\x86b0"
    program = (
        b"\x80\x02" + change + b"(" + text("module") + target + text("x.py") + text("the file's own text") + b"tQ."
    )
    head = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True})
    file = tmp_path / "old.pt"
    file.write_bytes(b"".join(pickle.dumps(x, protocol=2) for x in head) + program + pickle.dumps([], protocol=2))
    with pytest.raises(Refused, match="would change"):
        pickles.read(file, trusted=True)
    assert not victim.with_suffix(".patch").exists()


def test_modules_that_lie_beside_the_files_are_not_imported(
    tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has unpacked a download and stands in it."""
    torch.save(Net().state_dict(), tmp_path / "x.pt")
    for name in ("torch", "safetensors", "random"):
        (tmp_path / f"{name}.py").write_text("open('was-run', 'w')")
    monkeypatch.chdir(tmp_path)
    brought(bucket, "--from", "x.pt")
    assert not (tmp_path / "was-run").exists()


def test_a_part_of_another_kind_refuses_the_start_in_words() -> None:
    model = torch.nn.Linear(2, 2)
    theirs = {"model": model.state_dict() | {"steps": 5}, "optimizer": {"w": torch.ones(1)}}
    captured = imported.document_of(by_form("state-dict", theirs, ""), [], seed=0)
    registered = {"model": model, "optimizer": torch.optim.SGD(model.parameters())}
    with pytest.raises(RestoreError) as refusal:
        Registry(registered).compare(captured.document, captured.leaves.tensors)
    assert "model is a module here, and not in the checkpoint" in str(refusal.value)
    assert "optimizer is an optimizer here, and not in the checkpoint" in str(refusal.value)


def test_names_may_be_exchanged_and_what_is_left_out_makes_room_for_another(tmp_path: Path, bucket: Path) -> None:
    theirs = {"model": {"w": torch.zeros(2)}, "ema": {"w": torch.ones(2)}}
    for order in (theirs, dict(reversed(theirs.items()))):
        torch.save(order, tmp_path / "x.pt")
        said = brought(bucket, "--from", tmp_path / "x.pt", "--part", "model=ema", "--part", "ema=model")
        both = taken_out(bucket, said["jobUid"], tmp_path / f"{said['jobUid']}.pt")
        assert (both["model"]["w"].tolist(), both["ema"]["w"].tolist()) == ([1, 1], [0, 0])
        said = brought(bucket, "--from", tmp_path / "x.pt", "--leave-out", "model", "--part", "ema=model")
        only = taken_out(bucket, said["jobUid"], tmp_path / f"{said['jobUid']}.pt")
        assert same(only, {"model": theirs["ema"]})


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the room being taken first, the write through the mapping would end the process by SIGBUS."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    torch.save(Net().state_dict(), tmp_path / "x.pt")
    monkeypatch.setattr(os, "posix_fallocate", full)
    request = {
        "source": str(tmp_path / "x.pt"), "name": "model", "renames": {}, "leave_out": [], "anew": [], "ranks": 1, "boundary": None, "seed": 0,
        "trusted": False, "chunk_bytes": 1 << 20, "scratch": str(tmp_path),
    }  # fmt: skip
    with pytest.raises(OSError, match="No space left"):
        imported.convert(request, lambda _done, _total: None)


def test_a_lightning_file_brings_weights_optimizer_scheduler_and_step(tmp_path: Path, bucket: Path) -> None:
    model, optimizer, scheduler = trained()
    whole = {
        "pytorch-lightning_version": "2.6.6", "state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()], "global_step": 3, "epoch": 1, "callbacks": {"x": {"best": 1}}, "hyper_parameters": {},
    }  # fmt: skip
    torch.save(whole, tmp_path / "last.ckpt")
    said = brought(bucket, "--from", tmp_path / "last.ckpt")
    assert (said["format"], said["boundary"], said["dropped"]) == ("lightning", 3, ["callbacks"])
    loaded = taken_out(bucket, said["jobUid"], tmp_path / "again.pt")
    assert same(
        loaded,
        {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()},
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a file of torch.save"),
        (b"PK\x03\x04 and nothing", "not a file of torch.save"),
        (b"\x80\x05garbage", "not a file of torch.save"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, bucket: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    assert said in refused(bucket, "--from", tmp_path / "x.pt")


def test_other_mistakes_are_one_sentence_too(tmp_path: Path, bucket: Path) -> None:
    model, *_ = trained()
    torch.save({"model": model.state_dict()}, tmp_path / "x.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 40)
    save_file({"a": torch.ones(2)}, tmp_path / "empty-not.safetensors")
    for arguments, said in [
        (["--from", tmp_path / "nothing"], "does not exist"),
        (["--from", tmp_path / "empty"], "is a directory without"),
        (["--from", tmp_path / "bad.safetensors"], "no safetensors file"),
        (["--from", tmp_path / "x.pt", "--part", "nett=model"], "the files hold model"),
        (["--from", tmp_path / "x.pt", "--part", "nett"], "write FOUND=NAME"),
        (["--from", tmp_path / "x.pt", "--leave-out", "model"], "nothing is left"),
        (["--from", tmp_path / "x.pt", "--anew", "model"], "which the files hold"),
        (["--from", tmp_path / "x.pt", "--uid", "no/uid"], "is not a uid"),
        (["--from", tmp_path / "x.pt", "--scratch", "/nonexistent"], "No such file"),
    ]:
        assert said in refused(bucket, *arguments)


def test_it_never_writes_into_a_job_that_has_begun(tmp_path: Path) -> None:
    stored(tmp_path)
    torch.save(Net().state_dict(), tmp_path / "x.pt")
    result = call("import", tmp_path / "bucket", "--from", tmp_path / "x.pt", "--uid", "uid-1")
    assert result.exit_code == 3
    assert "has checkpoints or attempts already" in result.stderr


def test_the_reader_gets_no_credentials(tmp_path: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nenv > {tmp_path}/environment\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    torch.save(Net().state_dict(), tmp_path / "x.pt")
    brought(bucket, "--from", tmp_path / "x.pt")
    assert "secret" not in (tmp_path / "environment").read_text()


def test_help_says_what_the_flag_does(bucket: Path) -> None:
    assert "inert stand-ins" in " ".join(call("import", bucket, "--help").stdout.replace("│", " ").split())
