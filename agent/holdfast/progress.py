"""Where training stands: the boundary number is the identity (I1), all else is for people and schedules."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from holdfast.describe import History

DEVICE_METRICS_SECONDS = 1.0
"""Reading a number from a device waits for the device; no more often than this."""


@dataclass
class Progress:
    """Counters of one rank. Touched by the main thread only."""

    boundary: int = 0
    updates: int = 0
    epoch: int = 0
    samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=History)
    """Shared by the copies: it is for people, and what is in it is never changed."""
    _device_read_at: float = 0.0

    def note_metrics(self, metrics: dict[str, Any], *, now: bool = False) -> None:
        """Keeps the newest value of each metric. A tensor on a device is read at most once a second, or when `now`: reading it stops the
        pipeline. Numbers that are not finite are left out: they are no JSON (B10), and a best-of comparison could not use them."""
        for name, value in metrics.items():
            if isinstance(value, torch.Tensor):
                if value.numel() != 1:
                    raise ValueError(
                        f"metric {name!r} has {value.numel()} elements; pass one number, for example {name}.mean()"
                    )
                if value.device.type != "cpu" and not now and not self._device_due():
                    continue
                value = value.detach().item()
            elif isinstance(value, bool) or not isinstance(value, int | float):
                value = _number(name, value)
            if math.isfinite(value):
                self.metrics[name] = float(value)
            else:
                self.metrics.pop(name, None)

    def copy(self) -> "Progress":
        """As it is now."""
        return Progress(self.boundary, self.updates, self.epoch, self.samples, self.metrics.copy(), self.history)

    def _device_due(self) -> bool:
        now = time.monotonic()
        if now - self._device_read_at < DEVICE_METRICS_SECONDS:
            return False
        self._device_read_at = now
        return True


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as e:
        raise ValueError(f"metric {name!r} is {type(value).__name__}; pass a number or a tensor of one element") from e
