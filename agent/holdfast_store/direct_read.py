"""Reading a range of a file into the caller's memory, past the page cache where that is possible and pays.

A checkpoint is read once, into memory that is there already. Through the page cache that costs a second copy, memory that training needs, and half of the
disk's speed (performance.md, section 4). So large aligned ranges are read with O_DIRECT; small ranges, unaligned ends and file systems that refuse are read
as usual. The page cache is not asked whether it has the range: the question (RWF_NOWAIT) makes the kernel read ahead, and the next answer is wrong for it
(measured: half the speed). Every byte is verified by its digest, whichever way it came: whoever verifies is shown each piece as soon as it is there, while
others are still on their way, because a digest that begins after the last piece adds its own time to the disk's.
"""

import ctypes
import fcntl
import os
from collections.abc import Callable

from holdfast_store.direct import ALIGN, REFUSED

WORTH_BYTES = 256 << 10
PIECE_BYTES = 4 << 20
"""Of one read. Large enough for a disk's full speed with a few threads, small enough that little is left to verify when the last one ends."""
Seen = Callable[[memoryview], object]
"""Shown what was read, piece by piece, in the order of the file, in the thread that reads; must not keep the pieces."""
_DIRECT: int = getattr(os, "O_DIRECT", 0)
"""0 where there is none (macOS)."""


class DirectReader:
    """For the files of one directory. Thread-safe: it only ever forgets that direct reads work."""

    def __init__(self) -> None:
        self.refused = not _DIRECT

    def fill(self, fd: int, view: memoryview, offset: int, seen: Seen = lambda _piece: None) -> int:
        """Reads from `offset` of `fd`, opened without O_DIRECT, until `view` is full or the file ends; how many bytes. Raises OSError, after which `seen`
        may have been shown a part."""
        done = 0
        if self._is_worth_it(view, offset):
            done = self._fill_directly(fd, view[: view.nbytes - view.nbytes % ALIGN], offset, seen)
        return done + _read(fd, view[done:], offset + done, seen)

    def _is_worth_it(self, view: memoryview, offset: int) -> bool:
        aligned = offset % ALIGN == 0 and view.nbytes > 0 and _address(view) % ALIGN == 0
        return not self.refused and view.nbytes >= WORTH_BYTES and aligned

    def _fill_directly(self, fd: int, view: memoryview, offset: int, seen: Seen) -> int:
        """How far it came, all of it seen: a refusal is no error, the rest is read as usual."""
        done = 0

        def came(piece: memoryview) -> None:
            nonlocal done
            done += piece.nbytes
            seen(piece)

        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT)
        except OSError as e:
            if e.errno not in REFUSED:
                raise
            self.refused = True
            return 0
        try:
            return _read(fd, view, offset, came, aligned=True)
        except OSError as e:
            if e.errno not in REFUSED:
                raise
            self.refused = True  # some say so only now
            return done
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _read(fd: int, view: memoryview, offset: int, seen: Seen, *, aligned: bool = False) -> int:
    """`aligned`: ends where a short read has left the grid, because a direct read could not go on from there."""
    done = 0
    while done < view.nbytes:
        got = os.preadv(fd, [view[done : done + PIECE_BYTES]], offset + done)
        if got:
            seen(view[done : done + got])
        done += got
        if not got or (aligned and done % ALIGN):
            break
    return done


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
