"""Whatever has state_dict and load_state_dict, scalers and random generators, behind the face of part.py."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from holdfast import rng, tree
from holdfast.allowed import Allowed, Apart
from holdfast.errors import RestoreError, UnsupportedState
from holdfast.filling import cloned
from holdfast.part import Leaves, Place, freeze
from holdfast_rank.image import Tier


class StatefulPart:
    """Anything with `state_dict` and `load_state_dict`: schedulers, scalers, loaders that know their position, a `holdfast.Value`."""

    def __init__(self, name: str, target: Any) -> None:
        self.name, self.target = name, target
        self.allowed = Allowed()

    @property
    def kind(self) -> str:
        """torch's schedulers take whatever they are given, and fail later."""
        known = isinstance(self.target, torch.optim.lr_scheduler.LRScheduler)
        return type(self.target).__name__ if known else ""

    def capture(self, leaves: Leaves) -> Any:
        return leaves.put(self._asked(), self.name, Tier.OPTIMIZER)

    def places(self) -> list[Place]:
        return []

    def snapshot(self) -> Any:
        return freeze(self._asked())

    def put_back(self, snapshot: Any) -> None:
        self.target.load_state_dict(cloned(snapshot))

    def render(self, snapshot: Any, template: Any, leaves: Leaves) -> Any:
        return leaves.put(snapshot, self.name, Tier.OPTIMIZER)

    def apart(self, saved: Any) -> Apart:
        return Apart()

    def compare(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
        return iter(())

    def load(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        state = cloned(tree.decode(saved, tensors))
        try:
            self.target.load_state_dict(state)
        except RestoreError:  # of our own: it says what to do
            raise
        except Exception as e:
            raise RestoreError(
                f"{self.name} ({type(self.target).__name__}) does not take its state back: {type(e).__name__}: {e}. Register what the checkpoint was made "
                f'with; or another object under another name, and accept both: ckpt.restore(allow=("extra:{self.name}", "missing:THE OTHER NAME"))'
            ) from e

    def _asked(self) -> Any:
        try:
            return self.target.state_dict()
        except Exception as e:
            raise UnsupportedState(
                f"{self.name}.state_dict() of a {type(self.target).__name__} fails: {type(e).__name__}: {e}. It must give tensors, numbers, text, lists and "
                f"dicts at every boundary; mend it, or leave {self.name} out"
            ) from e


class ScalerPart(StatefulPart):
    """`torch.amp.GradScaler`, whose scale and count lie on a GPU: they are kept there at a boundary, because reading them waits for the GPU."""

    def snapshot(self) -> Any:
        return {k: freeze(v) for k, v in self._state().items()}

    def put_back(self, snapshot: Any) -> None:
        self.target.load_state_dict(_read(snapshot))

    def render(self, snapshot: Any, template: Any, leaves: Leaves) -> Any:
        return leaves.put(_read(snapshot), self.name, Tier.OPTIMIZER)

    def _state(self) -> dict[str, Any]:
        """As its `state_dict`, with tensors where that has numbers."""
        scaler = self.target
        if not scaler.is_enabled() or scaler._scale is None or scaler._growth_tracker is None:
            return dict(scaler.state_dict())
        return {
            "scale": scaler._scale,
            "growth_factor": scaler._growth_factor,
            "backoff_factor": scaler._backoff_factor,
            "growth_interval": scaler._growth_interval,
            "_growth_tracker": scaler._growth_tracker,
        }


def _read(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in state.items()}


class GeneratorPart(StatefulPart):
    """A generator of its own: `torch.Generator`, `random.Random`, `numpy.random.Generator`."""

    @property
    def kind(self) -> str:
        if isinstance(self.target, torch.Generator | random.Random):
            return "torch.Generator" if isinstance(self.target, torch.Generator) else "random.Random"
        return type(self.target.bit_generator).__name__

    def capture(self, leaves: Leaves) -> Any:
        return self.render(self.snapshot(), None, leaves)

    def snapshot(self) -> Any:
        if isinstance(self.target, torch.Generator):
            return self.target.get_state()
        if isinstance(self.target, random.Random):
            return self.target.getstate()
        return self.target.bit_generator.state

    def put_back(self, snapshot: Any) -> None:
        if isinstance(self.target, torch.Generator):
            self.target.set_state(snapshot)
        elif isinstance(self.target, random.Random):
            self.target.setstate(snapshot)
        else:
            self.target.bit_generator.state = snapshot

    def render(self, snapshot: Any, template: Any, leaves: Leaves) -> Any:
        if isinstance(snapshot, torch.Tensor):
            snapshot = snapshot.numpy().tobytes()
        return leaves.put(snapshot, self.name, Tier.SMALL)

    def load(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        state = tree.decode(saved, tensors)
        if isinstance(self.target, torch.Generator):
            rng.put_generator_back(self.target, state)
        elif isinstance(self.target, random.Random):
            self.target.setstate(state)
        else:
            self.target.bit_generator.state = cloned(state)
