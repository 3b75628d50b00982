"""Page-locked slots, so that a GPU copies into them at full speed (J5).

Registered once per mapping and process, again after each restart in place. A failure costs speed and nothing else.
"""

import logging
import time
from typing import Any

import torch

log = logging.getLogger("holdfast")
PORTABLE = 1
"""cudaHostRegisterPortable: for every context of the process."""
READ_ONLY = 8
"""cudaHostRegisterReadOnly: the device does not write. Not every device can; where it can, it takes half the time (H200)."""


def pin(address: int, length: int, device: int, flags: int = PORTABLE) -> str:
    """Registers memory for `device`; "" or why not, in words. Any thread; seconds for many GiB."""
    try:
        with torch.cuda.device(device):
            return _call("cudaHostRegister", address, length, flags)
    except Exception as e:
        return f"{type(e).__name__}: {e}"


def unpin(address: int) -> None:
    """Before the memory is unmapped."""
    try:
        _call("cudaHostUnregister", address)
    except Exception as e:
        log.debug("holdfast: memory could not be unregistered: %s", e)


def pin_all(places: list[tuple[int, int]], device: int) -> list[int]:
    """Registers each (address, length); returns the addresses for which that went well. Says how long it took, or once why not."""
    began = time.monotonic()
    done = []
    for address, length in places:
        trouble = pin(address, length, device)
        if trouble:
            log.warning("holdfast: the slots are not page-locked, so copies from the GPU are slower: %s", trouble)
            break
        done.append(address)
    if len(done) == len(places):
        log.info("holdfast: %d slots page-locked in %.1f s", len(done), time.monotonic() - began)
    return done


def device_in_use() -> int | None:
    """The current device, if this process uses CUDA. Asking must not start it."""
    return torch.cuda.current_device() if torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _call(name: str, *arguments: Any) -> str:
    code = getattr(torch.cuda.cudart(), name)(*arguments)
    return "" if int(code) == 0 else f"{name} answers {int(code)}"
