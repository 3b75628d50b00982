"""One rank of a DistributedDataParallel run under Lightning: writes what it does, line by line. Arguments: the number of ranks, the directory to write to."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from holdfast.integrations.lightning import HoldfastCallback


class Numbers(Dataset):  # type: ignore[type-arg]
    def __init__(self, length: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x, self.y = torch.randn(length, 6, generator=generator), torch.randint(3, (length,), generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i], i


class Net(LightningModule):
    def __init__(self, written: Path) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
        self.written = written.open("a")

    def note(self, **what: Any) -> None:
        print(json.dumps(what), file=self.written, flush=True)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y, samples = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        self.note(
            step=self.trainer.fit_loop.total_batch_idx + 1,
            loss=loss.item().hex(),
            samples=samples.tolist(),
            epoch=self.trainer.current_epoch,
        )
        return loss

    def on_train_epoch_end(self) -> None:
        self.note(epoch_ends=self.trainer.current_epoch, loss=float(self.trainer.callback_metrics["loss"]).hex())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.9), "interval": "step"}
        ]


def main() -> None:
    ranks, directory = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(3)
    rank = int(os.environ["RANK"])
    trainer = Trainer(
        accelerator="cpu", strategy="ddp", devices=ranks, max_epochs=12, accumulate_grad_batches=2, val_check_interval=0.5, log_every_n_steps=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[HoldfastCallback()],
    )  # fmt: skip
    module = Net(directory / f"rank-{rank}")
    torch.manual_seed(100 + rank)  # dropout differs on each
    trainer.fit(module, DataLoader(Numbers(53), batch_size=2, shuffle=True), DataLoader(Numbers(9), batch_size=2))
    total = hashlib.sha256()
    for tensor in module.state_dict().values():
        total.update(tensor.numpy().tobytes())
    module.note(digest=total.hexdigest())
    torch.distributed.barrier()  # gloo ends a process whose peer is gone with an abort, now and then
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
