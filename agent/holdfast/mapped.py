"""An image file in this process's memory while it is loaded.

Everybody reads it through a private mapping, so whatever is done to its tensors, the file stays. A GPU may read it through a second, shared mapping
whose pages are locked (`Twin`): a private one cannot be locked, because the kernel would lock copies of its pages, made before the bytes are there.
"""

import itertools
import math
import mmap
import os
import threading
import warnings

import torch

from holdfast import pinning
from holdfast.errors import CheckpointDamaged

RANGE_BYTES = 128 << 20
"""Locked at once: 5 ms where the pages are there (H200)."""


class MappedImage:
    """The first `image_bytes` of a file. Owned by one thread; the mapping goes when the last tensor over it goes."""

    def __init__(self, path: str, image_bytes: int) -> None:
        """Raises CheckpointDamaged for a file that is shorter, OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.fstat(fd)
            if there.st_size < image_bytes or image_bytes <= 0:
                raise CheckpointDamaged(f"the image has {there.st_size} bytes; {image_bytes} were announced")
            memory = mmap.mmap(fd, image_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        if hasattr(mmap, "MADV_DONTFORK"):
            memory.madvise(mmap.MADV_DONTFORK)
        self._file = there.st_dev, there.st_ino
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8)

    def is_of(self, path: str, image_bytes: int) -> bool:
        """What is at `path` now is what is mapped here: slot files never get shorter, but one may have been made anew under the same name."""
        try:
            there = os.stat(path)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == self._file and self.bytes.numel() == image_bytes <= there.st_size


class Twin:
    """The shared mapping of an image file for a GPU, locked range by range from the start. First one thread calls `lock_next`, then another `pieces`, last
    `close`."""

    def __init__(self, path: str, image_bytes: int, device: int) -> None:
        """Raises OSError, ValueError."""
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._device = device
        try:
            self.bytes = _shared(self._fd, image_bytes, writable=False)
        except BaseException:
            os.close(self._fd)
            raise
        self._flags = pinning.PORTABLE | pinning.READ_ONLY
        self._locked: list[int] = []
        """Addresses of the ranges."""
        self.trouble = ""
        """Why no more ranges can be locked."""

    @property
    def locked_bytes(self) -> int:
        """From the start of the image."""
        return min(len(self._locked) * RANGE_BYTES, len(self.bytes))

    def lock_next(self) -> bool:
        """False when there is nothing left to lock, or it cannot be."""
        start = self.locked_bytes
        length = min(RANGE_BYTES, self.bytes.numel() - start)
        if not length or self.trouble:
            return False
        self.trouble = self._lock(start, length)
        if self.trouble and not start and self._flags & pinning.READ_ONLY:
            self.bytes = _shared(
                self._fd, self.bytes.numel(), writable=True
            )  # CUDA refuses the other one without the flag
            self._flags = pinning.PORTABLE
            self.trouble = self._lock(start, length)
        return not self.trouble

    def _lock(self, start: int, length: int) -> str:
        address = self.bytes.data_ptr() + start
        trouble = pinning.pin(address, length, self._device, self._flags)
        if not trouble:
            self._locked.append(address)
        return trouble

    def pieces(self, start: int, length: int) -> list[torch.Tensor] | None:
        """These bytes, cut where one locked range ends: no copy may reach from one into the next. None if they are not all locked."""
        end = start + length
        if end > self.locked_bytes:
            return None
        cuts = [start, *range(math.ceil((start + 1) / RANGE_BYTES) * RANGE_BYTES, end, RANGE_BYTES), end]
        return [self.bytes[a:b] for a, b in itertools.pairwise(cuts)]

    def close(self) -> None:
        """When no copy runs any more."""
        for address in self._locked:
            pinning.unpin(address)
        self._locked.clear()
        os.close(self._fd)


def _shared(fd: int, length: int, *, writable: bool) -> torch.Tensor:
    memory = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))
    if hasattr(mmap, "MADV_DONTFORK"):
        memory.madvise(mmap.MADV_DONTFORK)
    with warnings.catch_warnings(action="ignore"):  # that it must not be written to
        return torch.frombuffer(memory, dtype=torch.uint8)


_twins: dict[int, Twin] = {}
"""By the address of the private mapping that tensors are views of."""
_lock = threading.Lock()


def pair(image: MappedImage, twin: Twin) -> None:
    """Copies of the image's tensors to a GPU go through the twin from now on, until `part`."""
    with _lock:
        _twins[image.bytes.data_ptr()] = twin


def part(image: MappedImage) -> None:
    with _lock:
        _twins.pop(image.bytes.data_ptr(), None)


def locked_pieces(source: torch.Tensor) -> list[torch.Tensor] | None:
    """The memory of a contiguous tensor, page-locked; None where it is not."""
    if not _twins:
        return None
    base = source.untyped_storage().data_ptr()
    twin = _twins.get(base)
    return twin.pieces(source.data_ptr() - base, source.nbytes) if twin is not None else None
