"""The copy of one rank's tensors into a slot at the speed of memory: tables of addresses that are made once, and as few calls as there are pieces (I7).

Contiguous tensors on the CPU are copied as bytes, by `memmove`: it gives up the GIL, knows every dtype, starts no OpenMP threads of its own, and above a
size of its choice writes past the caches. The rest (strided, lazily conjugated) is resolved by torch; device.py copies what lies on a GPU.
"""

import ctypes
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from typing import Any

import torch

from holdfast import device
from holdfast.bits import copy_bits
from holdfast.errors import UnsupportedState
from holdfast_api.manifest import TensorEntry

Piece = tuple[int, int, int]
"""(target address, source address, length)"""
THREADED_BYTES = 8 << 20
"""Below this the hand-over to threads costs more than it gains."""
MOST_THREADS = 4
"""A few saturate memory bandwidth, and training keeps the other cores."""
LEAST_PIECE_BYTES = 4 << 20
PIECES_PER_THREAD = 8
"""So many shares for each thread, so that one that was interrupted does not hold up the others; no smaller than needed for that, because large copies
write past the caches and are up to 1.5 times as fast (1 GiB, one thread, measured)."""

_FORM = tuple(map(methodcaller, ("data_ptr", "is_contiguous", "is_conj", "is_neg", "stride")))
"""What decides how a tensor is copied; dtype and shape are the plan's, which is compared before (I9)."""


class CopyTable:
    """The tensors of one plan and one slot. `copy` is called by one thread at a time."""

    def __init__(self, memory: torch.Tensor, entries: Sequence[TensorEntry]) -> None:
        """`memory` is the slot, as bytes."""
        self._memory = memory
        self._entries = entries
        self._names = [e.name for e in entries]
        self._form: list[Any] = []
        self._pieces: list[Piece] = []
        self._others: list[TensorEntry] = []

    def copy(self, tensors: Mapping[str, torch.Tensor], pool: ThreadPoolExecutor) -> list[TensorEntry]:
        """Copies what is on the CPU, and returns the entries of what is not. Raises UnsupportedState naming the tensor."""
        sources = [tensors[name] for name in self._names]
        form = [list(map(question, sources)) for question in _FORM]
        if form != self._form:
            self._plan(sources, form)
        run(self._pieces, pool)
        elsewhere = []
        for entry in self._others:
            source = tensors[entry.name]
            if source.device.type != "cpu" or device.is_far(source):
                elsewhere.append(entry)
                continue
            try:
                copy_bits(self.target(entry, source), source)
            except (RuntimeError, MemoryError) as e:
                raise UnsupportedState(
                    f"{entry.name} ({source.dtype}, {tuple(source.shape)}) cannot be copied: {e}"
                ) from e
        return elsewhere

    def target(self, entry: TensorEntry, source: torch.Tensor) -> torch.Tensor:
        """The view of the slot that takes `source`."""
        place = self._memory[entry.offset_bytes : entry.offset_bytes + entry.length_bytes]
        return place.view(source.dtype).view(source.shape)

    def _plan(self, sources: Sequence[torch.Tensor], form: list[Any]) -> None:
        base = self._memory.data_ptr()
        whole: list[Piece] = []
        self._others = []
        for entry, source, address, contiguous, conj, neg, _ in zip(self._entries, sources, *form, strict=True):
            _check_storage(entry.name, source)
            far = source.device.type != "cpu" or device.is_far(source)
            if not far and contiguous and not conj and not neg:
                whole.append((base + entry.offset_bytes, address, entry.length_bytes))
            else:
                self._others.append(entry)
        self._pieces = shares(whole, threads=thread_count())
        self._form = form


def shares(copies: Sequence[Piece], *, threads: int) -> list[Piece]:
    """The same bytes, cut and ordered for so many threads: what is small is not cut, the largest come first, neighbours are joined. Pure."""
    joined = _joined(copies)
    limit = max(LEAST_PIECE_BYTES, sum(c[2] for c in joined) // (threads * PIECES_PER_THREAD))
    cut = [
        (target + at, source + at, min(limit, length - at))
        for target, source, length in joined
        for at in range(0, length, limit)
    ]
    return sorted(cut, key=lambda c: -c[2])


def run(pieces: Sequence[Piece], pool: ThreadPoolExecutor) -> None:
    """The calling thread copies too: where no other gets a core, nothing is lost."""
    waiting = deque(pieces)
    helpers = []
    if sum(p[2] for p in pieces) >= THREADED_BYTES:
        helpers = [pool.submit(_work, waiting) for _ in range(min(thread_count(), len(pieces)) - 1)]
    _work(waiting)
    for helper in helpers:
        if not helper.cancel():
            helper.result()


def _check_storage(name: str, source: torch.Tensor) -> None:
    """Some wrappers take a tensor's memory away between uses, and reading it would end the process. Raises UnsupportedState."""
    extent = sum((n - 1) * stride for n, stride in zip(source.shape, source.stride(), strict=True)) + 1
    needed, there = (source.storage_offset() + extent) * source.element_size(), source.untyped_storage().nbytes()
    if there < needed:
        raise UnsupportedState(
            f"{name} needs {needed} bytes of memory and has {there}: something has taken them away (FSDP does between uses); "
            "such a model cannot be saved by this release"
        )


def copy_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="holdfast-copy")


def thread_count() -> int:
    """The cores this process may use, up to a few."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)))


def _work(waiting: deque[Piece]) -> None:
    move, take = ctypes.memmove, waiting.popleft
    while True:
        try:
            piece = take()
        except IndexError:
            return
        move(*piece)


def _joined(copies: Sequence[Piece]) -> list[Piece]:
    """Tensors that lie one after another on both sides, as those of a flat buffer do."""
    found: list[Piece] = []
    for target, source, length in sorted(copies):
        if found and target == found[-1][0] + found[-1][2] and source == found[-1][1] + found[-1][2]:
            found[-1] = (found[-1][0], found[-1][1], found[-1][2] + length)
        else:
            found.append((target, source, length))
    return found
