"""K1, checkable: the ledgers in a lineage's checkpoints show that each sample was trained on exactly once per epoch, and do not where it was not."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent, Image
from safetensors import safe_open
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import holdfast
from holdfast import ledger as ledger_module
from holdfast.ledger import Ledger, mixed, rule_of
from holdfast.loader import Position
from holdfast_api.layout import CheckpointRef
from holdfast_store import samples
from holdfast_store.samples import Account, EpochSamples, Standing, judge, ledgers_in


def document(image: Image) -> Any:
    with safe_open(image.path, "pt") as file:
        return json.loads(file.get_tensor("holdfast.state.json").numpy().tobytes())


def history(*runs: dict[int, Image]) -> list[Account]:
    """The checkpoints of one rank, in the order of their boundaries."""
    return [
        Account(CheckpointRef(attempt, boundary), {0: ledgers_in(document(run[boundary]))})
        for attempt, run in enumerate(runs, 1)
        for boundary in sorted(run)
    ]


def standings(found: Iterable[EpochSamples]) -> list[tuple[int, int, str]]:
    return [(e.epoch, e.count, e.standing.value) for e in found]


def shuffled(count: int = 12, **options: Any) -> "DataLoader[Any]":
    return DataLoader(TensorDataset(torch.arange(count)), **({"batch_size": 3, "shuffle": True} | options))


def run(agent: FakeAgent, build: Callable[[], Any], *, stop: int, epochs: int = 3) -> dict[int, Image]:
    """Goes on from the agent's newest image, up to boundary `stop`; what it has saved, at every boundary."""
    agent.every_steps = 1
    agent.images[0].clear()
    loader = build()
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    for _ in ckpt.batches(loader, epochs=epochs):
        ckpt.step()
        if ckpt.boundary >= stop:
            break
    ckpt.finish()
    agent.wait(lambda: bool(agent.images[0]), "an image")
    saved = dict(agent.images[0])
    agent.restore_from = {0: [saved[max(saved)]]}
    return saved


@pytest.mark.parametrize("workers", [0, 2])
def test_each_sample_came_once_in_every_epoch_over_two_resumes_within_one(agent: FakeAgent, workers: int) -> None:
    def build() -> Any:
        return shuffled(num_workers=workers)

    runs = [run(agent, build, stop=stop) for stop in (5, 6, 99)]
    assert standings(judge(history(*runs))) == [(0, 12, "exactly-once"), (1, 12, "exactly-once"), (2, 12, "running")]
    assert judge(history(*runs))[2].detail == ""


def test_what_has_been_read_ahead_is_not_in_the_ledger(agent: FakeAgent) -> None:
    saved = run(agent, lambda: shuffled(num_workers=2, prefetch_factor=2), stop=1)
    ledger = ledgers_in(document(saved[1]))["loader"]
    assert ledger["now"]["count"] == 3
    assert int.from_bytes(ledger["now"]["seen"], "little").bit_count() == 3


def test_a_run_that_was_set_back_without_its_ledger_is_found(agent: FakeAgent) -> None:
    """The samples between two checkpoints of which the later one knows nothing."""
    first = run(agent, shuffled, stop=3)
    agent.restore_from = {}
    second = run(agent, shuffled, stop=2)
    assert standings(judge(history(first, second))) == [(0, 6, "wrong")]
    assert "rank 0, from 1/3 to 2/1: 9 samples had been handed out, then 3" in judge(history(first, second))[0].detail


def test_a_sample_that_comes_twice_is_found(agent: FakeAgent) -> None:
    """A position that goes back while the ledger stays: what a resume from the wrong place would do."""
    saved = run(agent, shuffled, stop=2)
    position = Position(shuffled())
    position.load(position.state() | {"ledger": _decoded(document(saved[2]))})
    for _ in position.run(1, lambda: None):
        position.at_boundary()
    account = Account(CheckpointRef(2, 1), {0: {"loader": position.state()["ledger"]}})
    (found,) = judge([*history(saved), account])
    assert (found.standing, found.detail) == (Standing.WRONG, "6 samples twice, 0 are padding of the sampler's")


def test_a_sample_that_is_left_out_is_found() -> None:
    ledger = Ledger(shuffled())
    ledger.begin(0, fresh=True)
    ledger.take([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11], 11)
    ledger.end(0, left=False)
    (found,) = judge([account(ledger)])
    assert (found.standing, found.detail) == (
        Standing.WRONG,
        "1 of 12 samples missing, 0 are left out by the sampler",
    )


def test_a_loop_that_was_left_promises_no_whole_epoch(agent: FakeAgent) -> None:
    agent.every_steps = 1
    loader = shuffled()
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    for stop in (2, 6):
        for _ in ckpt.batches(loader):
            ckpt.step()
            if ckpt.boundary == stop:
                break
    ckpt.finish()
    assert standings(judge(history(agent.images[0]))) == [(0, 6, "left"), (1, 12, "running")]


def account(*ledgers: Ledger) -> Account:
    return Account(CheckpointRef(1, 1), {r: {"loader": ledger.state()} for r, ledger in enumerate(ledgers)})


def of_ranks(count: int, ranks: int, *, batch: int = 2, epochs: int = 1, **options: Any) -> list[Ledger]:
    ledgers = []
    for rank in range(ranks):
        data = TensorDataset(torch.arange(count))
        drop = options.get("drop_last", False)
        sampler = DistributedSampler(data, ranks, rank, seed=1, drop_last=drop)
        loader = DataLoader(data, batch_size=batch, sampler=sampler, drop_last=options.get("drop_batch", False))
        position = Position(loader)
        for _ in position.run(epochs, lambda: None):
            position.at_boundary()
        ledgers.append(position._ledger)
    return ledgers


@pytest.mark.parametrize(
    ("count", "ranks", "options", "detail"),
    [
        (12, 4, {}, ""),
        (10, 4, {}, "2 padded by the sampler"),
        (10, 4, {"drop_last": True}, "2 left out by the sampler"),
        (14, 2, {"drop_batch": True}, "2 left out by the sampler"),
    ],
)
def test_ranks_together_hold_each_sample_once(count: int, ranks: int, options: dict[str, Any], detail: str) -> None:
    (found,) = judge([account(*of_ranks(count, ranks, **options))])
    assert (found.standing, found.detail, found.size) == (Standing.ONCE, detail, count)


def test_a_rank_that_reads_another_s_share_is_found() -> None:
    first, second = of_ranks(12, 2)
    (found,) = judge([account(first, first)])
    assert (found.standing, found.detail) == (Standing.WRONG, "1 of 2 shares are read")
    assert second._before is not None
    second._before["share"] = [0, 2]
    (found,) = judge([account(first, second)])
    assert found.detail == "ranks 0 and 1 read the same share and not the same samples"


def test_old_epochs_are_shown_by_the_sum_of_hashes_and_a_wrong_one_is_found() -> None:
    ledgers = of_ranks(12, 2, epochs=3)
    found = judge([account(*ledgers)])
    assert [(e.standing, e.detail) for e in found] == [(Standing.ONCE, "by the sum of hashes")] * 2 + [
        (Standing.ONCE, "")
    ]
    ledgers[0]._closed[0]["sum"] = "0" * 16
    assert judge([account(*ledgers)])[0].detail == "12 samples handed out, not each of 12 once"


def test_a_large_data_set_has_sums_and_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "EXACT_SAMPLES", 8)
    (found,) = judge([account(*of_ranks(12, 2))])
    assert (found.standing, found.detail) == (Standing.ONCE, "by the sum of hashes")


def test_the_ledger_does_not_grow_with_the_epochs() -> None:
    ledger = Ledger(shuffled())
    for epoch in range(1000):
        ledger.begin(epoch, fresh=True)
        ledger.take(list(range(12)), 12)
        ledger.end(epoch, left=False)
    assert len(ledger.state()["closed"]) == 32
    assert ledger.state()["older"] == 1000 - 32
    assert len(judge([account(ledger)])) == 32


def test_the_two_hashes_are_one() -> None:
    import numpy

    assert int(mixed(numpy.arange(1000, dtype=numpy.uint64)).sum(dtype=numpy.uint64)) == samples.expected_sum(1000)


def test_what_a_sampler_of_one_s_own_gives_is_no_promise() -> None:
    data = TensorDataset(torch.arange(12))
    weighted = DataLoader(data, sampler=WeightedRandomSampler([1.0] * 12, 12))
    assert not rule_of(weighted)["once"]
    assert not rule_of(DataLoader(data, sampler=RandomSampler(data, num_samples=5)))["once"]

    class Own(BatchSampler):
        pass

    assert not rule_of(DataLoader(data, batch_sampler=Own(SequentialSampler(data), 2, False)))["once"]
    ledger = Ledger(weighted)
    ledger.begin(0, fresh=True)
    ledger.take([1, 1, 2], 3)
    (found,) = judge([account(ledger)])
    assert (found.standing, found.detail) == (Standing.SAMPLED, "1 handed out more than once")


def test_keys_that_are_no_numbers_are_hashed() -> None:
    ledger = Ledger(shuffled())
    ledger.begin(0, fresh=True)
    ledger.take(["a", ("b", 1)], 2)
    assert ledger.state()["now"]["kind"] == "hashed"
    assert ledger.state()["now"]["count"] == 2


def test_iterable_data_is_counted(agent: FakeAgent) -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc,type-arg]
        def __iter__(self) -> Any:
            return iter(range(12))

    runs = [run(agent, lambda: DataLoader(Stream(), batch_size=4), stop=stop, epochs=2) for stop in (2, 99)]
    assert standings(judge(history(*runs))) == [(0, 12, "counted"), (1, 12, "counted")]


def test_a_checkpoint_without_a_ledger_is_gone_on_from_and_its_epoch_promises_nothing() -> None:
    position = Position(shuffled())
    batches = position.run(2, lambda: None)
    next(batches)
    position.at_boundary()
    old = {k: v for k, v in position.state().items() if k != "ledger"}
    again = Position(shuffled())
    again.load(old)
    again.allow_other_order()
    for _ in again.run(2, lambda: None):
        again.at_boundary()
    found = judge([Account(CheckpointRef(1, 1), {0: {"loader": again.state()["ledger"]}})])
    assert standings(found) == [(0, 9, "as-sampled"), (1, 12, "running")]


def test_batches_in_the_order_in_which_they_are_ready_are_refused() -> None:
    with pytest.raises(holdfast.UnsupportedState, match="in_order=False"):
        holdfast.Checkpointer(loader=shuffled(num_workers=2, in_order=False))


@pytest.mark.parametrize(
    "broken",
    [
        None,
        {"positions": 1},
        {"positions": {"l": {"ledger": {"now": {}}}}},
        {"positions": {"l": {"ledger": {"now": {"epoch": 1}}}}},
    ],
)
def test_a_state_that_is_no_state_is_named_and_no_traceback(broken: Any) -> None:
    with pytest.raises(samples.Corrupt, match="ledger of samples cannot be read"):
        ledgers_in(broken)


def _decoded(document: Any) -> Any:
    return samples._plain(document["positions"]["loader"]["ledger"])


def test_images_are_files(agent: FakeAgent, tmp_path: Path) -> None:
    """What the CLI reads is what safetensors reads."""
    saved = run(agent, shuffled, stop=1)
    entry = next(e for e in saved[1].entries if e.name == samples.STATE_NAME)
    data = saved[1].path.read_bytes()
    assert json.loads(data[entry.offset_bytes : entry.offset_bytes + entry.length_bytes]) == document(saved[1])


class WithoutLength(Dataset):  # type: ignore[type-arg]
    """Says so by another error than Python's."""

    def __getitem__(self, index: int) -> float:
        return float(index)

    def __len__(self) -> int:
        raise NotImplementedError


class Three(Sampler):  # type: ignore[type-arg]
    """Has no length either."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_data_and_samplers_without_a_length_are_read_as_torch_reads_them(agent: FakeAgent) -> None:
    loader = DataLoader(WithoutLength(), sampler=Three(), batch_size=2)
    ckpt = holdfast.Checkpointer(loader=loader)
    ckpt.restore()
    for _ in ckpt.batches(loader):
        ckpt.step()
    ckpt.finish()
    assert agent.newest().boundary == 2
