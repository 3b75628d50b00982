"""Training loops small enough to run hundreds of times, written as a user would write them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import holdfast


class Numbers(Dataset):  # type: ignore[type-arg]
    """Sample i is (i, a vector that depends on i)."""

    def __init__(self, count: int = 48) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.sin(torch.arange(8, dtype=torch.float32) * (index + 1))


@dataclass
class Result:
    losses: list[str] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    batches_by_boundary: dict[int, list[int]] = field(default_factory=dict)
    digest: list[Any] = field(default_factory=list)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 32))
        self.head = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x))
        return out


@dataclass(frozen=True)
class Recipe:
    """What kind of loop."""

    workers: int = 0
    persistent: bool = False
    accumulate: int = 1
    micro_boundaries: bool = False
    """`step()` after every batch, also inside an accumulation window."""
    scaler: bool = False
    epochs: int = 3
    samples: int = 48
    batch: int = 8
    noise: bool = True
    """Draw from Python's, NumPy's and torch's generators in the loop."""
    explicit_generator: bool = False
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, lr=1e-2)
    scheduler: Callable[[Any], Any] = lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=12)


def train(recipe: Recipe, *, kill_after: int | None = None, seed: int = 7) -> Result:
    """One start of the training program. Everything is built anew, as in a new process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = Net()
    optimizer = recipe.optimizer(model.parameters())
    scheduler = recipe.scheduler(optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=recipe.scaler, init_scale=2.0**10, growth_interval=3)
    generator = torch.Generator().manual_seed(3) if recipe.explicit_generator else None
    loader: DataLoader[Any] = DataLoader(
        Numbers(recipe.samples), batch_size=recipe.batch, shuffle=True, num_workers=recipe.workers,
        persistent_workers=recipe.persistent, generator=generator,
    )  # fmt: skip
    result = Result()
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, loader=loader)
    ckpt.restore()
    batches: Iterator[Any] = ckpt.batches(loader, epochs=recipe.epochs)
    pending = 0
    for indices, x in batches:
        result.samples += indices.tolist()
        if recipe.noise:
            x = x + 0.01 * (random.random() + float(np.random.rand()) + torch.rand(()))
        loss = nn.functional.mse_loss(model(x), x) / recipe.accumulate
        scaler.scale(loss).backward()
        pending += 1
        result.losses.append(loss.item().hex())
        position = ckpt.boundary + 1 if recipe.micro_boundaries else len(result.losses)
        if position % recipe.accumulate == 0:
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()
        elif not recipe.micro_boundaries:
            continue
        ckpt.step(loss=loss)
        result.batches_by_boundary[ckpt.boundary] = list(result.samples)
        if kill_after is not None and ckpt.boundary >= kill_after:
            if loader._iterator is not None:  # a kill takes the workers along; here they would wait for the collector
                loader._iterator._shutdown_workers()
            raise Interrupted(result, ckpt)
    ckpt.finish()
    del batches
    result.digest = [t.clone() for t in model.state_dict().values()] + [
        v.clone() if isinstance(v, torch.Tensor) else v for s in optimizer.state.values() for v in s.values()
    ] + [torch.rand(3), random.random(), float(np.random.rand())]  # fmt: skip
    return result


class Interrupted(Exception):
    """Carries what a killed run had done, and keeps its Checkpointer from being collected before the test is through."""

    def __init__(self, result: Result, ckpt: holdfast.Checkpointer) -> None:
        super().__init__(f"killed after boundary {ckpt.boundary}")
        self.result, self.ckpt = result, ckpt


def same(a: list[Any], b: list[Any]) -> bool:
    """Bitwise."""
    return len(a) == len(b) and all(
        x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )
