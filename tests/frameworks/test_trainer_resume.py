"""K1, K2: whatever the Trainer was told, a run that goes on from a boundary does the same, logs the same and ends the same as one that was never stopped.

Every boundary of a run is kept by the agent of the library's tests (tests/train/fake_agent.py, which keeps images and commits nothing), and a second process's
worth of Trainer and model goes on from it. The real agent is in test_trainer_examples.py.
"""

import gc
import random
import shutil
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy
import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from holdfast.errors import RestoreError
from holdfast.integrations.transformers import attach
from holdfast.integrations.transformers.refusals import SEAM
from tests.frameworks.trainer_runs import (
    Endless,
    Run,
    after,
    differences,
    make,
    noisy,
    plain_loader,
    state_of,
    stateful_loader,
    timeless,
    train,
)
from tests.train.fake_agent import FakeAgent, Image

STEPS = {"eval_strategy": "steps", "eval_steps": 2}
OWN_SAVES: dict[str, Any] = {"allow": ("save-strategy",)}


def kept(run: Run, directory: Path, every: int = 1) -> tuple[dict[str, Any], dict[int, Image]]:
    """A run to its end, with an image of each boundary; `every` 0: only of the last, as it is saved when training is over."""
    with FakeAgent(directory / "whole", every_steps=every) as agent, agent.as_environment():
        state = train(run, directory)
        return state, {n: keep(image, directory / f"image-{n}") for n, image in agent.images[0].items()}


def keep(image: Image, path: Path) -> Image:
    path.write_bytes(image.path.read_bytes())
    return replace(image, path=path)


def resumed(run: Run, image: Image, directory: Path, **how: Any) -> tuple[Run, dict[str, Any]]:
    again = replace(run, record=[])
    with FakeAgent(directory) as agent, agent.as_environment():
        agent.restore_from = {0: [image]}
        seed = random.randrange(1000)  # what was restored must not come from here
        return again, train(again, directory, seed=seed, **how)


def unmarked(record: list[Any]) -> list[Any]:
    return [r for r in record if r[0] != "boundary"]


class LeavesEpochs(TrainerCallback):
    """The third step of each epoch is its last; the loader has more."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_epoch_stop = state.global_step % 3 == 0


class Stops(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 7


class Draws(TrainerCallback):
    """At the start, and at that of each epoch: a resumed run begins with both once more."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.rand(3), random.random(), numpy.random.rand()

    on_epoch_begin = on_train_begin


class Counts(TrainerCallback, ExportableState):
    """Has a state, and draws; two of them are told apart."""

    def __init__(self, step: int = 1) -> None:
        self.step, self.count = step, 0
        self.drawn: list[float] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.count += self.step
        self.drawn.append(torch.rand(1).item())

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.drawn.append(random.random())

    def state(self) -> dict[str, Any]:
        return {"args": {"step": self.step}, "attributes": {"count": self.count, "drawn": list(self.drawn)}}


RUNS: dict[str, Run] = {
    "evaluation by steps": Run(args=STEPS),
    "accumulation that does not divide the epoch": Run(args={**STEPS, "gradient_accumulation_steps": 4}),
    "accumulation that does": Run(args={"gradient_accumulation_steps": 2, "logging_steps": 2}),
    "noise drawn while a batch is read": Run(collator=noisy, args=STEPS),
    "logs and evaluations of epochs": Run(args={"logging_strategy": "epoch", "eval_strategy": "epoch"}),
    "half an epoch at the end": Run(args={"num_train_epochs": 1.5}),
    "max_steps inside an epoch": Run(args={"max_steps": 8, **STEPS, "eval_steps": 3}),
    "a plateau of each evaluation": Run(
        args={**STEPS, "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0}}
    ),
    "an evaluation before all": Run(args={**STEPS, "eval_on_start": True}),
    "bf16": Run(args={"bf16": True, "max_grad_norm": 0.3}),
    "no clipping, another optimizer": Run(args={"max_grad_norm": 0.0, "optim": "adafactor"}),
    "samples of like length together": Run(args={"train_sampling_strategy": "group_by_length"}),
    "batches of like cost": Run(args={"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2}),
    "samples in their order": Run(args={"train_sampling_strategy": "sequential", "dataloader_drop_last": True}),
    "workers that go on from epoch to epoch": Run(
        args={"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "num_train_epochs": 2}
    ),
    "a stream without a length": Run(data=Endless, args={"max_steps": 9, "gradient_accumulation_steps": 2}),
    "a loader that keeps its own place": Run(loader=stateful_loader),
    "a loader with a generator of its own": Run(loader=plain_loader),
    "epochs that a callback ends": Run(callbacks=lambda: [LeavesEpochs()], collator=noisy, args=STEPS),
    "a callback that ends training": Run(callbacks=lambda: [Stops()], args=STEPS),
    "callbacks with a state": Run(callbacks=lambda: [Counts()], args={"eval_strategy": "epoch"}),
    "callbacks that draw, and evaluations that do": Run(callbacks=lambda: [Draws()], collator=noisy, args=STEPS),
    "early stopping": Run(
        callbacks=lambda: [EarlyStoppingCallback(2, 0.3)],
        args={**STEPS, "eval_steps": 3, "metric_for_best_model": "loss", "greater_is_better": False},
    ),
    "tokens that are counted": Run(args={"include_num_input_tokens_seen": "all", "logging_steps": 4}),
    "a model that the Trainer makes": Run(model_init=True),
    "the best model, loaded at the end": Run(
        args={**STEPS, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}, holdfast=OWN_SAVES
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_any_boundary_as_if_nothing_had_been(name: str, tmp_path: Path) -> None:
    run = replace(RUNS[name], record=[])
    want, images = kept(run, tmp_path)
    assert [n for what, n, *_ in run.record if what == "boundary"] == sorted(images)
    assert len(images) > 3
    for boundary in sorted(images):
        # The Trainer's own files, if it writes any, have survived the machine.
        again, state = resumed(run, images[boundary], tmp_path / str(boundary), output_dir=str(tmp_path / "output"))
        assert again.record == after(run.record, boundary), f"from {boundary}"
        assert differences(want, state) == [], f"from {boundary}"


def test_two_resumes_within_one_epoch_and_over_its_end(tmp_path: Path) -> None:
    run = Run(args=STEPS, collator=noisy)
    want, images = kept(run, tmp_path)
    at, image = 2, images[2]
    for died in (3, 5, 6, 8, 17):
        again = replace(run, record=[])
        directory = tmp_path / f"until-{died}"
        with FakeAgent(directory, every_steps=1) as agent, agent.as_environment():
            agent.restore_from = {0: [image]}
            train(again, directory, die_after=died, seed=died)
            agent.wait(partial(agent.images[0].__contains__, died), "the image")
            image = keep(agent.images[0][died], directory / "kept")
        whole = after(run.record, at)
        assert again.record == whole[: whole.index(("boundary", died)) + 1]
        at = died
    again, state = resumed(run, image, tmp_path / "last")
    assert again.record == after(run.record, 17)
    assert differences(want, state) == []


LONGER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "after the end of an epoch": ({"num_train_epochs": 2}, {"num_train_epochs": 4}),
    "after the end of one, with evaluations between": ({"num_train_epochs": 2, "eval_strategy": "epoch"}, {"num_train_epochs": 4, "eval_strategy": "epoch"}),
    "by max_steps, inside one": ({"max_steps": 8}, {"max_steps": 20}),
    "where only the end of the shorter one evaluates": ({"max_steps": 8, **STEPS, "eval_steps": 5}, {"max_steps": 20, **STEPS, "eval_steps": 5}),
}  # fmt: skip


@pytest.mark.parametrize("name", LONGER)
def test_what_is_over_stays_over_and_a_longer_run_goes_on(name: str, tmp_path: Path) -> None:
    """As one that was to be longer from the start."""
    short, long = LONGER[name]
    constant = {"lr_scheduler_type": "constant"}
    run, begun = Run(args={**constant, **long}), Run(args={**constant, **short})
    want = train(run, tmp_path)
    _, images = kept(begun, tmp_path, every=0)
    (last,) = images
    over, _ = resumed(begun, images[last], tmp_path / "over")
    assert over.record == after(begun.record, last)
    assert not [r for r in over.record if r[0] == "batch"], "nothing is trained on"
    again, state = resumed(run, images[last], tmp_path / "longer")
    assert again.record == after(run.record, last)
    assert differences(want, state) == []


def test_what_is_saved_at_the_end_is_the_last_model_and_not_the_best(tmp_path: Path) -> None:
    """It is loaded at the end in the place of the last."""
    args = {
        **RUNS["the best model, loaded at the end"].args,
        "metric_for_best_model": "loss",
        "greater_is_better": True,
    }
    run = Run(args=args, holdfast=OWN_SAVES)
    want, images = kept(run, tmp_path, every=0)
    (last,) = images
    assert want["state"]["best_global_step"] < last
    again, state = resumed(run, images[last], tmp_path / "again", output_dir=str(tmp_path / "output"))
    assert again.record == after(run.record, last)
    assert differences(want, state) == []


class Looks(TrainerCallback):
    """At where the loader stands."""

    trainer: Any = None
    position: Any = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.position = self.trainer._holdfast._ckpt._registry.positions["loader"]


@pytest.mark.parametrize(("callbacks", "left"), [(list, [False] * 3), (lambda: [LeavesEpochs()], [True] * 2)])
def test_the_ledger_says_which_epochs_were_whole(callbacks: Any, left: list[bool], tmp_path: Path) -> None:
    """One that the Trainer gives up is told from one whose batches have all come. The last one is not closed: a longer run goes on with it."""
    looks = Looks()
    looks.trainer = make(Run(callbacks=lambda: [looks, *callbacks()]), tmp_path)
    attach(looks.trainer)
    looks.trainer.train()
    closed = looks.position._ledger.state()["closed"]
    assert [page["left"] for page in closed] == left
    assert [(page["count"], page["again"]) for page in closed] == [(12 if gone else 22, 0) for gone in left]


def test_a_run_without_an_agent_is_the_trainers_own(tmp_path: Path) -> None:
    """`attach` changes nothing of a run whose loader draws nothing: not the order of samples, not a bit."""
    for args in ({}, {"gradient_accumulation_steps": 4, **STEPS}, {"train_sampling_strategy": "group_by_length"}):
        run, plain = Run(args=args), Run(args=args)
        state = train(run, tmp_path)
        trainer = make(plain, tmp_path)
        result = trainer.train()
        assert unmarked(run.record) == plain.record
        want = state_of(trainer) | {"result": [result.global_step, result.training_loss, timeless(result.metrics)]}
        assert differences(want, state) == []


def test_a_trainer_that_is_through_is_what_it_was_and_goes_when_nobody_holds_it(tmp_path: Path) -> None:
    """Workers of its loader that are left to the garbage collector take seconds to end."""
    run = Run(args={"max_steps": 2})
    gc.disable()
    try:
        trainer = make(run, tmp_path)
        attach(trainer)
        trainer.train()
        assert SEAM.keys() & vars(trainer).keys() == {"train"}, "which refuses to train again"
        assert trainer.evaluate()["eval_loss"] > 0
        left = weakref.ref(trainer)
        del trainer
        assert left() is None
    finally:
        gc.enable()


def test_another_trainer_in_the_process_skips_as_it_always_did(tmp_path: Path) -> None:
    """`skip_first_batches` is looked at for our loader alone."""
    train(Run(), tmp_path)
    args = {"save_strategy": "steps", "save_steps": 8}
    whole = Run(args=args)
    make(whole, tmp_path / "plain").train()
    again = Run(args=args)
    make(again, tmp_path / "plain").train(resume_from_checkpoint=str(tmp_path / "plain" / "output" / "checkpoint-8"))
    batches = [r for r in whole.record if r[0] == "batch"]
    assert [r for r in again.record if r[0] == "batch"] == batches[8:]


def test_a_best_model_that_the_machine_took_with_it_is_missed_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RUNS["the best model, loaded at the end"]
    _, images = kept(replace(run, record=[]), tmp_path)
    shutil.rmtree(tmp_path / "output")
    resumed(run, images[12], tmp_path / "again")
    assert (
        "which is not here: it is lost, and load_best_model_at_end can only load a better one that comes later"
        in caplog.text
    )
    assert "Let output_dir be on a volume that survives the machine" in caplog.text


def test_callbacks_that_are_gone_are_named_and_may_be_let_go(tmp_path: Path) -> None:
    run = Run(callbacks=lambda: [Counts()])
    _, images = kept(run, tmp_path)
    without = replace(run, callbacks=list)
    with pytest.raises(
        RestoreError,
        match=r"callbacks that the Trainer does not have: \['Counts'\].*attach\(trainer, allow=\(\"callbacks\",\)\)",
    ):
        resumed(without, images[8], tmp_path / "refused")
    again, _ = resumed(replace(without, holdfast={"allow": ("callbacks",)}), images[8], tmp_path / "allowed")
    assert ("boundary", 9) in again.record


def test_another_order_of_samples_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    run = Run()
    _, images = kept(run, tmp_path)
    other = replace(run, args={"data_seed": 6})
    with pytest.raises(RestoreError, match="the order of samples in epoch 1 is not the one"):
        resumed(other, images[8], tmp_path / "refused")
    again, _ = resumed(replace(other, holdfast={"allow": ("sample-order",)}), images[8], tmp_path / "allowed")
    assert ("boundary", 9) in again.record


def test_another_accumulation_is_refused(tmp_path: Path) -> None:
    _, images = kept(Run(), tmp_path)
    with pytest.raises(
        RestoreError, match=r"gradient_accumulation_steps=2, and it was 1 when the checkpoint was made: .* Put it back"
    ):
        resumed(Run(args={"gradient_accumulation_steps": 2}), images[8], tmp_path / "refused")


def test_other_parts_are_saved_and_restored(tmp_path: Path) -> None:
    """What the Trainer knows nothing of."""
    run = Run(holdfast={"teacher": torch.nn.Linear(2, 2)})
    _, images = kept(run, tmp_path)
    other = torch.nn.Linear(2, 2)
    resumed(replace(run, holdfast={"teacher": other}), images[8], tmp_path / "again")
    assert torch.equal(other.weight, run.holdfast["teacher"].weight)


def test_a_round_stops_training_at_a_boundary_and_it_goes_on_from_there(tmp_path: Path) -> None:
    run = Run(args={"num_train_epochs": 40, **STEPS})
    want = train(run, tmp_path)
    told = replace(run, record=[])
    with FakeAgent(tmp_path / "told") as agent, agent.as_environment():
        stopped = Thread(target=train, args=(told, tmp_path))
        stopped.start()
        agent.wait(
            lambda: bool(agent.connections) and any(type(m).__name__ == "Passed" for m in agent.connections[0].messages),
            "steps",
        )  # fmt: skip
        target = agent.start_round(1, world=1)
        agent.await_round(1, world=1)
        image = keep(agent.images[0][target], tmp_path / "image")
        agent.open_gates(1)
        stopped.join()
    assert told.record == run.record, "who stopped for a while goes on as well"
    again, state = resumed(run, image, tmp_path / "again")
    assert again.record == after(run.record, target)
    assert differences(want, state) == []
