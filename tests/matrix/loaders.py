"""The kinds of loader. Every sample is its number and a vector that depends on it; epochs are shuffled."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, get_worker_info

from tests.matrix.worlds import BATCH, World
from tests.train.train_loops import Numbers

Waits = Callable[[], None]


class Watched(Numbers):
    """Says when the training process itself stands in it."""

    def __init__(self, count: int, waits: Waits) -> None:
        super().__init__(count)
        self._waits = waits

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        if get_worker_info() is None:
            self._waits()
        return super().__getitem__(index)


class Order:
    """The samples of one rank in an epoch."""

    def __init__(self, data: Watched, seed: int, rank: int, ranks: int) -> None:
        self.data, self._seed, self._rank, self._ranks = data, seed, rank, ranks

    def of(self, epoch: int) -> list[int]:
        order = list(range(len(self.data)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order[self._rank :: self._ranks]


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Keeps no place; is told the epoch."""

    def __init__(self, order: Order) -> None:
        self._order, self._epoch = order, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        return (self._order.data[i] for i in self._order.of(self._epoch))


class Shards:
    """A loader of somebody's own that keeps its place, and gives the same epoch again only when it is told to."""

    def __init__(self, order: Order) -> None:
        self._order, self.epoch, self.at = order, 0, 0

    def __iter__(self) -> Iterator[Any]:
        order = self._order.of(self.epoch)
        while self.at < len(order):
            batch = [self._order.data[i] for i in order[self.at : self.at + BATCH]]
            self.at += BATCH
            yield torch.tensor([i for i, _ in batch]), torch.stack([x for _, x in batch])
        self.epoch, self.at = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.at = state["epoch"], state["at"]


def make(world: World, rank: int, waits: Waits) -> Any:
    data = Watched(world.samples, waits)
    order = Order(data, world.seed, rank, world.ranks)
    if world.loader == "iterable":
        return DataLoader(Stream(order), batch_size=BATCH)
    if world.loader == "stateful":
        return Shards(order)
    sampler = (
        DistributedSampler(data, num_replicas=world.ranks, rank=rank, seed=world.seed)
        if world.ranks > 1 or world.loader == "sampler"
        else None
    )
    options: dict[str, Any] = {"batch_size": BATCH, "sampler": sampler, "shuffle": None if sampler else True}
    if world.loader == "torchdata":
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(data, **options)
    if world.loader == "workers":
        options |= {"num_workers": 1, "persistent_workers": world.persistent}
    return DataLoader(data, **options)
