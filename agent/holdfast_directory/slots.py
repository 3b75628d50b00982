"""The slots that the agent gives: files in shared memory, and whose turn it is (J5, E4)."""

import mmap
import os
import threading
from collections.abc import Sequence

from holdfast_rank.errors import LinkLost


class Slots:
    """Of one plan. `free` and `lose` are the reader's, the rest is the main thread's."""

    def __init__(self, plan: int, paths: Sequence[str], slot_bytes: int) -> None:
        self.plan = plan
        self._paths, self._bytes = paths, slot_bytes
        self._changed = threading.Condition()
        self._taken: set[int] = set()
        self._holds: dict[int, int] = {}
        self._lost = False

    def acquire(self) -> int:
        """A slot to overwrite; the one that was written longest ago, so that its predecessor stays whole. Waits for the agent. Raises LinkLost."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost or len(self._taken) < len(self._paths))
            if self._lost:
                raise LinkLost("the agent is gone")
            slot = min(
                (i for i in range(len(self._paths)) if i not in self._taken), key=lambda i: self._holds.get(i, 0)
            )
            self._holds.pop(slot, None)
            return slot

    def open(self, slot: int) -> mmap.mmap:
        """Mapped for writing. Raises OSError; ValueError for a file that was cut short, of which a write would end the process (SIGBUS)."""
        fd = os.open(self._paths[slot], os.O_RDWR | os.O_CLOEXEC)
        try:
            if (there := os.fstat(fd).st_size) < self._bytes:
                raise ValueError(f"slot file {slot} has {there} bytes; {self._bytes} were promised")
            return mmap.mmap(fd, self._bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)

    def hand_over(self, slot: int, boundary: int) -> None:
        with self._changed:
            self._holds[slot] = boundary
            self._taken.add(slot)

    def holding(self, boundary: int) -> int | None:
        with self._changed:
            return next((i for i, b in self._holds.items() if b == boundary), None)

    def all_free_within(self, seconds: float) -> bool:
        """Whether the agent has given every slot back by then: before another plan. Raises LinkLost."""
        free = self.settled(seconds)
        if self._lost:
            raise LinkLost("the agent is gone")
        return free

    def settled(self, seconds: float) -> bool:
        """Whether the agent has given all back within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._lost or not self._taken, seconds)

    def free(self, slot: int) -> None:
        with self._changed:
            self._taken.discard(slot)
            self._changed.notify_all()

    def lose(self) -> None:
        with self._changed:
            self._lost = True
            self._changed.notify_all()
