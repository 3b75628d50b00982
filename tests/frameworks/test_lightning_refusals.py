"""What the callback refuses, in words, before anything is trained on; and what it says where Lightning is not the one it knows."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, IterableDataset

from holdfast.errors import UnsupportedState
from holdfast.integrations.lightning import HoldfastCallback, refusals
from tests.frameworks.lightning_runs import Net, Numbers, Run, train
from tests.train.fake_agent import FakeAgent


def trainer(*callbacks: Callback, **settings: Any) -> Trainer:
    return Trainer(
        callbacks=[*callbacks, HoldfastCallback()],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        **settings,
    )


def refused(what: type[Exception], run: Run, directory: Path, **settings: Any) -> str:
    """The message; nothing was trained on."""
    with FakeAgent(directory / "agent", every_steps=1) as agent, agent.as_environment():
        with pytest.raises(what) as error:
            train(run, directory, **settings)
        assert not agent.captured
    assert not [r for r in run.record if r[0] == "step"]
    return str(error.value)


def test_two_of_them_in_one_trainer() -> None:
    with pytest.raises(ValueError, match="has two HoldfastCallbacks; a run has one state"):
        refusals.check_trainer(trainer(HoldfastCallback()), HoldfastCallback)


def test_one_that_no_trainer_was_given_says_so(caplog: pytest.LogCaptureFixture) -> None:
    HoldfastCallback()
    gc.collect()
    assert "NOTHING WAS SAVED. Pass it on: Trainer(callbacks=[HoldfastCallback()])" in caplog.text


def test_an_unknown_allowance() -> None:
    with pytest.raises(ValueError, match="allow='everything' is unknown; known are"):
        HoldfastCallback(allow=("everything",))


def test_a_checkpoint_file_of_lightning_beside_it(tmp_path: Path) -> None:
    made = Trainer(accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    run = Run()
    made.fit(Net(run), run.make_loader())
    made.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(
        UnsupportedState,
        match=r"trainer.fit\(ckpt_path='.*own.ckpt'\) beside HoldfastCallback: two checkpoints.*holdfast import",
    ):
        trainer(max_steps=2, default_root_dir=tmp_path).fit(
            Net(run), run.make_loader(), ckpt_path=str(tmp_path / "own.ckpt"), weights_only=False
        )


CALLBACKS = {
    "StochasticWeightAveraging exchanges the schedulers": lambda: StochasticWeightAveraging(0.01),
    "BackboneFinetuning adds parameter groups": lambda: BackboneFinetuning(),
    "ModelPruning gives the model other parameters": lambda: ModelPruning("l1_unstructured"),
    "BatchSizeFinder would search again": lambda: BatchSizeFinder(),
    "LearningRateFinder would search again": lambda: LearningRateFinder(),
    "OnExceptionCheckpoint makes trainer.fit load": lambda: OnExceptionCheckpoint("."),
}


@pytest.mark.parametrize("message", CALLBACKS)
def test_callbacks_that_cannot_be_resumed(message: str) -> None:
    with pytest.raises(UnsupportedState, match=f"the callback {message}"):
        refusals.check_trainer(trainer(CALLBACKS[message]()), HoldfastCallback)


STRATEGIES = {
    "the strategy ModelParallelStrategy has not been tried": lambda: ModelParallelStrategy(),
    "starts its own processes": lambda: DDPStrategy(start_method="fork"),
    "lets ranks go apart": lambda: DDPStrategy(model_averaging_period=2),
}


@pytest.mark.parametrize("message", STRATEGIES)
def test_strategies_that_have_not_been_tried(message: str) -> None:
    made = trainer(strategy="ddp", devices=1)
    made._accelerator_connector.strategy = STRATEGIES[message]()
    with pytest.raises(UnsupportedState, match=message):
        refusals.check_trainer(made, HoldfastCallback)


def test_another_number_of_ranks_than_the_agent_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SOCKET", "somewhere")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match="the agent has started 2 ranks, and the Trainer has 1: Trainer\\(strategy='ddp'"
    ):
        refusals.check_world(trainer())


class Endless(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        data = Numbers()
        return (data[i] for i in range(len(data)))


class ReadsItself(Net):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return self.loss_of(next(dataloader_iter)[0])


class WithoutLength(Run):
    def make_loader(self) -> Any:
        return DataLoader(Endless(), batch_size=4)


def test_a_loader_without_a_length(tmp_path: Path) -> None:
    assert "Give the data set a __len__, or say how long an epoch is: Trainer(limit_train_batches=N)" in refused(
        UnsupportedState, WithoutLength(), tmp_path
    )


def test_a_module_that_reads_batches_by_itself(tmp_path: Path) -> None:
    assert "training_step(self, dataloader_iter) reads batches by itself" in refused(
        UnsupportedState, Run(module=ReadsItself), tmp_path
    )


def test_loaders_that_are_made_anew(tmp_path: Path) -> None:
    message = refused(UnsupportedState, Run(trainer={"reload_dataloaders_every_n_epochs": 1}), tmp_path)
    assert "Trainer(reload_dataloaders_every_n_epochs=1) makes new loaders" in message


def test_a_second_fit(tmp_path: Path) -> None:
    run = Run()
    callback = HoldfastCallback()
    made = Trainer(
        callbacks=[callback],
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    made.fit(Net(run), run.make_loader())
    with pytest.raises(ValueError, match=r"trainer\.fit was called a second time with one HoldfastCallback"):
        made.fit(Net(run), run.make_loader())


def test_a_part_of_a_name_that_the_trainer_has(tmp_path: Path) -> None:
    message = refused(ValueError, Run(holdfast={"optimizer": torch.optim.SGD([torch.zeros(1)], 1)}), tmp_path)
    assert "HoldfastCallback(optimizer=...): the Trainer's own is registered under this name" in message


class WithObjects(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"file": Path}


class AddsObjects(Net):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = {"made by": Trainer}


class Exchanges(Callback):
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {}


def test_objects_in_the_state_of_a_callback(tmp_path: Path) -> None:
    message = refused(UnsupportedState, Run(callbacks=lambda: [WithObjects()]), tmp_path)
    assert message.startswith("trainer.callbacks.WithObjects.file is a builtins.type, which cannot be saved")


def test_objects_that_a_hook_adds(tmp_path: Path) -> None:
    message = refused(UnsupportedState, Run(module=AddsObjects), tmp_path)
    assert message.startswith("trainer.hooks.mine.made by is a builtins.type, which cannot be saved")


def test_a_hook_that_exchanges_the_weights(tmp_path: Path) -> None:
    message = refused(UnsupportedState, Run(callbacks=lambda: [Exchanges()]), tmp_path)
    assert message.startswith(
        "Exchanges.on_save_checkpoint replaces checkpoint['state_dict'], which Holdfast saves by itself"
    )


def test_a_release_of_lightning_that_lacks_something() -> None:
    made = trainer()
    del made.fit_loop._restart_stage
    with pytest.raises(
        UnsupportedState,
        match=r"Lightning 2\.\S+ has no trainer.fit_loop._restart_stage.*tried with 2.6. Install 'lightning>=2.6,<2.7'",
    ):
        refusals.check_trainer(made, HoldfastCallback)


def test_a_release_in_which_the_same_name_means_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_FitLoop, "restarted_mid_epoch", property(lambda self: self._restart_stage == "in the middle"))
    with pytest.raises(UnsupportedState, match=r"another sense of fit_loop\._restart_stage = 'restarted_mid_epoch'"):
        refusals.check_trainer(trainer(), HoldfastCallback)


def test_a_release_whose_loop_reads_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _DataFetcher.__next__

    def ahead(self: Any) -> Any:
        batch = plain(self)
        self.fetched += 1
        return batch

    monkeypatch.setattr(_DataFetcher, "__next__", ahead)
    with FakeAgent(tmp_path / "agent", every_steps=1) as agent, agent.as_environment():
        with pytest.raises(UnsupportedState, match="a training loop that asks for a batch"):
            train(Run(trainer={"num_sanity_val_steps": 0}), tmp_path)
        assert not agent.captured
