"""Tensors are filled from the image at the speed of memory: large ones as bytes, by several threads, each byte copied once.

The opposite direction of copying.py, with its shares and threads. What lies on a GPU is upload.py's; what is not plain (strided) is torch's to copy.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from holdfast import copying, device
from holdfast.bits import clone_bits, copy_bits
from holdfast.sharding import Part
from holdfast.upload import upload

LARGE_BYTES = 256 << 10
"""Below this an element-wise check or a clone by torch costs less than its share of bookkeeping."""
CHECKED_ELEMENTS = 4 << 20
"""Of one look for values that are not finite."""

Pair = tuple[torch.Tensor, torch.Tensor]
"""(target, source): same shape and dtype"""


def fill(pairs: Iterable[Pair]) -> None:
    """Makes every target equal to its source. Targets may be tied to each other, and then have the same source."""
    whole: dict[int, copying.Piece] = {}
    others: list[Pair] = []
    for target, source in pairs:
        if _is_plain(target) and _is_plain(source) and target.dtype == source.dtype and target.shape == source.shape:
            whole[target.data_ptr()] = (target.data_ptr(), source.data_ptr(), target.nbytes)
        else:
            others.append((target, source))
    if whole:
        with copying.copy_pool() as pool:
            copying.run(copying.shares([*whole.values()], threads=copying.thread_count()), pool)
    for target, source in upload(others):
        copy_bits(target, source)


def cloned(value: Any) -> Any:
    """The same tree with tensors of its own: objects may keep what they are given, and the image goes away."""
    pairs: list[Pair] = []
    copy = _cloned(value, pairs)
    fill(pairs)
    return copy


def first_not_finite(named: Sequence[tuple[str, torch.Tensor]]) -> str | None:
    """The name of a tensor that holds NaN or infinite values, the first in order; None if all are finite. One read, by several threads."""
    looks = [(name, piece) for name, tensor in named for piece in _pieces(tensor)]
    if sum(p.nbytes for _, p in looks) < copying.THREADED_BYTES:
        return next((name for name, piece in looks if not _finite(piece)), None)
    with ThreadPoolExecutor(copying.thread_count(), thread_name_prefix="holdfast-check") as pool:
        found = pool.map(_finite, (piece for _, piece in looks))
        return next((name for (name, _), good in zip(looks, found, strict=True) if not good), None)


def _cloned(value: Any, pairs: list[Pair]) -> Any:
    if isinstance(value, torch.Tensor):
        if value.nbytes < LARGE_BYTES or not _is_plain(value):
            return clone_bits(value)
        pairs.append((torch.empty_like(value), value))
        return pairs[-1][0]
    if isinstance(value, Part):
        return replace(value, local=_cloned(value.local, pairs))
    if isinstance(value, dict):
        return type(value)({k: _cloned(v, pairs) for k, v in value.items()})
    if type(value) in (list, tuple):
        return type(value)(_cloned(v, pairs) for v in value)
    return value.copy() if type(value).__module__ == "numpy" else value


def _is_plain(tensor: torch.Tensor) -> bool:
    """Its bytes in memory are its content, one after the other."""
    return (
        tensor.device.type == "cpu"
        and not device.is_far(tensor)
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _pieces(tensor: torch.Tensor) -> list[torch.Tensor]:
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return []
    return [*tensor.reshape(-1).split(CHECKED_ELEMENTS)]


def _finite(tensor: torch.Tensor) -> bool:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.to(torch.complex64) if tensor.dtype == torch.complex32 else tensor)
    if tensor.element_size() == 1:
        tensor = tensor.float()  # 8-bit floats have no arithmetic
    low, high = torch.aminmax(tensor)  # one pass and no mask; NaN comes through
    return bool(torch.isfinite(low) and torch.isfinite(high))
