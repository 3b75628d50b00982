"""One directory outside the checkout for everything that takes long to make.

An artefact is a directory named `NAME-KEY`, the key being a hash of everything it is made from, so a change of any of that
makes another directory and nothing is ever stale. It appears in one rename when it is complete. A lock per artefact keeps
two builders from making the same thing at the same time; what a killed builder left is removed by the next one.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hack.cluster.paths import cache_directory
from hack.cluster.state import locked

#: Never part of what something is made from.
IGNORED_NAMES = frozenset({"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
_KEY_LENGTH = 16


def digest_of(parts: Iterable[str | Path]) -> str:
    """A key from strings, and from files and trees by their names below the given path and their content."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            _add(total.update, b"text", part.encode())
            continue
        for file in tree_files(part):
            mode = b"x" if os.access(file, os.X_OK) else b"-"
            _add(total.update, mode, file.relative_to(part.parent).as_posix().encode(), file.read_bytes())
    return total.hexdigest()[:_KEY_LENGTH]


def tree_files(path: Path) -> list[Path]:
    """The file itself, or every file below a directory in a fixed order, without what tools leave there."""
    if path.is_file():
        return [path]
    found = []
    for directory, subdirectories, names in os.walk(path):
        subdirectories[:] = sorted(name for name in subdirectories if not _ignored(name))
        found += [Path(directory, name) for name in sorted(names) if not _ignored(name)]
    return found


class Cache:
    """The cache directory and the artefacts in it."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or cache_directory()

    def path(self, name: str, key: str) -> Path:
        """Where an artefact is once it is complete."""
        return self.directory / "artefacts" / f"{name}-{key}"

    def has(self, name: str, key: str) -> bool:
        return self.path(name, key).is_dir()

    def log(self, name: str) -> Path:
        return self.directory / "log" / f"{name}.log"

    @contextlib.contextmanager
    def making(
        self, name: str, key: str, keep: int = 2, give_up: Callable[[], bool] = lambda: False
    ) -> Iterator[Path | None]:
        """An empty directory to be filled by the block, or None if the artefact is there by now.

        Published when the block ends well, removed when it does not. The `keep` newest of the name stay. `give_up` ends
        the wait for another builder of the same.
        """
        final = self.path(name, key)
        with locked(self.directory / "locks" / name, give_up=give_up):
            if final.is_dir():
                yield None
                return
            part = final.with_name(f".{name}.part")
            _remove(part)
            part.mkdir(parents=True)
            try:
                yield part
                part.rename(final)
            finally:
                _remove(part)
            self._drop_old(name, keep)

    def _drop_old(self, name: str, keep: int) -> None:
        prefix_length = len(name) + 1
        mine = [
            path
            for path in (self.directory / "artefacts").glob(f"{name}-*")
            if len(path.name) == prefix_length + _KEY_LENGTH
        ]
        for old in sorted(mine, key=lambda path: path.stat().st_mtime, reverse=True)[keep:]:
            _remove(old)


def _add(update: Callable[[bytes], None], *pieces: bytes) -> None:
    """Adds pieces with their lengths, so that no two lists of pieces give the same stream."""
    for piece in pieces:
        update(len(piece).to_bytes(8, "big") + piece)


def _ignored(name: str) -> bool:
    return name in IGNORED_NAMES or name.endswith((".pyc", ".egg-info"))


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
