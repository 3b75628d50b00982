"""A training script as a user writes it: FSDP2 over however many ranks there are. Writes what it was given, what it had at each boundary and what it ends with,
as digests of whole tensors; the samples that this rank trained on."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import holdfast

SAMPLES = 97
HOLD = 7777
"""As the boundary to stop at: stands still after the first step, until it is killed."""


def digests(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    called = {id(p): n for n, p in model.named_parameters()}
    found: dict[str, Any] = dict(model.state_dict())
    found |= {f"{called[id(p)]}/{k}": v for p, values in optimizer.state.items() for k, v in values.items()}
    whole = {n: (t.full_tensor() if hasattr(t, "full_tensor") else t) for n, t in found.items()}
    return {n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in whole.items()}


def main() -> None:
    out, stop = Path(sys.argv[1]), int(sys.argv[2])
    # Not by a port: runs of other tests, on the same machine, have the same.
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=world)
    torch.manual_seed(3 + stop)
    model = nn.Sequential(nn.Linear(8, 301), nn.Tanh(), nn.Linear(301, 512), nn.Linear(512, 3), nn.Linear(3, 8))
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))  # not on a GPU that happens to be there
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = TensorDataset(torch.arange(SAMPLES), torch.arange(SAMPLES * 8.0).reshape(SAMPLES, 8).sin())
    loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, seed=1))
    ckpt = holdfast.Checkpointer(model=model, optimizer=optimizer, loader=loader)
    first = ckpt.restore()
    given = digests(model, optimizer)
    samples = []
    for index, x in ckpt.batches(loader, epochs=1):
        samples += index.tolist()
        (model(x) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        had = {"first": first, "given": given, "had": digests(model, optimizer), "samples": samples}
        (out / f"{os.environ['RANK']}-at-{ckpt.boundary + 1}.json").write_text(json.dumps(had))
        ckpt.step()
        if stop == HOLD:
            time.sleep(3600)
        if ckpt.boundary == stop:
            break
    ended = digests(model, optimizer)
    ckpt.finish()
    result = {"first": first, "given": given, "ended": ended, "samples": samples, "boundary": ckpt.boundary}
    (out / f"{os.environ['RANK']}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
