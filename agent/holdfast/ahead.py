"""What a load needs beside the bytes, done while they are still being fetched: pages of the tensors and of the image mapped, the image page-locked for the GPU.

Nothing here reads what is in the image or changes what is in a tensor (C3): not a bit is different if no load follows, or one of another checkpoint. Whatever
goes wrong costs speed and nothing else. docs/decisions/0037 says why the copies themselves are not made ahead.
"""

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

import torch

from holdfast import capture_mode, device, mapped, pinning, upload
from holdfast.mapped import MappedImage, Twin

log = logging.getLogger("holdfast")
POPULATE_READ, POPULATE_WRITE = 22, 23
"""madvise, Linux 5.14. The second is a store of what is there already. A kernel that does not know them leaves the pages to the load."""
STEP_BYTES = 32 << 20
"""Prepared between two looks whether the load begins: 10 ms of untouched memory."""
LARGE_BYTES = 256 << 10
"""Smaller tensors share pages that are there."""
PAGE = 4096


class Ahead:
    """Of one image. Made, stopped and closed by the main thread; one thread of its own works between."""

    def __init__(self, path: str, image_bytes: int, targets: Sequence[torch.Tensor]) -> None:
        """`targets`: what the load will write to. Raises CheckpointDamaged, OSError, ValueError."""
        self.image = MappedImage(path, image_bytes)
        gpu = _gpu(targets) if device.side_stream_wanted() else None
        self._twin = Twin(path, image_bytes, gpu) if gpu is not None else None
        self._targets = [t for t in targets if _is_near(t)]
        self._begins = threading.Event()
        self._thread = threading.Thread(target=self._work, name="holdfast-ahead", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until all is prepared: to measure it."""
        self._thread.join()

    def stop(self) -> None:
        """The load begins, and does itself what is not prepared by now. Nothing of it runs afterwards."""
        self._begins.set()
        self._thread.join()

    def close(self) -> None:
        """After the load, or without one. The image's file may go."""
        self.stop()
        if self._twin is not None:
            mapped.part(self.image)
            self._twin.close()

    def _work(self) -> None:
        try:
            for step in self._steps():
                if self._begins.is_set():
                    break
                self._step(step)
        except Exception as e:
            log.info("holdfast: not all can be prepared for the load: %s: %s", type(e).__name__, e)

    @staticmethod
    def _step(step: Callable[[], object]) -> None:
        step()

    def _steps(self) -> Iterator[Callable[[], object]]:
        twin = self._twin
        if twin is not None and capture_mode.relax():
            mapped.pair(self.image, twin)
            yield lambda: device.pinned(upload.BUFFER_BYTES)  # for what is small; torch keeps it for the next who asks
            while twin.locked_bytes < twin.bytes.numel() and not twin.trouble:
                yield twin.lock_next
            if twin.trouble:
                log.info("holdfast: the image is not page-locked, so it is loaded more slowly: %s", twin.trouble)
        libc = ctypes.CDLL(None, use_errno=True)  # the interpreter's own madvise keeps the lock that all threads need
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for memory, how in [*((t, POPULATE_WRITE) for t in self._targets), (self.image.bytes, POPULATE_READ)]:
            end = memory.data_ptr() + memory.nbytes
            for at in range(memory.data_ptr() // PAGE * PAGE, end, STEP_BYTES):
                yield lambda at=at, end=end, how=how: libc.madvise(at, min(STEP_BYTES, end - at), how)  # type: ignore[misc]


def begin(path: str, image_bytes: int, targets: Callable[[], Sequence[torch.Tensor]]) -> Ahead | None:
    """None where nothing can be prepared; the load will say why, if it is a reason there too."""
    try:
        return Ahead(path, image_bytes, targets())
    except Exception as e:  # tensors are what users make them
        log.info("holdfast: nothing is prepared for the load: %s: %s", type(e).__name__, e)
        return None


def _gpu(targets: Sequence[torch.Tensor]) -> int | None:
    """The one that the targets lie on, or else the current one: another would be started by asking it."""
    current = pinning.device_in_use()
    return current if current is None else next((t.device.index for t in targets if t.device.type == "cuda"), current)


def _is_near(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.nbytes >= LARGE_BYTES
        and tensor.is_contiguous()
        and not device.is_far(tensor)
    )
