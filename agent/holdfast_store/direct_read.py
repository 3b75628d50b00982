"""Reading a range of a file into the caller's memory, past the page cache where that is possible and pays.

A checkpoint is read once, into memory that is there already. Through the page cache that costs a second copy, memory that training needs, and half of the
disk's speed (performance.md, section 4). So large aligned ranges are read with O_DIRECT; small ranges, unaligned ends and file systems that refuse are read
as usual. The page cache is not asked whether it has the range: the question (RWF_NOWAIT) makes the kernel read ahead, and the next answer is wrong for it
(measured: half the speed). Every byte is verified by its digest later, whichever way it came.
"""

import ctypes
import fcntl
import os

from holdfast_store.direct import ALIGN, REFUSED

WORTH_BYTES = 256 << 10
_PIECE_BYTES = 32 << 20
_DIRECT: int = getattr(os, "O_DIRECT", 0)
"""0 where there is none (macOS)."""


class DirectReader:
    """For the files of one directory. Thread-safe: it only ever forgets that direct reads work."""

    def __init__(self) -> None:
        self.refused = not _DIRECT

    def fill(self, fd: int, view: memoryview, offset: int) -> int:
        """Reads from `offset` of `fd`, opened without O_DIRECT, until `view` is full or the file ends; how many bytes. Raises OSError."""
        done = 0
        if self._is_worth_it(view, offset):
            done = self._fill_directly(fd, view[: view.nbytes - view.nbytes % ALIGN], offset)
        return done + _read(fd, view[done:], offset + done)

    def _is_worth_it(self, view: memoryview, offset: int) -> bool:
        aligned = offset % ALIGN == 0 and view.nbytes > 0 and _address(view) % ALIGN == 0
        return not self.refused and view.nbytes >= WORTH_BYTES and aligned

    def _fill_directly(self, fd: int, view: memoryview, offset: int) -> int:
        """How far it came: a refusal is no error, the rest is read as usual."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT)
        except OSError as e:
            if e.errno not in REFUSED:
                raise
            self.refused = True
            return 0
        try:
            return _read(fd, view, offset, aligned=True)
        except OSError as e:
            if e.errno not in REFUSED:
                raise
            self.refused = True  # some say so only now
            return 0
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _read(fd: int, view: memoryview, offset: int, *, aligned: bool = False) -> int:
    """`aligned`: ends where a short read has left the grid, because a direct read could not go on from there."""
    done = 0
    while done < view.nbytes:
        got = os.preadv(fd, [view[done : done + _PIECE_BYTES]], offset + done)
        done += got
        if not got or (aligned and done % ALIGN):
            break
    return done


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
