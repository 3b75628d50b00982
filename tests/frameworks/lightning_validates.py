"""A run under Lightning whose validation takes long, and says when it begins. Arguments: seconds of a validation; `before`: save what comes before it."""

import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from holdfast.integrations.lightning import HoldfastCallback

SECONDS, BEFORE = float(sys.argv[1]), sys.argv[2:] == ["before"]


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.net(batch[0]).square().mean()
        print(f"loss {self.trainer.fit_loop.total_batch_idx + 1} {loss.item().hex()}", flush=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            print(f"validation {self.trainer.fit_loop.total_batch_idx + 1}", flush=True)
        time.sleep(0 if self.trainer.sanity_checking else SECONDS / 2)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    data = DataLoader(TensorDataset(torch.randn(40, 4)), batch_size=2, shuffle=True)
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, val_check_interval=7, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[HoldfastCallback(save_before_validation=BEFORE)],
    )  # fmt: skip
    trainer.fit(Net(), data, DataLoader(TensorDataset(torch.randn(4, 4)), batch_size=2))
    print("digest", flush=True)


if __name__ == "__main__":
    main()
