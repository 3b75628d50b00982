"""The training script of the matrix, written as a user would write it: `main` is one life of one rank.

Every life but the first begins with other seeds: a resumed one owes nothing to its own.
"""

import copy
import faulthandler
import fcntl
import hashlib
import json
import os
import random
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.matrix import loaders
from tests.matrix.journal import Journal
from tests.matrix.moments import Trigger
from tests.matrix.worlds import ACCUMULATE, EVALUATE_EVERY, Moment, World
from tests.train.train_loops import Net

BUCKET_MB = 0.003
"""Several buckets, small as the model is."""


def main(arguments: list[str], agent: int) -> None:
    """`arguments`: the life's folder. Its `life.json` holds world, moment and seed."""
    folder = Path(arguments[0])
    told = json.loads((folder / "life.json").read_text())
    moment = Moment(**told["moment"]) if told["moment"] else None
    world = World(**(told["world"] | {"moments": ()}))
    rank = int(os.environ["RANK"])
    faulthandler.register(STACKS_SIGNAL, file=(folder / f"rank-{rank}.stacks").open("w"), all_threads=True)
    held = (folder / f"rank-{rank}.pid").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)  # until it and its loader workers are gone
    held.write(str(os.getpid()))
    held.flush()
    if world.ranks > 1:
        store = torch.distributed.FileStore(str(folder / "store"), world.ranks)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world.ranks)
    if moment is not None and moment.rank != rank:
        moment = None
    Life(world, folder, rank, told["seed"], moment, agent).run()
    if world.ranks > 1:
        torch.distributed.destroy_process_group()


def forget(what: str, life: "Life") -> None:
    """After a restore: takes away what the library has put back, so that a test sees the matrix fail."""
    if what == "generators":
        life.forgot_generators = True
    elif what == "place in the data":
        for position in life.ckpt._registry.positions.values():
            position.batch -= 1
            position.allow_other_order()
    elif what == "optimizer state":
        for state in life.optimizers[0].state.values():
            state["exp_avg"].zero_()
    elif what == "gradients":
        life.optimizers[0].zero_grad()
    elif what:
        raise ValueError(f"{what!r} cannot be forgotten")


STACKS_SIGNAL = 12
"""SIGUSR2: the stacks of all threads go to `rank-<n>.stacks`."""


class Masters:
    """Float32 copies that the optimizer updates, of weights in bfloat16."""

    def __init__(self, net: nn.Module) -> None:
        self._pairs = [(p, nn.Parameter(p.detach().float())) for p in net.parameters()]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [m for _, m in self._pairs]

    def take_gradients(self) -> None:
        for p, m in self._pairs:
            m.grad = None if p.grad is None else p.grad.float()

    @torch.no_grad()
    def give_weights(self) -> None:
        for p, m in self._pairs:
            p.copy_(m)
            p.grad = None


class Life:
    def __init__(self, world: World, folder: Path, rank: int, seed: int, moment: Moment | None, agent: int) -> None:
        import holdfast

        self.world, self.rank = world, rank
        self.journal = Journal(folder, rank)
        self.trigger = Trigger(moment, agent, self._passed, lambda n: self.journal.note(moment=n))
        self.ckpt: Any = None
        self.forgot_generators = False
        random.seed(seed + rank)
        np.random.seed(seed + rank)
        torch.manual_seed(seed)
        self.net = self._net()
        self.masters = Masters(self.net) if world.precision == "masters" else None
        self.model = self._wrapped()
        torch.manual_seed(seed + 100 + rank)
        self.parts: dict[str, Any] = {"model": self.model}
        self.optimizers = self._optimizers()
        self.scheduler = self._scheduler() if world.loop != "in backward" else None
        self.scaler = torch.amp.GradScaler("cpu", enabled=world.loop == "scaler", init_scale=2.0**10, growth_interval=3)
        self.average = torch.optim.swa_utils.AveragedModel(self.net) if world.loop == "EMA" else None
        self.critic, self.second = self._critic() if world.loop == "several optimizers" else (None, None)
        self.loader = loaders.make(world, rank, lambda: self.trigger.at("data"))
        self.parts |= {
            "loader": self.loader,
            "scheduler": self.scheduler,
            "ema": self.average,
            "critic": self.critic,
            "second": self.second,
        }
        if world.loop == "scaler":
            self.parts["scaler"] = self.scaler
        self.ckpt = holdfast.Checkpointer(**self.parts)

    def _passed(self) -> int:
        return self.ckpt.boundary if self.ckpt is not None else 0

    # ---- what is trained

    def _net(self) -> nn.Module:
        net = Net()
        if self.world.precision == "fp64":
            net.double()
        if self.world.precision == "masters":
            net.bfloat16()
        if self.world.loop == "checkpointing":
            body = net.body.forward
            net.body.forward = lambda x: torch.utils.checkpoint.checkpoint(body, x, use_reentrant=False)  # type: ignore[method-assign]
        trigger = self.trigger  # not self: an average is made from a deep copy

        def in_forward(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if module.training:
                trigger.at("forward")
                if inputs[0].requires_grad:
                    inputs[0].register_hook(lambda grad: trigger.at("backward"))

        if self.world.loop != "compile":
            net.head.register_forward_pre_hook(in_forward)
        return net

    def _wrapped(self) -> nn.Module:
        if self.world.distribution == "FSDP2":
            from torch.distributed.fsdp import fully_shard

            mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (self.world.ranks,))
            for layer in (self.net.body, self.net.head):
                fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)
            return self.net
        if self.world.ranks > 1:
            # torch.compile refuses buckets that are smaller than its first one.
            small = BUCKET_MB if self.world.loop != "compile" else None
            model: nn.Module = DistributedDataParallel(self.net, bucket_cap_mb=small)
        else:
            model = self.net
        return torch.compile(model, backend="eager") if self.world.loop == "compile" else model  # type: ignore[return-value]

    def _parameters(self) -> list[nn.Parameter]:
        return self.masters.parameters if self.masters else list(self.model.parameters())

    def _optimizers(self) -> list[Any]:
        parameters = self._parameters()
        if self.world.loop == "in backward":
            made = [OPTIMIZERS[self.world.optimizer]([p]) for p in parameters]
            for parameter, optimizer in zip(parameters, made, strict=True):
                parameter.register_post_accumulate_grad_hook(self._update_of(optimizer))
            self.parts |= {f"optimizer{n}": o for n, o in enumerate(made)}
            return made
        if self.world.distribution == "ZeRO-1":
            from torch.distributed.optim import ZeroRedundancyOptimizer

            kind, options = RECIPES[self.world.optimizer]
            optimizer: Any = ZeroRedundancyOptimizer(parameters, optimizer_class=kind, **options)
        else:
            optimizer = OPTIMIZERS[self.world.optimizer](parameters)
        self.parts["optimizer"] = optimizer
        optimizer.register_step_pre_hook(lambda *_: self.trigger.at("optimizer"))
        optimizer.register_step_post_hook(lambda *_: self.trigger.at("optimizer"))
        return [optimizer]

    def _update_of(self, optimizer: torch.optim.Optimizer) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            self.trigger.at("optimizer")
            optimizer.step()
            optimizer.zero_grad()

        return hook

    def _scheduler(self) -> Any:
        (optimizer,) = self.optimizers
        kinds = torch.optim.lr_scheduler
        if self.world.scheduler == "cosine":
            return kinds.CosineAnnealingLR(optimizer, T_max=self.world.steps)
        momentum = self.world.optimizer != "Adagrad" and self.world.distribution != "ZeRO-1"
        if self.world.scheduler == "one cycle" and self.world.loop != "LBFGS":
            return kinds.OneCycleLR(optimizer, max_lr=0.02, total_steps=self.world.steps + 2, cycle_momentum=momentum)
        return kinds.StepLR(optimizer, 5, gamma=0.8)

    def _critic(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        critic: nn.Module = nn.Linear(8, 1).to(torch.float64 if self.world.precision == "fp64" else torch.float32)
        if self.world.distribution == "DDP":
            critic = DistributedDataParallel(critic)
        elif self.world.distribution == "FSDP2":
            from torch.distributed.fsdp import fully_shard

            fully_shard(critic, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (self.world.ranks,)))
        return critic, torch.optim.SGD(critic.parameters(), lr=0.01, momentum=0.9)

    # ---- the loop

    def run(self) -> None:
        world, ckpt = self.world, self.ckpt
        self.trigger.soon("restore")
        self.journal.note(start=ckpt.restore())
        if ckpt.boundary:
            forget(os.environ.get("MATRIX_FORGETS", ""), self)
        self.trigger.soon("anywhere")
        self.model.train()
        micro, losses, samples = 0, [], []
        for index, x in self._batches():
            if self.forgot_generators:
                torch.manual_seed(0)
                random.seed(0)
            samples += index.tolist()
            micro += 1
            number = ckpt.boundary + 1
            kept = world.loop == "accumulation kept"
            update = (number if kept else micro) % ACCUMULATE == 0 if world.loop.startswith("accumulation") else True
            loss = self._iterate(number, x, update)
            losses.append(loss.detach().double().item().hex())
            if not update and not kept:
                continue
            if self.average is not None:
                self.average.update_parameters(self.net)
            time.sleep(world.pace_seconds)
            self.journal.note(step=number, loss=losses, samples=samples, state=self._checksum())
            losses, samples = [], []
            ckpt.step(loss=loss)
            self.trigger.at("after the step")
            if ckpt.boundary % EVALUATE_EVERY == 0:
                self._evaluate()
        self.trigger.soon("finish")
        ckpt.finish()
        self.journal.note(end=self._digests())

    def _batches(self) -> Iterator[Any]:
        world, ckpt = self.world, self.ckpt
        for epoch in range(world.epochs) if world.outer else [0]:
            runs = epoch >= ckpt.epoch or not world.outer
            batches = iter(ckpt.batches(self.loader, epochs=1 if world.outer else world.epochs))
            while True:
                if ckpt.boundary and ckpt.boundary % world.steps_per_epoch == 0 and not world.outer:
                    self.trigger.at("epoch end")
                if world.loader == "workers":
                    self.trigger.at("data")
                try:
                    yield next(batches)
                except StopIteration:
                    break
            if runs and world.outer:
                self.trigger.at("epoch end")

    def _iterate(self, number: int, x: torch.Tensor, update: bool) -> torch.Tensor:
        world = self.world
        x = x.to(next(self.net.parameters()).dtype)
        x = x + 0.01 * (random.random() + float(np.random.rand()) + torch.rand((), dtype=x.dtype))
        if world.ranks > 1 and world.distribution != "FSDP2":
            ddp: Any = getattr(self.model, "_orig_mod", self.model)
            ddp.require_backward_grad_sync = update  # what no_sync() sets
        if world.loop in ("closure", "LBFGS"):
            return self._by_closure(x)
        loss = self._loss(x)
        if world.loop == "scaler" and number % 5 == 3:
            loss = loss * float("inf")
        if world.loop == "compile":
            self.trigger.at("forward")
            self.trigger.at("backward")
        if world.loop != "in backward":
            loss = loss / ACCUMULATE if world.loop.startswith("accumulation") else loss
        self.scaler.scale(loss).backward()
        if update and world.loop != "in backward":
            self._update()
        if self.critic is not None:
            self._train_critic(number, x)
        return loss

    def _loss(self, x: torch.Tensor) -> torch.Tensor:
        halves = torch.autocast("cpu", dtype=torch.bfloat16) if self.world.precision == "autocast" else nullcontext()
        with halves:
            out = self.model(x)
            return nn.functional.mse_loss(out.to(x.dtype), x)

    def _by_closure(self, x: torch.Tensor) -> torch.Tensor:
        (optimizer,) = self.optimizers

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            if self.masters:
                self.masters.give_weights()
            loss = self._loss(x)
            loss.backward()
            if self.masters:
                self.masters.take_gradients()
            return loss.float() if self.masters else loss

        loss: torch.Tensor = optimizer.step(closure)
        self._after_update()
        return loss

    def _update(self) -> None:
        (optimizer,) = self.optimizers
        if self.masters:
            self.masters.take_gradients()
        self.scaler.step(optimizer)
        self.scaler.update()
        self._after_update()

    def _after_update(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        if self.masters:
            self.masters.give_weights()
        if self.scheduler is not None:
            self.scheduler.step()

    def _train_critic(self, number: int, x: torch.Tensor) -> None:
        """Steps every other iteration; its gradients wait meanwhile."""
        assert self.critic is not None
        assert self.second is not None
        self.critic(x).square().mean().backward()
        if number % 2 == 0:
            self.second.step()
            self.second.zero_grad()

    def _evaluate(self) -> None:
        """With the averaged weights, where there are some."""
        mine = None
        self.model.eval()
        if self.average is not None:
            mine = copy.deepcopy(self.net.state_dict())
            self.net.load_state_dict(self.average.module.state_dict())
        self.trigger.at("evaluation")
        with torch.no_grad():
            self.net(torch.ones(2, 8, dtype=next(self.net.parameters()).dtype))
        self.trigger.at("evaluation")
        if mine is not None:
            self.net.load_state_dict(mine)
        self.model.train()

    # ---- what is compared

    def _checksum(self) -> int:
        found = 0
        for _, content in self._state():
            found = zlib.crc32(content, found)
        return found

    def _digests(self) -> dict[str, str]:
        drawn = {"random": random.random(), "numpy": float(np.random.rand()), "torch": torch.rand(4).tolist()}
        found = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in self._state()}
        return found | {f"next of {name}": repr(value) for name, value in drawn.items()}

    def _state(self) -> Iterator[tuple[str, bytes]]:
        for name in ("model", "ema", "critic"):
            part = self.parts.get(name)
            if part is not None:
                yield from flat(name, dict(part.state_dict()))
        for at, parameter in enumerate([*self.net.parameters(), *(self.critic.parameters() if self.critic else ())]):
            yield from flat(f"gradient.{at}", {} if parameter.grad is None else parameter.grad)
        for name, part in self.parts.items():
            if isinstance(part, torch.optim.Optimizer):
                inner = getattr(part, "optim", part)
                for at, group in enumerate(inner.param_groups):
                    yield from flat(f"{name}.group{at}", {k: v for k, v in group.items() if k != "params"})
                    for n, parameter in enumerate(group["params"]):
                        yield from flat(f"{name}.{at}.{n}", parameter)
                        yield from flat(f"{name}.state.{at}.{n}", inner.state.get(parameter, {}))
        if self.scheduler is not None:
            yield from flat("scheduler", self.scheduler.state_dict())
        yield from flat("scaler", self.scaler.state_dict())


def flat(name: str, value: Any) -> Iterator[tuple[str, bytes]]:
    if isinstance(value, torch.Tensor):
        here = getattr(value.detach(), "_local_tensor", value.detach())
        yield name, here.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if here.numel() else b""
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flat(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from flat(f"{name}.{at}", item)
    elif not callable(value):
        yield name, repr(value).encode()


RECIPES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW": (torch.optim.AdamW, {"lr": 1e-2}),
    "fused AdamW": (torch.optim.AdamW, {"lr": 1e-2, "fused": True}),
    "SGD": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 1e-2}),
    "NAdam": (torch.optim.NAdam, {"lr": 1e-2}),
    "LBFGS": (torch.optim.LBFGS, {"lr": 0.1, "max_iter": 4, "history_size": 3}),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    name: (lambda p, kind=kind, options=options: kind(p, **options))
    for name, (kind, options) in RECIPES.items()  # type: ignore[misc]
}
