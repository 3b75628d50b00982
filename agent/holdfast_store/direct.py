"""Whether large files of a directory are written past the page cache (O_DIRECT), and the writing itself (J5, B9).

O_DIRECT takes the bytes straight from shared memory: a twentieth of the CPU of a buffered write, and no page cache to write back at the flush. Not every
file system means it: tmpfs accepts the flag and keeps the file in memory, network file systems lose their own pipelining by it. So the type of the file
system is looked at, and one block is tried. Whatever is refused later, a piece at an odd place or a whole file system, is written buffered.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from holdfast_store import mounts

ALIGN = 4096
"""Address, offset and length of a direct write are multiples of this: whole pages, and whole blocks of every disk."""
SMALLEST_BYTES = 1 << 20
"""Smaller files are written buffered: opening a second time costs more than it saves."""
_PIECE_BYTES = 32 << 20
REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that knows no direct reads or writes, at once or only at the first block."""
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "lustre", "glusterfs")


@dataclass(frozen=True, slots=True)
class Mode:
    """How large files are written in a directory."""

    direct: bool
    file_system: str
    """Its type as the kernel names it; empty if unknown."""
    why: str = ""
    """Of a directory that is not written directly."""

    def __str__(self) -> str:
        return f"{self.file_system or 'unknown file system'}, " + ("direct" if self.direct else f"buffered: {self.why}")


def choose(file_system: str, refusal: str) -> Mode:
    """Pure. `refusal`: what the file system said to one direct block; empty if it took it."""
    if file_system in _IN_MEMORY:
        return Mode(False, file_system, "it lies in memory, not on a disk")
    if file_system in _REMOTE or file_system.startswith("fuse"):
        return Mode(False, file_system, "its own client writes ahead better than direct requests would")
    return Mode(not refusal, file_system, refusal and f"O_DIRECT is refused ({refusal})")


def probe(folder: Path) -> Mode:
    """Tries one block in a file without a name that anybody looks for. Raises OSError where nothing can be written at all."""
    return choose(mounts.kind_of(folder), _refusal(folder))


def _refusal(folder: Path) -> str:
    if not hasattr(os, "O_DIRECT"):
        return "this system has none"
    fd = _nameless(folder)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
        with mmap.mmap(-1, ALIGN) as block:
            os.pwrite(fd, block, 0)
    except OSError as e:
        if e.errno not in REFUSED:
            raise
        return e.strerror or str(e)
    finally:
        os.close(fd)
    return ""


def _nameless(folder: Path) -> int:
    """A descriptor of a file that is gone when the process is, however that ends. Where that is refused, one with a name for a moment."""
    with contextlib.suppress(OSError):
        return os.open(folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    path = folder / f".new-{secrets.token_hex(8)}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    path.unlink()
    return fd


class PieceWriter:
    """Writes pieces into one open file, any order, any threads. Closes nothing. Raises OSError.

    `direct` is a second descriptor of the same file, opened with O_DIRECT; None writes everything buffered.
    """

    def __init__(self, buffered: int, direct: int | None) -> None:
        self._buffered = buffered
        self._direct = direct

    def write(self, view: memoryview, offset: int) -> None:
        done = 0
        if self._direct is not None and offset % ALIGN == 0:
            done = self._directly(self._direct, view[: view.nbytes // ALIGN * ALIGN], offset)
        while done < view.nbytes:
            done += os.pwrite(self._buffered, view[done : done + _PIECE_BYTES], offset + done)

    def _directly(self, fd: int, view: memoryview, offset: int) -> int:
        """Bytes written: whole blocks, all of them unless the file system refuses or stops at an odd place."""
        done = 0
        while done < view.nbytes and done % ALIGN == 0:
            try:
                done += os.pwrite(fd, view[done : done + _PIECE_BYTES], offset + done)
            except OSError as e:
                if e.errno not in REFUSED:
                    raise
                break  # memory that does not begin on a page, or a file system that changed its mind
        return done


def opened_directly(open_again: Callable[[int], int]) -> int | None:
    """A descriptor with O_DIRECT, or None where it is refused. `open_again` is given the flags."""
    try:
        return open_again(os.O_WRONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as e:
        if e.errno not in REFUSED:
            raise
        return None
