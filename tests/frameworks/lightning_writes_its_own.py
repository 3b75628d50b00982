"""Plain Lightning that keeps its own files and knows nothing of Holdfast: `ModelCheckpoint` at the end of each epoch, resumed from the newest file that lies
there. Arguments: the directory, the number of epochs. Without shuffling and dropout Lightning's own files are exact at the end of an epoch."""

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

OUT, EPOCHS = Path(sys.argv[1]), int(sys.argv[2])


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(0.01)
        return (self.net(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()

    def on_train_epoch_start(self) -> None:
        print(f"epoch {self.trainer.current_epoch}", flush=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    data = DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=4)
    net = Net()
    newest = max(OUT.glob("epoch-*.ckpt"), key=lambda p: int(p.stem.split("-")[1]), default=None)
    print(f"from {newest.name if newest else 'nothing'}", flush=True)
    trainer = Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(dirpath=OUT, filename="epoch-{epoch}", auto_insert_metric_name=False, save_top_k=-1)],
    )  # fmt: skip
    trainer.fit(net, data, ckpt_path=newest)
    total = hashlib.sha256()
    for tensor in [*net.state_dict().values(), *(v for s in trainer.optimizers[0].state.values() for v in s.values())]:
        total.update(tensor.numpy().tobytes())
    print(f"digest {total.hexdigest()}", flush=True)


if __name__ == "__main__":
    main()
