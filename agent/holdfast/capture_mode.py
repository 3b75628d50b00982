"""A thread of ours beside a CUDA graph that training captures (I7).

While one thread captures, calls of any other that CUDA calls unsafe (waiting for an event, asking whether it has completed, page-locking memory) fail and
spoil the capture: seen on an H200. Only a thread that has itself switched to the relaxed mode is exempt. torch has no call for that, so the CUDA runtime
that it has loaded is asked.
"""

import ctypes
import functools
import threading
from pathlib import Path

RELAXED = 2
"""cudaStreamCaptureModeRelaxed"""
_relaxed = threading.local()


def relax() -> bool:
    """From now on CUDA calls of the calling thread neither fail because of a capture in another thread nor spoil it. False: that cannot be had here, and
    the thread must leave CUDA alone. Asking again costs nothing."""
    if getattr(_relaxed, "on", False):
        return True
    exchange = _exchange()
    if exchange is None:
        return False
    mode = ctypes.c_int(RELAXED)
    _relaxed.on = exchange(ctypes.byref(mode)) == 0
    return bool(_relaxed.on)


def available() -> bool:
    """`relax` will work, as far as can be told without doing it."""
    return _exchange() is not None


@functools.cache
def _exchange() -> "ctypes._FuncPointer | None":
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for path in dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines if "/libcudart" in line):
        try:
            found = ctypes.CDLL(path).cudaThreadExchangeStreamCaptureMode
        except (OSError, AttributeError):
            continue
        found.argtypes, found.restype = [ctypes.POINTER(ctypes.c_int)], ctypes.c_int
        return found
    return None
