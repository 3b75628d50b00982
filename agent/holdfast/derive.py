"""New random generators where the number of ranks has changed, from those of the checkpoint's rank 0.

    seed = the first 8 bytes (little-endian) of BLAKE2b-256 over  "holdfast.rng 1" NUL kind NUL rank NUL  and the generator's saved state

`kind` is `python`, `torch`, `numpy`, `cuda.<n>`, or the name under which the generator is registered; `rank` the new rank in decimal. The generator
is then as a new one of its kind with that seed (NumPy's global one: the seed modulo 2^32). So the same checkpoint gives the same numbers however often
it is loaded, every rank others, and none those that a rank has drawn before.
"""

import hashlib
import random
import struct
from typing import Any

import torch

from holdfast import rng


def seed_of(state: bytes, kind: str, rank: int) -> int:
    """64 bits."""
    text = b"\0".join((b"holdfast.rng 1", kind.encode(), str(rank).encode(), state))
    return int.from_bytes(hashlib.blake2b(text, digest_size=32).digest()[:8], "little")


def generators(state: dict[str, Any], rank: int) -> dict[str, Any]:
    """As `rng.capture` has it, anew for `rank`."""
    made: dict[str, Any] = {
        "python": _python_state(seed_of(state["python"]["words"], "python", rank)),
        "torch": _torch_state(seed_of(state["torch"], "torch", rank)),
    }
    if "numpy" in state:
        made["numpy"] = _numpy_state(seed_of(state["numpy"]["keys"], "numpy", rank))
    if "cuda" in state:
        made["cuda"] = [_device_state(seed_of(s, f"cuda.{n}", rank)) for n, s in enumerate(state["cuda"])]
    return made


def own(state: Any, target: Any, name: str, rank: int) -> Any:
    """The state of a generator of the script's own, of the kind of `target`, as `GeneratorPart` saves it."""
    seed = seed_of(state if isinstance(state, bytes) else repr(state).encode(), name, rank)
    if isinstance(target, torch.Generator):
        return _torch_state(seed) if target.device.type == "cpu" else _device_state(seed)
    if isinstance(target, random.Random):
        return random.Random(seed).getstate()
    return type(target.bit_generator)(seed).state


def _python_state(seed: int) -> dict[str, Any]:
    version, internal, gauss = random.Random(seed).getstate()
    return {"version": version, "words": struct.pack(f"<{len(internal)}I", *internal), "gauss": gauss}


def _torch_state(seed: int) -> bytes:
    return rng.generator_bytes(torch.Generator().manual_seed(seed))


def _device_state(seed: int) -> bytes:
    """Seed and offset, as torch's CUDA generators keep them."""
    return struct.pack("<QQ", seed, 0)


def _numpy_state(seed: int) -> dict[str, Any]:
    import numpy

    state: Any = numpy.random.RandomState(seed % (1 << 32)).get_state()
    name, keys, position, has_gauss, cached = state
    return rng.numpy_form(name, keys.tobytes(), position, has_gauss, cached)
