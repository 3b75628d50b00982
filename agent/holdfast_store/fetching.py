"""Brings parts of a stored image into a file, chunk by chunk, each verified before it is written (C3): for an export, which often needs a third of it.

The file has the image's size and is sparse: what was not asked for is a hole. So every tensor lies where the manifest says.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from holdfast_api.manifest import RankManifest, TensorEntry
from holdfast_store.job import JobStore

NOBODY_LOOKS: Callable[[int, int], None] = lambda _done, _total: None  # noqa: E731


def chunks_of(manifest: RankManifest, entries: Iterable[TensorEntry]) -> list[int]:
    """Indices of the chunks in which the bytes of `entries` lie, in order."""
    wanted: set[int] = set()
    for entry in entries:
        if entry.length_bytes:
            first = entry.offset_bytes // manifest.chunk_bytes
            last = (entry.offset_bytes + entry.length_bytes - 1) // manifest.chunk_bytes
            wanted.update(range(first, last + 1))
    return sorted(wanted)


def fetch(
    store: JobStore,
    manifest: RankManifest,
    chunks: Iterable[int],
    path: Path,
    *,
    threads: int = 4,
    progress: Callable[[int, int], None] = NOBODY_LOOKS,
) -> None:
    """Writes the chunks to their places in `path`, which is made if need be. Holds `threads` chunks in memory; `progress(bytes done, bytes in all)` is
    called from several threads, one at a time. Absent, Corrupt, Unavailable, Denied; OSError of the file. `store` is that of the manifest's job."""
    indices = list(chunks)
    total = sum(manifest.chunks[i].length for i in indices)
    done, lock = 0, threading.Lock()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def one(index: int) -> None:
        nonlocal done
        chunk = manifest.chunks[index]
        view = memoryview(bytearray(chunk.length))
        store.get_chunk_into(chunk, view)
        written = 0
        while written < chunk.length:
            written += os.pwrite(fd, view[written:], index * manifest.chunk_bytes + written)
        with lock:
            done += chunk.length
            progress(done, total)

    try:
        os.ftruncate(fd, manifest.image_bytes)
        progress(0, total)
        with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="fetch") as pool:
            for _ in pool.map(one, indices):
                pass
    finally:
        os.close(fd)
