"""K1, K3, K4: positions in loaders of every kind."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

import holdfast
from holdfast.loader import batch_size, owned_generators


def numbers(count: int = 12) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def flat(batches: list[Any]) -> list[int]:
    return [int(i) for b in batches for i in (b[0] if isinstance(b, list) else b)]


def resumed(agent: FakeAgent, build: Callable[[], Any], *, after: int, epochs: int = 2, **options: Any) -> list[Any]:
    """Batches of a run that stops after `after` of them and goes on with a loader built anew."""
    got = []
    for stop in (after, None):
        torch.manual_seed(0 if stop else 99)
        loader = build()
        ckpt = holdfast.Checkpointer(loader=loader)
        ckpt.restore(**({} if stop else options))
        for batch in ckpt.batches(loader, epochs=epochs):
            got.append(batch)
            torch.rand(5)
            ckpt.step()
            if stop and len(got) == stop:
                break
        ckpt.finish()
        agent.restore_from = {0: [agent.newest()]}
    return got


class Stream(IterableDataset):  # type: ignore[misc]
    def __iter__(self) -> Iterator[int]:
        return iter(range(12))


class KeepsItsPlace:
    """A loader with a state of its own, as torchdata's."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.at < 4:
            self.at += 1
            yield torch.tensor([self.at])
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


LOADERS: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "an iterable data set": (lambda: DataLoader(Stream(), batch_size=4), list(range(12)) * 2),
    "an iterable data set with a worker": (lambda: DataLoader(Stream(), batch_size=4, num_workers=1), list(range(12)) * 2),
    "a plain list of batches": (lambda: iter_again([torch.tensor([i]) for i in range(5)]), list(range(5)) * 2),
    "a loader that keeps its place": (KeepsItsPlace, [1, 2, 3, 4] * 2),
    "a loader without automatic batches": (lambda: DataLoader(numbers(5), batch_size=None), list(range(5)) * 2),
}  # fmt: skip


class iter_again:
    """An iterable that is no list, as a user's own loader."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.batches)


@pytest.mark.parametrize("after", [1, 3, 5])
@pytest.mark.parametrize("name", LOADERS)
def test_loaders_of_every_kind_go_on_where_they_were(agent: FakeAgent, name: str, after: int) -> None:
    build, want = LOADERS[name]
    got = resumed(agent, build, after=after)
    assert [int(x) for b in got for x in (b[0] if isinstance(b, list | tuple) else b).reshape(-1)] == want


def test_distributed_sampler_is_told_the_epoch_and_each_rank_sees_its_share(agent: FakeAgent) -> None:
    def build() -> DataLoader[Any]:
        return DataLoader(numbers(), batch_size=2, sampler=DistributedSampler(numbers(), 2, 0, seed=1))

    got = flat(resumed(agent, build, after=4))
    sampler = DistributedSampler(numbers(), 2, 0, seed=1)
    want = list(sampler)
    sampler.set_epoch(1)
    assert got == want + list(sampler)
    assert want != list(sampler), "epochs differ"


def test_a_loop_of_one_s_own_over_epochs_goes_on_in_the_right_one(agent: FakeAgent) -> None:
    def run(stop: int | None) -> tuple[list[int], list[int]]:
        torch.manual_seed(4)
        loader = DataLoader(numbers(), batch_size=4, shuffle=True)
        ckpt = holdfast.Checkpointer(loader=loader)
        ckpt.restore()
        seen: list[int] = []
        evaluated = []
        for epoch in range(3):
            for (batch,) in ckpt.batches(loader):
                seen += batch.tolist()
                ckpt.step()
                if ckpt.boundary == stop:
                    ckpt.finish()
                    return seen, evaluated
            evaluated.append(epoch)
        ckpt.finish()
        return seen, evaluated

    want, _ = run(None)
    first, _ = run(5)
    agent.restore_from = {0: [agent.images[0][5]]}
    second, evaluated = run(None)
    assert first + second == want
    assert evaluated == [0, 1, 2]


def test_a_changed_order_of_samples_is_refused_unless_it_was_allowed(agent: FakeAgent) -> None:
    sizes = iter([2, 3, 3])

    def build() -> DataLoader[Any]:
        return DataLoader(numbers(), batch_size=next(sizes), shuffle=True)

    with pytest.raises(holdfast.RestoreError, match=r'allow=\("sample-order",\)'):
        resumed(agent, build, after=2)
    loader = build()
    ckpt = holdfast.Checkpointer(loader=loader)
    assert ckpt.restore(allow=("sample-order",)) == 2
    assert len(list(ckpt.batches(loader, epochs=1))) == 2, "the third and fourth batch of three"


def test_a_loader_that_was_not_registered_keeps_its_position_too(agent: FakeAgent) -> None:
    loader = DataLoader(numbers(), batch_size=4, shuffle=True)
    ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
    ckpt.restore()
    batches = ckpt.batches(loader)
    seen = next(batches)[0].tolist()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    loader = DataLoader(numbers(), batch_size=4, shuffle=True)
    ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
    ckpt.restore()
    seen += flat(list(ckpt.batches(loader)))
    assert sorted(seen) == list(range(12))


def test_a_registered_loader_that_is_read_past_the_library_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    loader = DataLoader(numbers(), batch_size=4)
    ckpt = holdfast.Checkpointer(train=loader)
    ckpt.restore()
    for _ in loader:
        ckpt.step()
    assert sum("position in train is NOT SAVED" in r.message for r in caplog.records) == 1


def test_a_loader_is_as_it_was_after_its_iterator_is_made() -> None:
    loader = DataLoader(numbers(), batch_size=4, shuffle=True)
    before = loader.batch_sampler
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    next(ckpt.batches(loader))
    assert loader.batch_sampler is before
    assert len(list(loader)) == 3, "and can be read apart from the position"


def test_generators_of_a_loader_are_found_once_and_the_global_one_is_not_its_own() -> None:
    own = torch.Generator()
    assert owned_generators(DataLoader(numbers(), shuffle=True, generator=own)) == [own]
    assert owned_generators(DataLoader(numbers(), shuffle=True)) == []
    assert owned_generators(DataLoader(numbers(), shuffle=True, generator=torch.default_generator)) == []


SIZES = {
    "a tensor": (torch.zeros(3, 2), 3),
    "a pair": ((torch.zeros(4, 2), torch.zeros(4)), 4),
    "a dict": ({"x": torch.zeros(5)}, 5),
    "a list of texts": (["a", "b"], 2),
    "a number": (torch.tensor(1.0), 1),
    "something else": (object(), 1),
}


@pytest.mark.parametrize("name", SIZES)
def test_samples_of_a_batch_are_counted(name: str) -> None:
    batch, want = SIZES[name]
    assert batch_size(batch) == want
