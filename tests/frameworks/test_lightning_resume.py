"""K1, K2: whatever the Trainer was told, a run that goes on from a boundary does the same, logs the same and ends the same as one that was never stopped.

Every boundary of a run is kept by the agent of the library's tests (tests/train/fake_agent.py, which keeps images and commits nothing), and a second process's
worth of Trainer, module and callbacks goes on from it. The real agent is in test_lightning_example.py.
"""

import random
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    TQDMProgressBar,
)

from holdfast.errors import RestoreError
from tests.frameworks.lightning_runs import Net, Placed, Run, Written, after, differences, train
from tests.train.alone_ranks import rewritten
from tests.train.fake_agent import FakeAgent, Image

EPOCH = 6
"""Batches in one."""


def kept(run: Run, directory: Path, **trainer: Any) -> tuple[dict[str, Any], dict[int, Image]]:
    """A run to its end, with an image of each boundary."""
    with FakeAgent(directory / "whole", every_steps=1) as agent, agent.as_environment():
        state = train(run, directory, **trainer)
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


def checkpoints(directory: str) -> list[Any]:
    return [ModelCheckpoint(dirpath=directory, monitor="val_loss", save_top_k=2)]


def unmarked(record: list[Any]) -> list[Any]:
    return [r for r in record if r[0] != "boundary"]


RUNS: dict[str, Run] = {
    "a schedule by step, validation twice an epoch": Run(trainer={"val_check_interval": 0.5}),
    "noise drawn while a batch is read": Run(noise=True),
    "accumulation that does not divide the epoch": Run(trainer={"accumulate_grad_batches": 4}),
    "another accumulation in each epoch": Run(callbacks=lambda: [GradientAccumulationScheduler({0: 2, 1: 1, 2: 3})]),
    "clipping and bf16": Run(trainer={"gradient_clip_val": 0.3, "precision": "bf16-mixed"}),
    "by hand, with two optimizers": Run(manual=True),
    "a plateau of the epoch": Run(schedule="plateau epoch"),
    "a plateau of each validation": Run(schedule="plateau step", trainer={"val_check_interval": 2}),
    "validation in every second epoch, by a counter of batches": Run(
        trainer={"val_check_interval": 4, "check_val_every_n_epoch": None}
    ),
    "an epoch that ends before the loader does": Run(trainer={"limit_train_batches": 4}),
    "two loaders, the shorter one again and again": Run(several="max_size_cycle"),
    "two loaders, the longer one left": Run(several="min_size"),
    "two loaders, the shorter one empty at last": Run(several="max_size"),
    "a data module": Run(datamodule=True),
    "early stopping": Run(
        callbacks=lambda: [EarlyStopping("val_loss", patience=1, min_delta=0.3)], trainer={"max_epochs": 5}
    ),
    "an average of the weights": Run(callbacks=lambda: [EMAWeightAveraging(decay=0.8)]),
    "workers that go on from epoch to epoch": Run(
        loader={"num_workers": 1, "persistent_workers": True}, trainer={"max_epochs": 2}
    ),
    "a loader with a generator of its own": Run(loader={"generator": torch.Generator().manual_seed(4)}),
    "a loader that keeps its own place": Run(kind=Placed),
    "validation in an order of its own": Run(
        shuffled_validation=True, schedule="plateau step", trainer={"val_check_interval": 2}
    ),
    "max_steps inside an epoch": Run(trainer={"max_steps": 15, "max_epochs": -1}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_any_boundary_as_if_nothing_had_been(name: str, tmp_path: Path) -> None:
    run = replace(RUNS[name], record=[])
    want, images = kept(run, tmp_path)
    assert [n for what, n, *_ in run.record if what == "boundary"] == sorted(images)
    assert len(images) > EPOCH, "more than one epoch"
    for boundary in sorted(images):
        again, state = resumed(run, images[boundary], tmp_path / str(boundary))
        assert again.record == after(run.record, boundary), f"from {boundary}"
        assert differences(want, state) == [], f"from {boundary}"


def test_two_resumes_within_one_epoch_and_over_its_end(tmp_path: Path) -> None:
    run = Run(trainer={"accumulate_grad_batches": 2, "val_check_interval": 0.5})
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


LONGER: dict[str, tuple[Any, dict[str, Any], dict[str, Any], Any]] = {
    "after the end of an epoch": (("epoch starts", 2), {"max_epochs": 2}, {"max_epochs": 4}, list),
    "after the end of one that is shorter than the loader": (
        ("epoch starts", 2),
        {"max_epochs": 2, "limit_train_batches": 4},
        {"max_epochs": 4, "limit_train_batches": 4},
        list,
    ),
    "by max_steps, inside one": (
        ("step", 1),
        {"max_epochs": -1, "max_steps": 8},
        {"max_epochs": -1, "max_steps": 20},
        list,
    ),
    "with an average, which the end gives the model": (
        ("epoch starts", 2),
        {"max_epochs": 2},
        {"max_epochs": 4},
        lambda: [EMAWeightAveraging(decay=0.8)],
    ),
}


@pytest.mark.parametrize("name", LONGER)
def test_what_is_over_stays_over_and_a_longer_run_goes_on(name: str, tmp_path: Path) -> None:
    """As one that was to be longer from the start."""
    first, short, long, callbacks = LONGER[name]
    run, begun = Run(callbacks=callbacks), Run(callbacks=callbacks)
    want = train(run, tmp_path, **long)
    images = kept(begun, tmp_path, **short)[1]
    last = images[max(images)]
    over, _ = resumed(begun, last, tmp_path / "over", **short)
    assert over.record == [], "nothing is trained, validated or logged"
    again, state = resumed(run, last, tmp_path / "longer", **long)
    assert again.record[0][:2] == first
    assert unmarked(again.record) == unmarked(run.record)[-len(unmarked(again.record)) :]
    assert differences(want, state) == []


class Bar(TQDMProgressBar):
    told: ClassVar[list[int]] = []

    def on_train_epoch_start(self, trainer: Any, *rest: Any) -> None:
        super().on_train_epoch_start(trainer, *rest)
        self.told.append(trainer.current_epoch)


def test_a_progress_bar_is_told_of_the_epoch_in_which_training_goes_on(tmp_path: Path) -> None:
    run = Run(callbacks=lambda: [Bar()], trainer={"enable_progress_bar": True, "max_epochs": 2})
    images = kept(run, tmp_path)[1]
    Bar.told.clear()
    resumed(run, images[8], tmp_path / "again")
    assert Bar.told == [1]


def test_a_run_without_an_agent_is_lightnings_own(tmp_path: Path) -> None:
    """The callback changes nothing of a run: not the order of samples, not a bit."""
    run, plain = Run(noise=True), Run(noise=True)
    train(run, tmp_path)
    torch.manual_seed(7)
    module = Net(plain)
    torch.manual_seed(8)
    Trainer(
        accelerator="cpu", max_epochs=3, log_every_n_steps=1, num_sanity_val_steps=1, logger=Written(plain), enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    ).fit(module, plain.make_loader())  # fmt: skip
    assert unmarked(run.record) == plain.record


def test_modelcheckpoint_beside_it_keeps_its_best(tmp_path: Path) -> None:
    """Its files are its own business; what it knows of them is part of the state."""
    directory = str(tmp_path / "files")
    run = Run(callbacks=partial(checkpoints, directory), trainer={"enable_checkpointing": True})
    want, images = kept(run, tmp_path)
    shutil.rmtree(directory)  # another machine
    again, state = resumed(run, images[9], tmp_path / "again")
    assert again.record == after(run.record, 9)
    assert differences(want["callbacks"], state["callbacks"]) == []


class Remembers(Net):
    """By the old hooks, and by an attribute that only they keep."""

    seen = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = {"batches": self.seen, "twice": torch.tensor([self.seen, self.seen])}
        checkpoint["state_dict"].pop("net.0.weight")  # smaller files, as people do; Holdfast saves it all the same

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen = checkpoint["seen"]["batches"]
        assert checkpoint["seen"]["twice"].tolist() == [self.seen, self.seen]
        assert checkpoint["global_step"] == self.trainer.global_step
        self.note("loaded", self.seen)


def test_what_hooks_add_is_kept_and_given_back(tmp_path: Path) -> None:
    run = Run(module=Remembers)
    want, images = kept(run, tmp_path)
    again, state = resumed(run, images[8], tmp_path / "again")
    assert again.record == [("loaded", 8), *after(run.record, 8)]
    assert differences(want, state) == []


def test_callbacks_that_are_gone_are_named_and_may_be_let_go(tmp_path: Path) -> None:
    run = Run(callbacks=lambda: [EarlyStopping("val_loss", patience=9)])
    _, images = kept(run, tmp_path)
    without = replace(run, callbacks=list)
    with pytest.raises(
        RestoreError,
        match=r"callbacks that the Trainer does not have: .*EarlyStopping.*HoldfastCallback\(allow=\(\"callbacks\",\)\)",
    ):
        resumed(without, images[8], tmp_path / "refused")
    again, _ = resumed(replace(without, holdfast={"allow": ("callbacks",)}), images[8], tmp_path / "allowed")
    assert ("boundary", 9) in again.record


def test_another_order_of_samples_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    run = Run()
    _, images = kept(run, tmp_path)
    other = replace(run, loader={"drop_last": True, "batch_size": 5})
    with pytest.raises(RestoreError, match="the order of samples in epoch 1 is not the one"):
        resumed(other, images[8], tmp_path / "refused")
    again, _ = resumed(replace(other, holdfast={"allow": ("sample-order",)}), images[8], tmp_path / "allowed")
    assert ("boundary", 9) in again.record


def test_an_epoch_that_another_number_of_ranks_has_begun_is_refused_and_between_two_epochs_any_number_goes_on(
    tmp_path: Path,
) -> None:
    """Two ranks that did the same stand for two. Inside an epoch Lightning would end it where the batches of both numbers together make one."""
    run = Run()
    _, images = kept(run, tmp_path)

    def by_one(boundary: int) -> Run:
        again = replace(run, record=[])
        image = rewritten(images[boundary], lambda state: state["parts"]["trainer"].update(ranks=2))
        with FakeAgent(tmp_path / f"from-{boundary}") as agent, agent.as_environment():
            agent.other_world = [image, image]
            train(again, tmp_path, seed=99)
        return again

    with pytest.raises(
        RestoreError,
        match=r"inside an epoch that 2 ranks have begun; 1 are here.*Go on with 2 ranks to the end of the epoch",
    ):
        by_one(EPOCH + 2)
    assert by_one(EPOCH).record == after(run.record, EPOCH)


def test_a_round_stops_training_at_a_boundary_and_it_goes_on_from_there(tmp_path: Path) -> None:
    run = Run(trainer={"max_epochs": 40, "val_check_interval": 0.5})
    want = train(run, tmp_path)
    told = Run(**{**vars(run), "record": []})
    with FakeAgent(tmp_path / "told") as agent, agent.as_environment():
        stopped = Thread(target=train, args=(told, tmp_path))
        stopped.start()
        agent.wait(
            lambda: (
                bool(agent.connections) and any(type(m).__name__ == "Passed" for m in agent.connections[0].messages)
            ),
            "steps",
        )
        target = agent.start_round(1, world=1)
        agent.await_round(1, world=1)
        image = keep(agent.images[0][target], tmp_path / "image")
        agent.open_gates(1)
        stopped.join()
    assert told.record == run.record, "who stopped for a while goes on as well"
    again, state = resumed(run, image, tmp_path / "again")
    assert again.record == after(run.record, target)
    assert differences(want, state) == []


def test_pytorch_lightning_is_the_same_by_its_other_name(tmp_path: Path) -> None:
    """In a process of its own: both names in one process are two frameworks."""
    script = (
        "from holdfast.integrations.lightning import HoldfastCallback\nimport pytorch_lightning as pl, torch\nfrom torch.utils.data import DataLoader\n"
        "class M(pl.LightningModule):\n"
        "    def __init__(self): super().__init__(); self.l = torch.nn.Linear(2, 1)\n"
        "    def training_step(self, b, i): return self.l(b).sum()\n"
        "    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 0.1)\n"
        "c = HoldfastCallback()\n"
        "t = pl.Trainer(accelerator='cpu', max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[c])\n"
        "t.fit(M(), DataLoader(torch.ones(6, 2), batch_size=2))\nprint('boundary', c.boundary)\n"
    )
    for text in (script, script.split("\n", 1)[1].replace("class M", script.split("\n", 1)[0] + "\nclass M", 1)):
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=tmp_path, timeout=240)
        assert "boundary 3" in done.stdout, done.stderr
