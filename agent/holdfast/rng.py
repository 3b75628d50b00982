"""The state of every random generator that training draws from: Python, NumPy, torch on the CPU and on each CUDA device, per rank."""

import random
import struct
import sys
from typing import Any

import torch


def capture() -> dict[str, Any]:
    """Bytes and numbers only. NumPy's global generator only if NumPy is imported; devices only if CUDA is in use: asking must not start it."""
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": struct.pack(f"<{len(internal)}I", *internal), "gauss": gauss},
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = numpy_form(name, keys.tobytes(), position, has_gauss, cached)
    if torch.cuda.is_initialized():
        state["cuda"] = [generator_bytes(g) for g in torch.cuda.default_generators]
    return state


def numpy_form(name: Any, keys: bytes, position: Any, has_gauss: Any, cached: Any) -> dict[str, Any]:
    """NumPy's global generator as it is stored."""
    return {
        "name": str(name),
        "keys": keys,
        "position": int(position),
        "has_gauss": int(has_gauss),
        "cached": float(cached),
    }


def put_back(state: dict[str, Any]) -> None:
    """The opposite of `capture`. Devices that this process does not have are left out."""
    python = state["python"]
    words = struct.unpack(f"<{len(python['words']) // 4}I", python["words"])
    random.setstate((python["version"], words, python["gauss"]))
    torch.set_rng_state(_tensor(state["torch"]))
    if "numpy" in state:
        import numpy

        saved = state["numpy"]
        keys = numpy.frombuffer(saved["keys"], dtype=numpy.uint32)
        numpy.random.set_state((saved["name"], keys, saved["position"], saved["has_gauss"], saved["cached"]))
    if state.get("cuda") and torch.cuda.is_available():
        torch.cuda.init()
        for generator, saved in zip(torch.cuda.default_generators, state["cuda"], strict=False):
            generator.set_state(_tensor(saved))


def generator_bytes(generator: torch.Generator) -> bytes:
    """The whole state of a `torch.Generator`."""
    state: bytes = generator.get_state().numpy().tobytes()
    return state


def put_generator_back(generator: torch.Generator, state: bytes) -> None:
    generator.set_state(_tensor(state))


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
