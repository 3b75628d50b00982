"""A module behind the face of part.py: parameters, buffers, gradients, what DistributedDataParallel and metrics keep beside them."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from holdfast import materialise, sharding, tree
from holdfast.allowed import Allowed, Apart
from holdfast.bits import copy_bits, copyable, is_expanded
from holdfast.errors import UnsupportedState
from holdfast.filling import cloned, fill
from holdfast.metric_states import MetricStates, keys_of
from holdfast.part import Leaves, NotLive, Place, as_part, freeze, listed, load_gradient, same_form
from holdfast_rank.image import Tier


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
            raise NotLive(f"{self.name}.state_dict() has {listed(unknown)}, neither parameters nor buffers")
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
                f"{self.name}: the model has {listed(missing)} that the checkpoint lacks; "
                f"the checkpoint has {listed(extra)} that the model lacks"
            )
        for key in live.keys() - found.keys():
            if f"{self.name}.{key}" in self.allowed.missing and getattr(live[key], "is_meta", False):
                yield f"{self.name}.{key} is on the meta device, and the checkpoint has nothing for it: build it with memory and initialize it"
        unlike: list[str] = []
        for key in (k for k in live if k in found):
            value, here = tree.decode(found[key], tensors, place=False), as_part(live[key], f"{self.name}.{key}")
            if isinstance(value, sharding.Part) or isinstance(here, sharding.Part):
                yield from sharding.differences(f"{self.name}.{key}", here, value)
            elif isinstance(value, torch.Tensor) and isinstance(live[key], torch.Tensor):
                unlike += same_form(f"{self.name}.{key}", live[key], value)
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
                here = as_part(loose.get(key), f"{self.name}.{key}")
                if not sharding.differences("", here, value):
                    copy_bits(here.local, value.local)
                continue
            # Another length of a cache is no error: torch leaves these out of `state_dict` for that.
            if key in loose and not list(same_form(key, loose[key], value)):
                copy_bits(loose[key], value)
        if "metrics" in saved:
            self._metrics.put_back(cloned(tree.decode(saved["metrics"], tensors)))

    def load_gradients(self, saved: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        for key, parameter in self.module.named_parameters():
            if key in saved:
                load_gradient(parameter, saved[key], tensors, f"the gradient of {self.name}.{key}")

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


def saved_in_another_form(live: torch.Tensor, body: Any, tensors: Mapping[str, torch.Tensor]) -> bool:
    return any(same_form("", live, tree.decode(body, tensors, place=False)))


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
