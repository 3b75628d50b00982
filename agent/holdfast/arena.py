"""The slots that the agent gives this rank: mapped files, and who may write which (J5, E4)."""

import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from holdfast.errors import LinkLost


class Slot:
    """One mapped slot file."""

    def __init__(self, path: str, slot_bytes: int) -> None:
        """Raises OSError; ValueError when the file is shorter than `slot_bytes`."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size < slot_bytes:
                raise ValueError(f"slot file {Path(path).name} has {size} bytes; {slot_bytes} were promised")
            self.memory = mmap.mmap(fd, slot_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        if hasattr(mmap, "MADV_DONTFORK"):
            self.memory.madvise(mmap.MADV_DONTFORK)  # data-loader workers would keep the memory alive after the rank
        self.holds: int | None = None
        """The boundary it holds completely."""


class Arena:
    """The slots of one plan. `acquire` is the main thread's, `free` and `lose` the helper thread's."""

    def __init__(self, plan: int, paths: Sequence[str], slot_bytes: int) -> None:
        self.plan = plan
        self.slots = [Slot(p, slot_bytes) for p in paths]
        self._taken: set[int] = set()
        self._newest: int | None = None
        self._lost = False
        self._changed = threading.Condition()

    def acquire(self) -> int:
        """A slot to overwrite. Waits until the agent has given one back; prefers the one that does not hold the newest boundary, so that a crash
        leaves a clean predecessor. Raises LinkLost."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost or len(self._taken) < len(self.slots))
            if self._lost:
                raise LinkLost("the agent is gone")
            free = [i for i in range(len(self.slots)) if i not in self._taken]
            slot = min(free, key=lambda i: (i == self._newest, i))
            self.slots[slot].holds = None
            return slot

    @property
    def has_free(self) -> bool:
        """`acquire` would not wait."""
        with self._changed:
            return len(self._taken) < len(self.slots)

    def hand_over(self, slot: int, boundary: int) -> None:
        """The slot holds `boundary` and is the agent's until `free`."""
        with self._changed:
            self.slots[slot].holds = boundary
            self._taken.add(slot)
            self._newest = slot

    def holding(self, boundary: int) -> int | None:
        """A slot that holds `boundary`, whosever it is."""
        return next((i for i, s in enumerate(self.slots) if s.holds == boundary), None)

    def free(self, slot: int) -> None:
        with self._changed:
            self._taken.discard(slot)
            self._changed.notify_all()

    def wait_until_all_free(self) -> None:
        """Before a plan is replaced. Raises LinkLost."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost or not self._taken)
            if self._lost:
                raise LinkLost("the agent is gone")

    def lose(self) -> None:
        with self._changed:
            self._lost = True
            self._changed.notify_all()
