"""States of metrics that are modules, as those of torchmetrics: they lie in plain attributes, and `state_dict` leaves them out unless they are persistent.

A metric that has seen half of an epoch is part of the training state like a buffer, so these are saved all the same. Known by their form; nothing of
torchmetrics is imported. What is persistent goes the module's own way and is left to it, but for the count of updates.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class MetricStates:
    """Of every metric below a module, itself included. Main thread."""

    def __init__(self, module: nn.Module) -> None:
        self._metrics = [(path, part) for path, part in module.named_modules() if _is_metric(part)]
        self._collections: list[Any] = [
            part for part in module.modules() if callable(getattr(part, "_compute_groups_create_state_ref", None))
        ]

    def now(self) -> dict[str, Any]:
        """`{path: {"states": {name: tensor or list}, "updates": count}}` with the live tensors."""
        for collection in self._collections:
            collection.values(
                copy_state=False
            )  # it updates one metric of a group; the others see that when somebody looks
        return {
            path: {
                "states": {n: _detached(getattr(metric, n)) for n in metric._defaults if not metric._persistent[n]},
                "updates": int(metric._update_count),
            }
            for path, metric in self._metrics
        }

    def put_back(self, states: Mapping[str, Any]) -> None:
        """`states` are given away: they are the metrics' own from now on. What either side lacks is left alone."""
        for path, metric in self._metrics:
            saved = states.get(path)
            if saved is None:
                continue
            for name, value in saved["states"].items():
                if name in metric._defaults:
                    setattr(metric, name, _placed(value, metric.device))
            metric._update_count = saved["updates"]
            metric._computed = None  # the result of a `compute` before


def keys_of(states: Mapping[str, Any]) -> set[str]:
    """As they would be called in a `state_dict`."""
    return {f"{path}.{name}".lstrip(".") for path, metric in states.items() for name in metric["states"]}


def _is_metric(part: nn.Module) -> bool:
    own = part.__dict__
    return (
        isinstance(own.get("_defaults"), dict) and isinstance(own.get("_persistent"), dict) and "_update_count" in own
    )


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return [_detached(v) for v in value] if isinstance(value, list) else value


def _placed(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return [_placed(v, device) for v in value] if isinstance(value, list) else value
