"""Handwritten digits with PyTorch Lightning: scikit-learn's data, dropout, a schedule, validation twice an epoch, early stopping.

    holdfast-agent run --local DIR -- python train.py

The lines that make it survive the loss of its machine are marked with (holdfast).
"""

import argparse
import hashlib
import json
import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holdfast.integrations.lightning import HoldfastCallback  # (holdfast)


class Digits(LightningModule):
    def __init__(self, width: int = 128, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        hidden = nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2)
        self.net = nn.Sequential(*hidden, nn.Linear(width, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y, samples = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        number = self.trainer.fit_loop.total_batch_idx + 1
        print(f"loss {number} {loss.item().hex()} {self.trainer.current_epoch} {samples.tolist()}", flush=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.97)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def digest(trainer: Trainer) -> str:
    """Of weights, optimizer and schedule."""
    total = hashlib.sha256()
    for tensor in trainer.lightning_module.state_dict().values():
        total.update(tensor.numpy().tobytes())
    for values in trainer.optimizers[0].state_dict()["state"].values():
        for key in sorted(values):
            total.update(values[key].numpy().tobytes())
    total.update(json.dumps(trainer.lr_scheduler_configs[0].scheduler.state_dict(), default=str).encode())
    return total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(1)
    torch.set_num_threads(1)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    train, validation = torch.arange(1500), torch.arange(1500, len(y))
    loader = DataLoader(TensorDataset(x[train], y[train], train), batch_size=64, shuffle=True)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=args.epochs,
        val_check_interval=0.5,
        callbacks=[EarlyStopping("val_loss", patience=100), HoldfastCallback()],  # (holdfast)
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), loader, DataLoader(TensorDataset(x[validation], y[validation], validation), batch_size=64))
    print(f"digest {digest(trainer)}", flush=True)


if __name__ == "__main__":
    main()
