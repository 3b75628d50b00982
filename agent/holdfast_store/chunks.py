"""Digests: BLAKE3-256 in hex names a chunk and proves it. Hashing releases the GIL, so threads hash in parallel."""

import blake3

from holdfast_store.bucket import Buffer


def digest(data: Buffer) -> str:
    """BLAKE3-256 of `data`, 64 hex digits. Any thread."""
    return str(blake3.blake3(data).hexdigest())


class Digest:
    """The same of bytes that come one after another. One thread at a time."""

    def __init__(self) -> None:
        self._hash = blake3.blake3()

    def add(self, data: Buffer) -> None:
        self._hash.update(data)

    def __str__(self) -> str:
        """64 hex digits."""
        return str(self._hash.hexdigest())


def ranges(total_bytes: int, chunk_bytes: int) -> list[tuple[int, int]]:
    """(offset, length) of every chunk of an image: all but the last have `chunk_bytes`."""
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive, not {chunk_bytes}")
    return [(start, min(chunk_bytes, total_bytes - start)) for start in range(0, total_bytes, chunk_bytes)]
