"""Where update windows begin: hooks before every `optimizer.step()` (I1, I2, I4).

The first optimizer of an iteration opens the window; the boundary ends it. The hook is global and looks for optimizers that update what is
registered, so that one that was not registered is seen as well. It runs before hooks of single optimizers.

torch iterates over its global hooks while an optimizer steps, so the process has one hook, registered at import and never removed: a Checkpointer
may be made, closed or collected as garbage at any moment, on any thread, also in the middle of somebody's step.
"""

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from holdfast import device
from holdfast.state import Registry

log = logging.getLogger("holdfast")
ENDLESS_STEPS = 1000
"""Steps of one optimizer without a boundary."""


_changing = threading.Lock()
_live: "tuple[weakref.ref[Windows], ...]" = ()
"""Who looks at steps. Replaced whole, under the lock, so that a step in another thread reads one or the other."""


def _before_any_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return  # a lock cannot be traced; such steps are found out by what they change
    for ref in _live:
        windows = ref()
        if windows is not None:
            windows._before_step(optimizer, args, kwargs)


def _look(windows: "Windows", add: bool) -> None:
    global _live
    with _changing:
        kept = tuple(ref for ref in _live if ref() not in (None, windows))
        _live = (*kept, weakref.ref(windows)) if add else kept


register_optimizer_step_pre_hook(_before_any_step)


class Windows:
    """What one Checkpointer knows of steps. It looks at them until `close` is called or nobody holds it any more."""

    def __init__(
        self, registry: Registry, enter: Callable[[], None], before: Callable[[Any], None] = lambda _: None
    ) -> None:
        """`enter` runs at the first update of each iteration, before it, on whichever thread steps; then `before(optimizer)`, at every step."""
        self._enter, self._before = enter, before
        self._modules = [m.module for m in registry.modules.values()]
        self._registered = {id(o.optimizer): n for n, o in registry.optimizers.items()}
        self._registered |= {id(o.inner): n for n, o in registry.optimizers.items()}
        self._known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self.entered = False
        """A window has been entered since the last boundary."""
        self.closures = self.in_backward = self.in_graph = False
        self._streams: set[Any] = set()
        self.count = 0
        self._steps: dict[int, int] = {}
        self._told = False
        _look(self, add=True)

    def boundary(self) -> bool:
        """A boundary is passed; returns whether a window was entered since the one before."""
        entered, self.entered = self.entered, False
        if entered:
            self._steps.clear()
        return entered

    def streams(self) -> list[Any]:
        """CUDA streams that optimizers were stepped on since this was asked last."""
        streams, self._streams = self._streams, set()
        return list(streams)

    def close(self) -> None:
        _look(self, add=False)

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if id(optimizer) not in self._registered and not self._updates_ours(optimizer):
            return
        if (len(args) > 1 and args[1] is not None) or (kwargs and kwargs.get("closure") is not None):
            self.closures = True
        if not self.entered:
            if torch._C._current_graph_task_id() != -1:
                self.in_backward = True
            self._enter()
            self.entered = True
            self.count += 1
        self._before(optimizer)
        if device.capturing():
            self.in_graph = True
        elif (stream := device.current_stream()) is not None:
            self._streams.add(stream)
        steps = self._steps[id(optimizer)] = self._steps.get(id(optimizer), 0) + 1
        if steps == ENDLESS_STEPS and not self._told:
            self._told = True
            log.error(
                "holdfast: %d optimizer steps since the last ckpt.step(): NOTHING CAN BE SAVED between two of its calls. "
                "Call it at the end of every iteration; is it skipped by a `continue` after optimizer.step()?",
                steps,
            )

    def _updates_ours(self, optimizer: Any) -> bool:
        ours = self._known.get(optimizer)
        if ours is None:
            held = {id(p) for m in self._modules for p in m.parameters()}
            ours = any(id(p) in held for g in optimizer.param_groups for p in g["params"])
            self._known[optimizer] = ours
            if ours and not self.entered:
                log.warning(
                    "holdfast: a %s updates registered parameters but is not registered itself: ITS STATE IS NOT SAVED. "
                    "Pass it to the Checkpointer",
                    type(optimizer).__name__,
                )
        return ours
