"""Modules that were built on the meta device get their memory when a checkpoint is loaded, instead of being initialized first and overwritten then.

The parameter objects stay the same ones, so that optimizers that were made with them go on holding them. There is nothing that could be lost before:
whether the checkpoint fits has been compared by then.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from holdfast import sharding
from holdfast.errors import RestoreError


def on_meta(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of parameters and buffers that have no content."""
    return [f"{name}.{key}" for name, module in modules.items() for key, tensor in _tensors(module) if tensor.is_meta]


def give_memory(name: str, module: nn.Module) -> None:
    """Memory without content for everything on the meta device, on the default device (`torch.set_default_device`). Raises RestoreError."""
    for key, tensor in _tensors(module):
        if not tensor.is_meta:
            continue
        if sharding.is_sharded(tensor):
            raise RestoreError(
                f"{name}.{key} is a DTensor on the meta device; give {name} memory after it is sharded and before restore(): "
                f"{name}.to_empty(device=...)"
            )
        made = torch.empty_like(tensor, device=torch.get_default_device())
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        try:
            torch.utils.swap_tensors(tensor, made)
        except RuntimeError as e:
            raise RestoreError(
                f"{name}.{key} is on the meta device and cannot be given memory, because something else refers to it; "
                f"build {name} with memory (to_empty) before the Checkpointer is made: {e}"
            ) from e


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tied ones under their first name."""
    yield from module.named_parameters()
    yield from module.named_buffers()
