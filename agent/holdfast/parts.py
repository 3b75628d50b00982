"""What may be registered with a Checkpointer, each kind behind the same narrow face: capture, compare, load.

`capture` runs on the main thread at a boundary and copies nothing: it lists tensors and makes a JSON tree that refers to them. `compare` says what
does not fit before anything is touched, so that a failed load leaves nothing half loaded. `load` then cannot fail for reasons of the user's.

For copies between two boundaries (I6) a part tells beforehand where its large tensors lie (`places`), keeps a copy of what is small at each boundary
(`snapshot`), and makes of both, on another thread and without touching the object, what `capture` would have said at that boundary (`render`).
"""

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import nn

from holdfast import device, materialise, rng, sharding, tree
from holdfast.allowed import Allowed, Apart
from holdfast.bits import clone_bits, copy_bits, copyable, is_expanded
from holdfast.errors import RestoreError, UnsupportedState
from holdfast.filling import cloned, fill
from holdfast.metric_states import MetricStates, keys_of
from holdfast_rank.image import Tier

LARGE_BYTES = 64 << 10
"""A tensor up to this size is copied at each boundary where nothing else is known to keep it still."""
_ATOMS = frozenset({type(None), bool, int, float, str, bytes, complex, torch.dtype, torch.device, torch.Size})


class Leaves:
    """The tensors of one capture, by their names in the image, with the tier that each belongs to."""

    def __init__(self) -> None:
        self.tensors: tree.Tensors = {}
        self.tiers: dict[str, Tier] = {}
        self.boxes: dict[str, sharding.Box] = {}
        """Of those that are parts of a larger tensor."""
        self.groups: dict[str, str] = {}
        """Of those that other ranks hold as well: the ranks (TensorEntry.group)."""

    def put(self, value: Any, path: str, tier: Tier) -> Any:
        """The JSON tree of `value`; its tensors are added."""
        before = len(self.tensors)
        body = tree.encode(value, path, self.tensors)
        for name in islice(reversed(self.tensors), len(self.tensors) - before):
            self.tiers[name] = tier
        return body

    def put_tensor(self, value: Any, path: str, tier: Tier, group: str = "") -> Any:
        """As `put`, for what may be a DTensor. `group`: the ranks that hold the same, where that is known."""
        if not sharding.is_sharded(value):
            body = self.put(value, path, tier)
            if group and isinstance(value, torch.Tensor):
                self.groups[body["$tensor"]] = group
            return body
        part = sharding.part_of(value, path)
        body = self.put(part, path, tier)
        self.boxes[body["$part"]], self.groups[body["$part"]] = part.box, sharding.group_of(value)
        return body


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the image and where the program keeps it: `holder[key] is tensor`, as long as nobody exchanges it."""

    name: str
    holder: Any
    key: Any
    tensor: torch.Tensor
    fixed: bool
    """A parameter or optimizer state, which only an update changes. Not: what a forward may change, as a buffer, or an embedding that it normalizes."""


class Part(Protocol):
    """One registered object."""

    allowed: Allowed
    """What of a checkpoint that does not fit is accepted; set before `compare`."""

    @property
    def kind(self) -> str:
        """The class, where another one could not go on with this one's state; else empty."""

    def capture(self, leaves: Leaves) -> Any:
        """JSON tree of the state; tensors go into `leaves`. Raises UnsupportedState."""

    def places(self) -> list[Place]:
        """Main thread, at a boundary. Raises NotLive when the state has tensors or plain values that no list can name."""

    def snapshot(self) -> Any:
        """Main thread, at a boundary: what is not among `places`, copied."""

    def put_back(self, snapshot: Any) -> None:
        """Main thread: what `snapshot` has copied is again as it was there."""

    def render(self, snapshot: Any, template: Any, leaves: Leaves) -> Any:
        """Any thread. `template` is what `capture` gave when `places` was called. Raises NotLive, UnsupportedState."""

    def apart(self, saved: Any) -> Apart:
        """The keys that one side alone has, whether or not that is allowed."""

    def compare(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
        """Sentences about what does not fit and is not allowed, none if all fits."""

    def load(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        """Makes the object equal to the saved one. `tensors` are views of the image: they must be copied."""


class NotLive(Exception):
    """This state cannot be copied between two boundaries. The message says why and names what it is about."""


class ModulePart:
    """A module: what its `state_dict` holds, buffers and states of metrics that it leaves out (`persistent=False`), and open gradients."""

    kind = ""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, unwrap(module)
        self.allowed = Allowed()
        self._metrics = MetricStates(self.module)
        self._replicas = _replicated_over(module)
        self._ddp = _ddp_in(module)
        if type(self.module).__name__ == "FullyShardedDataParallel":
            raise UnsupportedState(
                f"{name} is FullyShardedDataParallel, which this release cannot save; use fully_shard (FSDP2) or DistributedDataParallel"
            )
        sharding.settle(self.module)

    def capture(self, leaves: Leaves) -> Any:
        state = self.module.state_dict()  # first: FSDP2 puts its parts back in their places
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        trains = any(p.requires_grad for p in parameters.values())
        body = {}
        for key, value in state.items():
            parameter = parameters.get(key)
            frozen = parameter is not None and not parameter.requires_grad
            # A module without any gradient is an EMA or a teacher: it changes, or may (I8).
            tier = (Tier.FROZEN if frozen else Tier.TRAINABLE) if trains else Tier.OPTIMIZER
            group = self._replicas.get(id(parameter), "") if parameter is not None else ""
            body[key] = leaves.put_tensor(value, f"{self.name}.{key}", tier, group)
        loose = {k: leaves.put_tensor(v, f"{self.name}.{k}", Tier.TRAINABLE) for k, v in self.loose_buffers().items()}
        # Those that must be finite when they are loaded. What is frozen was so from the start, an additive mask of -inf for example.
        trained = [k for k in body if k in parameters and parameters[k].requires_grad]
        whole = {"state": body, "loose": loose, "parameters": trained}
        self._metrics = MetricStates(self.module)
        return whole | self._put_metrics(self._metrics.now(), leaves) | self._put_sync(self._hands_out_buffers())

    def places(self) -> list[Place]:
        wanted = self.module.state_dict().keys() | self.loose_buffers().keys()
        found = []
        for prefix, module in self.module.named_modules(remove_duplicate=False):
            for holder, fixed in ((module._parameters, True), (module._buffers, False)):
                for key, tensor in holder.items():
                    name = f"{prefix}.{key}".lstrip(".")
                    if sharding.is_sharded(tensor):
                        raise NotLive(f"{self.name}.{name} is a DTensor")
                    if tensor is not None and name in wanted:
                        still = fixed and getattr(module, "max_norm", None) is None
                        found.append(Place(f"{self.name}.{name}", holder, key, tensor, still))
        unknown = sorted(wanted - {p.name.removeprefix(f"{self.name}.") for p in found})
        if unknown:
            raise NotLive(f"{self.name}.state_dict() has {_listed(unknown)}, neither parameters nor buffers")
        return found

    def snapshot(self) -> Any:
        return freeze(self._metrics.now()), self._hands_out_buffers()

    def put_back(self, snapshot: Any) -> None:
        metrics, sync = snapshot
        self._metrics.put_back(cloned(metrics))
        self._hand_out_buffers(sync)

    def render(self, snapshot: Any, template: Any, leaves: Leaves) -> Any:
        metrics, sync = snapshot
        return template | self._put_metrics(metrics, leaves) | self._put_sync(sync)

    def _put_metrics(self, states: Any, leaves: Leaves) -> dict[str, Any]:
        return {"metrics": leaves.put(states, f"{self.name}.metrics", Tier.SMALL)} if states else {}

    def _hands_out_buffers(self) -> bool | None:
        """Whether DistributedDataParallel gives every rank the first one's buffers in its next forward; None where there is none. It does not after a forward
        without gradient synchronisation (`no_sync`) or without gradients: ranks keep statistics of their own until then (J4, K2)."""
        return None if self._ddp is None else bool(self._ddp.require_forward_param_sync)

    def _hand_out_buffers(self, sync: bool | None) -> None:
        if self._ddp is not None and sync is not None:
            self._ddp.require_forward_param_sync = sync

    @staticmethod
    def _put_sync(sync: bool | None) -> dict[str, Any]:
        return {} if sync is None else {"sync_buffers": sync}

    @property
    def trains(self) -> bool:
        """Something in it learns: it is no teacher and no EMA, whose `training` says nothing."""
        return any(p.requires_grad for p in self.module.parameters())

    def has_gradients(self) -> bool:
        return any(p.grad is not None for p in self.module.parameters())

    def capture_gradients(self, leaves: Leaves, only: set[int] | None) -> Any:
        """Gradients of an accumulation window that is open at this boundary (I2). `only`: of those with these ids."""
        path = f"gradient.{self.name}"
        if only is None and sharding.unreduced(self.module):
            raise UnsupportedState(
                f"{self.name} is in an accumulation window in which FSDP2 has not reduced its gradients yet (set_requires_gradient_sync(False)), and "
                "those of one rank cannot be saved: call ckpt.step() only after optimizer.step(), or leave gradient synchronisation on"
            )
        return {
            key: leaves.put_tensor(p.grad, f"{path}.{key}", Tier.OPTIMIZER)
            for key, p in self.module.named_parameters()
            if p.grad is not None and (only is None or id(p.grad) in only)
        }

    def apart(self, saved: Any) -> Apart:
        live, found = set(self.module.state_dict()), set(saved["state"])
        if "metrics" in saved:  # an older release left them out
            live |= keys_of(self._metrics.now())
            found |= keys_of(saved["metrics"])
        return Apart(*(frozenset(f"{self.name}.{k}" for k in side) for side in (live - found, found - live)))

    def compare(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
        live, found = self.module.state_dict(), saved["state"]
        left = self.apart(saved).but(self.allowed)
        if left.missing or left.extra:
            missing, extra = (
                [n.removeprefix(f"{self.name}.") for n in sorted(side)] for side in (left.missing, left.extra)
            )
            yield (
                f"{self.name}: the model has {_listed(missing)} that the checkpoint lacks; "
                f"the checkpoint has {_listed(extra)} that the model lacks"
            )
        for key in live.keys() - found.keys():
            if f"{self.name}.{key}" in self.allowed.missing and getattr(live[key], "is_meta", False):
                yield f"{self.name}.{key} is on the meta device, and the checkpoint has nothing for it: build it with memory and initialize it"
        unlike: list[str] = []
        for key in (k for k in live if k in found):
            value, here = tree.decode(found[key], tensors, place=False), _as_part(live[key], f"{self.name}.{key}")
            if isinstance(value, sharding.Part) or isinstance(here, sharding.Part):
                yield from sharding.differences(f"{self.name}.{key}", here, value)
            elif isinstance(value, torch.Tensor) and isinstance(live[key], torch.Tensor):
                unlike += _same_form(f"{self.name}.{key}", live[key], value)
        yield from unlike
        if unlike:
            name = unlike[0].partition(":")[0]
            yield (
                f"{self.name}: build it as it was when the checkpoint was made (`holdfast describe` shows its hyper-parameters); or give what has another form "
                f'now another name as well, and accept both: ckpt.restore(allow=("extra:{name}", "missing:ITS NEW NAME"))'
            )
        for key, buffer in self.loose_buffers().items():
            if buffer.is_meta and (
                key not in saved["loose"]
                or sharding.is_sharded(buffer)
                or saved_in_another_form(buffer, saved["loose"][key], tensors)
            ):
                yield f"{self.name}.{key} is on the meta device, and the checkpoint has nothing of its form: build it with memory"

    def load(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        self._hand_out_buffers(saved.get("sync_buffers"))
        materialise.give_memory(self.name, self.module)
        live = self.module.state_dict()  # keeps its own version metadata, which `load_state_dict` reads
        plain, copied = plain_targets(self.module), copied_targets(self.module)
        pairs = []
        for key, body in saved["state"].items():
            if key not in live:
                continue  # allowed to be left out
            value = tree.decode(body, tensors, place=False)  # the copy into the parameter moves it
            if isinstance(value, sharding.Part):
                pairs.append((sharding.local(live.pop(key)), value.local))
            elif not isinstance(value, torch.Tensor) or not isinstance(live[key], torch.Tensor):
                live[key] = cloned(tree.decode(body, tensors))  # extra state may be kept as it is
            elif key in plain:
                pairs.append((plain[key].detach(), value))
                live.pop(key)
            elif key not in copied:
                live[key] = cloned(
                    value
                )  # a module with a way of its own may keep it, and the image is gone after a while
            elif copyable(value.dtype) and not is_expanded(live[key]):
                live[key] = value
            else:
                copy_bits(live.pop(key), value)
        fill(pairs)
        self.module.load_state_dict(live, strict=False, assign=False)  # `compare` has been stricter
        loose = self.loose_buffers()
        for key, body in saved["loose"].items():
            value = tree.decode(body, tensors, place=False)
            if isinstance(value, sharding.Part):
                here = _as_part(loose.get(key), f"{self.name}.{key}")
                if not sharding.differences("", here, value):
                    copy_bits(here.local, value.local)
                continue
            # Another length of a cache is no error: torch leaves these out of `state_dict` for that.
            if key in loose and not list(_same_form(key, loose[key], value)):
                copy_bits(loose[key], value)
        if "metrics" in saved:
            self._metrics.put_back(cloned(tree.decode(saved["metrics"], tensors)))

    def load_gradients(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        for key, parameter in self.module.named_parameters():
            if key in saved:
                _load_gradient(parameter, saved[key], tensors, f"the gradient of {self.name}.{key}")

    def replicas(self) -> dict[int, str]:
        """By id, the parameters that other ranks hold as well, and those ranks."""
        sharded = {id(p): sharding.group_of(p) for p in self.module.parameters() if sharding.is_sharded(p)}
        return self._replicas | sharded

    def loose_buffers(self) -> dict[str, torch.Tensor]:
        loose = {}
        for prefix, module in self.module.named_modules():
            for key in module._non_persistent_buffers_set:
                buffer = module._buffers.get(key)
                if buffer is not None:
                    loose[f"{prefix}.{key}".lstrip(".")] = buffer
        return loose


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
        found = {k: _as_part(v, f"{path}.{k}") for k, v in values.items()}
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
            raise NotLive(f"{self.name}.state_dict() has {_listed(sorted(more))}, which no list can name")
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
            yield from _same_form(f"{self.name}.orphan.{i}", parameter, tree.decode(body, tensors, place=False))
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
                    f"{self.name}: parameter group {group} of the optimizer has {_listed(sorted(only_here))} that the checkpoint lacks there; "
                    f"the checkpoint has {_listed(sorted(only_there))} that it lacks"
                )

    def _compare_state(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
        state = tree.decode(saved["state"], tensors, place=False)["state"]
        parameters = self.parameters()
        for here, there in enumerate(self.order(saved)):
            for key, value in state.get(there, {}).items():  # nothing for None
                parameter = parameters[here]
                if isinstance(value, sharding.Part):
                    live = _as_part(parameter, self.name)
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
                _load_gradient(parameter, saved[there], tensors, f"the gradient of {self.name}.orphan.{there}")

    def _orphans(self) -> list[tuple[int, torch.Tensor]]:
        return [(i, p) for i, p in enumerate(self.parameters()) if id(p) not in self.held]


def _load_gradient(parameter: torch.Tensor, saved: Any, tensors: Mapping[str, torch.Tensor], path: str) -> None:
    value = tree.decode(saved, tensors, place=False)
    if isinstance(value, sharding.Part):
        parameter.grad = sharding.whole(cloned(value), parameter.detach(), path)
    else:
        parameter.grad = value.to(parameter.device, copy=True)


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


def freeze(value: Any) -> Any:
    """A copy that later changes of `value` do not reach. Tensors above LARGE_BYTES are referred to, not copied: they stand still like parameters,
    or the audit finds that they do not (I5, I8)."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, torch.Tensor):
        large = value.numel() * value.element_size() > LARGE_BYTES
        return value.detach() if large else clone_bits(value.detach())
    if isinstance(value, dict):
        copied = value.copy()
        for key, item in value.items():
            if type(item) not in _ATOMS:
                copied[key] = freeze(item)
        return copied
    if kind is list or kind is tuple:
        return kind([item if type(item) in _ATOMS else freeze(item) for item in value])
    if kind in (set, bytearray) or kind.__module__ == "numpy":
        return value.copy()
    return value


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


def saved_in_another_form(live: torch.Tensor, body: Any, tensors: Mapping[str, torch.Tensor]) -> bool:
    return any(_same_form("", live, tree.decode(body, tensors, place=False)))


def plain_targets(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by their keys in `state_dict`, as far as loading them is copying them: no module on the way has a way of its own."""
    ours = nn.Module
    for part in module.modules():
        hooks = part._load_state_dict_pre_hooks, part._load_state_dict_post_hooks, part._state_dict_hooks
        if (
            any(hooks)
            or type(part).load_state_dict is not ours.load_state_dict
            or type(part).state_dict is not ours.state_dict
        ):
            return {}
    return copied_targets(module)


def copied_targets(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by their keys, of those modules that copy what they are given, as torch's own do."""
    targets: dict[str, torch.Tensor] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        if type(part)._load_from_state_dict is nn.Module._load_from_state_dict:
            own = {
                **part._parameters,
                **{k: b for k, b in part._buffers.items() if k not in part._non_persistent_buffers_set},
            }
            targets |= {f"{prefix}.{key}".lstrip("."): t for key, t in own.items() if t is not None}
    return targets


def unwrap(module: nn.Module) -> nn.Module:
    """The user's module below DistributedDataParallel, DataParallel and torch.compile, so that names are the same with and without them."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod
        else:
            return module


def _same_form(path: str, live: torch.Tensor, saved: torch.Tensor) -> Iterator[str]:
    if live.shape != saved.shape or live.dtype != saved.dtype:
        yield f"{path}: {tuple(live.shape)} {live.dtype} here, {tuple(saved.shape)} {saved.dtype} in the checkpoint"


def _as_part(value: Any, path: str) -> Any:
    """A DTensor as this rank's part of it; anything else as it is. Raises UnsupportedState."""
    return sharding.part_of(value, path) if sharding.is_sharded(value) else value


_EQUAL_AFTER = {
    "allreduce_hook",
    "fp16_compress_hook",
    "bf16_compress_hook",
    "fp16_compress_wrapper",
    "bf16_compress_wrapper",
    "powerSGD_hook",
    "batched_powerSGD_hook",
}
"""Communication hooks of DistributedDataParallel that give every rank the same gradients. Local SGD lets ranks go apart; of others nothing is known."""


def _ddp_in(module: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """The wrapper that was registered, perhaps below torch.compile's."""
    while not isinstance(module, nn.parallel.DistributedDataParallel):
        module = getattr(module, "_orig_mod", None)
        if not isinstance(module, nn.Module):
            return None
    return module


def _replicated_over(module: nn.Module) -> dict[int, str]:
    """By id, the parameters that DistributedDataParallel keeps equal, and the ranks it does so on."""
    ddp = _ddp_in(module)
    if ddp is None:
        return {}
    module = ddp
    hooks = [getattr(hook, "__name__", "") for hook, _ in getattr(module, "_comm_hooks", [])]
    if not {*hooks} <= _EQUAL_AFTER:
        return {}
    group = sharding.ranks_text(torch.distributed.get_process_group_ranks(module.process_group))
    ignored = module.parameters_to_ignore
    return {id(p): group for n, p in module.module.named_parameters() if n not in ignored}


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:20])
    return (shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")) or "nothing"
