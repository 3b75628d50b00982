"""What was found in another tool's files, in the words of a Checkpointer: parts by name."""

from dataclasses import dataclass, field
from typing import Any

import torch

from holdfast.interop.errors import Refused


@dataclass
class Found:
    """Parts that can be registered: modules and optimizers by their state dicts, others by whatever their `state_dict()` was."""

    format: str
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    named: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """Of an optimizer, where the files say so: (module, parameter) for each number in its state."""
    boundary: int = 0
    epoch: int = 0
    dropped: list[str] = field(default_factory=list)
    """What the files hold and a checkpoint of ours does not, for the person to read."""

    def names(self) -> list[str]:
        return [*self.modules, *self.optimizers, *self.others]

    def rename(self, renames: dict[str, str]) -> None:
        """FOUND -> REGISTERED. Raises Refused for what is not there, or would be there twice."""
        unknown = sorted(set(renames) - set(self.names()))
        if unknown:
            raise Refused(
                f"--part names {', '.join(unknown)}, but the files hold {', '.join(self.names()) or 'nothing'}"
            )
        new = [renames.get(n, n) for n in self.names()]
        twice = sorted({n for n in new if new.count(n) > 1})
        if twice:
            raise Refused(
                f"two parts would be called {', '.join(twice)}: give each its own name with --part FOUND=NAME"
            )
        for group in (self.modules, self.optimizers, self.others):
            parts = [(renames.get(n, n), state) for n, state in group.items()]
            group.clear()
            group.update(parts)  # at once: two parts may exchange their names
        self.named = {
            renames.get(optimizer, optimizer): [(renames.get(module, module), key) for module, key in parameters]
            for optimizer, parameters in self.named.items()
        }

    def leave_out(self, names: list[str]) -> None:
        unknown = sorted(set(names) - set(self.names()))
        if unknown:
            raise Refused(
                f"--leave-out names {', '.join(unknown)}, but the files hold {', '.join(self.names()) or 'nothing'}"
            )
        for group in (self.modules, self.optimizers, self.others):
            for name in names:
                group.pop(name, None)
                self.named.pop(name, None)


def is_optimizer(state: Any) -> bool:
    return (
        isinstance(state, dict)
        and {"state", "param_groups"} <= state.keys()
        and isinstance(state["param_groups"], list)
    )


def is_module(state: Any) -> bool:
    """Names to tensors. Anything else among them is what modules call extra state."""
    if not isinstance(state, dict) or not state or not all(isinstance(k, str) for k in state):
        return False
    return all(isinstance(v, torch.Tensor) or k.endswith("_extra_state") for k, v in state.items())


def by_form(format: str, whole: Any, name: str) -> Found:
    """Parts of a nested dictionary, recognised by their form: `{"model": {...}, "optimizer": {"state", "param_groups"}, ...}`, or one flat state dict,
    which becomes the part `name`. Raises Refused."""
    found = Found(format)
    if is_module(whole):
        found.modules[name] = whole
    elif is_optimizer(whole):
        found.optimizers["optimizer"] = numbered(whole)
    elif isinstance(whole, dict) and all(isinstance(k, str) for k in whole):
        for key, value in whole.items():
            if is_module(value):
                found.modules[key] = value
            elif is_optimizer(value):
                found.optimizers[key] = numbered(value)
            elif isinstance(value, dict):
                found.others[key] = value
            else:
                found.dropped.append(f"{key} ({type(value).__name__})")
    if not found.names():
        raise Refused("no state_dict was found: neither names with tensors, nor a dictionary of such")
    return found


def numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """The same with whole numbers for keys of the state, which DCP has made text of."""
    state = optimizer["state"]
    if isinstance(state, dict) and state and all(isinstance(k, str) and k.isdecimal() for k in state):
        return optimizer | {"state": {int(k): v for k, v in state.items()}}
    return optimizer
