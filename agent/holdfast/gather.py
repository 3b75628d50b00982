"""Many small pieces of this process's memory, collected by one system call.

At every boundary buffers, generator states and samples are copied: hundreds of pieces of a few bytes, for which a Python call each would cost more
than the copy. `pwritev` into an anonymous file takes a table of addresses that was made once, gives up the GIL, knows no dtypes, and reports an
address that is no longer mapped as an error instead of ending the process.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence

import torch

IOV_MAX = 1024
"""Pieces per system call (Linux)."""
Segment = tuple[int, int]
"""(address, length)"""


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Gather:
    """A fixed list of segments, and the bytes they held when `take` was called last. Who makes it keeps their memory alive."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        """Raises ValueError for an empty segment, OSError."""
        if not all(length > 0 for _, length in segments):
            raise ValueError("a segment is empty")
        self.segments = tuple(segments)
        self.offsets: list[int] = []
        total = 0
        for _, length in self.segments:
            self.offsets.append(total)
            total += length
        self.length = total
        self._table = (_IoVec * max(1, len(self.segments)))(*(_IoVec(*s) for s in self.segments))
        first, size = ctypes.addressof(self._table), ctypes.sizeof(_IoVec)
        starts = range(0, len(self.segments), IOV_MAX)
        self._calls = [(first + at * size, min(IOV_MAX, len(segments) - at), self.offsets[at]) for at in starts]
        file = os.memfd_create("holdfast-gather", os.MFD_CLOEXEC)
        os.ftruncate(file, max(1, total))
        memory = mmap.mmap(file, max(1, total))
        memory.madvise(mmap.MADV_DONTFORK)
        self._file = os.fdopen(file, "wb")  # closed with this object
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8)
        """What was collected, one piece after another."""
        self._memory = memoryview(memory)

    def take(self) -> None:
        """Raises OSError, EFAULT among them."""
        written = 0
        for table, count, start in self._calls:
            got = _pwritev(self._file.fileno(), table, count, start)
            if got < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            written += got
        if written != self.length:  # more than 2 GiB in one call, or no memory left for the file
            raise OSError(f"{written} of {self.length} bytes were collected")

    def piece(self, index: int) -> bytes:
        """What a segment held."""
        at = self.offsets[index]
        return bytes(self._memory[at : at + self.segments[index][1]])

    def pieces(self, start: int, stop: int) -> bytes:
        """What the segments from `start` up to but without `stop` held, joined."""
        end = self.offsets[stop] if stop < len(self.offsets) else self.length
        return bytes(self._memory[self.offsets[start] : end]) if start < stop else b""

    def differing(self, other: "Gather") -> list[int]:
        """Indices of the segments that held something else there. Both have segments of the same lengths."""
        if torch.equal(self.bytes, other.bytes):
            return []
        return [i for i in range(len(self.segments)) if self.piece(i) != other.piece(i)]


_pwritev = ctypes.CDLL(None, use_errno=True).pwritev
_pwritev.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_pwritev.restype = ctypes.c_ssize_t
