"""K1, K3, K4: positions in loaders of every kind."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

import holdfast
from holdfast.loader import Position, batch_size, owned_generators


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
    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


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


# Loops that are left


def shuffled() -> "DataLoader[Any]":
    return DataLoader(numbers(), batch_size=3, shuffle=True)


KINDS: dict[str, Callable[[], Any]] = {
    "a shuffling loader": shuffled,
    "two workers": lambda: DataLoader(numbers(), batch_size=3, shuffle=True, num_workers=2),
    "workers that stay": lambda: DataLoader(
        numbers(), batch_size=3, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "a generator of its own": lambda: DataLoader(
        numbers(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "an iterable data set": lambda: DataLoader(Stream(), batch_size=3),
    "an iterable data set with a worker": lambda: DataLoader(Stream(), batch_size=3, num_workers=1),
}


def limited(
    build: Callable[[], Any], *, stop: int | None = None, seed: int = 1, limit: int = 2, epochs: int = 4
) -> list[str]:
    """A loop over epochs that leaves each after `limit` batches of four; `stop`: ends like a killed process after so many boundaries. What it
    trained on, and the noise that it drew."""
    torch.manual_seed(seed)
    loader, done = build(), []
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    for epoch in range(epochs):
        for batch in ckpt.batches(loader):
            if ckpt.boundary == (epoch + 1) * limit:  # before training on it: right also when resumed just here
                break
            done.append(f"{epoch} {ckpt.epoch} {flat([batch])} {torch.rand(()).item()}")
            ckpt.step()
            if ckpt.boundary == stop:
                return done
    ckpt.finish()
    return done


@pytest.mark.parametrize("name", KINDS)
def test_a_run_that_leaves_its_epochs_early_resumes_exactly_at_every_boundary(
    name: str, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K1, K2, K4. The pass that was left counts as an epoch: of the checkpoint, of the sampler, of `ckpt.epoch`."""
    agent.every_steps = 1
    want = limited(KINDS[name])
    assert [line[:3] for line in want] == ["0 0", "0 0", "1 1", "1 1", "2 2", "2 2", "3 3", "3 3"]
    images = dict(agent.images[0])
    for at in range(1, 8):
        agent.restore_from = {0: [images[at]]}
        assert limited(KINDS[name], seed=50 + at) == want[at:], f"resumed at boundary {at}"


def test_a_run_is_killed_after_every_boundary_and_resumed_from_its_own_checkpoints(agent: FakeAgent) -> None:
    agent.every_steps = 1
    want, got = limited(shuffled), []
    agent.images[0].clear()
    for at in range(1, 9):
        got += limited(shuffled, stop=at, seed=at)
        agent.wait(lambda at=at: at in agent.images[0], "the image")  # type: ignore[misc]
        agent.restore_from = {0: [agent.images[0][at]]}
    assert got == want


def test_a_new_loop_after_a_break_gets_the_epochs_it_asks_for_and_no_more(agent: FakeAgent) -> None:
    def run() -> list[int]:
        torch.manual_seed(2)
        loader, seen = shuffled(), []
        ckpt = holdfast.Checkpointer(loader=loader)
        ckpt.restore()
        for call in range(2):
            for batch in ckpt.batches(loader, epochs=3):
                if call == 0 and ckpt.boundary == 2:
                    break
                seen += flat([batch])
                ckpt.step()
        ckpt.finish()
        return seen

    agent.every_steps = 1
    want = run()
    assert len(want) == 6 + 3 * 12, "two batches, then three epochs: what was left of the first call is given up"
    images = dict(agent.images[0])
    for at in (1, 2, 3, 6, 9, 13):
        agent.restore_from = {0: [images[at]]}
        assert run() == want[3 * at :], f"resumed at boundary {at}"


def test_a_break_and_the_end_leave_the_rest_of_the_epoch_for_a_longer_run(agent: FakeAgent) -> None:
    """The batch that was read when the limit was seen was not trained on: it comes again (K1)."""

    def run(limit: int) -> list[int]:
        torch.manual_seed(3)
        loader, seen = shuffled(), []
        ckpt = holdfast.Checkpointer(loader=loader)
        ckpt.restore()
        for batch in ckpt.batches(loader, epochs=2):
            if ckpt.boundary == limit:
                break
            seen += flat([batch])
            ckpt.step()
        ckpt.finish()
        return seen

    first = run(2)
    agent.restore_from = {0: [agent.newest()]}
    whole = first + run(100)
    assert len(first) == 6
    assert sorted(whole[:12]) == sorted(whole[12:]) == list(range(12))


def test_gradients_of_batches_read_after_the_last_boundary_are_no_state_of_it(agent: FakeAgent) -> None:
    """I1, I2: what is saved at the end is the last boundary: its batches come again, so their gradients must not be there already."""
    loader, model = shuffled(), torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader)
    ckpt.restore()
    batches = ckpt.batches(loader)
    for update in (True, False):
        (batch,) = next(batches)
        model(batch.float()[:, None]).sum().backward()
        if update:
            optimizer.step()
            optimizer.zero_grad()
            ckpt.step()
    ckpt.finish()
    assert not [e.name for e in agent.newest().entries if e.name.startswith("gradient.")]
    agent.restore_from = {0: [agent.newest()]}
    again = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader)
    again.restore()
    assert flat([next(again.batches(loader))]) == batch.tolist()


def test_batches_that_an_update_without_a_boundary_has_used_do_not_come_again(agent: FakeAgent) -> None:
    """The parameters hold them: a last update after the loop, then the end."""
    loader, model = shuffled(), torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader)
    ckpt.restore()
    batches = ckpt.batches(loader)
    seen = []
    for number in range(2):
        (batch,) = next(batches)
        seen += batch.tolist()
        model(batch.float()[:, None]).sum().backward()
        optimizer.step()
        if number == 0:
            ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    again = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader)
    again.restore()
    assert sorted(seen + flat(list(again.batches(loader)))) == list(range(12))


def test_a_boundary_outside_a_loop_that_was_left_ends_its_epoch(agent: FakeAgent) -> None:
    """Two loaders in turn: a run resumed in the second must not go back into the first."""

    def run() -> list[str]:
        torch.manual_seed(6)
        first, second, seen = shuffled(), shuffled(), []
        ckpt = holdfast.Checkpointer(first=first, second=second)
        ckpt.restore()
        for _ in range(2):
            for name, loader in (("first", first), ("second", second)):
                for batch in ckpt.batches(loader):
                    seen.append(f"{name} {flat([batch])} {torch.rand(()).item()}")
                    ckpt.step()
                    if name == "first" and ckpt.boundary in (2, 8):
                        break
        ckpt.finish()
        return seen

    agent.every_steps = 1
    want = run()
    images = dict(agent.images[0])
    for at in (3, 5, 6, 7, 9, 11):
        agent.restore_from = {0: [images[at]]}
        assert run() == want[at:], f"resumed at boundary {at}"


def test_an_exception_in_the_loop_that_is_caught_ends_the_epoch_like_a_break(agent: FakeAgent) -> None:
    torch.manual_seed(7)
    loader = shuffled()
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    seen: list[int] = []
    for epoch in range(2):
        try:
            for batch in ckpt.batches(loader):
                seen += flat([batch])
                ckpt.step()
                if epoch == 0:
                    raise ArithmeticError
        except ArithmeticError as e:
            kept = e  # and with it the frame of the loop  # noqa: F841
        if epoch == 0:
            assert ckpt.epoch == 0, "kept where it was left, until training goes on"
    assert sorted(seen[3:]) == list(range(12))
    assert ckpt.epoch == 2


def test_a_loader_that_breaks_in_an_epoch_can_be_asked_again() -> None:
    class Broken(TensorDataset):
        trouble = True

        def __getitem__(self, index: int) -> Any:
            if index == 7 and self.trouble:
                raise OSError("a bad disk")
            return super().__getitem__(index)

    data = Broken(torch.arange(12))
    loader = DataLoader(data, batch_size=4)
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    with pytest.raises(OSError, match="a bad disk"):
        list(ckpt.batches(loader))
    data.trouble = False
    assert flat(list(ckpt.batches(loader))) == list(range(12))
    assert ckpt.epoch == 2


def test_a_pass_can_be_read_in_pieces_by_keeping_its_iterator(agent: FakeAgent) -> None:
    torch.manual_seed(8)
    loader = shuffled()
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    batches, seen = ckpt.batches(loader), []
    for piece in range(2):
        for batch in islice(batches, 2):
            seen += flat([batch])
            ckpt.step()
        assert ckpt.epoch == 0, f"piece {piece}"
    assert sorted(seen) == list(range(12))


def test_one_loader_in_two_loops_at_once_is_refused_where_the_outer_one_would_go_on() -> None:
    loader = shuffled()
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    outer = ckpt.batches(loader)
    next(outer)
    assert len(list(ckpt.batches(loader))) == 4
    with pytest.raises(RuntimeError, match="a loader has one position"):
        next(outer)
    assert ckpt.epoch == 2, "what the outer loop does then does not count"


# Generators after a resume


def test_generators_come_back_also_where_finished_epochs_pass_without_a_batch_first(agent: FakeAgent) -> None:
    """K2, K4: the loop of one's own over epochs."""

    def run() -> list[float]:
        torch.manual_seed(9)
        loader, noise = shuffled(), []
        ckpt = holdfast.Checkpointer(loader=loader)
        ckpt.restore()
        for _ in range(3):
            for _batch in ckpt.batches(loader):
                noise.append(torch.rand(()).item())
                ckpt.step()
        ckpt.finish()
        return noise

    agent.every_steps = 1
    want = run()
    images = dict(agent.images[0])
    for at in (3, 4, 5, 8, 9, 11):
        agent.restore_from = {0: [images[at]]}
        torch.manual_seed(at)
        assert run() == want[at:], f"resumed at boundary {at}"


def test_generators_are_right_where_two_loaders_go_on_in_the_middle(agent: FakeAgent) -> None:
    """K4: the walk of the second loader draws, after the first has put the generators back."""

    def run() -> list[str]:
        torch.manual_seed(10)
        first, second, seen = shuffled(), shuffled(), []
        ckpt = holdfast.Checkpointer(first=first, second=second)
        ckpt.restore()
        for a, b in zip(ckpt.batches(first, 2), ckpt.batches(second, 2), strict=True):
            seen.append(f"{flat([a])} {flat([b])} {torch.rand(()).item()}")
            ckpt.step()
        ckpt.finish()
        return seen

    agent.every_steps = 1
    want = run()
    images = dict(agent.images[0])
    for at in (1, 3, 4, 5, 7):
        agent.restore_from = {0: [images[at]]}
        assert run() == want[at:], f"resumed at boundary {at}"


# What else a resume can meet


@pytest.mark.parametrize("name", LOADERS)
def test_loaders_of_every_kind_go_on_after_every_boundary_of_an_epoch(agent: FakeAgent, name: str) -> None:
    """Resumed again and again within one epoch."""
    build, want = LOADERS[name]
    got: list[int] = []
    for at in range(1, 12):
        torch.manual_seed(at)
        loader = build()
        ckpt = holdfast.Checkpointer(loader=loader)
        ckpt.restore()
        batches = ckpt.batches(loader, epochs=2)
        batch = next(batches, None)
        if batch is None:
            break
        got += [int(x) for x in torch.as_tensor(batch[0] if isinstance(batch, list | tuple) else batch).reshape(-1)]
        ckpt.step()
        ckpt.finish()
        agent.restore_from = {0: [agent.newest()]}
    assert got == want


@pytest.mark.parametrize(("epochs", "more"), [(1, 0), (2, 1), (3, 5), (None, 9)])
def test_another_number_of_epochs_counts_from_the_very_first_start(
    agent: FakeAgent, epochs: int | None, more: int
) -> None:
    """Three batches of the second epoch of four batches are behind it."""
    after = 7
    resumed_from = shuffled()
    ckpt = holdfast.Checkpointer(loader=resumed_from)
    ckpt.restore()
    for _ in ckpt.batches(resumed_from, epochs=2):
        ckpt.step()
        if ckpt.boundary == after:
            break
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    loader = shuffled()
    ckpt = holdfast.Checkpointer(loader=loader)
    assert ckpt.restore() == after
    assert ckpt.epoch == 1, "known before the first batch"
    assert len(list(islice(ckpt.batches(loader, epochs), 9))) == more


@pytest.mark.parametrize(
    "build", [lambda n: DataLoader(numbers(n), batch_size=2), lambda n: DataLoader(Stream(n), batch_size=2)]
)
def test_a_loader_shorter_than_the_position_is_refused_unless_it_was_allowed(
    agent: FakeAgent, build: Callable[[int], Any]
) -> None:
    sizes = iter([12, 6])
    with pytest.raises(holdfast.RestoreError, match=r"ended after 3 batches of epoch 0, .* after 4 of them.*allow="):
        resumed(agent, lambda: build(next(sizes)), after=4)
    loader = build(6)
    ckpt = holdfast.Checkpointer(loader=loader)
    assert ckpt.restore(allow=("sample-order",)) == 4
    assert flat(list(ckpt.batches(loader, epochs=2))) == list(range(6)), "the next epoch, whole"


def test_a_loader_without_a_batch_is_said_and_does_not_go_on_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    loader = DataLoader(numbers(3), batch_size=4, drop_last=True)
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    assert list(ckpt.batches(loader, epochs=3)) == []
    assert sum("gave no batch in epoch 2" in r.message for r in caplog.records) == 1
    with pytest.raises(ValueError, match="gave no batch in a whole epoch"):
        list(ckpt.batches(loader, epochs=None))


def test_a_loader_that_keeps_its_place_must_be_registered() -> None:
    ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
    ckpt.restore()
    with pytest.raises(ValueError, match=r"KeepsItsPlace keeps its place by itself.*Checkpointer\(loader="):
        ckpt.batches(KeepsItsPlace())


def test_a_checkpoint_from_before_loops_could_be_left_is_read() -> None:
    position = Position(shuffled())
    state = {key: value for key, value in position.state().items() if key != "spent"}
    position.load(state | {"epoch": 2})
    assert position.state()["spent"] == 2
