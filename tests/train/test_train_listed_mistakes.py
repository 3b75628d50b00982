"""What people do to a training script between two starts, and what they register: one message each, which names the object, says what was expected, and what to
do. In detail elsewhere: test_train_registered_objects, _allowances, _loader, _stateful_loaders, _describe; here each is shown to be one whole message."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fake_agent import FakeAgent
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import holdfast


class Numbers(IterableDataset):  # type: ignore[misc,type-arg]
    """Keeps no state."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


class KeepsItsPlace(DataLoader):  # type: ignore[misc,type-arg]
    """As torchdata's and MosaicML's loaders do, by what its data set says."""

    def state_dict(self) -> dict[str, int]:
        return {"at": 1}

    def load_state_dict(self, state: dict[str, int]) -> None: ...


class Holding:
    def __init__(self, what: Any) -> None:
        self.what = what

    def state_dict(self) -> dict[str, Any]:
        return {"what": self.what}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def network(head: str = "head", size: int = 2) -> nn.ModuleDict:
    return nn.ModuleDict({"body": nn.Linear(4, 4), head: nn.Linear(4, size)})


def training(model: nn.Module, kind: Any = torch.optim.AdamW) -> dict[str, Any]:
    return {"model": model, "optimizer": kind(model.parameters(), lr=0.1)}


def files(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for number in range(count):
        (folder / f"{number}.bin").write_bytes(b"x" * 10)
    return folder


class Case(NamedTuple):
    before: Callable[[], dict[str, Any]]
    """Parts of the run that was saved."""
    after: Callable[[], dict[str, Any]]
    """And of the one that is to go on."""
    names: str
    expected: str
    remedy: str


NOTHING: Callable[[], dict[str, Any]] = dict
PLAIN = ("tensors, numbers, text", "Leave it out")
CASES = {
    "a state that holds an object": Case(NOTHING, lambda: {"thing": Holding(object())}, "thing.what is a builtins.object", *PLAIN),
    "a state that holds a lambda": Case(NOTHING, lambda: {"thing": Holding(lambda: 1)}, "thing.what is a builtins.function", *PLAIN),
    "a state that holds an open file": Case(
        NOTHING, lambda: {"thing": Holding(Path(__file__).open())}, "thing.what is a _io.TextIOWrapper", *PLAIN,  # noqa: SIM115
    ),
    "an iterable data set without a state, in a loader that keeps its place": Case(
        NOTHING, lambda: {"loader": KeepsItsPlace(Numbers())},
        "Numbers is an iterable data set", "state_dict and load_state_dict", "read it by a plain DataLoader",
    ),
    "a renamed parameter": Case(
        lambda: training(network()), lambda: training(network("top")),
        "model: the model has top.bias, top.weight", "the checkpoint has head.bias, head.weight that the model lacks",
        'allow=("missing:model.top.bias", "missing:model.top.weight", "extra:model.head.bias"',
    ),
    "a changed shape": Case(
        lambda: training(network()), lambda: training(network(size=5)),
        "model.head.weight: (5, 4) torch.float32 here", "(2, 4) torch.float32 in the checkpoint",
        "build it as it was when the checkpoint was made (`holdfast describe` shows its hyper-parameters); or give what has another form now another name",
    ),
    "another optimizer": Case(
        lambda: training(network()), lambda: training(network(), torch.optim.SGD),
        "optimizer is SGD here", "was AdamW in the checkpoint", "use AdamW; or begin anew",
    ),
    "other parameter groups": Case(
        lambda: training(model := network()) | {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)},
        lambda: {"model": (model := network()), "optimizer": torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)},
        "optimizer: the optimizer has parameter groups of [1, 1, 1, 1] tensors", "the checkpoint of [4]", "make the groups as they were",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_is_one_message_that_names_the_object_what_was_expected_and_what_to_do(
    agent: FakeAgent, name: str
) -> None:
    case = CASES[name]
    if case.before is not NOTHING:
        ckpt = holdfast.Checkpointer(**case.before())
        ckpt.restore()
        ckpt.step()
        ckpt.finish()
        agent.restore_from = {0: [agent.newest()]}
    with pytest.raises((holdfast.RestoreError, holdfast.UnsupportedState)) as caught:
        holdfast.Checkpointer(**case.after()).restore()
    said = str(caught.value)
    for words in (case.names, case.expected, case.remedy):
        assert said.count(words) == 1, said


def test_what_the_message_about_a_shape_says_to_do_works(agent: FakeAgent) -> None:
    ckpt = holdfast.Checkpointer(model=network())
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    allow = [
        f"{side}:model.{layer}.{key}"
        for side, layer in (("extra", "head"), ("missing", "top"))
        for key in ("weight", "bias")
    ]
    assert holdfast.Checkpointer(model=network("top", 5)).restore(allow=allow) == 1


def test_many_changed_shapes_are_one_remedy(agent: FakeAgent) -> None:
    ckpt = holdfast.Checkpointer(model=nn.Sequential(*(nn.Linear(3, 3) for _ in range(20))))
    ckpt.restore()
    ckpt.step()
    ckpt.finish()
    agent.restore_from = {0: [agent.newest()]}
    with pytest.raises(holdfast.RestoreError) as caught:
        holdfast.Checkpointer(model=nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))).restore()
    assert str(caught.value).count("float32 here") == 40
    assert str(caught.value).count("build it as it was") == 1


def test_fewer_data_files_than_before(agent: FakeAgent, tmp_path: Path) -> None:
    for count in (3, 2):
        ckpt = holdfast.Checkpointer(note=holdfast.Value(1))
        ckpt.describe(data_files=files(tmp_path / "data", count))
        if count == 3:
            ckpt.restore()
            ckpt.step()
            ckpt.finish()
            agent.restore_from = {0: [agent.newest()]}
    with pytest.raises(holdfast.RestoreError) as caught:
        ckpt.restore()
    for words in (
        "data_files: 2 files of 20 bytes here",
        "3 files of 30 bytes when the checkpoint was made",
        'allow=("data-files",)',
    ):
        assert str(caught.value).count(words) == 1


def test_fewer_samples_than_the_position(agent: FakeAgent) -> None:
    def loader(count: int) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.arange(count)), batch_size=2)

    for count in (8, 2):
        data = loader(count)
        ckpt = holdfast.Checkpointer(data=data)
        ckpt.restore()
        if count == 8:
            for _ in ckpt.batches(data):
                ckpt.step()
                if ckpt.boundary == 3:
                    break
            ckpt.finish()
            agent.restore_from = {0: [agent.newest()]}
    with pytest.raises(holdfast.RestoreError) as caught:
        next(ckpt.batches(data))
    for words in (
        "ended after 1 batches of epoch 0",
        "the checkpoint stands after 3 of them",
        'allow=("sample-order",)',
    ):
        assert str(caught.value).count(words) == 1


def test_a_loader_without_a_length_and_iterable_data_without_a_state_need_neither(agent: FakeAgent) -> None:
    """Both are read again up to the position, so there is nothing to refuse."""
    got = []
    for stop in (2, 4):
        loader: DataLoader[Any] = DataLoader(Numbers(), batch_size=2)
        with pytest.raises(TypeError):
            len(loader)
        ckpt = holdfast.Checkpointer(loader=loader)
        ckpt.restore()
        for batch in ckpt.batches(loader):
            got += batch.tolist()
            ckpt.step()
            if ckpt.boundary == stop:
                break
        ckpt.finish()
        agent.restore_from = {0: [agent.newest()]}
    assert got == list(range(8))
