"""Slots in this process's memory, kept from the restore on and from save to save: faulting the pages of an image in again costs as much as a third of
hashing them, and unmapping them half as much, at the end, when everybody waits."""

import os
import threading
from pathlib import Path

from holdfast_agent.arena import Mapped


class Mapping:
    """A slot file that is mapped. Owned by `Mappings`."""

    def __init__(self, path: Path, length: int, *, write: bool) -> None:
        self.path = path
        self.length = length
        self.write = write
        self.file = _identity(path)
        self.mapped = Mapped(path, length, write=write)
        self.users = 0


class Use:
    """The first bytes of a slot, until `close`."""

    def __init__(self, mappings: "Mappings", mapping: Mapping, length: int, *, write: bool) -> None:
        self._mappings = mappings
        self._mapping = mapping
        view = mapping.mapped.view[:length]
        self.view = view if write else view.toreadonly()

    def close(self) -> None:
        """Once."""
        self.view.release()
        self._mappings._over(self._mapping)


class Mappings:
    """Of one agent. Any thread. What is in use is never unmapped; a slot that was made anew, or removed, is let go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Path, Mapping] = {}

    def read(self, path: Path, length: int) -> Use:
        """OSError if the file is not there, or shorter."""
        return self._use(path, length, write=False)

    def write(self, path: Path, length: int) -> Use:
        """As `read`; what is written is in the file."""
        return self._use(path, length, write=True)

    def tidy(self) -> None:
        """A slot was removed: its memory is free once nobody here has it mapped."""
        with self._lock:
            self._tidy()

    def _use(self, path: Path, length: int, *, write: bool) -> Use:
        with self._lock:
            self._tidy()
            mapping = self._known.get(path)
            # One that was cut short is refused, as if it were mapped now: what lies behind its end must not be touched.
            if mapping is None or mapping.length < length or mapping.write < write or os.stat(path).st_size < length:
                if mapping is not None:
                    self._forget(mapping)
                mapping = self._known[path] = Mapping(path, length, write=write)
            mapping.users += 1
            return Use(self, mapping, length, write=write)

    def _tidy(self) -> None:
        for known in [m for m in self._known.values() if _identity(m.path) != m.file]:
            self._forget(known)

    def _over(self, mapping: Mapping) -> None:
        with self._lock:
            mapping.users -= 1
            if not mapping.users and self._known.get(mapping.path) is not mapping:
                mapping.mapped.close()

    def _forget(self, mapping: Mapping) -> None:
        del self._known[mapping.path]
        if not mapping.users:
            mapping.mapped.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None for a file that is gone."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino
