"""Digests: BLAKE3-256 in hex names a chunk and proves it. Hashing releases the GIL, so threads hash in parallel."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3

from holdfast_store.bucket import Buffer

_READ_BYTES = 4 << 20


def digest(data: Buffer) -> str:
    """BLAKE3-256 of `data`, 64 hex digits. Any thread."""
    return str(blake3.blake3(data).hexdigest())


def ranges(total_bytes: int, chunk_bytes: int) -> list[tuple[int, int]]:
    """(offset, length) of every chunk of an image: all but the last have `chunk_bytes`."""
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive, not {chunk_bytes}")
    return [(start, min(chunk_bytes, total_bytes - start)) for start in range(0, total_bytes, chunk_bytes)]


def hash_chunks(view: memoryview, chunk_bytes: int, *, threads: int) -> list[tuple[str, int]]:
    """(digest, length) of every chunk of `view`, in order, hashed by up to `threads` threads. `view` must not change meanwhile."""
    pieces = [view[start : start + length] for start, length in ranges(view.nbytes, chunk_bytes)]
    if threads <= 1 or len(pieces) <= 1:
        return [(digest(p), p.nbytes) for p in pieces]
    with ThreadPoolExecutor(max_workers=threads, thread_name_prefix="hash") as pool:
        return [(name, piece.nbytes) for name, piece in zip(pool.map(digest, pieces), pieces, strict=True)]


def digest_file(path: Path) -> str:
    """BLAKE3-256 of a file's content, read in pieces."""
    hasher = blake3.blake3()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            hasher.update(piece)
    return str(hasher.hexdigest())
