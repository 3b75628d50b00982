"""Optimizers behind the face of part.py: state by the names of parameters, and ZeroRedundancyOptimizer's share of it."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from holdfast import device, sharding, tree
from holdfast.allowed import Allowed, Apart
from holdfast.bits import copy_bits
from holdfast.errors import UnsupportedState
from holdfast.filling import cloned, fill
from holdfast.part import Leaves, NotLive, Place, as_part, freeze, listed, load_gradient, same_form
from holdfast_rank.image import Tier


class OptimizerPart:
    """An optimizer, with the parameters it updates that no registered module holds."""

    def __init__(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        self.name, self.optimizer = name, optimizer
        self.allowed = Allowed()
        self.held: set[int] = set()
        """Ids of the parameters that modules save; set once all parts are known, as the next two."""
        self.names: dict[int, str] = {}
        """By id, what those parameters are called in the image."""
        self.also: dict[str, int] = {}
        """The id by every name that a parameter has: one of two modules may be a part of the other."""
        self._saved_as: list[int | None] = []
        """For each parameter, its number in the checkpoint that was loaded; None for one that it lacks, as was allowed."""
        self.replicas: dict[int, str] = {}
        """By id, the parameters that other ranks hold as well, and those ranks (J4)."""

    def capture(self, leaves: Leaves) -> Any:
        orphans = [leaves.put(p.detach(), f"{self.name}.orphan.{i}", Tier.TRAINABLE) for i, p in self._orphans()]
        state = leaves.put(self._state_in_parts(), self.name, Tier.OPTIMIZER)
        self._note_parts(leaves)
        return {"state": state, "orphans": orphans, "names": self._names()}

    def _state_in_parts(self) -> dict[str, Any]:
        """`state_dict()` with this rank's part in place of each DTensor. Raises UnsupportedState."""
        saved: dict[str, Any] = self.inner.state_dict()
        parameters = self.parameters()
        if any(
            sharding.is_sharded(v)
            for values in saved["state"].values()
            if isinstance(values, dict)
            for v in values.values()
        ):
            saved = {
                **saved,
                "state": {i: self._in_parts(i, values, parameters) for i, values in saved["state"].items()},
            }
        return saved

    def _in_parts(self, index: Any, values: dict[str, Any], parameters: list[torch.Tensor]) -> dict[str, Any]:
        path = f"{self.name}.state.{index}"
        found = {k: as_part(v, f"{path}.{k}") for k, v in values.items()}
        for key, part in found.items():
            if isinstance(part, sharding.Part):
                sharding.check_placeable(part, parameters[index], f"{path}.{key}")
        return found

    def _note_parts(self, leaves: Leaves) -> None:
        """Boxes and groups of the state that was just put."""
        for index, (holder, i) in enumerate(_slots_of(self.inner)):
            parameter = holder[i]
            group = self.replicas.get(id(parameter), "")
            if not group:
                continue
            for key, value in self.inner.state.get(parameter, {}).items():
                name = f"{self.name}.state.{index}.{key}"
                if name in leaves.tensors and isinstance(value, torch.Tensor):
                    leaves.groups[name] = group
                    if sharding.is_sharded(value):
                        leaves.boxes[name] = sharding.part_of(value, name).box

    @property
    def inner(self) -> torch.optim.Optimizer:
        """What holds the state."""
        return self.optimizer

    @property
    def kind(self) -> str:
        return type(self.inner).__name__

    def places(self) -> list[Place]:
        found = []
        for index, (holder, i) in enumerate(_slots_of(self.optimizer)):
            if id(holder[i]) not in self.held:
                found.append(Place(f"{self.name}.orphan.{index}", holder, i, holder[i], True))
        others = [k for k in self.inner.state if not isinstance(k, torch.Tensor)]
        if others:
            raise NotLive(f"{self.name} keeps {others[0]!r} in its state, which belongs to no parameter")
        for index, (holder, i) in enumerate(_slots_of(self.inner)):
            state = self.inner.state.get(holder[i], {})
            for key, value in state.items():
                if sharding.is_sharded(value):
                    raise NotLive(f"{self.name}.state.{index}.{key} is a DTensor")
                if not isinstance(value, torch.Tensor):
                    raise NotLive(f"{self.name} keeps {key}={type(value).__name__} for each parameter, no tensor")
                found.append(Place(f"{self.name}.state.{index}.{key}", state, key, value, True))
        return found

    def snapshot(self) -> Any:
        return [{k: freeze(v) for k, v in g.items() if k != "params"} for g in self.inner.param_groups]

    def put_back(self, snapshot: Any) -> None:
        _update_groups(self.inner.param_groups, snapshot)

    def render(self, snapshot: Any, template: Any, leaves: Leaves) -> Any:
        if more := template["state"].keys() - {"state", "param_groups"}:
            raise NotLive(f"{self.name}.state_dict() has {listed(sorted(more))}, which no list can name")
        groups = template["state"]["param_groups"]
        if len(groups) != len(snapshot):
            raise NotLive(f"{self.name} has another number of parameter groups than when it was planned")
        rendered = []
        for i, (group, now) in enumerate(zip(groups, snapshot, strict=True)):
            if group.keys() - now.keys() != {"params"} or now.keys() - group.keys():
                raise NotLive(f"the settings in {self.name}'s parameter group {i} are others than when it was planned")
            path = f"{self.name}.param_groups.{i}"
            rendered.append(
                {k: v if k == "params" else leaves.put(now[k], f"{path}.{k}", Tier.OPTIMIZER) for k, v in group.items()}
            )
        return template | {"state": template["state"] | {"param_groups": rendered}}

    def apart(self, saved: Any) -> Apart:
        if "names" not in saved:  # by an older release, and of ZeRO-1, whose state is a share
            return Apart()
        here, there = ({n for n in names if n is not None} for names in (self._names(), self._named_there(saved)))
        return Apart(frozenset(here - there), frozenset(there - here))

    def compare(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
        live = [len(g["params"]) for g in self.inner.param_groups]
        found = [len(g["params"]) for g in tree.decode(saved["state"], tensors, place=False)["param_groups"]]
        by_name = "names" in saved and len(live) == len(found)  # an older release kept no names
        if live != found and not by_name:
            yield (
                f"{self.name}: the optimizer has parameter groups of {live} tensors, the checkpoint of {found}: make the groups as they were, or begin anew "
                f'with this optimizer under another name, and accept both: ckpt.restore(allow=("extra:{self.name}", "missing:THE OTHER NAME"))'
            )
        orphans = self._orphans()
        if len(orphans) != len(saved["orphans"]):
            yield (
                f"{self.name}: {len(orphans)} tensors of the optimizer are in no registered module, in the checkpoint {len(saved['orphans'])}: register the "
                "modules that were registered then, and give the optimizer the same parameters"
            )
        for (i, parameter), body in zip(orphans, saved["orphans"], strict=False):
            yield from same_form(f"{self.name}.orphan.{i}", parameter, tree.decode(body, tensors, place=False))
        if by_name:
            yield from self._compare_names(saved, live, found)
        if live == found or by_name:
            yield from self._compare_state(saved, tensors)

    def _compare_names(self, saved: Any, live: list[int], found: list[int]) -> Iterator[str]:
        for group, (here, there) in enumerate(
            zip(_by_group(self._names(), live), _by_group(self._named_there(saved), found), strict=True)
        ):
            only_here = [n for n in (Counter(here) - Counter(there)).elements() if n not in self.allowed.missing]
            only_there = [n for n in (Counter(there) - Counter(here)).elements() if n not in self.allowed.extra]
            if only_here or only_there:
                yield (
                    f"{self.name}: parameter group {group} of the optimizer has {listed(sorted(only_here))} that the checkpoint lacks there; "
                    f"the checkpoint has {listed(sorted(only_there))} that it lacks"
                )

    def _compare_state(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
        state = tree.decode(saved["state"], tensors, place=False)["state"]
        parameters = self.parameters()
        for here, there in enumerate(self.order(saved)):
            for key, value in state.get(there, {}).items():  # nothing for None
                parameter = parameters[here]
                if isinstance(value, sharding.Part):
                    live = as_part(parameter, self.name)
                    same_shape = isinstance(live, sharding.Part) and live.box.global_shape == value.box.global_shape
                    if not isinstance(live, sharding.Part) or (same_shape and live.box != value.box):
                        yield from sharding.differences(f"{self.name}.state.{there}.{key}", live, value)

    def _names(self) -> list[str | None]:
        """Of the parameters, in the optimizer's order; None for one that no registered module holds."""
        return [self.names.get(id(p)) for p in self.parameters()]

    def _named_there(self, saved: Any) -> list[str | None]:
        """As `_names`, in the checkpoint's order; by the names that are used here."""
        return [self.names.get(self.also.get(name, 0), name) for name in saved["names"]]

    def order(self, saved: Any) -> list[int | None]:
        """For each parameter here, the number under which the checkpoint has its state: by name; those that no module names in their order. None: the
        checkpoint lacks it."""
        here = self._names()
        if "names" not in saved or here == (there := self._named_there(saved)):
            return list(range(len(here)))
        left: defaultdict[str | None, list[int]] = defaultdict(list)
        for number in reversed(range(len(there))):
            left[there[number]].append(number)
        return [left[name].pop() if left[name] else None for name in here]

    def load(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        inner = self.inner
        parameters = [holder[i] for holder, i in _slots_of(inner)]
        order = self._saved_as = self.order(saved)
        state = tree.decode(saved["state"], tensors, place=False)  # torch moves it to the parameters
        state["param_groups"] = tree.decode(saved["state"]["param_groups"], tensors)
        # ZeRO-1 has the state of fewer parameters than it names: those of this rank, numbered from 0.
        targets = {there: p for there, p in zip(order, parameters, strict=False) if there is not None}
        far = _on_devices(state["state"], targets)
        state = cloned(state)
        for index, values in far.items():
            state["state"][index] |= values
        loaded_state = {here: state["state"][there] for here, there in enumerate(order) if there in state["state"]}
        for index, values in loaded_state.items():
            for key, value in values.items():
                if isinstance(value, sharding.Part):
                    values[key] = sharding.whole(value, parameters[index].detach(), f"{self.name}.state.{index}.{key}")
        rest = {k: v for k, v in state["state"].items() if type(k) is not int}
        groups = self._groups_here(state["param_groups"])
        state = {**state, "state": loaded_state | rest, "param_groups": groups}
        inner.load_state_dict(state)
        # torch casts state to the parameter's dtype: 32-bit state of a 16-bit parameter would lose bits.
        for index, (holder, i) in enumerate(_slots_of(inner)):
            for key, value in state["state"].get(index, {}).items():
                loaded = inner.state[holder[i]].get(key)
                if isinstance(value, torch.Tensor) and isinstance(loaded, torch.Tensor) and loaded.dtype != value.dtype:
                    inner.state[holder[i]][key] = value.to(loaded.device)
        with torch.no_grad():
            for (_, parameter), body in zip(self._orphans(), saved["orphans"], strict=True):
                copy_bits(parameter, tree.decode(body, tensors, place=False))

    def _groups_here(self, saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The saved settings of the groups, with the parameters that are here."""
        groups, number = [], 0
        for settings, live in zip(saved, self.inner.param_groups, strict=True):
            count = len(live["params"])
            group = settings | {"params": list(range(number, number + count))}
            if "param_names" in group and "param_names" in live:
                group["param_names"] = live["param_names"]
            elif "param_names" in group and len(group["param_names"]) != count:
                del group["param_names"]
            groups.append(group)
            number += count
        return groups

    def parameters(self) -> list[torch.Tensor]:
        """In the optimizer's order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def has_gradients(self) -> bool:
        """Of its own parameters: a temperature that only the optimizer holds, for example."""
        return any(p.grad is not None for _, p in self._orphans())

    def capture_gradients(self, leaves: Leaves, only: set[int] | None) -> Any:
        """As of a module, of the parameters that no module holds (I2)."""
        return {
            str(i): leaves.put_tensor(p.grad, f"gradient.{self.name}.orphan.{i}", Tier.OPTIMIZER)
            for i, p in self._orphans()
            if p.grad is not None and (only is None or id(p.grad) in only)
        }

    def load_gradients(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        for i, parameter in self._orphans():
            there = str(self._saved_as[i] if self._saved_as else i)
            if there in saved:
                load_gradient(parameter, saved[there], tensors, f"the gradient of {self.name}.orphan.{there}")

    def _orphans(self) -> list[tuple[int, torch.Tensor]]:
        return [(i, p) for i, p in enumerate(self.parameters()) if id(p) not in self.held]


class ZeroPart(OptimizerPart):
    """ZeRO-1: this rank's share of the optimizer state; whose that is depends on the number of ranks. The optimizer that the script sees holds the settings
    (a scheduler changes them there), the one inside holds the state."""

    def __init__(self, name: str, optimizer: Any) -> None:
        super().__init__(name, optimizer)
        if optimizer._overlap_with_ddp:
            raise UnsupportedState(
                f"{name} is ZeroRedundancyOptimizer with overlap_with_ddp=True, which this release cannot save; leave that out"
            )

    @property
    def inner(self) -> torch.optim.Optimizer:
        return self.optimizer.optim

    def share(self) -> list[str]:
        """What the parameters are called whose state this rank holds, in the order in which the state counts them."""
        orphans = {id(p): f"{self.name}.orphan.{i}" for i, p in self._orphans()}
        called = self.names | orphans
        return [called[id(holder[i])] for holder, i in _slots_of(self.inner)]

    def capture(self, leaves: Leaves) -> Any:
        orphans = [leaves.put(p.detach(), f"{self.name}.orphan.{i}", Tier.TRAINABLE) for i, p in self._orphans()]
        return {
            "state": leaves.put(self.inner.state_dict(), self.name, Tier.OPTIMIZER),
            "orphans": orphans,
            "ranks": self.optimizer.world_size,
            "share": self.share(),
            "settings": leaves.put(self._settings(), f"{self.name}.settings", Tier.OPTIMIZER),
        }

    def snapshot(self) -> Any:
        return super().snapshot(), self._settings()

    def put_back(self, snapshot: Any) -> None:
        _update_groups(self.inner.param_groups, snapshot[0])
        _update_groups(self.optimizer.param_groups, snapshot[1])

    def render(self, snapshot: Any, template: Any, leaves: Leaves) -> Any:
        inner, settings = snapshot
        body = super().render(inner, template, leaves)
        return body | {"settings": leaves.put(settings, f"{self.name}.settings", Tier.OPTIMIZER)}

    def compare(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
        if saved.get("ranks") != self.optimizer.world_size:
            yield (
                f"{self.name}: ZeRO-1 state of {saved.get('ranks')} ranks cannot be loaded by {self.optimizer.world_size}; "
                "start as many as saved it"
            )
            return
        yield from super().compare(saved, tensors)

    def load(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        super().load(saved, tensors)
        settings = cloned(tree.decode(saved["settings"], tensors))
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(values)

    def _settings(self) -> list[dict[str, Any]]:
        return [{k: freeze(v) for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]


def _on_devices(state: dict[Any, Any], parameters: Mapping[int, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """What belongs to parameters on a GPU is filled there at once, and left out of `state`. Not the counters of steps, which may stay on the host."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    pairs = []
    for index, values in state.items():
        parameter = parameters.get(index)
        if parameter is None or not device.is_far(parameter):
            continue
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and key != "step":
                target = torch.empty(value.shape, dtype=value.dtype, device=parameter.device)
                pairs.append((target, value))
                found.setdefault(index, {})[key] = target
    for index, made in found.items():
        state[index] = {k: v for k, v in state[index].items() if k not in made}
    fill(pairs)
    return found


def _by_group(names: list[str | None], counts: list[int]) -> list[list[str]]:
    left = iter(names)
    return [[str(next(left)) for _ in range(count)] for count in counts]


def _slots_of(optimizer: torch.optim.Optimizer) -> list[tuple[list[torch.Tensor], int]]:
    return [(g["params"], i) for g in optimizer.param_groups for i in range(len(g["params"]))]


def _update_groups(groups: list[dict[str, Any]], values: list[dict[str, Any]]) -> None:
    for group, wanted in zip(groups, values, strict=False):
        for key, value in wanted.items():
            if isinstance(value, torch.Tensor) and isinstance(group.get(key), torch.Tensor):
                group[key].copy_(value)  # a compiled step knows the tensor
            else:
                group[key] = freeze(value)
