"""The files of a checkpoint as an image, which is a `.safetensors` file of bytes, one tensor a file (J1); and back.

files/checkpoint-500/model.safetensors   uint8 [n]
files/latest                             uint8 [4]
holdfast.state.json                      {"directory": {"schema": 1, "name": ..., "number": ..., "files": [...], "links": [...], "folders": [...]}}
"""

import json
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from holdfast_api.manifest import TensorEntry
from holdfast_directory.finding import OWN
from holdfast_directory.survey import CannotKeep, File, Survey, survey
from holdfast_rank.image import STATE_NAME, Item, Layout, Tier, lay_out, state_capacity

PREFIX = "files/"
PIECE_BYTES = 8 << 20


class Changed(Exception):
    """The script has written to it while it was copied: it was not whole."""


class NotOurs(Exception):
    """The image is not one of directory mode."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What is to be copied, and where to."""

    survey: Survey
    beside: tuple[File, ...]
    """Pointer files, which lie above the checkpoint."""
    document: bytes
    layout: Layout

    @property
    def files(self) -> tuple[File, ...]:
        return self.survey.files + self.beside


def pack(survey: Survey, number: int | None, beside: Sequence[File], *, chunk_bytes: int) -> Packed:
    """The layout. Raises ValueError where the names of the files make a header that safetensors does not read."""
    files = [*survey.files, *beside]
    document = {
        "directory": {
            "schema": 1,
            "name": survey.name,
            "number": number,
            "files": [{"path": f.path, "mode": f.mode, "mtime_ns": f.mtime_ns} for f in files],
            "links": [list(pair) for pair in survey.links],
            "folders": list(survey.folders),
        }
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    items = [Item(PREFIX + f.path, "uint8", (f.size,), 1, Tier.TRAINABLE) for f in files]
    layout = lay_out(items, state_bytes=state_capacity(len(text)), chunk_bytes=chunk_bytes)
    return Packed(survey, tuple(beside), text, layout)


def fill(packed: Packed, root: Path, memory: mmap.mmap) -> None:
    """Copies everything into the slot. Raises Changed if a file is not what the survey saw, before or after; OSError."""
    layout = packed.layout
    memory[: len(layout.header)] = layout.header
    for offset, length in layout.fillers:
        memory[offset : offset + length] = bytes(length)
    at = {e.name: e for e in layout.entries}
    state = at[STATE_NAME]
    memory[state.offset_bytes : state.offset_bytes + state.length_bytes] = packed.document.ljust(state.length_bytes)
    with memoryview(memory) as view:
        for file in packed.files:
            entry = at[PREFIX + file.path]
            _read(root / file.path, file, view, entry.offset_bytes)


def describe(memory: mmap.mmap | bytes, entries: Sequence[TensorEntry]) -> dict[str, Any]:
    """The document of an image that is to be restored, checked. Raises NotOurs; ValueError, KeyError, TypeError where it makes no sense."""
    state = next((e for e in entries if e.name == STATE_NAME), None)
    if state is None:
        raise NotOurs("the checkpoint holds no state of its own")
    document = json.loads(bytes(memory[state.offset_bytes : state.offset_bytes + state.length_bytes]))
    found = document.get("directory")
    if found is None:
        raise NotOurs(
            "the checkpoint was made by the library (holdfast.Checkpointer), not in directory mode: "
            "run the script that made it, or start a job of another name"
        )
    if found["schema"] != 1:
        raise NotOurs(f"directory.schema is {found['schema']}; this version reads 1")
    name = _inside(found["name"])
    if "/" in name:
        raise ValueError(f"the checkpoint's name is {name!r}")
    there = {e.name for e in entries}
    for file in found["files"]:
        _inside(file["path"])
        if PREFIX + file["path"] not in there:
            raise ValueError(f"{file['path']} is listed and not in the image")
    for path, where in found["links"]:
        _inside(path)
        _inside(os.path.normpath(os.path.join(os.path.dirname(path), where)))
    for folder in found["folders"]:
        _inside(folder)
    return dict(found)


def unpack(
    document: Mapping[str, Any], memory: mmap.mmap | bytes, entries: Sequence[TensorEntry], folder: Path
) -> None:
    """Writes everything below `folder`, which must not exist yet, and makes it durable. Raises OSError."""
    at = {e.name: e for e in entries}
    folder.mkdir(parents=True)
    for name in document["folders"]:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for file in document["files"]:
        entry = at[PREFIX + file["path"]]
        path = folder / file["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, memory, entry, mode=int(file["mode"]) & 0o777 | 0o600, mtime_ns=int(file["mtime_ns"]))
    for name, where in document["links"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(where)
    for below, _, _ in os.walk(folder):
        _sync_folder(Path(below))


def put_in_place(root: Path, incoming: Path, document: Mapping[str, Any], later: Iterator[str]) -> list[str]:
    """The restored checkpoint takes its name; `later` ones, of which nobody knows whether they are whole, and what had its name are set aside, not
    deleted, but what is the restored checkpoint itself: from before the start, or from a restore that was cut short. Returns the names of what was set
    aside. Raises OSError. Run again after it was cut short, it does the same."""
    arriving = [
        document["name"],
        *(f["path"] for f in document["files"] if "/" not in f["path"] and f["path"] != document["name"]),
    ]
    aside, replaced = root / OWN / "aside", root / OWN / "replaced"
    _remove(replaced)
    moved = []
    for name in [*later, *arriving]:
        if name in arriving and _same(root, incoming, name):
            replaced.mkdir(exist_ok=True)
            (root / name).rename(replaced / name)
        elif os.path.lexists(root / name):
            aside.mkdir(parents=True, exist_ok=True)
            _remove(aside / name)
            (root / name).rename(aside / name)
            moved.append(name)
    for name in arriving:  # the pointer last, as the script would
        (incoming / name).rename(root / name)
    _sync_folder(root)
    _remove(replaced)
    return moved


def _same(root: Path, incoming: Path, name: str) -> bool:
    """By paths, sizes and times."""
    try:
        there, new = survey(root, name), survey(incoming, name)
    except (OSError, CannotKeep):
        return False
    a, b = ([(f.path, f.size, f.mtime_ns) for f in s.files] for s in (there, new))
    return (a, there.links, there.folders) == (b, new.links, new.folders)


def clear(folder: Path) -> None:
    """What an earlier try has left."""
    _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(path: Path, file: File, view: memoryview, offset: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(fd, file)
        done = 0
        while done < file.size:
            got = os.readv(fd, [view[offset + done : offset + min(file.size, done + PIECE_BYTES)]])
            if not got:
                raise Changed(f"{file.path} has become shorter")
            done += got
        _check(fd, file)
    finally:
        os.close(fd)


def _check(fd: int, file: File) -> None:
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns, now.st_ino) != (file.size, file.mtime_ns, file.inode):
        raise Changed(f"{file.path} has changed")


def _write(path: Path, memory: mmap.mmap | bytes, entry: TensorEntry, *, mode: int, mtime_ns: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with memoryview(memory) as view:
            done = 0
            while done < entry.length_bytes:
                start = entry.offset_bytes + done
                end = entry.offset_bytes + min(entry.length_bytes, done + PIECE_BYTES)
                done += os.write(fd, view[start:end])
        os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime_ns, mtime_ns))
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _inside(path: object) -> str:
    """A relative path that stays where it is. Raises ValueError: a checkpoint that says otherwise is damaged, or somebody's attack."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{path!r} is no path")
    parts = PurePosixPath(path)
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or parts.parts[0] == OWN or str(parts) != path:
        raise ValueError(f"{path!r} does not stay in the directory")
    return path


__all__ = ["CannotKeep", "Changed", "NotOurs", "Packed", "clear", "describe", "fill", "pack", "put_in_place", "unpack"]
