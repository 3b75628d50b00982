"""A training script as a user writes it for a job that changes its size: DistributedDataParallel on gloo, a global batch that stays the same, float64, so that
what differs is rounding. Writes for each update what this rank trained on, and at the end the weights."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import holdfast

SAMPLES, BATCH, AT_MOST = 320, 16, 3
"""At most 3 at once: 2 ranks take 4 micro-batches of 2 samples, one rank 8."""
STANDS_AT = {1: 5, 2: 9}
"""The boundary at which an attempt waits to be ended, in the forward of the next update."""


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8)).double()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def data() -> TensorDataset:
    return TensorDataset(torch.arange(SAMPLES), torch.arange(SAMPLES * 8.0).reshape(SAMPLES, 8).sin().double())


def main() -> None:
    root = Path(sys.argv[1])
    rank, world, attempt = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE", "HOLDFAST_ATTEMPT"))
    # Not by a port: runs of other tests, on the same machine, have the same.
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{root}/ranks-{attempt}", rank=rank, world_size=world
    )
    share = holdfast.batch_share(at_most=AT_MOST)
    model, optimizer = model_and_optimizer()
    ddp = DistributedDataParallel(model)
    loader = DataLoader(data(), batch_size=share.batch, sampler=DistributedSampler(data(), seed=1))
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader)
    first = ckpt.restore()
    page = (root / f"updates-{attempt}-{rank}.jsonl").open("w")
    samples: list[int] = []
    for micro, (index, x) in enumerate(ckpt.batches(loader, epochs=1), 1):
        samples += index.tolist()
        last = micro % share.accumulate == 0
        with contextlib.nullcontext() if last else ddp.no_sync():
            ((ddp(x) - x).square().mean() / share.accumulate).backward()
        if not last:
            continue
        optimizer.step()
        optimizer.zero_grad()
        line = {"boundary": ckpt.boundary + 1, "samples": samples, "first": first, "world": world, "batch": share.batch}
        page.write(json.dumps(line) + "\n")
        page.flush()
        samples = []
        ckpt.step()  # once for each update: an open window of gradients is no state of another number of ranks
        while ckpt.boundary == STANDS_AT.get(attempt):
            time.sleep(0.05)
    if not rank:
        torch.save(model.state_dict(), root / "weights.pt")
    ckpt.finish()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
