"""Handwritten digits with Hugging Face Accelerate: scikit-learn's data, accumulation, dropout, a schedule.

    holdfast-agent run --local DIR -- python train.py

The lines that make it survive the loss of its machine are marked with (holdfast).
"""

import argparse
import hashlib

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from holdfast.integrations.accelerate import Checkpointer  # (holdfast)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
    loader = DataLoader(data, batch_size=64, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.9)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    ckpt = Checkpointer(accelerator, model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)  # (holdfast)
    print(f"starts at boundary {ckpt.restore()}", flush=True)  # (holdfast)
    for x, y in ckpt.batches(loader, epochs=args.epochs):  # (holdfast)
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        print(f"loss {ckpt.boundary + 1} {loss.item().hex()}", flush=True)
        ckpt.step(loss=loss)  # (holdfast)
    total = hashlib.sha256()
    for tensor in accelerator.unwrap_model(model).state_dict().values():
        total.update(tensor.numpy().tobytes())
    print(f"digest {total.hexdigest()}", flush=True)
    ckpt.finish()  # (holdfast)


if __name__ == "__main__":
    main()
