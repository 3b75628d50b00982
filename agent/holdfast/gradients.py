"""Which gradients belong to a boundary where some optimizers have stepped and others have not (I2), as of a GAN whose generator steps every third time.

A gradient is open if it has been added to since its optimizer stepped. What was used is marked on the gradient itself, with torch's count of writes to
it: a new gradient has no mark. Gradients that are thrown away before the next step of their optimizer (what the generator's backward leaves in the
discriminator) are no state: that is seen at the step, whose gradients are then others than at the boundary. Until it was seen they count as open: too much
is saved rather than too little.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

USED, SEEN = "_holdfast_used", "_holdfast_seen"


class OpenGradients:
    """Of several optimizers. Main thread, but that `stepped` may come from another."""

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._recent: set[int] = set()
        self._before: set[int] = set()
        self._uneven = False
        """Some have stepped in an iteration and others have not: until then nothing needs to be marked."""
        self._kept: dict[int, bool] = {}
        """By optimizer: gradients seen at a boundary were there at its next step. Once True, for ever."""
        self._pending: set[int] = set()

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """After its step. One that is compiled cannot be followed into here, and counts as one that has not stepped."""
        if len(self._optimizers) < 2 or torch.compiler.is_compiling():
            return
        self._recent.add(id(optimizer))
        if id(optimizer) in self._pending:
            self._pending.discard(id(optimizer))
            kept = any(getattr(g, SEEN, False) for g in _gradients(optimizer))
            self._kept[id(optimizer)] = kept or self._kept.get(id(optimizer), False)
        if self._uneven:
            for gradient in _gradients(optimizer):
                setattr(gradient, USED, gradient._version)

    def open(self) -> list[torch.Tensor]:
        """At a boundary before which an optimizer has stepped. Almost always empty, and quick then."""
        if len(self._optimizers) < 2 or len(self._recent) == len(self._optimizers):
            return []
        return [g for o in self._waiting() if self._kept.get(id(o), True) for g in _unused(o)]

    def passed(self) -> None:
        """The boundary is passed."""
        if self._recent and len(self._recent) < len(self._optimizers):
            self._uneven = True
            for optimizer in self._waiting():
                for gradient in _unused(optimizer):
                    setattr(gradient, SEEN, True)
                    self._pending.add(id(optimizer))
        self._before, self._recent = self._recent, set()

    def go_back(self) -> None:
        """No optimizer has stepped since the last boundary, and what is open there is asked again."""
        self._recent = self._before

    def _waiting(self) -> list[torch.optim.Optimizer]:
        return [o for o in self._optimizers if id(o) not in self._recent]


def _gradients(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    return (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)


def _unused(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [g for g in _gradients(optimizer) if getattr(g, USED, None) != g._version]
