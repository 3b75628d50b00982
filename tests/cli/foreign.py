"""A small model with everything that conversions stumble over, and a store that holds a checkpoint of it made by the library itself."""

import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typer.testing import CliRunner, Result

from holdfast.module_part import ModulePart
from holdfast.optimizer_part import OptimizerPart
from holdfast.part import Leaves
from holdfast.snapshot import SlotWriter, SnapshotPlan, document_bytes
from holdfast.state import SCHEMA, Captured
from holdfast.stateful_part import StatefulPart
from holdfast_api.manifest import Progress
from holdfast_cli.__main__ import app
from holdfast_store.adopt import Foreign, adopt
from holdfast_store.bucket import Bucket
from holdfast_store.file import FileBucket
from holdfast_store.job import JobStore

JOB = ["--namespace", "local", "--job", "run"]
CHUNK = 64 << 10


class Net(nn.Module):
    """Tied weights, a buffer, a scalar, 16-bit and whole numbers, something empty."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.out = nn.Embedding(300, 64), nn.Linear(64, 300, bias=False)
        self.hidden, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(64)
        self.out.weight = self.embed.weight
        self.halves = nn.Parameter(torch.randn(33).bfloat16())
        self.register_buffer("nothing", torch.empty(0, 3))
        self.register_buffer("mask", torch.full((4,), -torch.inf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.norm(self.hidden(self.embed(x))))) + self.halves.float().sum()


def trained(seed: int = 1, steps: int = 3) -> tuple[Net, torch.optim.Optimizer, Any]:
    model = Net(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for n in range(steps):
        loss = model(torch.arange(n, n + 40)).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model, optimizer, scheduler


def stored(
    directory: Path, uid: str = "uid-1", seed: int = 1, into: Bucket | None = None
) -> tuple[Net, torch.optim.Optimizer, Any]:
    """The job `local/run` with one checkpoint, in the directory `bucket` or `into` a bucket."""
    model, optimizer, scheduler = trained(seed)
    leaves = Leaves()
    parts = {
        "model": ModulePart("model", model).capture(leaves),
        "optimizer": OptimizerPart("optimizer", optimizer).capture(leaves) | {"orphans": []},
        "scheduler": StatefulPart("scheduler", scheduler).capture(leaves),
    }
    for name in [n for n in leaves.tensors if ".orphan." in n]:
        del leaves.tensors[name], leaves.tiers[name]
    document = {
        "schema": SCHEMA,
        "progress": {"boundary": 3, "updates": 3},
        "parts": parts,
        "gradients": {},
        "rng": {},
        "positions": {},
    }
    captured = Captured(document, leaves)
    plan = SnapshotPlan.of(1, captured, CHUNK)
    image = directory / "image"
    with image.open("w+b") as file, ThreadPoolExecutor(1) as pool:
        file.truncate(plan.layout.image_bytes)
        SlotWriter(plan, mmap.mmap(file.fileno(), plan.layout.image_bytes)).write(
            leaves.tensors, document_bytes(document), pool
        )
    state = document_bytes(document).ljust(plan.layout.state_bytes)
    foreign = Foreign(
        image, plan.layout.image_bytes, CHUNK, plan.layout.entries, plan.layout.state_offset, (state,), Progress(3, 3)
    )
    bucket = directory / "bucket"
    bucket.mkdir(exist_ok=True)
    adopt(JobStore(into or FileBucket(bucket), "local", "run", uid), foreign, {})
    image.unlink()
    return model, optimizer, scheduler


def call(verb: str, bucket: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [verb, bucket.as_uri(), *JOB, *map(str, arguments)])


def same(one: Any, other: Any) -> bool:
    """Bit by bit, through containers."""
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or one.dtype != other.dtype or one.shape != other.shape:
            return False
        return (
            one.detach()
            .contiguous()
            .flatten()
            .view(torch.uint8)
            .equal(other.detach().contiguous().flatten().view(torch.uint8))
            if one.numel()
            else True
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
