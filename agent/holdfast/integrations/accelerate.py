"""Hugging Face Accelerate: a Checkpointer that takes what `accelerator.prepare` returned.

    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    ckpt = Checkpointer(accelerator, model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
    ckpt.restore()
    for batch in ckpt.batches(loader, epochs=3):
        with accelerator.accumulate(model):
            ...
        ckpt.step(loss=loss)
    ckpt.finish()

Accelerate's wrappers are looked through: the state is that of the optimizer, scheduler and scaler inside, so it is the same with and without Accelerate.
Nothing of Accelerate is imported.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import holdfast

T = TypeVar("T")
_INSIDE = {"AcceleratedOptimizer": "optimizer", "AcceleratedScheduler": "scheduler"}


class Checkpointer(holdfast.Checkpointer):
    """As `holdfast.Checkpointer`. The accelerator's own GradScaler, if there is one, is registered as `scaler`, its place in an accumulation window as
    `accelerator`."""

    def __init__(self, accelerator: Any, **parts: Any) -> None:
        self._prepared: list[PreparedLoader] = []
        scaler = getattr(accelerator, "scaler", None)
        if scaler is not None and "scaler" not in parts:
            parts["scaler"] = scaler
        parts.setdefault("accelerator", Window(accelerator))
        super().__init__(**{name: self._inside(part) for name, part in parts.items()})

    def batches(self, loader: Iterable[T], epochs: int | None = 1) -> Iterator[T]:
        return super().batches(self._inside(loader), epochs)

    def _inside(self, part: Any) -> Any:
        known = next((p for p in self._prepared if p.loader is part), None)
        if known is not None:
            return known
        if _is_prepared_loader(part):
            self._prepared.append(PreparedLoader(part))
            return self._prepared[-1]
        return getattr(part, _INSIDE[type(part).__name__]) if type(part).__name__ in _INSIDE else part


class Window:
    """How many micro-batches the accelerator has counted: `accelerator.accumulate` decides by it in which of them the optimizer steps (I2)."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def state_dict(self) -> dict[str, int]:
        return {"step": self._accelerator.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._accelerator.step = state["step"]


class PreparedLoader:
    """A loader as `prepare` returns it: reads one batch ahead, to know the last one, and has `state_dict` whether or not the loader inside has one. So its
    position is kept by counting batches, and found again by reading up to it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        set_epoch = getattr(self.loader, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    @property
    def sampler(self) -> Any:
        """With its generator, if it has one of its own."""
        return getattr(self.loader, "sampler", None)

    @property
    def batch_sampler(self) -> Any:
        return getattr(self.loader, "batch_sampler", None)

    @property
    def generator(self) -> Any:
        return getattr(self.loader, "generator", None)


def _is_prepared_loader(part: Any) -> bool:
    return type(part).__name__ in ("DataLoaderShard", "DataLoaderDispatcher")
