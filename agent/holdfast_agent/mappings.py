"""Slots in this process's memory, kept from save to save: faulting the pages of an image in again costs as much as a third of hashing them."""

import threading
from pathlib import Path

from holdfast_agent.arena import Mapped


class Mapping:
    """A slot file that is mapped. Owned by `Mappings`."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self.length = length
        self.file = _identity(path)
        self.mapped = Mapped(path, length, write=False)
        self.readers = 0


class Reading:
    """The first bytes of a slot, read-only, until `close`."""

    def __init__(self, mappings: "Mappings", mapping: Mapping, length: int) -> None:
        self._mappings = mappings
        self._mapping = mapping
        self.view = mapping.mapped.view[:length]

    def close(self) -> None:
        """Once."""
        self.view.release()
        self._mappings._over(self._mapping)


class Mappings:
    """Of one agent. Any thread. What is read is never unmapped; a slot that was made anew, or removed, is let go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Path, Mapping] = {}

    def read(self, path: Path, length: int) -> Reading:
        """OSError if the file is not there, or shorter."""
        with self._lock:
            for known in [m for m in self._known.values() if _identity(m.path) != m.file]:
                self._forget(known)
            mapping = self._known.get(path)
            if mapping is None or mapping.length < length:
                if mapping is not None:
                    self._forget(mapping)
                mapping = self._known[path] = Mapping(path, length)
            mapping.readers += 1
            return Reading(self, mapping, length)

    def _over(self, mapping: Mapping) -> None:
        with self._lock:
            mapping.readers -= 1
            if not mapping.readers and self._known.get(mapping.path) is not mapping:
                mapping.mapped.close()

    def _forget(self, mapping: Mapping) -> None:
        del self._known[mapping.path]
        if not mapping.readers:
            mapping.mapped.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None for a file that is gone."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino
