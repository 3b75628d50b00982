"""Files to an image and back: every byte, mode, time, link and empty folder; nothing outside; nothing torn."""

import json
import mmap
import os
from pathlib import Path

import pytest
import safetensors.numpy

from holdfast_directory import packing
from holdfast_directory.packing import Changed, NotOurs
from holdfast_directory.survey import CannotKeep, survey
from holdfast_rank.image import STATE_NAME


@pytest.fixture
def out(tmp_path: Path) -> Path:
    root = tmp_path / "out"
    at = root / "checkpoint-5"
    (at / "sub" / "deeper").mkdir(parents=True)
    (at / "nothing here").mkdir()
    (at / "big.bin").write_bytes(os.urandom(3 << 20))
    (at / "sub" / "ünïcode \n name").write_bytes(b"x")
    (at / "sub" / "deeper" / "empty").touch()
    (at / "run.sh").write_text("#!/bin/sh\n")
    (at / "run.sh").chmod(0o750)
    (at / "link").symlink_to("sub/deeper/empty")
    os.utime(at / "run.sh", ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))
    (root / "latest").write_text("checkpoint-5")
    return root


def image_of(root: Path, name: str = "checkpoint-5") -> tuple[packing.Packed, bytes]:
    packed = packing.pack(survey(root, name), 5, survey(root, "latest").files, chunk_bytes=1 << 20)
    with mmap.mmap(-1, packed.layout.image_bytes) as memory:
        memory[:] = b"\xff" * len(memory)  # a slot holds what was in it before
        packing.fill(packed, root, memory)
        return packed, memory[:]


def tree(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for below, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(below) / name
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = ("link", os.readlink(path))
            elif path.is_dir():
                found[key] = "folder"
            else:
                found[key] = (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime_ns)
    return found


def test_what_comes_back_is_what_was_there(out: Path, tmp_path: Path) -> None:
    packed, image = image_of(out)
    document = packing.describe(image, packed.layout.entries)
    assert document["number"] == 5
    packing.unpack(document, image, packed.layout.entries, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(out)


def test_an_image_is_a_safetensors_file(out: Path, tmp_path: Path) -> None:
    _, image = image_of(out)
    tensors = safetensors.numpy.load(image)
    assert tensors["files/checkpoint-5/big.bin"].tobytes() == (out / "checkpoint-5" / "big.bin").read_bytes()


def test_equal_contents_are_equal_images(out: Path) -> None:
    assert image_of(out)[1] == image_of(out)[1]


@pytest.mark.parametrize("how", ["longer", "shorter", "same size", "replaced", "removed"])
def test_a_file_that_changes_after_it_was_seen_is_noticed(out: Path, how: str) -> None:
    packed = packing.pack(survey(out, "checkpoint-5"), 5, (), chunk_bytes=1 << 20)
    path = out / "checkpoint-5" / "big.bin"
    content = path.read_bytes()
    if how == "replaced":
        (out / "other").write_bytes(content)
        os.utime(out / "other", ns=(path.stat().st_mtime_ns,) * 2)
        (out / "other").replace(path)
    elif how == "removed":
        path.unlink()
    else:
        path.write_bytes({"longer": content + b"1", "shorter": content[:-1], "same size": b"1" + content[1:]}[how])
    with mmap.mmap(-1, packed.layout.image_bytes) as memory, pytest.raises((Changed, FileNotFoundError)):
        packing.fill(packed, out, memory)


def test_a_link_to_a_file_outside_is_kept_as_the_file(out: Path, tmp_path: Path) -> None:
    (tmp_path / "base.bin").write_bytes(b"base")
    (out / "checkpoint-5" / "base").symlink_to(tmp_path / "base.bin")
    packed, image = image_of(out)
    packing.unpack(packing.describe(image, packed.layout.entries), image, packed.layout.entries, tmp_path / "back")
    back = tmp_path / "back" / "checkpoint-5" / "base"
    assert not back.is_symlink()
    assert back.read_bytes() == b"base"


def test_what_cannot_be_kept_is_refused_by_name(out: Path, tmp_path: Path) -> None:
    os.mkfifo(out / "checkpoint-5" / "pipe")
    with pytest.raises(CannotKeep, match="checkpoint-5/pipe"):
        survey(out, "checkpoint-5")
    (out / "checkpoint-5" / "pipe").unlink()
    (out / "checkpoint-5" / "else").symlink_to(tmp_path)
    with pytest.raises(CannotKeep, match="checkpoint-5/else is a link to a folder outside"):
        survey(out, "checkpoint-5")
    (out / "checkpoint-5" / "else").unlink()
    (out / os.fsdecode(b"checkpoint-5/\xff")).touch()
    with pytest.raises(CannotKeep, match="not UTF-8"):
        survey(out, "checkpoint-5")


def edited(image: bytes, packed: packing.Packed, change: object) -> bytes:
    entry = next(e for e in packed.layout.entries if e.name == STATE_NAME)
    text = bytes(image[entry.offset_bytes : entry.offset_bytes + entry.length_bytes])
    document = json.loads(text)
    change(document)  # type: ignore[operator]
    new = json.dumps(document).encode().ljust(entry.length_bytes)
    return image[: entry.offset_bytes] + new + image[entry.offset_bytes + entry.length_bytes :]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "checkpoint-5/../../x", "", ".", "a//b", "a/./b", ".holdfast/x", "a\0b", 5, None]
)
@pytest.mark.parametrize("where", ["files", "links", "links to", "folders", "name"])
def test_a_path_that_leaves_the_directory_is_refused(out: Path, path: object, where: str) -> None:
    def change(document: dict) -> None:
        d = document["directory"]
        if where == "files":
            d["files"][0]["path"] = path
        elif where == "links":
            d["links"][0][0] = path
        elif where == "links to":
            d["links"][0] = ["checkpoint-5/l", "../../x" if path == "../x" else "/etc/passwd"]
        else:
            d[where] = [path] if where == "folders" else path

    packed, image = image_of(out)
    with pytest.raises((ValueError, TypeError)):
        packing.describe(edited(image, packed, change), packed.layout.entries)


def test_an_image_of_the_library_is_told_apart(out: Path) -> None:
    packed, image = image_of(out)
    other = edited(image, packed, lambda d: d.pop("directory"))
    with pytest.raises(NotOurs, match="made by the library"):
        packing.describe(other, packed.layout.entries)


def test_what_is_in_the_way_is_set_aside_and_again_does_the_same(out: Path, tmp_path: Path) -> None:
    packed, image = image_of(out)
    document = packing.describe(image, packed.layout.entries)
    for _ in range(2):
        packing.clear(out / ".holdfast" / "incoming")
        packing.unpack(document, image, packed.layout.entries, out / ".holdfast" / "incoming")
        (out / "checkpoint-5" / "big.bin").write_bytes(b"torn")
        (out / "checkpoint-6").mkdir()
        moved = packing.put_in_place(out, out / ".holdfast" / "incoming", document, iter(["checkpoint-6"]))
        assert moved == ["checkpoint-6", "checkpoint-5"]  # `latest` is the same
        assert (out / ".holdfast" / "aside" / "checkpoint-5" / "big.bin").read_bytes() == b"torn"
        assert len((out / "checkpoint-5" / "big.bin").read_bytes()) == 3 << 20
        assert (out / "latest").read_text() == "checkpoint-5"
        assert not (out / "checkpoint-6").exists()


def test_a_restore_that_is_cut_short_and_made_again_keeps_what_was_set_aside(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a checkpoint that is there already is not kept twice."""
    packed, image = image_of(out)
    document = packing.describe(image, packed.layout.entries)
    incoming, aside = out / ".holdfast" / "incoming", out / ".holdfast" / "aside"
    (out / "checkpoint-5" / "big.bin").write_bytes(b"torn")
    renames, rename = [], Path.rename

    def dies(self: Path, target: Path) -> Path:
        if target == out / "latest":
            raise SystemExit
        renames.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    packing.unpack(document, image, packed.layout.entries, incoming)
    with pytest.raises(SystemExit):
        packing.put_in_place(out, incoming, document, iter([]))
    assert out / "checkpoint-5" in renames
    monkeypatch.undo()
    for _ in range(2):
        packing.clear(incoming)
        packing.unpack(document, image, packed.layout.entries, incoming)
        assert packing.put_in_place(out, incoming, document, iter([])) == []
        assert (aside / "checkpoint-5" / "big.bin").read_bytes() == b"torn"
        assert len((out / "checkpoint-5" / "big.bin").read_bytes()) == 3 << 20
        assert not (out / ".holdfast" / "replaced").exists()


def test_a_link_to_nothing_is_refused_by_name(out: Path) -> None:
    """Not taken for a checkpoint that is being written: it would never be saved, and nobody would hear of it."""
    (out / "checkpoint-5" / "base").symlink_to("/nowhere/model.bin")
    with pytest.raises(CannotKeep, match=r"checkpoint-5/base is a link to /nowhere/model\.bin, which does not exist"):
        survey(out, "checkpoint-5")
