"""What `attach` refuses, in words, before anything is trained on; and what it says where the Trainer is not the one it knows."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from holdfast.errors import RestoreError, UnsupportedState
from holdfast.integrations.transformers import attach, refusals
from holdfast.integrations.transformers.trainer_state import TrainerState
from tests.frameworks.trainer_runs import Kind, Numbers, Run, make, train
from tests.train.alone_ranks import rewritten
from tests.train.fake_agent import FakeAgent


def refused(what: type[Exception], run: Run, directory: Path, **args: Any) -> str:
    """The message; nothing was trained on, nothing saved."""
    with FakeAgent(directory / "agent", every_steps=1) as agent, agent.as_environment():
        with pytest.raises(what) as error:
            train(run, directory, **args)
        assert not agent.captured
    assert not [r for r in run.record if r[0] == "batch"]
    return str(error.value)


SETTINGS: dict[str, dict[str, Any]] = {
    'save_strategy=\'steps\': the Trainer would write checkpoints of its own beside .*"no"; or, .*attach\\(trainer, allow=\\("save-strategy",\\)\\)': {
        "save_strategy": "steps"
    },
    "save_strategy='best'": {"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "epoch"},
    "auto_find_batch_size=True .* leave it out and set per_device_train_batch_size": {"auto_find_batch_size": True},
    "ignore_data_skip=True .* leave it out": {"ignore_data_skip": True},
    "dataloader_in_order=False: .* Leave it out": {"dataloader_in_order": False, "dataloader_num_workers": 1},
    "optim='adalomo' updates in the backward pass and keeps its state to itself: it cannot be saved. Choose another, or": {"optim": "adalomo"},
    "optim='galore_adamw_layerwise' has one optimizer per parameter": {"optim": "galore_adamw_layerwise"},
}  # fmt: skip


@pytest.mark.parametrize("message", SETTINGS)
def test_settings_that_cannot_be_served(message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        attach(make(Run(), tmp_path, **SETTINGS[message]))


def test_a_setting_that_was_changed_after_attach(tmp_path: Path) -> None:
    trainer = make(Run(), tmp_path)
    attach(trainer)
    trainer.args.ignore_data_skip = True
    with pytest.raises(ValueError, match="ignore_data_skip=True"):
        trainer.train()


NOT_TRIED = {
    "DeepSpeed": ("is_deepspeed_enabled", True),
    "FSDP": ("is_fsdp_enabled", True),
    "a model that transformers has spread over devices": ("is_distributed_loading_by_transformers", True),
}


@pytest.mark.parametrize("what", NOT_TRIED)
def test_what_has_not_been_tried(what: str, tmp_path: Path) -> None:
    class Said(Kind):
        pass

    name, value = NOT_TRIED[what]
    trainer = make(Run(kind=Said), tmp_path)
    setattr(Said, name, value)
    trainer.__dict__.pop(name, None)
    with pytest.raises(UnsupportedState, match=f"the Trainer with {what}.* has not been tried.*directory mode"):
        attach(trainer)


def test_another_number_of_ranks_than_the_agent_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(Run(), tmp_path)
    monkeypatch.setenv("HOLDFAST_SOCKET", "somewhere")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="the agent has started 2 ranks, and the Trainer has 1"):
        attach(trainer)


def test_what_is_no_trainer() -> None:
    with pytest.raises(TypeError, match=r"attach\(\) takes a transformers\.Trainer, and this is a Linear"):
        attach(torch.nn.Linear(1, 1))


def test_twice_and_too_late(tmp_path: Path) -> None:
    trainer = make(Run(args={"max_steps": 2}), tmp_path)
    attach(trainer)
    with pytest.raises(RuntimeError, match="called for this Trainer already"):
        attach(trainer)
    trainer.train()
    with pytest.raises(ValueError, match=r"train\(\) was called a second time: a process is one run"):
        trainer.train()
    late = make(Run(args={"max_steps": 2}), tmp_path)
    late.train()
    with pytest.raises(RuntimeError, match="comes too late: this Trainer stands at step 2"):
        attach(late)


def test_an_unknown_allowance_and_a_name_that_the_trainer_has(tmp_path: Path) -> None:
    trainer = make(Run(), tmp_path)
    with pytest.raises(ValueError, match="allow='everything' is unknown"):
        attach(trainer, allow=("everything",))
    with pytest.raises(
        ValueError, match=r"attach\(optimizer=\.\.\.\): the Trainer's own is registered under this name"
    ):
        attach(trainer, optimizer=torch.optim.SGD([torch.zeros(1)], 1))
    attach(trainer)


def test_a_checkpoint_of_the_trainers_own(tmp_path: Path) -> None:
    trainer = make(Run(), tmp_path)
    attach(trainer)
    for given in (True, "output/checkpoint-2"):
        with pytest.raises(
            ValueError,
            match=r"train\(resume_from_checkpoint=.*\): Holdfast resumes this Trainer by itself.*from_pretrained",
        ):
            trainer.train(resume_from_checkpoint=given)


class Endless(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return iter([Numbers()[0]] * 22)


def a_stateful_loader_over_a_stream_without_a_state(trainer: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(Endless(), batch_size=4, collate_fn=trainer.data_collator)


def test_a_loader_that_keeps_the_place_of_a_stream_without_a_state(tmp_path: Path) -> None:
    run = Run(loader=a_stateful_loader_over_a_stream_without_a_state, args={"max_steps": 4})
    message = refused(UnsupportedState, run, tmp_path)
    assert (
        "StatefulDataLoader keeps its place by its data set's, and Endless is an iterable data set without state_dict"
        in message
    )
    assert "read it by a plain DataLoader" in message


class Keeps(TrainerCallback, ExportableState):
    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"made by": Trainer}}


def test_objects_in_the_state_of_a_callback(tmp_path: Path) -> None:
    message = refused(UnsupportedState, Run(callbacks=lambda: [Keeps()]), tmp_path)
    assert message.startswith("trainer.callbacks.0.values.made by is a builtins.type, which cannot be saved")


class ReadsAhead(Kind):
    """As some trainers do that make their own data: batches for later updates."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        super().get_batch_samples(epoch_iterator, 1, device)
        return samples, items


def test_a_trainer_that_keeps_batches_for_later(tmp_path: Path) -> None:
    run = Run(kind=ReadsAhead)
    with FakeAgent(tmp_path / "agent", every_steps=1) as agent, agent.as_environment():
        with pytest.raises(
            UnsupportedState, match="ReadsAhead has read 2 batches of epoch 0 and trained on 1: it keeps batches"
        ):
            train(run, tmp_path)
        assert not agent.captured


class OwnLoop(Kind):
    def _run_epoch(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, ignore_keys_for_eval, start_time,  # type: ignore[no-untyped-def]
                   resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch):  # fmt: skip
        self.control.should_training_stop = True


class OtherParameters(Kind):
    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any) -> Any:  # type: ignore[override]
        return {}


def test_a_subclass_with_a_loop_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedState, match=r"another Trainer than the one that Holdfast knows \(OwnLoop\._run_epoch\)"
    ):
        attach(make(Run(kind=OwnLoop), tmp_path))
    with pytest.raises(UnsupportedState, match=r"\(OtherParameters\._evaluate\).*Use 'transformers>=5\.24,<5\.25'"):
        attach(make(Run(kind=OtherParameters), tmp_path))


def test_a_release_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Trainer, "_load_rng_state")
    with pytest.raises(
        UnsupportedState, match=r"transformers 5\.\S+ has another Trainer .*\(Trainer\._load_rng_state\)"
    ):
        refusals.check_seam(Trainer)


def test_a_release_with_another_number_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.99.0")  # it has exchanged itself there
    refusals.check_seam(Trainer)
    assert "tried with transformers 5.24; this is 5.99.0, whose Trainer looks the same" in caplog.text


def test_a_search_for_hyperparameters(tmp_path: Path) -> None:
    trainer = make(Run(model_init=True), tmp_path)
    attach(trainer)
    with pytest.raises(ValueError, match=r"hyperparameter_search\(\) runs many trainings"):
        trainer.train(trial={"learning_rate": 0.1})


def test_what_is_allowed_says_nothing(tmp_path: Path) -> None:
    run = Run(args={"save_strategy": "steps", "save_steps": 4, "max_steps": 4}, holdfast={"allow": "save-strategy"})
    train(replace(run, record=[]), tmp_path)
    assert (tmp_path / "output" / "checkpoint-4").is_dir()


def test_a_checkpoint_of_another_number_of_ranks() -> None:
    """Whatever its loader could do: the Trainer would end after as many steps as this number of ranks makes of its epochs."""
    trainer = SimpleNamespace(args=SimpleNamespace(world_size=1), callback_handler=SimpleNamespace(callbacks=[]))
    state = TrainerState(trainer, other_callbacks=False)
    with pytest.raises(RestoreError, match=r"was made by 2 ranks, and 1 are here.*Go on with 2 ranks"):
        state.load_state_dict({"ranks": 2})
    state.load_state_dict({"ranks": 1})
    state.load_state_dict({})


def test_a_checkpoint_says_how_many_ranks_made_it(tmp_path: Path) -> None:
    with FakeAgent(tmp_path, every_steps=1) as agent, agent.as_environment():
        train(Run(), tmp_path)
        found: list[int] = []
        rewritten(agent.newest(), lambda state: found.append(state["parts"]["trainer"]["ranks"]))
    assert found == [1]
