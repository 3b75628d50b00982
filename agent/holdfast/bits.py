"""Copies that keep every bit of every dtype, those included that torch stores but does not compute with (sub-byte integers)."""

import functools

import torch


def copy_bits(target: torch.Tensor, source: torch.Tensor) -> None:
    """`target` becomes equal to `source`: same shape and dtype, any strides and devices."""
    if is_expanded(target):  # torch refuses to write an element twice, also with the same value
        target, source = _once(target, target), _once(source, target)
    if source.device != target.device:
        # torch would negate or conjugate on the host, for page-locked memory before the bytes are there: seen on an H200, the sign was lost.
        source = source.resolve_conj().resolve_neg()
    if copyable(source.dtype):
        target.copy_(source)
    elif target.is_contiguous():
        target.view(torch.uint8).copy_(source.contiguous().view(torch.uint8))
    else:
        raise ValueError(f"a strided tensor of {target.dtype} cannot be written by this release of torch")


def clone_bits(source: torch.Tensor) -> torch.Tensor:
    """A copy that shares no memory."""
    return source.clone() if copyable(source.dtype) else source.view(torch.uint8).clone().view(source.dtype)


@functools.cache
def copyable(dtype: torch.dtype) -> bool:
    """torch has a copy for it."""
    try:
        torch.empty(1, dtype=dtype).clone()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def is_expanded(tensor: torch.Tensor) -> bool:
    """Elements along an axis share one place in memory."""
    return any(n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _once(tensor: torch.Tensor, expanded: torch.Tensor) -> torch.Tensor:
    """`tensor` without the repetitions of `expanded`."""
    for axis, stride in enumerate(expanded.stride()):
        if stride == 0:
            tensor = tensor.narrow(axis, 0, min(1, tensor.shape[axis]))
    return tensor
