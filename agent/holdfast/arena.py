"""The slots that the agent gives this rank: mapped files, and who may write which (J5, E4)."""

import ctypes
import logging
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from holdfast import capture_mode, pinning
from holdfast.errors import LinkLost

log = logging.getLogger("holdfast")
POPULATE_WRITE = 23
"""madvise(MADV_POPULATE_WRITE), Linux 5.14."""


class Slot:
    """One mapped slot file."""

    def __init__(self, path: str, slot_bytes: int) -> None:
        """Raises OSError; ValueError when the file is shorter than `slot_bytes`."""
        self._path, self._bytes = path, slot_bytes
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._file = _identity(os.fstat(fd))
            self.check()
            self.memory = mmap.mmap(fd, slot_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        if hasattr(mmap, "MADV_DONTFORK"):
            self.memory.madvise(mmap.MADV_DONTFORK)  # data-loader workers would keep the memory alive after the rank
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.holds: int | None = None
        """The boundary it holds completely."""
        self.pinned = False

    def check(self) -> None:
        """Before it is written: a write behind the end of a file that was cut short would end the process (SIGBUS), and what is written into a file
        that was replaced would never be seen. Raises ValueError, OSError."""
        there = os.stat(self._path)
        name = Path(self._path).name
        if there.st_size < self._bytes:
            raise ValueError(f"slot file {name} has {there.st_size} bytes; {self._bytes} were promised")
        if _identity(there) != self._file:
            raise ValueError(f"slot file {name} was replaced by another file; the memory volume is the agent's alone")

    def touch(self) -> None:
        """Maps every page, which the first save would do otherwise; what is in them stays. Any thread. The interpreter's own `madvise` would hold up all
        threads meanwhile. A kernel that does not know the call leaves it to the first save."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.madvise(self.address, self._bytes, POPULATE_WRITE)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


class Arena:
    """The slots of one plan. `acquire` is whose turn it is to capture, the main thread's or, while that one is stopped, the helper's; `free` and
    `lose` are the reader's."""

    def __init__(self, plan: int, paths: Sequence[str], slot_bytes: int) -> None:
        self.plan = plan
        self.slots = [Slot(p, slot_bytes) for p in paths]
        self._preparing = threading.Thread(
            target=_prepare, args=(self.slots, slot_bytes, pinning.device_in_use()), name="holdfast-arena", daemon=True
        )
        self._preparing.start()
        self._taken: set[int] = set()
        """The agent's, and those that are being filled."""
        self._newest: int | None = None
        self._lost = False
        self._changed = threading.Condition()

    def acquire(self) -> int:
        """A slot to overwrite, the caller's until `hand_over` or `free`. Waits until the agent has given one back; prefers the one that does not hold the
        newest boundary, so that a crash leaves a clean predecessor. Raises LinkLost; ValueError, OSError for a file that is not what it was."""
        slot = self.acquire_within(None)
        assert slot is not None
        return slot

    def acquire_within(self, seconds: float | None) -> int | None:
        """As `acquire`; None when there is none in that time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._lost or len(self._taken) < len(self.slots), seconds):
                return None
            if self._lost:
                raise LinkLost("the agent is gone")
            free = [i for i in range(len(self.slots)) if i not in self._taken]
            slot = min(free, key=lambda i: (i == self._newest, i))
            self.slots[slot].check()
            self.slots[slot].holds = None
            self._taken.add(slot)
            return slot

    @property
    def has_free(self) -> bool:
        """`acquire` would not wait."""
        with self._changed:
            return len(self._taken) < len(self.slots)

    @property
    def pinned(self) -> bool:
        """Page-locked: a GPU copies into them while the host does something else."""
        return all(s.pinned for s in self.slots)

    def prepared(self) -> None:
        """Waits until the slots are mapped and page-locked: nobody needs it to save, only to measure."""
        self._preparing.join()

    def hand_over(self, slot: int, boundary: int) -> bool:
        """The slot holds `boundary` and is the agent's until `free`. Returns whether it was nobody's before."""
        with self._changed:
            new = slot not in self._taken
            self.slots[slot].holds = boundary
            self._taken.add(slot)
            self._newest = slot
            return new

    def holding(self, boundary: int) -> int | None:
        """A slot that holds `boundary`, whosever it is."""
        return next((i for i, s in enumerate(self.slots) if s.holds == boundary), None)

    @property
    def idle(self) -> bool:
        """The agent has none of them, and none is being filled."""
        return not self._taken

    def free(self, slot: int) -> None:
        with self._changed:
            self._taken.discard(slot)
            self._changed.notify_all()

    def all_free_within(self, seconds: float) -> bool:
        """Whether the agent has given every slot back by then: before a plan is replaced. Raises LinkLost."""
        with self._changed:
            free = self._changed.wait_for(lambda: self._lost or not self._taken, seconds)
            if self._lost:
                raise LinkLost("the agent is gone")
            return free

    def lose(self) -> None:
        with self._changed:
            self._lost = True
            self._changed.notify_all()


def _prepare(slots: Sequence[Slot], slot_bytes: int, device: int | None) -> None:
    """While training goes on, so that no save pays for it (J5)."""
    for slot in slots:
        slot.touch()
    if device is not None and not capture_mode.relax():
        log.warning(
            "holdfast: the slots are not page-locked: that could spoil the capture of a CUDA graph, and copies from the GPU are slower"
        )
    elif device is not None:
        done = pinning.pin_all([(s.address, slot_bytes) for s in slots], device)
        for slot in slots:
            if slot.address in done:
                slot.pinned = True
                weakref.finalize(slot, pinning.unpin, slot.address).atexit = False
