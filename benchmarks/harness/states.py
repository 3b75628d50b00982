"""The state that is saved and restored: tensors in shared memory, made once, read by all contenders of a question."""

import mmap
from dataclasses import dataclass

import numpy
import torch

TENSORS = 64
_BLOCK = 64 << 20


@dataclass(frozen=True)
class State:
    """Name -> float32 tensor. The memory is shared by forked processes, so it does not count as anybody's own."""

    tensors: dict[str, torch.Tensor]
    memory: mmap.mmap
    bytes: int


def make(mebibytes: int) -> State:
    """`TENSORS` tensors of equal size, together so many MiB. Random bits of finite numbers: nothing can be compressed, and no two chunks are equal."""
    size = mebibytes << 20
    memory = mmap.mmap(-1, size)
    words = numpy.frombuffer(memory, dtype=numpy.uint32)
    generator = numpy.random.default_rng(1)
    for start in range(0, len(words), _BLOCK // 4):
        block = words[start : start + _BLOCK // 4]
        block[:] = generator.integers(0, 1 << 32, len(block), dtype=numpy.uint32)
        block &= 0xBFFFFFFF  # exponents below 2: neither infinite nor NaN
    whole = torch.frombuffer(memory, dtype=torch.float32)
    each = size // 4 // TENSORS
    tensors = {f"layers.{i:02d}.weight": whole[i * each : (i + 1) * each].view(-1, 1024) for i in range(TENSORS)}
    return State(tensors, memory, each * 4 * TENSORS)


def touch(tensors: dict[str, torch.Tensor]) -> None:
    """Changes a word in every 4 MiB, so that every chunk differs from the save before: nothing may be left out as already there."""
    for tensor in tensors.values():
        words = tensor.view(-1).view(torch.int32)
        words[:: 1 << 20] ^= 1
        words[:: 1 << 20] += 2
