"""Runs of Hugging Face's Trainer that write down everything that happens in them, for the tests of `attach`."""

import gc
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from holdfast.integrations.transformers import attach

SAMPLES = 22
TIMES = ("_runtime", "_per_second")
transformers.logging.set_verbosity_error()
gc.freeze()  # each `train` collects garbage, and what has been imported is none


class Numbers(Dataset):  # type: ignore[type-arg]
    """Samples that know their index. `input_ids` is there to be of different lengths."""

    def __init__(self, length: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(length, 6, generator=generator)
        self.y = torch.randint(3, (length,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.x[i], "labels": self.y[i], "sample": i, "input_ids": [0] * (1 + i * 7 % 10)}


class Endless(IterableDataset):  # type: ignore[type-arg]
    """Numbers, as a stream without a length."""

    def __init__(self, length: int = SAMPLES) -> None:
        self._data = Numbers(length)

    def __iter__(self) -> Iterator[Any]:
        return (self._data[i] for i in range(len(self._data)))


def collate(items: list[dict[str, Any]], noise: bool = False) -> dict[str, Any]:
    x = torch.stack([i["x"] for i in items])
    rest = {name: torch.tensor([i[name] for i in items]) for name in ("labels", "sample")}
    return {"x": x + torch.randn_like(x) / 8 if noise else x, **rest}


def noisy(items: list[dict[str, Any]]) -> dict[str, Any]:
    return collate(items, noise=True)


class Net(nn.Module):
    def __init__(self, run: "Run") -> None:
        super().__init__()
        self.run = run
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x: Any, labels: Any, sample: Any = None) -> dict[str, Any]:
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, labels)
        if self.training:
            self.run.note("batch", sample.tolist(), loss.item().hex())
        return {"loss": loss, "logits": logits}


class Recorder(TrainerCallback):
    def __init__(self, run: "Run") -> None:
        self._run = run

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._run.note("step", state.global_step, state.epoch, state.num_input_tokens_seen)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._run.note("log", state.global_step, timeless(logs))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self._run.note("evaluation", state.global_step, timeless(metrics))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._run.note("save", state.global_step, state.best_metric, state.best_global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._run.note("epoch ends", state.epoch)


class Kind(Trainer):
    """With the loader of the run."""

    run: "Run"

    def get_train_dataloader(self) -> Any:
        made = self.run.loader
        return super().get_train_dataloader() if made is None else made(self)


@dataclass
class Run:
    """What is varied. `record` is what happened, in order."""

    args: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: Any = list
    """Makes the other callbacks."""
    loader: Any = None
    """Makes the training loader; None: the Trainer does."""
    data: Any = Numbers
    collator: Any = collate
    model_init: bool = False
    kind: Any = Kind
    model: Any = Net
    holdfast: dict[str, Any] = field(default_factory=dict)
    record: list[Any] = field(default_factory=list)

    def note(self, *what: Any) -> None:
        self.record.append(what)


class Stop(Exception):
    """The process is gone."""


def make(run: Run, directory: Path, seed: int = 7, **args: Any) -> Trainer:
    given: dict[str, Any] = {
        "output_dir": str(directory / "output"), "num_train_epochs": 3, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
        "learning_rate": 0.02, "lr_scheduler_type": "cosine", "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "data_seed": 5, "seed": seed, **run.args, **args,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = {"model_init": lambda: run.model(run)} if run.model_init else {"model": run.model(run)}
    trainer: Any = run.kind(
        args=TrainingArguments(**given),
        data_collator=run.collator,
        train_dataset=run.data(),
        eval_dataset=Numbers(7),
        callbacks=[*run.callbacks(), Recorder(run)],
        **model,
        **run.trainer,
    )
    trainer.run = run
    return trainer  # type: ignore[no-any-return]


def train(run: Run, directory: Path, *, die_after: int = -1, seed: int = 7, **args: Any) -> dict[str, Any]:
    """Trains to the end, or dies. What everything was at the end; `run.record` says the rest."""
    trainer: Any = make(run, directory, seed, **args)
    attach(trainer, **run.holdfast)
    pass_boundary = trainer._holdfast._pass_boundary

    def marked(given: Any) -> None:
        pass_boundary(given)
        run.note("boundary", trainer._holdfast._ckpt.boundary)
        if trainer._holdfast._ckpt.boundary == die_after:
            raise Stop

    trainer._holdfast._pass_boundary = marked
    try:
        result = trainer.train()
    except Stop:
        return {}
    return state_of(trainer) | {"result": [result.global_step, result.training_loss, timeless(result.metrics)]}


def timeless(logs: Any) -> dict[str, Any]:
    return {k: v for k, v in logs.items() if not k.endswith(TIMES)}


def state_of(trainer: Any) -> dict[str, Any]:
    state = trainer.state
    kept = ("epoch", "global_step", "num_input_tokens_seen", "total_flos", "best_metric", "best_global_step")
    _, keys, *rest = numpy.random.get_state()
    return {
        "model": dict(trainer.model.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "state": {n: getattr(state, n) for n in kept},
        "history": [timeless(entry) for entry in state.log_history],
        "control": trainer.control.state(),
        "callbacks": [c.state() for c in trainer.callback_handler.callbacks if hasattr(c, "state")],
        "random": [torch.get_rng_state(), list(random.getstate()[1]), keys.tolist(), rest],
    }


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two states differ, bit by bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
        return [] if same else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{path}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [d for k in one for d in differences(one[k], other[k], f"{path}.{k}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{path}.{i}")]
    same = one == other or repr(one) == repr(other) == "nan"  # a scaler's search ends in one now and then
    return [] if same else [f"{path}: {one} {other}"]


def after(record: list[Any], boundary: int) -> list[Any]:
    """What happened after a boundary was passed."""
    return record[record.index(("boundary", boundary)) + 1 :]


def stateful_loader(trainer: Any) -> Any:
    """torchdata's, which keeps its own place."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(trainer.train_dataset, batch_size=4, shuffle=True, collate_fn=trainer.data_collator)


def plain_loader(trainer: Any) -> Any:
    """One that Accelerate has not prepared, with a generator of its own."""
    generator = torch.Generator().manual_seed(4)
    return DataLoader(
        trainer.train_dataset, batch_size=4, shuffle=True, generator=generator, collate_fn=trainer.data_collator
    )
