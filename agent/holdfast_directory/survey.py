"""What lies in a checkpoint of the script's: its files, links and folders, as they are at one moment."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

MOST_FILES = 200_000
MOST_POINTER_BYTES = 4096


class CannotKeep(Exception):
    """A checkpoint holds something that cannot be kept. The message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class File:
    """Paths are relative to the script's directory, with `/`."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    mode: int


@dataclass(frozen=True, slots=True)
class Survey:
    """Sorted by path, so that equal contents give equal surveys."""

    name: str
    files: tuple[File, ...]
    links: tuple[tuple[str, str], ...]
    """(path, where it points to): only those that point to somewhere inside the checkpoint; others are kept as what they point to."""
    folders: tuple[str, ...]

    @property
    def print(self) -> str:
        """Changes with every path, size, time and inode. Not a digest of contents: those are hashed when they are saved."""
        text = repr((self.files, self.links, self.folders))
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def survey(root: Path, name: str) -> Survey:
    """Of `root/name`, a folder or a file. Raises OSError (also if it changes meanwhile), CannotKeep."""
    files: list[File] = []
    links: list[tuple[str, str]] = []
    folders: list[str] = []
    top = root / name
    if top.is_dir() and not top.is_symlink():
        _walk(root, name, os.path.realpath(top), files, links, folders)
    else:
        files.append(_file(top, name))
    return Survey(name, tuple(sorted(files, key=lambda f: f.path)), tuple(sorted(links)), tuple(sorted(folders)))


def pointer(path: Path) -> str | None:
    """What a pointer file says; None if there is none."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_POINTER_BYTES).decode("utf-8", "replace").strip() or None
    except OSError:
        return None


def _walk(root: Path, at: str, top: str, files: list[File], links: list[tuple[str, str]], folders: list[str]) -> None:
    folders.append(_text(at))
    with os.scandir(root / at) as entries:
        for entry in entries:
            path = f"{at}/{entry.name}"
            if entry.is_symlink():
                where = os.path.realpath(root / path)
                if where.startswith(top + os.sep) and os.path.exists(where):
                    links.append((_text(path), _text(os.path.relpath(where, os.path.dirname(root / path)))))
                    continue
                if not os.path.lexists(where):
                    raise CannotKeep(f"{path} is a link to {where}, which does not exist; remove it")
                if os.path.isdir(where):
                    raise CannotKeep(
                        f"{path} is a link to a folder outside the checkpoint ({where}); write a copy instead"
                    )
            if entry.is_dir(follow_symlinks=False):
                _walk(root, path, top, files, links, folders)
            else:
                files.append(_file(root / path, path))
            if len(files) > MOST_FILES:
                raise CannotKeep(
                    f"{at.split('/')[0]} has more than {MOST_FILES} files; is it a checkpoint? Set --pattern"
                )


def _file(path: Path, name: str) -> File:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise CannotKeep(f"{name} is neither a file nor a folder (a socket, pipe or device); remove it")
    return File(_text(name), found.st_size, found.st_mtime_ns, found.st_ino, stat.S_IMODE(found.st_mode))


def _text(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise CannotKeep(f"the name {path!r} is not UTF-8; rename it") from None
    return path
