"""Slot files in shared memory, prefaulted before they are handed out, and what they hold (J5, J6).

What a slot is believed to hold is only a hint for where to look first: every chunk is verified before it is used, so a torn, stale or half overwritten slot
costs a fetch and nothing else. The hints lie beside the slots, so that a restarted agent finds them. Blocking; called on worker threads.
"""

import contextlib
import json
import mmap
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast_agent import forms, memory, prefault
from holdfast_agent.errors import ConfigurationWrong
from holdfast_agent.targets import Content
from holdfast_api.layout import CheckpointRef

HINTS = "slots.json"
FILE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Hint:
    """Where a rank's image of a checkpoint was last seen."""

    slot: int
    job_uid: str
    ref: CheckpointRef


class Arena:
    """The slots of this worker's ranks."""

    def __init__(self, folder: Path, removed: Callable[[], None] = lambda: None) -> None:
        """`removed` is called when a slot has been given back: whoever has it mapped lets go of it, or its memory stays in use."""
        self.folder = folder
        self._removed = removed
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise ConfigurationWrong(f"the memory volume {folder} cannot be used: {e.strerror}") from e
        self._lock = threading.Lock()
        self._hints: dict[tuple[int, int], Hint] = self._read_hints()

    def path(self, rank: int, slot: int) -> Path:
        return self.folder / f"rank-{rank}-slot-{slot}"

    @property
    def bytes(self) -> int:
        """Of all slots."""
        return sum(self._sizes().values())

    def ensure(self, wanted: dict[tuple[int, int], int]) -> int:
        """Makes each (rank, slot) at least so many bytes long, prefaulted. Never shrinks: a mapped file that gets shorter kills its reader.

        Returns the bytes allocated. Raises MemoryTooSmall before anything is allocated.
        """
        with self._lock:
            rounded = {key: forms.rounded(size) for key, size in wanted.items()}
            have = {key: self._size(*key) for key in rounded}
            new = sum(max(0, size - have[key]) for key, size in rounded.items())
            room = memory.read(self.folder)
            if new:
                memory.check(room, new, sum(rounded.values()))
            for key, size in rounded.items():
                if size > have[key]:
                    self._grow(self.path(*key), have[key], size, room.in_memory)
            return new

    def make(self, rank: int, images: Mapping[int, int], ranks: int, most: int = 2) -> forms.Choice:
        """Slots for `rank`, as many as fit (J6); arguments as in `forms.choose`. A second slot that no longer fits is given back. Raises
        MemoryTooSmall before anything is allocated, OSError."""
        with self._lock:
            have = self._sizes()
            room = memory.read(self.folder)
            choice = forms.choose(room, rank, images, have, ranks, most)
            if choice.form is forms.Form.ONE_SLOT and (rank, 1) in have:
                self.path(rank, 1).unlink()
                self._hints.pop((rank, 1), None)
                self._write_hints()
                self._removed()
            for slot in range(choice.form.slots):
                if have.get((rank, slot), 0) < choice.slot_bytes:
                    self._grow(self.path(rank, slot), have.get((rank, slot), 0), choice.slot_bytes, room.in_memory)
            return choice

    def note(self, rank: int, slot: int, job_uid: str, ref: CheckpointRef) -> None:
        with self._lock:
            self._hints[rank, slot] = Hint(slot, job_uid, ref)
            self._write_hints()

    def forget(self, rank: int, slot: int) -> None:
        """What is written into the slot next is no image of a checkpoint."""
        with self._lock:
            if self._hints.pop((rank, slot), None) is not None:
                self._write_hints()

    def keep(self, ranks: range) -> None:
        """Gives the slots of all other ranks back. For a checkpoint of another number of ranks they hold nothing, and their memory may be needed."""
        with self._lock:
            others = [key for key in self._sizes() if key[0] not in ranks]
            for key in others:
                self.path(*key).unlink(missing_ok=True)
                self._hints.pop(key, None)
            if others:
                self._write_hints()
                self._removed()

    def contents(self, rank: int) -> dict[int, Content | None]:
        """The rank's slots that exist, with what they are believed to hold."""
        with self._lock:
            hints = {slot: self._hints.get((r, slot)) for (r, slot) in self._sizes() if r == rank}
        return {slot: Content(hint.job_uid, hint.ref) if hint else None for slot, hint in hints.items()}

    def find(self, rank: int, job_uid: str, ref: CheckpointRef) -> int | None:
        """The slot that may hold the rank's image of this checkpoint."""
        with self._lock:
            for (r, slot), hint in self._hints.items():
                if r == rank and hint.job_uid == job_uid and hint.ref == ref:
                    return slot
        return None

    def clear(self) -> None:
        """Gives the memory back (laptop, after a good end)."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()

    def _sizes(self) -> dict[tuple[int, int], int]:
        found = {}
        for path in self.folder.glob("rank-*-slot-*"):
            _, rank, _, slot = path.name.split("-")
            if rank.isdigit() and slot.isdigit():
                with contextlib.suppress(FileNotFoundError):  # given back by another thread just now
                    found[int(rank), int(slot)] = path.stat().st_size
        return found

    def _size(self, rank: int, slot: int) -> int:
        try:
            return self.path(rank, slot).stat().st_size
        except FileNotFoundError:
            return 0

    def _grow(self, path: Path, start: int, size: int, in_memory: bool) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        try:
            prefault.allocate(fd, start, size)
            if in_memory:  # on a disk it would be written out for nothing
                prefault.touch(fd, start, size)
        finally:
            os.close(fd)

    def _read_hints(self) -> dict[tuple[int, int], Hint]:
        hints = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            for item in json.loads((self.folder / HINTS).read_text()):
                ref = CheckpointRef(int(item["attempt"]), int(item["save"]))
                hints[int(item["rank"]), int(item["slot"])] = Hint(int(item["slot"]), str(item["job_uid"]), ref)
        return hints

    def _write_hints(self) -> None:
        items = [
            {"rank": rank, "slot": h.slot, "job_uid": h.job_uid, "attempt": h.ref.attempt, "save": h.ref.save}
            for (rank, _), h in self._hints.items()
        ]
        temporary = self.folder / (HINTS + ".tmp")
        temporary.write_text(json.dumps(items))
        temporary.replace(self.folder / HINTS)


class Mapped:
    """One slot file in this process's memory, until `close`."""

    def __init__(self, path: Path, length: int, *, write: bool) -> None:
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size < length:
                raise OSError(f"{path.name} has {size} bytes where {length} are announced")
            self._map = mmap.mmap(fd, length, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)
        finally:
            os.close(fd)
        self.view = memoryview(self._map)

    def close(self) -> None:
        self.view.release()
        with contextlib.suppress(
            BufferError
        ):  # a slice is still held by a thread that was told to stop; it goes with it
            self._map.close()
