"""What exactness depends on in this run (K2, K3): recorded with every checkpoint, so that nobody has to guess later."""

from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset


def exactness(targets: dict[str, Any], unsettled_buckets: list[str]) -> str:
    """`bitwise`, or the conditions that apply, separated by `; `. Same hardware and libraries are assumed throughout."""
    found = [f"gradient buckets not settled: {reason}" for reason in unsettled_buckets]
    if torch.cuda.is_initialized() and not torch.are_deterministic_algorithms_enabled():
        found.append("torch.use_deterministic_algorithms is off")
    if torch.backends.cudnn.is_available() and torch.backends.cudnn.benchmark:
        found.append("cudnn.benchmark chooses algorithms by timing")
    for name, target in targets.items():
        if isinstance(target, DataLoader):
            found += [f"{name}: {c}" for c in _of_loader(target)]
    return "; ".join(found) or "bitwise"


def _of_loader(loader: Any) -> list[str]:
    found = []
    if loader.num_workers:
        found.append("randomness drawn in worker processes, if any, is not repeated")
    if isinstance(loader.dataset, IterableDataset) and not hasattr(loader, "load_state_dict"):
        found.append("an iterable data set is read again from the start of the epoch")
    return found
