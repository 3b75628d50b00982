"""Memory for the slots, before anybody waits for it: reserved, then touched by several threads (J5).

tmpfs reserves pages quickly and clears them at the first touch: 1 GiB takes 0.1 s to reserve and 0.3 to 1 s to touch on one core. Untouched, that would
be part of the first save. A reservation that fails is an error here; a touch without one would be a SIGBUS there.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import threading

POPULATE_WRITE = 23
"""madvise(MADV_POPULATE_WRITE), Linux 5.14: touches pages for writing, and returns an error where a store would raise SIGBUS."""
RANGE_BYTES = 64 << 20
MOST_THREADS = 8
PAGE = 4096


def allocate(fd: int, start: int, size: int) -> None:
    """Makes the file `size` bytes long, where the first `start` exist already. Raises OSError; the file is as long as it was then."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, start, size - start)
        else:
            os.ftruncate(fd, size)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, start)
        raise


def touch(fd: int, start: int, size: int) -> bool:
    """Pages from `start` to `size` are there when it returns; False where this system has no call for it, and the first save pays."""
    start -= start % PAGE
    libc = ctypes.CDLL(None, use_errno=True)  # the interpreter's own madvise keeps the lock that all threads need
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with mmap.mmap(fd, size) as memory:
        anchor = ctypes.c_char.from_buffer(memory)
        base = ctypes.addressof(anchor)
        ranges = iter([(at, min(RANGE_BYTES, size - at)) for at in range(start, size, RANGE_BYTES)])
        lock, failed = threading.Lock(), [0]

        def work() -> None:
            while not failed[0]:
                with lock:
                    found = next(ranges, None)
                if found is None:
                    return
                if libc.madvise(base + found[0], found[1], POPULATE_WRITE):
                    failed[0] = ctypes.get_errno() or errno.EINVAL

        threads = [threading.Thread(target=work) for _ in range(_threads(size - start) - 1)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()
        del anchor
    if failed[0] == errno.EINVAL:
        return False
    if failed[0]:
        raise OSError(failed[0], f"memory for a slot cannot be had: {os.strerror(failed[0])}")
    return True


def populate(view: memoryview) -> None:
    """This process's own mapping of memory that exists, before it is read into: a direct read into unmapped pages pays for each of them. Raises OSError
    where a store would raise SIGBUS; does nothing where this system has no call for it."""
    if not view.nbytes:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    start = address - address % PAGE
    if libc.madvise(start, address + view.nbytes - start, POPULATE_WRITE):
        code = ctypes.get_errno()
        if code != errno.EINVAL:
            raise OSError(errno.ENOMEM, f"memory of a slot has gone: {os.strerror(code)}")


def _threads(size: int) -> int:
    return max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)), size // RANGE_BYTES))
