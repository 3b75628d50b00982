"""Many small pieces of a GPU's memory, collected by a constant number of calls: what gather.py does on the host, in the order of the current stream."""

from collections.abc import Sequence

import torch


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes that a dense tensor occupies, in the order of memory; of one that is not dense, those of its first element. Shares its memory; what is only
    conjugated or negated in name is not."""
    tensor = tensor.detach()
    if tensor.is_conj():
        tensor = tensor.conj()
    if tensor.is_neg():
        tensor = torch._neg_view(tensor)
    count = tensor.numel() if is_dense(tensor) else min(1, tensor.numel())
    return tensor.as_strided((count,), (1,)).view(torch.uint8)


def is_dense(tensor: torch.Tensor) -> bool:
    """Contiguous, or a permutation of a contiguous tensor."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


class DeviceGather:
    """A fixed list of views of bytes on one device, and what they held when `take` was executed last. The views keep their memory alive."""

    def __init__(self, views: Sequence[torch.Tensor]) -> None:
        self.views = list(views)
        self.offsets: list[int] = []
        total = 0
        for view in self.views:
            self.offsets.append(total)
            total += view.numel()
        device = self.views[0].device if self.views else None
        self.bytes = torch.empty(total, dtype=torch.uint8, device=device)

    def take(self) -> None:
        """Given to the current stream; the host does not wait."""
        if self.views:
            with torch.no_grad():
                torch.cat(self.views, out=self.bytes)

    def piece(self, index: int) -> torch.Tensor:
        """Where the bytes of a view were collected."""
        at = self.offsets[index]
        return self.bytes[at : at + self.views[index].numel()]

    def differing(self, other: "DeviceGather") -> list[int]:
        """Indices of the views that held something else there. Waits for the current stream."""
        if torch.equal(self.bytes, other.bytes):
            return []
        here, there = self.bytes.cpu(), other.bytes.cpu()
        ends = [*self.offsets[1:], len(here)]
        return [
            i for i, (a, b) in enumerate(zip(self.offsets, ends, strict=True)) if not torch.equal(here[a:b], there[a:b])
        ]
