"""The random generators' states at every boundary, for microseconds.

Asking Python's and NumPy's generators for their state costs 15 and 70 µs, because they turn their words into objects. Their words are collected as
memory instead (gather.py), and turned into the form of `rng.capture` only when a copy is made. Where they lie is found out at start with
generators of our own whose state is known; where that fails, the slow way is taken.
"""

import ctypes
import random
import struct
import sys
from typing import Any, NamedTuple

import torch

from holdfast import rng
from holdfast.gather import Segment

WORDS = 624
"""32-bit words of a Mersenne Twister."""


class Noted(NamedTuple):
    """What is no plain memory."""

    gauss: float | None
    python: tuple[Any, ...] | None
    torch: torch.Tensor
    numpy: tuple[Any, ...] | None
    cuda: tuple[torch.Tensor, ...]


class Generators:
    """Made once; `segments` are to be collected together with each `note`."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        python, numpy = _python_segment(), _numpy_segments()
        self._python = python is not None
        self._numpy = numpy is not None
        self.segments += [python] if python is not None else []
        self.segments += numpy or []
        self._numpy_bits = _numpy_bits()

    @property
    def valid(self) -> bool:
        """NumPy has not been imported since, nor its global generator exchanged."""
        return _numpy_bits() is self._numpy_bits

    def note(self) -> Noted:
        """Main thread, at a boundary."""
        instance: Any = random._inst
        return Noted(
            instance.gauss_next,
            None if self._python else random.getstate(),
            torch.get_rng_state(),
            _numpy_state() if self._numpy_bits is not None and not self._numpy else None,
            tuple(g.get_state() for g in torch.cuda.default_generators) if torch.cuda.is_initialized() else (),
        )

    def state(self, noted: Noted, pieces: list[bytes]) -> dict[str, Any]:
        """As `rng.capture` would have said it. Any thread."""
        pieces = list(pieces)
        if self._python:
            raw = pieces.pop(0)
            words, gauss = raw[4:] + raw[:4], noted.gauss
        else:
            assert noted.python is not None
            _, internal, gauss = noted.python
            words = struct.pack(f"<{len(internal)}I", *internal)
        state: dict[str, Any] = {
            "python": {"version": 3, "words": words, "gauss": gauss},
            "torch": noted.torch.numpy().tobytes(),
        }
        if self._numpy:
            keys, extra = pieces
            has_gauss, cached = struct.unpack("<i4xd", extra)
            state["numpy"] = rng.numpy_form(
                "MT19937", keys[: 4 * WORDS], struct.unpack_from("<i", keys, 4 * WORDS)[0], has_gauss, cached
            )
        elif noted.numpy is not None:
            name, keys, position, has_gauss, cached = noted.numpy
            state["numpy"] = rng.numpy_form(name, keys.tobytes(), position, has_gauss, cached)
        if noted.cuda:
            state["cuda"] = [g.numpy().tobytes() for g in noted.cuda]
        return state


def _python_segment() -> Segment | None:
    """`random.Random` keeps an index, then its words."""
    known = random.Random(5)
    known.random()
    internal = known.getstate()[1]
    offset = _inside(known, struct.pack(f"<i{WORDS}I", internal[WORDS], *internal[:WORDS]))
    instance = getattr(random, "_inst", None)
    if offset is None or type(instance) is not random.Random or known.VERSION != 3:
        return None
    return id(instance) + offset, 4 + 4 * WORDS


def _numpy_segments() -> list[Segment] | None:
    """The words and the position lie where the bit generator says; the kept half of a pair of normal numbers lies in the `RandomState`."""
    numpy: Any = sys.modules.get("numpy")
    bits = _numpy_bits()
    if bits is None or type(bits).__name__ != "MT19937":
        return None
    instance = numpy.random.mtrand._rand
    known = numpy.random.RandomState(5)
    name, keys, position, _, _ = known.get_state()
    known.set_state((name, keys, position, 1, 0.1234567890123))
    offset = _inside(known, struct.pack("<i4xd", 1, 0.1234567890123))
    address = known._bit_generator.ctypes.state_address
    if offset is None or ctypes.string_at(address, 4 * WORDS + 4) != keys.tobytes() + struct.pack("<i", position):
        return None
    return [(bits.ctypes.state_address, 4 * WORDS + 4), (id(instance) + offset, 16)]


def _inside(known: Any, pattern: bytes) -> int | None:
    """Where `pattern` lies in the object, if exactly once."""
    raw = ctypes.string_at(id(known), type(known).__basicsize__)
    return raw.index(pattern) if raw.count(pattern) == 1 else None


def _numpy_bits() -> Any:
    numpy: Any = sys.modules.get("numpy")
    mtrand = getattr(getattr(numpy, "random", None), "mtrand", None)
    return getattr(getattr(mtrand, "_rand", None), "_bit_generator", None)


def _numpy_state() -> tuple[Any, ...]:
    state: tuple[Any, ...] = sys.modules["numpy"].random.get_state()
    return state
