"""Which part keeps which object: module, optimizer, scaler, generator, anything with a state."""

import random
import sys
from typing import Any

import torch
from torch import nn

from holdfast.module_part import ModulePart
from holdfast.optimizer_part import OptimizerPart, ZeroPart
from holdfast.part import Part
from holdfast.stateful_part import GeneratorPart, ScalerPart, StatefulPart


def part_for(name: str, target: Any) -> Part | None:
    """The part for `target`, or None for a loader without a state of its own (its position is kept by `batches`). Raises TypeError."""
    if isinstance(target, nn.Module):
        return ModulePart(name, target)
    if isinstance(target, torch.optim.Optimizer):
        zero = type(target).__name__ == "ZeroRedundancyOptimizer"
        return ZeroPart(name, target) if zero else OptimizerPart(name, target)
    if type(target) in (torch.amp.GradScaler, torch.cuda.amp.GradScaler):
        return ScalerPart(name, target)
    if hasattr(target, "state_dict") and hasattr(target, "load_state_dict"):
        return StatefulPart(name, target)
    numpy: Any = sys.modules.get("numpy")
    generators = (torch.Generator, random.Random) + ((numpy.random.Generator,) if numpy is not None else ())
    if isinstance(target, generators):
        return GeneratorPart(name, target)
    if is_loader(target):
        return None
    raise TypeError(
        f"{name}={type(target).__name__} has no state_dict and load_state_dict, is no loader and no generator. "
        f"Wrap a plain value: {name}=holdfast.Value(...)"
    )


def is_loader(target: Any) -> bool:
    """Something that batches or indices come from."""
    return hasattr(target, "__iter__") and not isinstance(target, nn.Module | str | bytes | dict | list | tuple | set)
