"""K1, K2 for loaders that keep their own place: torchdata's StatefulDataLoader (where it is installed), MosaicML streaming's protocol.

Each is stopped at every boundary, resumed several times within one epoch, at the end of one, and at the last step; samples and the noise drawn beside them
must be those of an unstopped run.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import holdfast

EPOCHS = 2


class Numbers(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset):  # type: ignore[misc,type-arg]
    """Every worker has its share."""

    def __iter__(self) -> Iterator[int]:
        return iter(share())


def share() -> range:
    info = get_worker_info()
    return range(info.id, 12, info.num_workers) if info else range(12)


class KeptStream(Stream):
    """Keeps its place."""

    at = 0

    def __iter__(self) -> Iterator[int]:
        while self.at < len(share()):
            self.at += 1
            yield share()[self.at - 1]
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def torchdata(data: Callable[[], Any], **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        StatefulDataLoader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

        return StatefulDataLoader(data(), batch_size=3, **options)

    return build


class FakeStreamingDataset(IterableDataset):  # type: ignore[misc,type-arg]
    """Not MosaicML's: its documented protocol alone. `state_dict(num_samples, from_beginning)` says where the epoch stands; the next `iter` goes on there."""

    def __init__(self) -> None:
        self.next_epoch = 0
        self.resume: dict[str, int] | None = None
        self.offset = 0

    def __iter__(self) -> Iterator[int]:
        epoch, self.offset = self.next_epoch, 0
        if self.resume is not None:
            epoch, self.offset, self.resume = self.resume["epoch"], self.resume["sample_in_epoch"], None
        self.next_epoch = epoch + 1
        order = list(range(12))
        random.Random(epoch).shuffle(order)
        return iter(order[self.offset :])

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, int]:
        if self.resume is not None:
            return {"epoch": self.resume["epoch"], "sample_in_epoch": self.resume["sample_in_epoch"]}
        offset = 0 if from_beginning else self.offset
        return {"epoch": max(0, self.next_epoch - 1), "sample_in_epoch": offset + num_samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.resume = state


class FakeStreamingDataLoader(DataLoader):  # type: ignore[misc,type-arg]
    """Not MosaicML's either: counts what it has yielded and asks its data set."""

    num_samples_yielded = 0

    def __iter__(self) -> Any:
        self.num_samples_yielded = 0
        for batch in super().__iter__():
            self.num_samples_yielded += len(batch)
            yield batch

    def state_dict(self) -> dict[str, int]:
        state: dict[str, int] = self.dataset.state_dict(self.num_samples_yielded, False)
        return state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.dataset.load_state_dict(state)


LOADERS: dict[str, Callable[[], Any]] = {
    "torchdata": torchdata(Numbers),
    "torchdata, shuffled": torchdata(Numbers, shuffle=True),
    "torchdata, stream with a state": torchdata(KeptStream),
    "streaming protocol": lambda: FakeStreamingDataLoader(FakeStreamingDataset(), batch_size=3),
}


def samples_of(batch: Any) -> list[int]:
    return [int(v) for v in torch.as_tensor(batch).reshape(-1)]


def train(build: Callable[[], Any], *, stop: int | None = None, seed: int = 1) -> list[str]:
    """What it trained on, with the noise that it drew; `stop`: ends after so many boundaries."""
    torch.manual_seed(seed)
    loader, done = build(), []
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    for batch in ckpt.batches(loader, epochs=EPOCHS):
        if ckpt.boundary == stop:  # this batch was read and is not trained on
            break
        done.append(f"{ckpt.epoch} {samples_of(batch)} {torch.rand(()).item()}")
        ckpt.step()
    ckpt.finish()
    return done


def every_boundary(agent: FakeAgent, build: Callable[[], Any]) -> None:
    agent.every_steps = 1
    want = train(build)
    assert sorted(n for line in want[:4] for n in eval(line[line.index("[") : line.index("]") + 1])) == list(range(12))
    assert len(want) == 8
    images = dict(agent.images[0])
    for at in range(1, 9):
        agent.restore_from = {0: [images[at]]}
        assert train(build, seed=50 + at) == want[at:], f"resumed at boundary {at}"
    # Two resumes within the first epoch, then at its end, in the second, and at the last step: each from what the run before has left.
    agent.restore_from = {}
    got: list[str] = []
    for stop in (1, 3, 4, 6, 8, None):
        agent.images[0].clear()
        got += train(build, stop=stop, seed=60 if got else 1)
        if agent.images[0]:
            agent.restore_from = {0: [agent.newest()]}
    assert got == want


@pytest.mark.parametrize("name", LOADERS)
def test_resumed_at_every_boundary_it_goes_on_as_if_nothing_had_happened(agent: FakeAgent, name: str) -> None:
    every_boundary(agent, LOADERS[name])


@pytest.mark.parametrize("name", LOADERS)
def test_a_pass_that_was_left_for_good_is_not_gone_on_with(agent: FakeAgent, name: str) -> None:
    """A boundary outside the loop ends it: the next pass is after a restart what it is without one, a whole one but of data that goes on where it is."""

    def run(seed: int) -> list[str]:
        torch.manual_seed(seed)
        loader, done = LOADERS[name](), []
        ckpt = holdfast.Checkpointer(loader=loader)
        ckpt.restore()
        for _ in range(3):
            for batch in ckpt.batches(loader):
                done.append(f"{ckpt.epoch} {samples_of(batch)} {torch.rand(()).item()}")
                ckpt.step()
                if ckpt.boundary == 2:
                    break
            if ckpt.boundary == 2:
                ckpt.step()
        ckpt.finish()
        return done

    agent.every_steps = 3
    want = run(1)
    assert len(want) == 2 + (2 if name == "torchdata, stream with a state" else 4) + 4
    agent.restore_from = {0: [agent.images[0][3]]}
    assert run(50) == want[2:]


def test_a_shuffled_stream_is_told_the_epoch(agent: FakeAgent) -> None:
    class Told(Stream):
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    loader = DataLoader(Told(), batch_size=3)
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    assert len(list(ckpt.batches(loader, epochs=3))) == 12
    assert Told.epochs == [0, 1, 2]


def test_a_data_set_that_is_registered_beside_its_loader_is_refused() -> None:
    """Its place would be kept twice: put back, and then skipped to from there."""
    data = KeptStream()
    loader = DataLoader(data, batch_size=3)
    with pytest.raises(ValueError, match=r"data is the data set that DataLoader reads: .* Register the loader alone"):
        holdfast.Checkpointer(data=data, loader=loader)
    ckpt = holdfast.Checkpointer(data=data)
    ckpt.restore()
    with pytest.raises(ValueError, match="the place would be kept twice"):
        next(ckpt.batches(loader))


def test_a_loader_that_does_not_take_its_place_back_is_named_with_what_to_do(agent: FakeAgent) -> None:
    class Shards(FakeStreamingDataset):
        def load_state_dict(self, state: dict[str, int]) -> None:
            raise KeyError("shard 4 of 3")

    train(LOADERS["streaming protocol"], stop=2)
    agent.restore_from = {0: [agent.newest()]}
    loader = FakeStreamingDataLoader(Shards(), batch_size=3)
    with pytest.raises(
        holdfast.RestoreError, match=r"FakeStreamingDataLoader\) does not take its place back: KeyError.*fewer files"
    ):
        holdfast.Checkpointer(loader=loader).restore()


def test_a_loader_that_keeps_the_place_of_a_data_set_without_a_state_is_refused() -> None:
    class Loader(FakeStreamingDataLoader):
        pass

    with pytest.raises(
        holdfast.UnsupportedState, match=r"Stream is an iterable data set without state_dict.*plain DataLoader"
    ):
        holdfast.Checkpointer(loader=Loader(Stream(), batch_size=3))


def test_a_loader_without_a_length_needs_none(agent: FakeAgent) -> None:
    class Endless:
        def __iter__(self) -> Iterator[torch.Tensor]:
            n = 0
            while True:
                yield torch.tensor([n])
                n += 1

    got = []
    for stop in (3, 5):
        loader = Endless()
        ckpt = holdfast.Checkpointer(loader=loader)
        ckpt.restore()
        for batch in ckpt.batches(loader):
            if ckpt.boundary == stop:
                break
            got.append(int(batch))
            ckpt.step()
        ckpt.finish()
        agent.restore_from = {0: [agent.newest()]}
    assert got == [0, 1, 2, 3, 4]


# ---- what can be iterated over and is not read by `batches`


class Schedules:
    """A container of schedulers, as torchtitan's: it has an iterator and a state, and is no loader."""

    at = 0

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def test_what_is_iterated_over_by_nobody_keeps_its_state_life_after_life(agent: FakeAgent) -> None:
    for life in range(3):
        schedules = Schedules()
        ckpt = holdfast.Checkpointer(schedules=schedules)
        assert ckpt.restore() == schedules.at == 3 * life
        for _ in range(3):
            schedules.at += 1
            ckpt.step()
        ckpt.finish()
        agent.restore_from = {0: [agent.newest()]}


class DrawingLoader(DataLoader):  # type: ignore[misc]
    """Makes an iterator when it is asked for its state, as torchdata's does, and an iterator draws a seed."""

    def state_dict(self) -> dict[str, int]:
        return {"seed": int(torch.empty((), dtype=torch.int64).random_())}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


def test_a_restored_loader_that_waits_for_its_turn_draws_nothing_when_it_is_saved(agent: FakeAgent) -> None:
    agent.every_steps = 1
    for life in range(2):
        ckpt = holdfast.Checkpointer(loader=DrawingLoader(Numbers()))
        ckpt.restore()
        before = torch.get_rng_state()
        ckpt.step()
        ckpt.step()
        ckpt.finish()
        assert agent.newest().boundary == 2 * life + 2
        assert life == 0 or torch.equal(torch.get_rng_state(), before)
        agent.restore_from = {0: [agent.newest()]}


# ---- two loaders in turn


def in_turn(build: Callable[[], Any], *, stop: int | None = None, seed: int = 1) -> list[str]:
    """A plain loader, then one that keeps its place, twice; a boundary without a batch between them. What it trained on, with the noise that it drew."""
    torch.manual_seed(seed)
    first, second, done = DataLoader(Numbers(), batch_size=6, shuffle=True), build(), []
    ckpt = holdfast.Checkpointer(first=first, second=second)
    ckpt.restore()
    began = ckpt.boundary
    for _ in range(2):
        for loader in (first, second):
            for batch in ckpt.batches(loader):
                done.append(f"{ckpt.boundary} {samples_of(batch)} {torch.rand(()).item()}")
                ckpt.step()
                if ckpt.boundary == stop:
                    return done
    assert ckpt.boundary == 12 or began == 12
    ckpt.finish()
    return done


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_that_waits_for_its_turn_draws_neither_more_nor_less_after_a_resume(
    agent: FakeAgent, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K2, K4: nor because it was saved meanwhile."""
    with monkeypatch.context() as patch:
        patch.delenv("HOLDFAST_SOCKET")
        want = in_turn(LOADERS[name])
    agent.every_steps = 1
    assert in_turn(LOADERS[name]) == want
    images = dict(agent.images[0])
    for at in range(1, 12):
        agent.restore_from = {0: [images[at]]}
        assert in_turn(LOADERS[name], seed=50 + at) == want[at:], f"resumed at boundary {at}"
