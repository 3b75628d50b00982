"""Files for floors and peers: sizes on disk, and caches that forget, so that a read is a read of the disk."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PAGE = 4096
PIECE_BYTES = 16 << 20


def sync_file(path: Path) -> None:
    """Durable, and the directory entry as well."""
    for place, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        fd = os.open(place, flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_tree(folder: Path) -> None:
    """Every file and directory below it."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(root) / name)
    sync_file(folder)


def forget(paths: Iterable[Path]) -> None:
    """Drops the page cache of files that are on disk already."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def files_below(folder: Path) -> list[Path]:
    return [Path(root) / name for root, _, names in os.walk(folder) for name in names]


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def write_direct(path: Path, view: memoryview, *, threads: int, piece: int = PIECE_BYTES) -> None:
    """A new file, preallocated, written with O_DIRECT by several threads, durable when it returns. `view` is page-aligned, whole pages long."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
    try:
        os.posix_fallocate(fd, 0, view.nbytes)

        def one(start: int) -> None:
            done = 0
            part = view[start : start + piece]
            while done < part.nbytes:
                done += os.pwrite(fd, part[done:], start + done)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(0, view.nbytes, piece)))
        os.fdatasync(fd)
    finally:
        os.close(fd)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_direct(path: Path, view: memoryview, *, threads: int, piece: int = PIECE_BYTES) -> None:
    """The file's first bytes into page-aligned memory with O_DIRECT, several pieces in flight."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:

        def one(start: int) -> None:
            done = 0
            part = view[start : start + piece]
            while done < part.nbytes:
                got = os.preadv(fd, [part[done:]], start + done)
                if not got:
                    raise EOFError(f"{path} ends at {start + done}")
                done += got

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(0, view.nbytes, piece)))
    finally:
        os.close(fd)
