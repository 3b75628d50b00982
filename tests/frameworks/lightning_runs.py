"""Runs of Lightning's Trainer that write down everything that happens in them, for the tests of the callback."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric

from holdfast.integrations.lightning import HoldfastCallback

SAMPLES = 22
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Numbers(Dataset):  # type: ignore[type-arg]
    """Samples that know their index; `noise` is drawn when they are read."""

    def __init__(self, length: int = SAMPLES, noise: bool = False) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(length, 6, generator=generator)
        self.y = torch.randint(3, (length,), generator=generator)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i] + (torch.randn(6) / 8 if self.noise else 0), self.y[i], i


class Placed(DataLoader):  # type: ignore[type-arg]
    """Keeps its place by itself, as torchdata's does: the batches handed out, and in which order the samples come."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.place, self.order, self.resumes = 0, [], False

    def __iter__(self) -> Any:
        if not self.resumes:
            self.place, self.order = 0, torch.randperm(len(self.dataset)).tolist()  # type: ignore[arg-type]
        self.resumes = False
        while (at := self.place * 4) < len(self.order):
            self.place += 1
            yield torch.utils.data.default_collate([self.dataset[i] for i in self.order[at : at + 4]])

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "order": list(self.order)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.order = state["place"], state["order"]
        self.resumes = True


@dataclass
class Run:
    """What is varied. `record` is what happened, in order."""

    trainer: dict[str, Any] = field(default_factory=dict)
    loader: dict[str, Any] = field(default_factory=dict)
    callbacks: Any = list
    """Makes the other callbacks."""
    kind: Any = DataLoader
    noise: bool = False
    several: str = ""
    """The mode of two loaders in one."""
    manual: bool = False
    schedule: str = "step"
    datamodule: bool = False
    module: Any = None
    """The class of the module."""
    shuffled_validation: bool = False
    """By a generator of the loader's own."""
    holdfast: dict[str, Any] = field(default_factory=dict)
    record: list[Any] = field(default_factory=list)

    def make_loader(self) -> Any:
        loader = self.kind(Numbers(noise=self.noise), **{"batch_size": 4, "shuffle": True, **self.loader})
        if not self.several:
            return loader
        short = DataLoader(Numbers(10), batch_size=4, shuffle=True)
        return CombinedLoader({"long": loader, "short": short}, self.several)


class Net(LightningModule):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.mean = MeanMetric()
        self.automatic_optimization = not run.manual

    def note(self, *what: Any) -> None:
        self.run.record.append(what)

    def loss_of(self, batch: Any) -> torch.Tensor:
        x, y, _ = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        batches = [b for b in batch.values() if b is not None] if isinstance(batch, dict) else [batch]
        loss = torch.stack([self.loss_of(b) for b in batches]).sum()
        self.mean.update(loss.detach())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("highest", loss.detach(), on_step=False, on_epoch=True, reduce_fx="max")
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        if self.run.manual:
            self.step_by_hand(loss, batch_idx)
        seen = [b[2].tolist() for b in batches]
        self.note("step", self.trainer.current_epoch, batch_idx, self.trainer.global_step, loss.item().hex(), seen)
        return loss

    def step_by_hand(self, loss: torch.Tensor, batch_idx: int) -> None:
        """The second optimizer steps each third time, with what has come together until then."""
        one, other = self.optimizers()
        one.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(one, 0.5, "norm")
        one.step()
        if self.trainer.fit_loop.total_batch_idx % 3 == 2:
            other.step()
            other.zero_grad()
        self.lr_schedulers().step()

    def on_train_epoch_start(self) -> None:
        self.note("epoch starts", self.trainer.current_epoch)

    def on_train_epoch_end(self) -> None:
        self.note("epoch ends", self.trainer.current_epoch, logged(self.trainer))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss_of(batch))

    def on_validation_epoch_end(self) -> None:
        self.note(
            "sanity" if self.trainer.sanity_checking else "validation", self.trainer.global_step, logged(self.trainer)
        )

    def configure_optimizers(self) -> Any:
        if self.run.manual:
            one = torch.optim.SGD(self.net[0].parameters(), lr=0.05, momentum=0.9)
            other = torch.optim.AdamW([*self.net[1].parameters(), *self.net[4].parameters()], lr=0.02)
            return [one, other], [torch.optim.lr_scheduler.StepLR(one, 2, gamma=0.9)]
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        if self.run.schedule == "step":
            scheduler: Any = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.9), "interval": "step"}
        else:  # of the kind that looks at a metric
            kind = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.1, factor=0.7)
            scheduler = {
                "scheduler": kind,
                "interval": self.run.schedule.partition(" ")[2],
                "monitor": "loss_epoch",
                "strict": False,
            }
            if "step" in self.run.schedule:
                scheduler["monitor"] = "val_loss"
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def val_dataloader(self) -> Any:
        if self.run.shuffled_validation:
            return DataLoader(Numbers(7), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))
        return DataLoader(Numbers(7), batch_size=4)


class Data(LightningDataModule):
    """With a state: how often it was asked for a loader, over all starts."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run, self.started = run, 0

    def train_dataloader(self) -> Any:
        return self._run.make_loader()

    def val_dataloader(self) -> Any:
        return DataLoader(Numbers(7), batch_size=4)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.started += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.started = state["batches"]


class Written(DummyLogger):
    """Writes what Lightning logs into the record."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._run.record.append(("log", step, {k: float(v).hex() for k, v in sorted(metrics.items())}))


class Stop(Exception):
    """The process is gone."""


class Marked(HoldfastCallback):
    """Marks boundaries in the record, and dies after one of them."""

    def __init__(self, run: Run, die_after: int, **given: Any) -> None:
        super().__init__(**given)
        self._run, self._die_after = run, die_after

    def _pass_boundary(self) -> None:
        super()._pass_boundary()
        self._run.record.append(("boundary", self.boundary))
        if self.boundary == self._die_after:
            raise Stop


def logged(trainer: Trainer) -> dict[str, str]:
    return {k: float(v).hex() for k, v in sorted(trainer.callback_metrics.items())}


def train(run: Run, directory: Path, *, die_after: int = -1, seed: int = 7, **trainer: Any) -> dict[str, Any]:
    """Trains to the end, or dies. What everything was at the end; `run.record` says the rest."""
    torch.manual_seed(seed)
    module = (run.module or Net)(run)
    torch.manual_seed(seed + 1)
    callback = Marked(run, die_after, **run.holdfast)
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
    }
    settings = {
        "max_epochs": 3,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 1,
        "default_root_dir": directory,
        **quiet,
        **run.trainer,
        **trainer,
    }
    made = Trainer(callbacks=[*run.callbacks(), callback], logger=Written(run), **settings)
    try:
        if run.datamodule:
            made.fit(module, datamodule=Data(run))
        else:
            made.fit(module, run.make_loader())
    except Stop:
        return {}
    return state_of(made)


def state_of(trainer: Trainer) -> dict[str, Any]:
    return {
        "model": trainer.lightning_module.state_dict(),
        "optimizers": [o.state_dict() for o in trainer.optimizers],
        "schedulers": [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
        "callbacks": {c.state_key: c.state_dict() for c in trainer.callbacks},
        "data": trainer.datamodule.state_dict() if getattr(trainer, "datamodule", None) else {},
        "progress": trainer.fit_loop.state_dict(),
        "metrics": logged(trainer),
        "random": torch.get_rng_state(),
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
    return [] if one == other else [f"{path}: {one} {other}"]


def after(record: list[Any], boundary: int) -> list[Any]:
    """What happened after a boundary was passed."""
    return record[record.index(("boundary", boundary)) + 1 :]
