"""`holdfast export`: what other tools read is, bit by bit, what was saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from holdfast_cli.export import hand_out
from holdfast_cli.safetensors_layout import Weight, shards
from holdfast_store.file import FileBucket
from tests.cli.foreign import call, same, stored


def test_one_safetensors_file_in_the_layout_of_hugging_face(tmp_path: Path) -> None:
    model, *_ = stored(tmp_path)
    result = call("export", tmp_path / "bucket", "--to", tmp_path / "out", "-o", "json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["checkpoint"], said["boundary"], said["files"], said["leftOut"]) == (
        "1/1",
        3,
        ["model.safetensors"],
        [],
    )
    file = tmp_path / "out" / "model.safetensors"
    assert same(dict(sorted(load_file(file).items())), dict(sorted(model.state_dict().items())))
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], "nothing is left"


def test_shards_have_an_index_and_keep_below_the_size(tmp_path: Path) -> None:
    model, *_ = stored(tmp_path)
    result = call("export", tmp_path / "bucket", "--to", tmp_path / "out", "--max-shard-size", "80KB")
    assert result.exit_code == 0, result.output
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 1
    whole = {}
    for name in files:
        part = load_file(tmp_path / "out" / name)
        assert {index["weight_map"][k] for k in part} == {name}
        whole |= part
    expected = model.state_dict()
    assert same(dict(sorted(whole.items())), dict(sorted(expected.items())))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())


def test_a_tensor_above_the_size_has_a_shard_of_its_own() -> None:
    sizes = [3, 3, 9, 1, 4]
    cut = shards([Weight(str(n), "U8", (s,), 0, s) for n, s in enumerate(sizes)], 6)
    assert [[w.length for w in shard] for shard in cut] == [[3, 3], [9], [1, 4]]


def test_a_plain_state_dict_needs_no_unpickling_and_keeps_ties(tmp_path: Path) -> None:
    model, *_ = stored(tmp_path)
    result = call("export", tmp_path / "bucket", "--to", tmp_path / "w.pt", "-f", "state-dict")
    assert result.exit_code == 0, result.output
    loaded = torch.load(tmp_path / "w.pt", weights_only=True)
    assert same(loaded, dict(model.state_dict()))
    assert loaded["embed.weight"].data_ptr() == loaded["out.weight"].data_ptr()
    assert (tmp_path / "w.pt").stat().st_size < 2 * sum(t.nbytes for t in loaded.values()), "not the whole image"


def test_everything_goes_into_one_file_by_part(tmp_path: Path) -> None:
    _, optimizer, scheduler = stored(tmp_path)
    result = call("export", tmp_path / "bucket", "--to", tmp_path / "all.pt", "-f", "state-dict", "--everything")
    assert result.exit_code == 0, result.output
    loaded = torch.load(tmp_path / "all.pt", weights_only=True)
    assert same(loaded["optimizer"], optimizer.state_dict())
    assert same(loaded["scheduler"], scheduler.state_dict())


def test_a_dcp_directory_is_read_by_torch(tmp_path: Path) -> None:
    model, optimizer, _ = stored(tmp_path)
    result = call("export", tmp_path / "bucket", "--to", tmp_path / "dcp", "-f", "dcp", "--everything")
    assert result.exit_code == 0, result.output
    loaded = _load_state_dict_from_keys(checkpoint_id=str(tmp_path / "dcp"))
    assert same(loaded["model"], dict(model.state_dict()))
    assert same(loaded["optimizer"]["state"]["0"], optimizer.state_dict()["state"][0])


def test_only_chunks_that_are_needed_are_read_and_a_bad_one_of_them_ends_it(tmp_path: Path) -> None:
    stored(tmp_path)
    chunks = list((tmp_path / "bucket").glob("local/*/checkpoints/*/*/chunks/*"))
    outcomes = set()
    for n, chunk in enumerate(chunks):
        content = chunk.read_bytes()
        chunk.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        result = call("export", tmp_path / "bucket", "--to", tmp_path / f"out{n}")
        outcomes.add(result.exit_code)
        if result.exit_code:
            assert chunk.name in result.stderr
            assert not (tmp_path / f"out{n}").exists()
        chunk.write_bytes(content)
    assert outcomes == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-shard-size", "five"], "write for example 5GB"),
        (["--max-shard-size", "0B"], "write for example 5GB"),
        (["--part", "head"], "the checkpoint's modules are model"),
        (["--everything"], "--format state-dict"),
        (["--to", "EXISTS"], "nothing is overwritten"),
        (["--to", "/nonexistent/out"], "No such file"),
        (["--checkpoint", "4/4"], "does not exist"),
    ],
)
def test_mistakes_are_answered_in_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    stored(tmp_path)
    (tmp_path / "exists").mkdir()
    arguments = [a if a != "EXISTS" else str(tmp_path / "exists") for a in arguments]
    result = call(
        "export", tmp_path / "bucket", *(() if "--to" in arguments else ("--to", tmp_path / "out")), *arguments
    )
    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_another_has_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "ours").write_text("ours")
    (tmp_path / "theirs").write_text("theirs")
    with pytest.raises(FileExistsError):
        hand_out(tmp_path / "ours", tmp_path / "theirs")
    assert (tmp_path / "theirs").read_text() == "theirs"
    hand_out(tmp_path / "ours", tmp_path / "free")
    assert (tmp_path / "free").read_text() == "ours"


def test_everything_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made" / "below").mkdir(parents=True)
    (tmp_path / "made" / "below" / "file").write_text("x")
    flushed = []

    def fsync(fd: int) -> None:
        assert Path(os.readlink(f"/proc/self/fd/{fd}")) == tmp_path or not (tmp_path / "to").exists()
        flushed.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    hand_out(tmp_path / "made", tmp_path / "to")
    assert flushed == ["below", "file", "made", tmp_path.name]


def test_a_wrong_target_leaves_nothing_in_the_scratch_folder(tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / "scratch").mkdir()
    assert (
        call("export", tmp_path / "bucket", "--to", "/nonexistent/out", "--scratch", tmp_path / "scratch").exit_code
        == 2
    )
    assert not list((tmp_path / "scratch").iterdir())


def test_the_command_line_imports_no_torch_and_safetensors_need_none(tmp_path: Path) -> None:
    stored(tmp_path)
    program = (
        "import sys; sys.modules['torch'] = None; from holdfast_cli.__main__ import app; "
        f"app(['export', '{(tmp_path / 'bucket').as_uri()}', '-n', 'local', '-j', 'run', '--to', '{tmp_path / 'out'}'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_checkpoint_of_another_maker_is_refused(tmp_path: Path) -> None:
    from worlds import World

    (tmp_path / "bucket").mkdir()
    World(FileBucket(tmp_path / "bucket")).claimed(1).saved(1, 1)
    result = call("export", tmp_path / "bucket", "--to", tmp_path / "out", "--namespace", "ns", "--job", "job")
    assert result.exit_code == 1
    assert "was not made by the holdfast library" in result.stderr
